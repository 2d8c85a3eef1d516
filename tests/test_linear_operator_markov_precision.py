"""The precision operator against dense inverses."""

import numpy as np
import oracles
import pytest
import tensorflow as tf
from family import RELATIVES, as_dense, random_parameters

import tfp_ar1
from tfp_ar1.linear_operator_markov_precision import LinearOperatorMarkovPrecision

SCALE, CORRELATION = np.array([[0.5], [2.0]]), np.array([0.3, -0.9, 0.99])


def precision_and_matrix(size):
    operator = LinearOperatorMarkovPrecision(
        tfp_ar1.LinearOperatorAR1Cholesky(size, CORRELATION, SCALE)
    )
    return operator, np.linalg.inv(oracles.ar1_covariance(SCALE, CORRELATION, size))


def precision_and_matrix_of_relative(name, size):
    case = RELATIVES[name]
    parameters = random_parameters(case, (3,), size)
    operator = case.distribution(*parameters).precision()
    return operator, np.linalg.inv(as_dense(case, parameters, size).covariance)


@pytest.mark.parametrize("name", ["AR1", *RELATIVES])
@pytest.mark.parametrize("size", [1, 2, 3, 17])
def test_agrees_with_the_inverse_of_the_covariance(size, name):
    if name == "AR1":
        operator, matrix = precision_and_matrix(size)
    else:
        operator, matrix = precision_and_matrix_of_relative(name, size)
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


@pytest.mark.parametrize("name", ["AR1", "ARH1", "ANTE1", "OU"])
def test_passes_through_functions_and_slicing(name):
    if name == "AR1":
        operator, matrix = precision_and_matrix(5)
    else:
        operator, matrix = precision_and_matrix_of_relative(name, 5)
    x = np.ones(5)
    oracles.assert_close(tf.function(lambda o: o.matvec(x))(operator), matrix @ x, event_ndims=1)
    oracles.assert_close(operator[0].to_dense(), matrix[0], event_ndims=2)


def test_a_million_rows():
    operator = LinearOperatorMarkovPrecision(tfp_ar1.LinearOperatorAR1Cholesky(10**6, 0.9))
    x = tf.ones(10**6)
    # Any d × d matrix would need 4 TB.
    assert np.isfinite(operator.log_abs_determinant())
    np.testing.assert_allclose(operator.solvevec(operator.matvec(x)), x, rtol=1e-4)


def test_distribution_gives_its_precision():
    distribution = tfp_ar1.MultivariateNormalAR1(np.zeros(4), SCALE, correlation=CORRELATION)
    precision = distribution.precision().to_dense()
    oracles.assert_close(precision, np.linalg.inv(distribution.covariance()), event_ndims=2)
