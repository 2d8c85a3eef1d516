"""The operators of ARH(1), ANTE(1) and OU against dense matrices; TensorFlow's suite for each."""

import functools
import itertools

import numpy as np
import oracles
import pytest
import tensorflow as tf
from family import ONE_OF_EACH, RELATIVES, as_dense, cast, parameters_of_shapes, random_parameters
from tensorflow.python.ops.linalg import linear_operator_test_util

from tfp_ar1.linear_operators.markov_cholesky import LinearOperatorMarkovCholesky

OPERATORS = {
    "ARH1": LinearOperatorMarkovCholesky,
    "ANTE1": functools.partial(LinearOperatorMarkovCholesky, per_step=True),
    "OU": LinearOperatorMarkovCholesky,
}
# What is valid, for three coordinates.
VALID = {
    "ARH1": {"scale_diag": [1.0, 2.0, 3.0], "correlation": 0.5},
    "ANTE1": {"scale_diag": [1.0, 2.0, 3.0], "correlation": [0.5, -0.5]},
    "OU": {"marginal_scale": 2.0, "length_scale": 0.5, "times": [0.0, 1.0, 5.0]},
}
each_member = pytest.mark.parametrize("name", RELATIVES)
one_of_each = pytest.mark.parametrize("name", ONE_OF_EACH)
each_kind = pytest.mark.parametrize("kind", OPERATORS)


def make_operator(name, parameters):
    """From the parameters of the distribution, `loc` first."""
    case = RELATIVES[name]
    given = dict(zip(case.names[1:], parameters[1:], strict=True))
    return OPERATORS[name.partition(" ")[0]](**given)


def draw(*shape, dtype="float64", seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


@each_member
@pytest.mark.parametrize("dtype", oracles.DTYPES)
@pytest.mark.parametrize("size", [1, 2, 3, 64, 150])
def test_against_dense(size, dtype, name):
    parameters = random_parameters(RELATIVES[name], (5,), size)
    operator = make_operator(name, cast(parameters, dtype))
    matrix = as_dense(RELATIVES[name], parameters, size).factor
    x = draw(5, size, 3, dtype=dtype)
    rows = x.swapaxes(-1, -2)
    for adjoint in (False, True):
        m = matrix.swapaxes(-1, -2) if adjoint else matrix
        for method, expected in (("matmul", m @ x), ("solve", np.linalg.solve(m, np.float64(x)))):
            of_columns = getattr(operator, method)
            of_vector = getattr(operator, {"matmul": "matvec", "solve": "solvevec"}[method])
            message = f"{method}, adjoint={adjoint}"
            for actual in (
                of_columns(x, adjoint=adjoint),
                of_columns(rows, adjoint=adjoint, adjoint_arg=True),
            ):
                assert actual.dtype == dtype
                # Column by column: each is a vector of its own.
                oracles.assert_close(
                    tf.linalg.matrix_transpose(actual), expected.swapaxes(-1, -2), "value", 1
                )
            actual = of_vector(x[..., 0], adjoint=adjoint)
            oracles.assert_close(actual, expected[..., 0], event_ndims=1, err_msg=message)
    diagonal = np.diagonal(matrix, axis1=-2, axis2=-1)
    log_det = np.sum(np.log(diagonal), axis=-1)
    for method, actual, expected, event_ndims in (
        ("to_dense", operator.to_dense(), matrix, 2),
        ("diag_part", operator.diag_part(), diagonal, 1),
        ("trace", operator.trace(), np.sum(diagonal, axis=-1), 0),
        ("log_abs_determinant", operator.log_abs_determinant(), log_det, 0),
        ("inverse", operator.inverse().matvec(x[..., 0]), operator.solvevec(x[..., 0]), 1),
        ("adjoint", operator.adjoint().matmul(x), matrix.swapaxes(-1, -2) @ x, 2),
    ):
        oracles.assert_close(actual, expected, event_ndims=event_ndims, err_msg=method)
    # Some determinants underflow in float32.
    tiny = np.finfo(dtype).tiny
    np.testing.assert_allclose(operator.determinant(), np.exp(log_det), rtol=1e-3, atol=tiny)


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
    count = len(RELATIVES[name].names)

    def everything(*arguments):
        *parameters, x = arguments
        operator = make_operator(name, parameters)
        return {
            "matmul": operator.matmul(x),
            "solve adjoint": operator.solve(x, adjoint=True),
            "matvec adjoint": operator.matvec(x[..., 0], adjoint=True),
            "solvevec": operator.solvevec(x[..., 0]),
            "to_dense": operator.to_dense(),
            "diag_part": operator.diag_part(),
            "log_abs_determinant": operator.log_abs_determinant(),
            "shape": operator.shape_tensor(),
        }

    unknown = tf.function(
        everything, input_signature=[tf.TensorSpec(None, "float64")] * (count + 1)
    )
    for (*batches, x_shape), size in itertools.product(BROADCASTS, (1, 4)):
        parameters = parameters_of_shapes(RELATIVES[name], batches[:count], size)
        matrix = as_dense(RELATIVES[name], parameters, size).factor
        assert make_operator(name, parameters).shape == matrix.shape
        x = draw(*x_shape, size, 2)
        adjoint = matrix.swapaxes(-1, -2)
        expected = {
            "matmul": (matrix @ x, 2),
            "solve adjoint": (np.linalg.inv(adjoint) @ x, 2),
            "matvec adjoint": ((adjoint @ x)[..., 0], 1),
            "solvevec": ((np.linalg.inv(matrix) @ x)[..., 0], 1),
            "to_dense": (matrix, 2),
            "diag_part": (np.diagonal(matrix, axis1=-2, axis2=-1), 1),
            "log_abs_determinant": (np.linalg.slogdet(matrix)[1], 0),
            "shape": (np.array(matrix.shape), 1),
        }
        arguments = [tf.constant(a) for a in (*parameters, x)]
        for actual in (everything(*arguments), unknown(*arguments)):
            for key, (value, event_ndims) in expected.items():
                oracles.assert_close(
                    actual[key], value, event_ndims=event_ndims, dtype="float64", err_msg=key
                )


@one_of_each
@pytest.mark.parametrize("method", ["matvec", "solvevec"])
@pytest.mark.parametrize("size", [1, 17, 150])
def test_gradients(size, method, name):
    """Of products and solves, also adjoint, with respect to all parameters and the argument."""
    case = RELATIVES[name]
    parameters = random_parameters(case, (5,), size)
    arguments, weights = (*parameters, draw(5, size)), draw(5, size, seed=1)

    def dense_operator(*parameters):
        factor = tf.linalg.cholesky(case.moments(*parameters, size=size)[1])
        return tf.linalg.LinearOperatorLowerTriangular(factor)

    def compute(make, *arguments, adjoint):
        *parameters, x = arguments
        result = getattr(make(*parameters), method)(x, adjoint=adjoint)
        return result + 0 * sum(map(tf.reduce_sum, arguments))

    for adjoint in (False, True):
        actual, expected = (
            oracles.tf_gradients(
                lambda *a, make=make, adjoint=adjoint: compute(make, *a, adjoint=adjoint),
                arguments,
                weights,
            )
            for make in (lambda *p: make_operator(name, p), dense_operator)
        )
        for key, a, e in zip((*case.names, "x"), actual, expected, strict=True):
            oracles.assert_close(a, e, "gradient", a.ndim - 1, err_msg=key, at_least=0.1)


@each_kind
def test_nothing_dense_outside_to_dense(kind, monkeypatch):
    def refuse(*_args, **_kwargs):
        raise AssertionError("to_dense was called")

    monkeypatch.setattr(LinearOperatorMarkovCholesky, "_to_dense", refuse)
    operator, x = OPERATORS[kind](**VALID[kind]), draw(5, 3, 2, dtype="float32")
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
    @each_kind
    def test_hints(self, kind):
        operator = OPERATORS[kind](**VALID[kind])
        assert operator.is_non_singular
        assert operator.is_square
        assert not operator.is_self_adjoint
        assert operator.dtype == tf.float32
        assert operator.shape == [3, 3]
        with pytest.raises(ValueError, match="square"):
            OPERATORS[kind](**VALID[kind], is_square=False)

    @pytest.mark.parametrize("kind", ["ARH1", "ANTE1"])
    def test_neither_or_both_correlations(self, kind):
        scale_diag, correlation = VALID[kind].values()
        with pytest.raises(ValueError, match=r"correlation.*fisher_z.*got neither"):
            OPERATORS[kind](scale_diag)
        with pytest.raises(ValueError, match=r"correlation.*fisher_z.*got both"):
            OPERATORS[kind](scale_diag, correlation, correlation)

    @each_kind
    def test_dtypes(self, kind):
        with pytest.raises(TypeError, match=r"dtype|float"):
            OPERATORS[kind](**{k: tf.cast(v, tf.int32) for k, v in VALID[kind].items()})
        for name in VALID[kind]:
            mixed = {
                k: tf.constant(v, "float32" if k == name else "float64")
                for k, v in VALID[kind].items()
            }
            with pytest.raises(TypeError, match=r"dtype|float32"):
                OPERATORS[kind](**mixed)

    @pytest.mark.parametrize(
        ("kind", "name", "value", "message"),
        [
            ("ARH1", "scale_diag", 1.0, "`scale_diag` must have at least one dimension"),
            ("ANTE1", "correlation", 0.5, r"each step .* 2; got shape \(\)"),
            ("ANTE1", "correlation", [0.5], r"each step .* 2; got shape \(1,\)"),
            ("OU", "times", 1.0, "`times` must have at least one dimension"),
        ],
    )
    def test_shapes_that_do_not_fit(self, kind, name, value, message):
        with pytest.raises(ValueError, match=message):
            OPERATORS[kind](**(VALID[kind] | {name: np.float32(value)}))

    @pytest.mark.parametrize(
        ("kind", "name", "value"),
        [
            ("ARH1", "scale_diag", [1.0, 0.0, 1.0]),
            ("ARH1", "correlation", -1.0),
            ("ANTE1", "correlation", [0.5, 1.0]),
            ("OU", "marginal_scale", 0.0),
            ("OU", "length_scale", -1.0),
            ("OU", "times", [0.0, 1.0, 1.0]),
        ],
    )
    def test_assert_non_singular(self, kind, name, value):
        operator = OPERATORS[kind](**(VALID[kind] | {name: value}))
        with pytest.raises(tf.errors.InvalidArgumentError, match="Singular operator"):
            operator.assert_non_singular()

    @each_kind
    def test_variables_are_read_when_used(self, kind):
        variables = {k: tf.Variable(v) for k, v in VALID[kind].items()}
        operator = OPERATORS[kind](**variables)
        assert {id(v) for v in operator.trainable_variables} == {id(v) for v in variables.values()}
        for variable in variables.values():
            variable.assign(0.5 * variable)
        fresh = OPERATORS[kind](**{k: v.numpy() for k, v in variables.items()})
        oracles.assert_close(operator.to_dense(), fresh.to_dense(), "same computation", 2)


class MarkovSuite:
    """TensorFlow's contract: graph and eager, slices, composite tensors, saved models and so on."""

    kind = None

    @staticmethod
    def dtypes_to_test():
        return [tf.float64]

    @staticmethod
    def operator_shapes_infos():
        info = linear_operator_test_util.OperatorShapesInfo
        return [info((1, 3, 3)), info((2, 1, 4, 4))]

    @staticmethod
    def skip_these_tests():
        # They are for self-adjoint operators.
        return ["cholesky", "eigvalsh"]

    def operator_and_matrix(
        self, shapes_info, dtype, use_placeholder, ensure_self_adjoint_and_pd=False
    ):
        *batch_shape, size, _ = shapes_info.shape
        name = "OU" if self.kind == "OU" else f"{self.kind} by fisher_z"
        parameters = random_parameters(RELATIVES[name], tuple(batch_shape), size, seed=4)
        parameters = [tf.constant(a, dtype) for a in parameters]
        matrix = tf.linalg.cholesky(RELATIVES[name].moments(*parameters, size=size)[1])
        if use_placeholder:
            parameters = [tf.compat.v1.placeholder_with_default(a, shape=None) for a in parameters]
        return make_operator(name, parameters), matrix

    def test_tape_safe(self):
        self.check_tape_safe(self.with_variables())

    def test_convert_variables_to_tensors(self):
        self.check_convert_variables_to_tensors(self.with_variables())

    def with_variables(self):
        return OPERATORS[self.kind](**{k: tf.Variable(v) for k, v in VALID[self.kind].items()})


class TestARH1Suite(MarkovSuite, linear_operator_test_util.SquareLinearOperatorDerivedClassTest):
    kind = "ARH1"


class TestANTE1Suite(MarkovSuite, linear_operator_test_util.SquareLinearOperatorDerivedClassTest):
    kind = "ANTE1"


class TestOUSuite(MarkovSuite, linear_operator_test_util.SquareLinearOperatorDerivedClassTest):
    kind = "OU"


linear_operator_test_util.add_tests(TestARH1Suite)
linear_operator_test_util.add_tests(TestANTE1Suite)
linear_operator_test_util.add_tests(TestOUSuite)
