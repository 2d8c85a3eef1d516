"""The Cholesky factor of every member against dense matrices; TensorFlow's suite for operators."""

import itertools

import family
import numpy as np
import oracles
import pytest
import tensorflow as tf
from family import MEMBERS, ONE_OF_EACH, VALUE, as_dense, distribution, draw, random_parameters
from tensorflow.python.ops.linalg import linear_operator_test_util

from tfp_ar1 import LinearOperatorAR1Cholesky, MultivariateNormalAR1
from tfp_ar1.linear_operators.markov_cholesky import LinearOperatorMarkovCholesky

ERRORS = (ValueError, TypeError, tf.errors.InvalidArgumentError)
one_of_each = pytest.mark.parametrize("name", ONE_OF_EACH)


def make_operator(case, parameters):
    """From the parameters of the distribution, `loc` first."""
    return case.distribution(*parameters).scale


def transposed(x):
    return np.swapaxes(x, -1, -2)


@pytest.mark.parametrize(
    ("size", "name"),
    [
        *itertools.product((1, 2, 3), MEMBERS),
        *((300 if "AR" in name else 150, name) for name in MEMBERS),
    ],
)
def test_against_dense(size, name):
    case = MEMBERS[name]
    parameters = random_parameters(case, (5,), size)
    matrix = as_dense(case, parameters, size).factor
    diagonal = np.diagonal(matrix, axis1=-2, axis2=-1)
    log_det = np.sum(np.log(diagonal), axis=-1)
    for dtype in oracles.DTYPES:
        operator, x = (
            make_operator(case, family.cast(parameters, dtype)),
            draw(5, size, 3, dtype=dtype),
        )
        for adjoint in (False, True):
            m = transposed(matrix) if adjoint else matrix
            for method, of_vector, expected in (
                ("matmul", operator.matvec, m @ x),
                ("solve", operator.solvevec, np.linalg.solve(m, np.float64(x))),
            ):
                of_columns = getattr(operator, method)
                for actual in (
                    of_columns(x, adjoint=adjoint),
                    of_columns(transposed(x), adjoint=adjoint, adjoint_arg=True),
                ):
                    assert actual.dtype == dtype
                    # Column by column: each is a vector of its own.
                    oracles.assert_close(transposed(actual), transposed(expected), "value", 1)
                actual = of_vector(x[..., 0], adjoint=adjoint)
                message = f"{method}, adjoint={adjoint}"
                oracles.assert_close(actual, expected[..., 0], event_ndims=1, err_msg=message)
        for method, actual, expected, event_ndims in (
            ("to_dense", operator.to_dense(), matrix, 2),
            ("diag_part", operator.diag_part(), diagonal, 1),
            ("trace", operator.trace(), np.sum(diagonal, axis=-1), 0),
            ("log_abs_determinant", operator.log_abs_determinant(), log_det, 0),
        ):
            oracles.assert_close(actual, expected, event_ndims=event_ndims, err_msg=method)
        # Of many coordinates the determinant overflows to inf or underflows to 0, as it should.
        info, determinant = np.finfo(dtype), np.asarray(operator.determinant())
        fits = (log_det < np.log(info.max)) & (log_det > np.log(info.tiny))
        np.testing.assert_allclose(determinant[fits], np.exp(log_det[fits]), rtol=1e-3)
        assert not np.any(np.isnan(determinant))


# Batch shapes of loc (which has no part in it) and of the parameters, and of the argument.
BROADCASTS = [
    ((), (), (), (), (3,)),
    ((), (3,), (), (), ()),
    ((), (), (3,), (), (1,)),
    ((), (2, 1), (4,), (1,), ()),
    ((), (4,), (2, 1), (2, 4), (5, 2, 4)),
]


@one_of_each
def test_broadcasting(name):
    """With shapes that are known, and in one graph that knows none of them."""
    case, count = MEMBERS[name], len(MEMBERS[name].names)

    def everything(*arguments):
        *parameters, x = arguments
        operator = make_operator(case, parameters)
        return {
            "matmul": operator.matmul(x),
            "solve adjoint": operator.solve(x, adjoint=True),
            "matvec adjoint": operator.matvec(x[..., 0], adjoint=True),
            "solvevec": operator.solvevec(x[..., 0]),
            "to_dense": operator.to_dense(),
            "diag_part": operator.diag_part(),
            "trace": operator.trace(),
            "log_abs_determinant": operator.log_abs_determinant(),
            "shape": operator.shape_tensor(),
        }

    unknown = family.function(
        everything, input_signature=[tf.TensorSpec(None, "float64")] * (count + 1)
    )
    for (*batches, x_shape), size in [*((shapes, 4) for shapes in BROADCASTS), (BROADCASTS[-1], 1)]:
        parameters = family.parameters_of_shapes(case, batches[:count], size)
        matrix = as_dense(case, parameters, size).factor
        assert make_operator(case, parameters).shape == matrix.shape
        x, adjoint = draw(*x_shape, size, 2), transposed(matrix)
        expected = {
            "matmul": (matrix @ x, 2),
            "solve adjoint": (np.linalg.inv(adjoint) @ x, 2),
            "matvec adjoint": ((adjoint @ x)[..., 0], 1),
            "solvevec": ((np.linalg.inv(matrix) @ x)[..., 0], 1),
            "to_dense": (matrix, 2),
            "diag_part": (np.diagonal(matrix, axis1=-2, axis2=-1), 1),
            "trace": (np.trace(matrix, axis1=-2, axis2=-1), 0),
            "log_abs_determinant": (np.linalg.slogdet(matrix)[1], 0),
            "shape": (np.array(matrix.shape), 1),
        }
        arguments = [tf.constant(a) for a in (*parameters, x)]
        for actual in (everything(*arguments), unknown(*arguments)):
            for key, (value, event_ndims) in expected.items():
                oracles.assert_close(
                    actual[key], value, event_ndims=event_ndims, dtype="float64", err_msg=key
                )


@pytest.mark.parametrize(
    ("size", "name"),
    [
        *itertools.product((1, 17), ONE_OF_EACH),
        *((300 if "AR" in name else 150, name) for name in ONE_OF_EACH),
    ],
)
def test_gradients(size, name):
    """Of products and solves, also adjoint, with respect to all parameters and the argument."""
    case = MEMBERS[name]
    parameters = random_parameters(case, (5,), size)
    arguments, weights = (*parameters, draw(5, size)), draw(5, size, seed=1)

    def dense_operator(*parameters):
        factor = tf.linalg.cholesky(case.moments(*parameters, size=size)[1])
        return tf.linalg.LinearOperatorLowerTriangular(factor)

    def compute(make, method, adjoint, *arguments):
        *parameters, x = arguments
        result = getattr(make(*parameters), method)(x, adjoint=adjoint)
        return result + 0 * sum(map(tf.reduce_sum, arguments))

    for method, adjoint in itertools.product(("matvec", "solvevec"), (False, True)):
        actual, expected = (
            oracles.tf_gradients(
                lambda *a, make=make, m=method, adjoint=adjoint: compute(make, m, adjoint, *a),
                arguments,
                weights,
            )
            for make in (lambda *p: make_operator(case, p), dense_operator)
        )
        for key, a, e in zip((*case.names, "x"), actual, expected, strict=True):
            message = f"{method}, adjoint={adjoint}, {key}"
            oracles.assert_close(a, e, "gradient", a.ndim - 1, err_msg=message, at_least=0.1)


def block_diagonal(a, b):
    result = np.zeros((2, 5, 5))
    result[:, :3, :3], result[:, 3:, 3:] = a, b
    return result


DIAGONAL = np.array([0.5, -1.0, 2.0])
COMBINATIONS = {
    "block diagonal": (
        lambda a, b: tf.linalg.LinearOperatorBlockDiag([a, b]),
        block_diagonal,
    ),
    "Kronecker": (
        lambda a, b: tf.linalg.LinearOperatorKronecker([a, b]),
        lambda a, b: np.stack([np.kron(x, y) for x, y in zip(a, b, strict=True)]),
    ),
    "composition": (
        lambda a, _: tf.linalg.LinearOperatorComposition([a, a.adjoint()]),
        lambda a, _: a @ transposed(a),
    ),
    "matmul with diagonal": (
        lambda a, _: a @ tf.linalg.LinearOperatorDiag(DIAGONAL, is_non_singular=True),
        lambda a, _: a * DIAGONAL,
    ),
    "diagonal matmul": (
        lambda a, _: tf.linalg.LinearOperatorDiag(DIAGONAL, is_non_singular=True) @ a,
        lambda a, _: DIAGONAL[:, None] * a,
    ),
    "solve of diagonal": (
        lambda a, _: a.solve(tf.linalg.LinearOperatorDiag(DIAGONAL, is_non_singular=True)),
        lambda a, _: np.linalg.inv(a) * DIAGONAL,
    ),
    "adjoint": (lambda a, _: a.adjoint(), lambda a, _: transposed(a)),
    "adjoint of adjoint": (lambda a, _: a.adjoint().adjoint(), lambda a, _: a),
    "inverse of inverse": (lambda a, _: a.inverse().inverse(), lambda a, _: a),
    "inverse": (lambda a, _: a.inverse(), lambda a, _: np.linalg.inv(a)),
    "inverse of adjoint": (
        lambda a, _: a.adjoint().inverse(),
        lambda a, _: transposed(np.linalg.inv(a)),
    ),
    "adjoint of inverse": (
        lambda a, _: a.inverse().adjoint(),
        lambda a, _: transposed(np.linalg.inv(a)),
    ),
}


@one_of_each
def test_operators_made_of_it(name, monkeypatch):
    """Without anything dense."""
    case = MEMBERS[name]
    given = [random_parameters(case, (2,), size) for size in (3, 2)]
    a, b = (make_operator(case, parameters) for parameters in given)
    matrices = [as_dense(case, p, size).factor for p, size in zip(given, (3, 2), strict=True)]
    for combination, (combine, combine_matrices) in COMBINATIONS.items():
        matrix = combine_matrices(*matrices)
        x = draw(2, matrix.shape[-1], 3)
        with monkeypatch.context() as patch:
            for cls in (LinearOperatorMarkovCholesky, type(a)):
                patch.setattr(cls, "_to_dense", family.refuse)
            combined = combine(a, b)
            log_det = combined.log_abs_determinant()
            combined.assert_non_singular()
            results = {
                "matmul": (combined.matmul(x), matrix @ x),
                "adjoint matmul": (combined.matmul(x, adjoint=True), transposed(matrix) @ x),
                "solve": (combined.solve(x), np.linalg.solve(matrix, x)),
                "matvec": (combined.matvec(x[..., 0]), (matrix @ x)[..., 0]),
            }
        assert isinstance(combined, tf.linalg.LinearOperator)
        oracles.assert_close(log_det, np.linalg.slogdet(matrix)[1], err_msg=combination)
        oracles.assert_close(combined.to_dense(), matrix, event_ndims=2, err_msg=combination)
        for key, (actual, expected) in results.items():
            message = f"{combination}, {key}"
            oracles.assert_close(actual, expected, event_ndims=expected.ndim - 1, err_msg=message)


@one_of_each
def test_hints_and_refusals(name):
    operator = distribution(name).scale
    assert operator.is_non_singular
    assert operator.is_square
    # The factor of a non-diagonal matrix is not symmetric; nothing may claim that it is.
    assert not operator.is_self_adjoint
    for method in (operator.matvec, operator.solvevec):
        with pytest.raises(ERRORS):
            method(VALUE[..., 1:])


@pytest.mark.parametrize(
    ("name", "changed", "value"),
    [
        ("AR1", "marginal_scale", 0.0),
        ("ARH1", "scale_diag", [1.0, 0.0, 1.0]),
        ("ARH1", "correlation", -1.0),
        ("ANTE1", "correlation", [0.5, 1.0]),
        ("OU", "marginal_scale", 0.0),
        ("OU", "length_scale", -1.0),
        ("OU", "times", [0.0, 1.0, 1.0]),
    ],
)
def test_assert_non_singular(name, changed, value):
    """By variables, because constants may be refused before."""
    case = MEMBERS[name]
    given = dict(zip(case.names, random_parameters(case, (), 3), strict=True))
    variables = {key: tf.Variable(x) for key, x in given.items()}
    operator = case.cls(**variables).scale
    operator.assert_non_singular()
    variables[changed].assign(value)
    with pytest.raises(tf.errors.InvalidArgumentError, match="Singular operator"):
        operator.assert_non_singular()


class TestPublicOperator:
    """`LinearOperatorAR1Cholesky` by itself."""

    def test_is_that_of_the_distribution(self):
        operator = LinearOperatorAR1Cholesky(3, 0.5)
        assert operator.dtype == tf.float32
        p = MultivariateNormalAR1(tf.zeros(3), 2.0, 0.5)
        assert type(p.scale) is type(operator)
        expected = [[2, 0, 0], [1, 3**0.5, 0], [0.5, 3**0.5 / 2, 3**0.5]]
        for same in (p.scale, LinearOperatorAR1Cholesky(3, 0.5, 2.0)):
            oracles.assert_close(same.to_dense(), expected, event_ndims=2)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ((3,), r"correlation.*fisher_z"),
            ((3, 0.1, 1.0, 0.1), r"correlation.*fisher_z"),
            ((-1, 0.5), "num_rows"),
            ((2.5, 0.5), "num_rows"),
            (([2, 3], 0.5), "num_rows"),
            ((tf.Variable(3), 0.5), "num_rows"),
            ((3, tf.constant(0), tf.constant(1)), r"dtype|float"),
            ((3, tf.constant(0.5, tf.float64), tf.constant(1.0, tf.float32)), r"dtype|float"),
        ],
    )
    def test_refusals(self, arguments, message):
        with pytest.raises((ValueError, TypeError), match=message):
            LinearOperatorAR1Cholesky(*arguments)

    def test_other_refusals(self):
        with pytest.raises(ValueError, match="square"):
            LinearOperatorAR1Cholesky(3, 0.5, is_square=False)
        with pytest.raises(ERRORS):
            LinearOperatorAR1Cholesky(3, tf.zeros(2), tf.ones(3)).to_dense()

    def test_variables_are_read_when_used(self):
        rho, scale = tf.Variable([0.1, 0.2]), tf.Variable(1.0)
        operator = LinearOperatorAR1Cholesky(3, rho, scale)
        assert {id(v) for v in operator.trainable_variables} == {id(rho), id(scale)}
        rho.assign([0.5, -0.5])
        scale.assign(2.0)
        expected = oracles.ar1_cholesky(2.0, [0.5, -0.5], 3)
        oracles.assert_close(operator.to_dense(), expected, event_ndims=2)


class OperatorSuite(linear_operator_test_util.SquareLinearOperatorDerivedClassTest):
    """TensorFlow's contract: graph and eager, slices, composite tensors, saved models and so on."""

    name = None

    @staticmethod
    def dtypes_to_test():
        return [tf.float64]

    @staticmethod
    def operator_shapes_infos():
        info = linear_operator_test_util.OperatorShapesInfo
        return [info((2, 1, 4, 4))]

    @staticmethod
    def skip_these_tests():
        # They are for self-adjoint operators.
        return ["cholesky", "eigvalsh"]

    def operator_and_matrix(
        self, shapes_info, dtype, use_placeholder, ensure_self_adjoint_and_pd=False
    ):
        *batch_shape, size, _ = shapes_info.shape
        case = MEMBERS[self.name]
        parameters = random_parameters(case, tuple(batch_shape), size, seed=4)
        parameters = [tf.constant(a, dtype) for a in parameters]
        matrix = tf.linalg.cholesky(case.moments(*parameters, size=size)[1])
        # `loc` has no part in it, and the scale of AR(1) has its size from there.
        loc, *parameters = parameters
        if use_placeholder:
            parameters = [tf.compat.v1.placeholder_with_default(a, shape=None) for a in parameters]
        return make_operator(case, (loc, *parameters)), matrix

    def with_variables(self):
        return distribution(self.name, lambda _, value: tf.Variable(value)).scale

    def test_tape_safe(self):
        self.check_tape_safe(self.with_variables())

    def test_convert_variables_to_tensors(self):
        self.check_convert_variables_to_tensors(self.with_variables())


class TestAR1Suite(OperatorSuite):
    name = "AR1 by fisher_z"

    @staticmethod
    def operator_shapes_infos():
        info = linear_operator_test_util.OperatorShapesInfo
        return [info((3, 3)), info((2, 1, 4, 4))]


@pytest.mark.slow
class TestARH1Suite(OperatorSuite):
    name = "ARH1 by fisher_z"


class TestANTE1Suite(OperatorSuite):
    name = "ANTE1 by fisher_z"


@pytest.mark.slow
class TestOUSuite(OperatorSuite):
    name = "OU"


for suite in (TestAR1Suite, TestARH1Suite, TestANTE1Suite, TestOUSuite):
    linear_operator_test_util.add_tests(suite)
# Without a member of its own it is no suite.
del OperatorSuite, suite
