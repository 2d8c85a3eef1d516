"""The precision operator, and its factor, against dense inverses."""

import numpy as np
import oracles
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from family import MEMBERS, ONE_OF_EACH, as_dense, cast, random_parameters

from tfp_ar1 import MultivariateNormalAR1

one_of_each = pytest.mark.parametrize("name", ONE_OF_EACH)


def precision_and_matrix(name, size):
    case = MEMBERS[name]
    parameters = random_parameters(case, (3,), size)
    operator = case.distribution(*parameters).precision()
    return operator, np.linalg.inv(as_dense(case, parameters, size).covariance)


@one_of_each
@pytest.mark.parametrize("size", [1, 2, 17])
def test_agrees_with_the_inverse_of_the_covariance(size, name):
    operator, matrix = precision_and_matrix(name, size)
    x = np.random.default_rng(0).normal(size=(3, size, 4))
    rows = np.swapaxes(x, -1, -2)
    assert isinstance(operator, tf.linalg.LinearOperatorTridiag)
    assert operator.shape == matrix.shape
    for name, actual, desired, ndims in (
        ("to_dense", operator.to_dense(), matrix, 2),
        ("diag_part", operator.diag_part(), np.diagonal(matrix, axis1=-2, axis2=-1), 1),
        ("trace", operator.trace(), np.trace(matrix, axis1=-2, axis2=-1), 0),
        ("matmul", operator.matmul(x), matrix @ x, 2),
        ("matmul, adjoint_arg", operator.matmul(rows, adjoint_arg=True), matrix @ x, 2),
        ("matvec", operator.matvec(x[..., 0]), (matrix @ x)[..., 0], 1),
        ("solve", operator.solve(x), np.linalg.inv(matrix) @ x, 2),
        ("solve, adjoint", operator.solve(x, adjoint=True), np.linalg.inv(matrix) @ x, 2),
        ("log det", operator.log_abs_determinant(), np.linalg.slogdet(matrix)[1], 0),
        ("cholesky", operator.cholesky().to_dense(), np.linalg.cholesky(matrix), 2),
        ("inverse", operator.inverse().matmul(x), np.linalg.inv(matrix) @ x, 2),
    ):
        oracles.assert_close(actual, desired, event_ndims=ndims, err_msg=name)
    np.testing.assert_allclose(operator.determinant(), np.linalg.det(matrix), rtol=1e-9)


@one_of_each
@pytest.mark.parametrize("size", [1, 2, 17])
def test_factors_agree_with_dense_ones(size, name):
    """Of the precision and of the covariance, and their products with their adjoints."""
    operator, matrix = precision_and_matrix(name, size)
    x = np.random.default_rng(0).normal(size=(3, size, 4))
    rows = np.swapaxes(x, -1, -2)
    factor, dense, covariance = operator.cholesky(), np.linalg.cholesky(matrix), operator.inverse()
    transposed, root = np.swapaxes(dense, -1, -2), operator.scale
    for what, actual, desired, ndims in (
        ("matmul", factor.matmul(x), dense @ x, 2),
        ("matmul, adjoint", factor.matmul(x, adjoint=True), transposed @ x, 2),
        ("matmul, adjoint_arg", factor.matmul(rows, adjoint_arg=True), dense @ x, 2),
        ("solve", factor.solve(x), np.linalg.inv(dense) @ x, 2),
        ("solve, adjoint", factor.solve(x, adjoint=True), np.linalg.inv(transposed) @ x, 2),
        ("solvevec", factor.solvevec(x[..., 0]), (np.linalg.inv(dense) @ x)[..., 0], 1),
        ("diag_part", factor.diag_part(), np.diagonal(dense, axis1=-2, axis2=-1), 1),
        ("log det", factor.log_abs_determinant(), np.linalg.slogdet(dense)[1], 0),
        ("determinant", factor.determinant(), np.linalg.det(dense), 0),
        ("K Kᵀ", (factor @ factor.adjoint()).to_dense(), matrix, 2),
        ("covariance", covariance.to_dense(), np.linalg.inv(matrix), 2),
        ("L Lᵀ", (root @ root.adjoint()).to_dense(), np.linalg.inv(matrix), 2),
        ("its solve", covariance.solve(x), matrix @ x, 2),
        (
            "its diagonal",
            covariance.diag_part(),
            np.diagonal(np.linalg.inv(matrix), axis1=-2, axis2=-1),
            1,
        ),
        ("its trace", covariance.trace(), np.trace(np.linalg.inv(matrix), axis1=-2, axis2=-1), 0),
    ):
        oracles.assert_close(actual, desired, event_ndims=ndims, err_msg=what)


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


@one_of_each
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


def test_a_million_rows():
    operator = MultivariateNormalAR1(tf.zeros(10**6), correlation=0.9).precision()
    x = tf.ones(10**6)
    # Any d × d matrix would need 4 TB.
    assert np.isfinite(operator.log_abs_determinant())
    np.testing.assert_allclose(operator.solvevec(operator.matvec(x)), x, rtol=1e-4)
