"""The precision operator, and its factor, against dense inverses."""

import numpy as np
import oracles
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from family import MEMBERS, ONE_OF_EACH, as_dense, cast, random_parameters

one_of_each = pytest.mark.parametrize("name", ONE_OF_EACH)


def precision_and_matrix(name, size):
    case = MEMBERS[name]
    parameters = random_parameters(case, (3,), size)
    operator = case.distribution(*parameters).precision()
    return operator, np.linalg.inv(as_dense(case, parameters, size).covariance)


@one_of_each
@pytest.mark.parametrize("size", [1, 2, 17])
def test_agrees_with_dense(size, name):
    """The precision, its factor, the covariance, and products of factors with their adjoints."""
    operator, matrix = precision_and_matrix(name, size)
    x = np.random.default_rng(0).normal(size=(3, size, 4))
    inverse, lower = np.linalg.inv(matrix), np.linalg.cholesky(matrix)
    factor, covariance, root = operator.cholesky(), operator.inverse(), operator.scale
    assert isinstance(operator, tf.linalg.LinearOperatorTridiag)
    for key, linear, dense in (
        ("precision", operator, matrix),
        ("factor", factor, lower),
        ("covariance", covariance, inverse),
    ):
        adjoint, solution = np.swapaxes(dense, -1, -2), np.linalg.inv(dense)
        rows, log_det = np.swapaxes(x, -1, -2), np.linalg.slogdet(dense)[1]
        assert linear.shape == dense.shape
        for what, actual, desired, ndims in (
            ("to_dense", linear.to_dense(), dense, 2),
            ("diag_part", linear.diag_part(), np.diagonal(dense, axis1=-2, axis2=-1), 1),
            ("trace", linear.trace(), np.trace(dense, axis1=-2, axis2=-1), 0),
            ("matmul", linear.matmul(x), dense @ x, 2),
            ("adjoint", linear.matmul(x, adjoint=True), adjoint @ x, 2),
            ("adjoint_arg", linear.matmul(rows, adjoint_arg=True), dense @ x, 2),
            ("matvec", linear.matvec(x[..., 0]), (dense @ x)[..., 0], 1),
            ("solve", linear.solve(x), solution @ x, 2),
            ("solve, adjoint", linear.solve(x, adjoint=True), np.linalg.inv(adjoint) @ x, 2),
            ("solvevec", linear.solvevec(x[..., 0]), (solution @ x)[..., 0], 1),
            ("log det", linear.log_abs_determinant(), log_det, 0),
        ):
            oracles.assert_close(actual, desired, event_ndims=ndims, err_msg=f"{key}, {what}")
        np.testing.assert_allclose(linear.determinant(), np.linalg.det(dense), rtol=1e-9)
    for product, dense in ((factor @ factor.adjoint(), matrix), (root @ root.adjoint(), inverse)):
        oracles.assert_close(product.to_dense(), dense, event_ndims=2)


@one_of_each
def test_factors_form_no_matrix(name):
    """Nor does TFP's normal by the factor of the precision, at 100,000 coordinates."""
    size = 100_000
    p = MEMBERS[name].distribution(*cast(random_parameters(MEMBERS[name], (), size), "float32"))
    precision, x = p.precision(), p.sample(2, seed=[1, 2])
    factor, root = precision.cholesky(), p.scale
    normal = tfp.experimental.distributions.MultivariateNormalPrecisionFactorLinearOperator(
        p.loc, precision_factor=factor, precision=precision
    )
    np.testing.assert_allclose(normal.log_prob(x), p.log_prob(x), rtol=1e-4)
    np.testing.assert_allclose(normal.stddev(), p.stddev(), rtol=1e-5)
    np.testing.assert_allclose(normal.entropy(), p.entropy(), rtol=1e-5)
    assert np.all(np.isfinite(normal.sample(seed=[1, 2])))
    product = factor @ factor.adjoint()
    covariance = root @ root.adjoint()
    np.testing.assert_allclose(product.log_abs_determinant(), -covariance.log_abs_determinant())
    assert product.cholesky().shape == covariance.cholesky().shape
    np.testing.assert_allclose(covariance.diag_part(), p.variance(), rtol=1e-5)
    np.testing.assert_allclose(
        factor.solvevec(factor.matvec(x)), x, atol=1e-3 * float(tf.reduce_max(abs(x)))
    )


@pytest.mark.parametrize("name", ["AR1", "ANTE1"])
def test_passes_through_functions_and_slicing(name):
    operator, matrix = precision_and_matrix(name, 5)
    x = np.ones(5)
    oracles.assert_close(tf.function(lambda o: o.matvec(x))(operator), matrix @ x, event_ndims=1)
    oracles.assert_close(operator[0].to_dense(), matrix[0], event_ndims=2)
    for part, dense in (
        (operator.cholesky(), np.linalg.cholesky(matrix)),
        (operator.inverse(), np.linalg.inv(matrix)),
    ):
        oracles.assert_close(tf.function(lambda o: o.matvec(x))(part), dense @ x, event_ndims=1)
        oracles.assert_close(part[0].to_dense(), dense[0], event_ndims=2)
