"""`LinearOperatorAR1Cholesky` against dense matrices, and TensorFlow's own suite for operators."""

import functools

import hypothesis
import hypothesis.strategies as st
import numpy as np
import oracles
import pytest
import tensorflow as tf
from tensorflow.python.ops.linalg import linear_operator_test_util

from tfp_ar1 import LinearOperatorAR1Cholesky

SCALE = np.array([0.7, 1.0, 1.3, 2.0, 0.5])
RHO = np.array(oracles.CORRELATIONS)


@functools.lru_cache(maxsize=2)
def operator_and_matrix(size, dtype, by="correlation"):
    """A batch of five operators, one for each correlation, and the matrices they should equal."""
    scale = SCALE.astype(dtype)
    if by == "correlation":
        given = RHO.astype(dtype)
        rho = given.astype("float64")
    else:
        given = np.arctanh(RHO).astype(dtype)
        rho = np.tanh(given.astype("float64"))
    operator = LinearOperatorAR1Cholesky(size, marginal_scale=scale, **{by: given})
    return operator, oracles.ar1_cholesky(scale, rho, size)


def draw(*shape, dtype="float64", seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


@pytest.mark.parametrize("size", oracles.SIZES)
def test_closed_form_of_the_oracle_is_lapacks_factor(size):
    covariance = oracles.ar1_covariance(SCALE, RHO, size)
    oracles.assert_close(
        oracles.ar1_cholesky(SCALE, RHO, size), np.linalg.cholesky(covariance), event_ndims=2
    )


@pytest.mark.parametrize("by", ["correlation", "fisher_z"])
@pytest.mark.parametrize("dtype", oracles.DTYPES)
@pytest.mark.parametrize("size", oracles.SIZES)
class TestAgainstDense:
    def test_products(self, size, dtype, by):
        operator, matrix = operator_and_matrix(size, dtype, by)
        x = draw(5, size, 3, dtype=dtype)
        transposed = x.swapaxes(-1, -2)
        for adjoint in (False, True):
            m = matrix.swapaxes(-1, -2) if adjoint else matrix
            for actual in (
                operator.matmul(x, adjoint=adjoint),
                operator.matmul(transposed, adjoint=adjoint, adjoint_arg=True),
            ):
                assert actual.dtype == dtype
                # Column by column: each is a vector of its own.
                oracles.assert_close(
                    tf.linalg.matrix_transpose(actual), (m @ x).swapaxes(-1, -2), event_ndims=1
                )
            oracles.assert_close(
                operator.matvec(x[..., 0], adjoint=adjoint), (m @ x)[..., 0], event_ndims=1
            )

    def test_solves(self, size, dtype, by):
        operator, matrix = operator_and_matrix(size, dtype, by)
        x = draw(5, size, 3, dtype=dtype)
        transposed = x.swapaxes(-1, -2)
        for adjoint in (False, True):
            m = matrix.swapaxes(-1, -2) if adjoint else matrix
            expected = np.linalg.solve(m, x.astype("float64"))
            for actual in (
                operator.solve(x, adjoint=adjoint),
                operator.solve(transposed, adjoint=adjoint, adjoint_arg=True),
            ):
                assert actual.dtype == dtype
                oracles.assert_close(
                    tf.linalg.matrix_transpose(actual), expected.swapaxes(-1, -2), event_ndims=1
                )
            oracles.assert_close(
                operator.solvevec(x[..., 0], adjoint=adjoint), expected[..., 0], event_ndims=1
            )

    def test_scalars_and_diagonal(self, size, dtype, by):
        operator, matrix = operator_and_matrix(size, dtype, by)
        log_det = np.linalg.slogdet(matrix)[1]
        oracles.assert_close(operator.log_abs_determinant(), log_det)
        # At d = 700 the determinant overflows to inf or underflows to 0, as it should.
        info = np.finfo(dtype)
        fits = (log_det < np.log(info.max)) & (log_det > np.log(info.tiny))
        det = operator.determinant().numpy()
        ratio = det[fits] / np.exp(log_det[fits])
        oracles.assert_close(ratio, np.ones(np.count_nonzero(fits)), dtype=dtype)
        assert not np.any(np.isnan(det))
        diagonal = np.diagonal(matrix, axis1=-2, axis2=-1)
        oracles.assert_close(operator.diag_part(), diagonal, event_ndims=1)
        oracles.assert_close(operator.trace(), np.sum(diagonal, axis=-1))

    def test_to_dense(self, size, dtype, by):
        operator, matrix = operator_and_matrix(size, dtype, by)
        oracles.assert_close(operator.to_dense(), matrix, event_ndims=2)


# Parameter batch shapes, then the batch shape of the argument.
BROADCASTS = [
    ((), (), ()),
    ((), (), (3,)),
    ((3,), (), ()),
    ((), (3,), (3,)),
    ((3,), (), (1,)),
    ((2, 1), (4,), ()),
    ((2, 1), (2, 1), (4,)),
    ((4,), (4,), (2, 1)),
    ((2, 1), (4,), (5, 2, 4)),
    ((4,), (), (5, 2, 1)),
]


def everything(scale, rho, x):
    operator = LinearOperatorAR1Cholesky(tf.shape(x)[-2], rho, scale)
    vector = x[..., 0]
    return {
        "matmul": operator.matmul(x),
        "matmul adjoint": operator.matmul(x, adjoint=True),
        "matmul adjoint_arg": operator.matmul(tf.linalg.matrix_transpose(x), adjoint_arg=True),
        "solve": operator.solve(x),
        "solve adjoint": operator.solve(x, adjoint=True),
        "matvec": operator.matvec(vector),
        "matvec adjoint": operator.matvec(vector, adjoint=True),
        "solvevec": operator.solvevec(vector),
        "solvevec adjoint": operator.solvevec(vector, adjoint=True),
        "to_dense": operator.to_dense(),
        "diag_part": operator.diag_part(),
        "trace": operator.trace(),
        "log_abs_determinant": operator.log_abs_determinant(),
        "shape": operator.shape_tensor(),
        "batch_shape": operator.batch_shape_tensor(),
    }


# One graph for every shape: none of them is known to it.
everything_unknown = tf.function(everything, input_signature=[tf.TensorSpec(None, "float64")] * 3)


@pytest.mark.parametrize("static", [True, False])
@pytest.mark.parametrize(("scale_shape", "rho_shape", "x_shape"), BROADCASTS)
@pytest.mark.parametrize("size", [1, 4])
def test_broadcasting(size, scale_shape, rho_shape, x_shape, static):
    rng = np.random.default_rng(3)
    scale, rho = rng.uniform(0.5, 2, scale_shape), rng.uniform(-0.9, 0.9, rho_shape)
    x = rng.normal(size=(*x_shape, size, 2))
    matrix = oracles.ar1_cholesky(scale, rho, size)

    if static:
        actual = everything(*(tf.constant(a) for a in (scale, rho, x)))
        operator = LinearOperatorAR1Cholesky(size, rho, scale)
        assert operator.shape == matrix.shape
        assert operator.batch_shape == matrix.shape[:-2]
        assert operator.dtype == tf.float64
    else:
        actual = everything_unknown(scale, rho, x)

    adjoint = matrix.swapaxes(-1, -2)
    log_det = np.linalg.slogdet(matrix)[1]
    diagonal = np.diagonal(matrix, axis1=-2, axis2=-1)
    expected = {
        "matmul": (matrix @ x, 2),
        "matmul adjoint": (adjoint @ x, 2),
        "matmul adjoint_arg": (matrix @ x, 2),
        "solve": (np.linalg.inv(matrix) @ x, 2),
        "solve adjoint": (np.linalg.inv(adjoint) @ x, 2),
        "matvec": ((matrix @ x)[..., 0], 1),
        "matvec adjoint": ((adjoint @ x)[..., 0], 1),
        "solvevec": ((np.linalg.inv(matrix) @ x)[..., 0], 1),
        "solvevec adjoint": ((np.linalg.inv(adjoint) @ x)[..., 0], 1),
        "to_dense": (matrix, 2),
        "diag_part": (diagonal, 1),
        "trace": (np.sum(diagonal, axis=-1), 0),
        "log_abs_determinant": (log_det, 0),
        "shape": (np.array(matrix.shape), 1),
        "batch_shape": (np.array(matrix.shape[:-2]), 0),
    }
    for name, (value, event_ndims) in expected.items():
        oracles.assert_close(
            actual[name], value, event_ndims=event_ndims, dtype="float64", err_msg=name
        )


@pytest.mark.parametrize("by", ["correlation", "fisher_z"])
@pytest.mark.parametrize("size", [1, 2, 17, 700])
@pytest.mark.parametrize(
    "method",
    ["matvec", "matvec adjoint", "solvevec", "solvevec adjoint"],
)
def test_gradients(method, size, by):
    """Of products and solves, with respect to both parameters and the argument."""
    x, weights = draw(5, size), draw(5, size, seed=1)
    given = RHO if by == "correlation" else np.arctanh(RHO)
    method, _, adjoint = method.partition(" ")

    def ours(scale, given, x):
        operator = LinearOperatorAR1Cholesky(x.shape[-1], marginal_scale=scale, **{by: given})
        return getattr(operator, method)(x, adjoint=bool(adjoint))

    def dense(scale, given, x):
        rho = given if by == "correlation" else tf.tanh(given)
        factor = tf.linalg.cholesky(oracles.tf_covariance(scale, rho, x.shape[-1]))
        # Adding zero keeps the correlation connected at size one.
        factor += 0 * rho[:, None, None]
        operator = tf.linalg.LinearOperatorLowerTriangular(factor)
        return getattr(operator, method)(x, adjoint=bool(adjoint))

    actual = oracles.tf_gradients(ours, (SCALE, given, x), weights)
    expected = oracles.tf_gradients(dense, (SCALE, given, x), weights)
    for ours_, dense_, event_ndims in zip(actual, expected, (0, 0, 1), strict=True):
        oracles.assert_close(ours_, dense_, "gradient", event_ndims)


def test_compiles_under_xla():
    operator, _ = operator_and_matrix(17, "float64")
    x = draw(5, 17, 2)
    for name in ("matmul", "solve"):
        for adjoint in (False, True):
            method = functools.partial(getattr(operator, name), adjoint=adjoint)
            compiled = tf.function(method, jit_compile=True)(tf.constant(x))
            oracles.assert_close(compiled, method(x), "same computation", event_ndims=2)


@hypothesis.given(
    rho=st.floats(-0.999, 0.999),
    scale=st.floats(1e-3, 1e3),
    size=st.integers(1, 40),
    adjoint=st.booleans(),
)
def test_solve_undoes_matmul_and_the_factor_is_choleskys(rho, scale, size, adjoint):
    operator = LinearOperatorAR1Cholesky(
        size, tf.constant(rho, tf.float64), tf.constant(scale, tf.float64)
    )
    x = draw(size, 2)
    oracles.assert_close(
        operator.solve(operator.matmul(x, adjoint=adjoint), adjoint=adjoint), x, event_ndims=2
    )
    oracles.assert_close(
        operator.matmul(operator.solve(x, adjoint=adjoint), adjoint=adjoint), x, event_ndims=2
    )
    factor = operator.to_dense().numpy()
    assert np.all(np.triu(factor, 1) == 0)
    covariance = oracles.ar1_covariance(scale, rho, size)
    oracles.assert_close(factor @ factor.T, covariance, event_ndims=2)


def test_nothing_dense_outside_to_dense(monkeypatch):
    """Every method but `to_dense` works where `to_dense` does not."""

    def refuse(*_args, **_kwargs):
        raise AssertionError("to_dense was called")

    monkeypatch.setattr(LinearOperatorAR1Cholesky, "_to_dense", refuse)
    operator = LinearOperatorAR1Cholesky(5, RHO, SCALE)
    x = draw(5, 5, 2)
    operator.matmul(x)
    operator.matmul(x, adjoint=True)
    operator.solve(x)
    operator.solve(x, adjoint=True)
    operator.log_abs_determinant()
    operator.determinant()
    operator.diag_part()
    operator.trace()
    operator.adjoint().matmul(x)
    operator.inverse().matmul(x)
    operator.assert_non_singular()


class TestConstruction:
    def test_hints(self):
        operator = LinearOperatorAR1Cholesky(3, 0.5)
        assert operator.is_non_singular
        assert operator.is_square
        # The factor of a non-diagonal matrix is not symmetric; nothing may claim that it is.
        assert not operator.is_self_adjoint
        assert operator.dtype == tf.float32

    def test_neither_or_both_correlations(self):
        with pytest.raises(ValueError, match=r"correlation.*fisher_z"):
            LinearOperatorAR1Cholesky(3)
        with pytest.raises(ValueError, match=r"correlation.*fisher_z"):
            LinearOperatorAR1Cholesky(3, correlation=0.1, fisher_z=0.1)

    def test_not_square(self):
        with pytest.raises(ValueError, match="square"):
            LinearOperatorAR1Cholesky(3, 0.5, is_square=False)

    @pytest.mark.parametrize("num_rows", [-1, 2.5, [2, 3]])
    def test_bad_num_rows(self, num_rows):
        with pytest.raises((ValueError, TypeError), match="num_rows"):
            LinearOperatorAR1Cholesky(num_rows, 0.5)

    def test_integers(self):
        with pytest.raises((ValueError, TypeError), match=r"dtype|float"):
            LinearOperatorAR1Cholesky(3, tf.constant(0), tf.constant(1))

    def test_mixed_dtypes(self):
        with pytest.raises((ValueError, TypeError)):
            LinearOperatorAR1Cholesky(3, tf.constant(0.5, tf.float64), tf.constant(1.0, tf.float32))

    def test_incompatible_batch_shapes(self):
        with pytest.raises((ValueError, tf.errors.InvalidArgumentError)):
            LinearOperatorAR1Cholesky(3, tf.zeros(2), tf.ones(3)).to_dense()

    def test_argument_of_the_wrong_size(self):
        operator = LinearOperatorAR1Cholesky(3, 0.5)
        for method in (operator.matvec, operator.solvevec):
            with pytest.raises((ValueError, tf.errors.InvalidArgumentError)):
                method(tf.zeros(4))

    def test_variables_are_read_when_used(self):
        rho, scale = tf.Variable([0.1, 0.2]), tf.Variable(1.0)
        operator = LinearOperatorAR1Cholesky(3, rho, scale)
        assert {id(v) for v in operator.trainable_variables} == {id(rho), id(scale)}
        rho.assign([0.5, -0.5])
        scale.assign(2.0)
        expected = oracles.ar1_cholesky(2.0, [0.5, -0.5], 3)
        oracles.assert_close(operator.to_dense(), expected, event_ndims=2)


class TestOperatorSuite(linear_operator_test_util.SquareLinearOperatorDerivedClassTest):
    """TensorFlow's contract: graph and eager, slices, composite tensors, saved models and so on."""

    @staticmethod
    def dtypes_to_test():
        return [tf.float32, tf.float64]

    @staticmethod
    def skip_these_tests():
        # They are for self-adjoint operators.
        return ["cholesky", "eigvalsh"]

    def operator_and_matrix(
        self, shapes_info, dtype, use_placeholder, ensure_self_adjoint_and_pd=False
    ):
        *batch_shape, size, _ = shapes_info.shape
        rng = np.random.default_rng(4)
        scale = rng.uniform(0.5, 2, batch_shape)
        fisher_z = rng.uniform(-1.5, 1.5, batch_shape)
        matrix = tf.constant(oracles.ar1_cholesky(scale, np.tanh(fisher_z), size), dtype)
        scale, fisher_z = tf.constant(scale, dtype), tf.constant(fisher_z, dtype)
        if use_placeholder:
            scale = tf.compat.v1.placeholder_with_default(scale, shape=None)
            fisher_z = tf.compat.v1.placeholder_with_default(fisher_z, shape=None)
        operator = LinearOperatorAR1Cholesky(size, marginal_scale=scale, fisher_z=fisher_z)
        return operator, matrix

    def test_tape_safe(self):
        operator = LinearOperatorAR1Cholesky(
            3, marginal_scale=tf.Variable([1.0, 2.0]), correlation=tf.Variable([0.3, 0.4])
        )
        self.check_tape_safe(operator)

    def test_convert_variables_to_tensors(self):
        operator = LinearOperatorAR1Cholesky(
            3, marginal_scale=tf.Variable(1.0), fisher_z=tf.Variable([0.3, 0.4])
        )
        self.check_convert_variables_to_tensors(operator)


linear_operator_test_util.add_tests(TestOperatorSuite)
