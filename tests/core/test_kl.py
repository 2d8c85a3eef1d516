"""Every registered KL against dense Gaussians, in both directions, values and gradients."""

import functools

import hypothesis
import hypothesis.strategies as st
import numpy as np
import oracles
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from family import (
    AR1S,
    ONE_OF_EACH,
    RELATIVES,
    as_dense,
    as_float32,
    cast,
    normal,
    positive,
    random_parameters,
)

from tfp_ar1 import MultivariateNormalANTE1, MultivariateNormalAR1
from tfp_ar1.distributions.kl import kl_terms
from tfp_ar1.linear_operators.markov_cholesky import LinearOperatorMarkovCholesky

tfd = tfp.distributions
tfl = tf.linalg

RHO = np.array(oracles.CORRELATIONS)
EXTREME_FISHER_Z = np.float32([0, 1e-4, -1e-4, 3, -3, 9, -9, 20, -20, 40, -40, 60, -60])


# --- The other side -------------------------------------------------------------------------
#
# A case of `family.py`, or one for a normal of TFP.


def squared(operator):
    """Scale times its transpose."""
    return tf.linalg.matmul(operator, operator, transpose_b=True)


class Diag:
    def parameters(self, rng, batch, size):
        # The sign of an entry of a diagonal scale makes no difference.
        signs = np.where(rng.uniform(size=size) < 0.3, -1, 1)
        return normal(rng, *batch, size), signs * positive(rng, *batch, size)

    def distribution(self, loc, scale, size):
        return tfd.MultivariateNormalDiag(loc, scale)

    def moments(self, loc, scale, size):
        return loc, tfl.diag(scale**2)


class IdentityScale:
    def parameters(self, rng, batch, size):
        return (normal(rng, *batch, size),)

    def distribution(self, loc, size):
        return tfd.MultivariateNormalDiag(loc)

    def moments(self, loc, size):
        return loc, tf.eye(size, dtype=tf.float64) * tf.ones_like(loc)[..., None]


class ScaledIdentity:
    def parameters(self, rng, batch, size):
        return normal(rng, *batch, size), positive(rng, *batch)

    def distribution(self, loc, scale, size):
        operator = tfl.LinearOperatorScaledIdentity(size, scale)
        return tfd.MultivariateNormalLinearOperator(loc, operator)

    def moments(self, loc, scale, size):
        return loc, tf.eye(size, dtype=tf.float64) * scale[..., None, None] ** 2


class WithoutLoc(ScaledIdentity):
    """A distribution whose `loc` is None."""

    def parameters(self, rng, batch, size):
        return (positive(rng, *batch),)

    def distribution(self, scale, size):
        return super().distribution(None, scale, size)

    def moments(self, scale, size):
        return super().moments(tf.zeros([*scale.shape, size], tf.float64), scale, size)


class IndependentNormal(Diag):
    def parameters(self, rng, batch, size):
        return normal(rng, *batch, size), positive(rng, *batch, size)

    def distribution(self, loc, scale, size):
        return tfd.Independent(tfd.Normal(loc, scale), 1)


class IndependentSharedScale(ScaledIdentity):
    """Normals whose scale broadcasts along the event."""

    def distribution(self, loc, scale, size):
        return tfd.Independent(tfd.Normal(loc, scale[..., None]), 1)


class IndependentSharedLoc:
    def parameters(self, rng, batch, size):
        return normal(rng, *batch), positive(rng, *batch, size)

    def distribution(self, loc, scale, size):
        return tfd.Independent(tfd.Normal(loc[..., None], scale), 1)

    def moments(self, loc, scale, size):
        return loc[..., None] * tf.ones_like(scale), tfl.diag(scale**2)


class SampleNormal:
    def parameters(self, rng, batch, size):
        return normal(rng, *batch), positive(rng, *batch)

    def distribution(self, loc, scale, size):
        return tfd.Sample(tfd.Normal(loc, scale), [size])

    def moments(self, loc, scale, size):
        ones = tf.ones([size], tf.float64)
        return loc[..., None] * ones, scale[..., None, None] ** 2 * tfl.diag(ones)


class TriL:
    def parameters(self, rng, batch, size):
        lower = np.tril(normal(rng, *batch, size, size), -1) / np.sqrt(size)
        return normal(rng, *batch, size), lower + positive(rng, *batch, size)[..., None] * np.eye(
            size
        )

    def distribution(self, loc, scale, size):
        return tfd.MultivariateNormalTriL(loc, scale)

    def moments(self, loc, scale, size):
        return loc, squared(tfl.band_part(scale, -1, 0))


class LowerTriangular(TriL):
    def distribution(self, loc, scale, size):
        operator = tfl.LinearOperatorLowerTriangular(scale)
        return tfd.MultivariateNormalLinearOperator(loc, operator)


class FullMatrix(TriL):
    """A scale that is no Cholesky factor: neither triangular nor symmetric."""

    def parameters(self, rng, batch, size):
        return normal(rng, *batch, size), np.eye(size) + 0.3 * normal(
            rng, *batch, size, size
        ) / np.sqrt(size)

    def distribution(self, loc, scale, size):
        operator = tfl.LinearOperatorFullMatrix(scale, is_non_singular=True)
        return tfd.MultivariateNormalLinearOperator(loc, operator)

    def moments(self, loc, scale, size):
        return loc, squared(scale)


class LowRankUpdate:
    def parameters(self, rng, batch, size):
        return (
            normal(rng, *batch, size),
            positive(rng, *batch, size),
            normal(rng, *batch, size, 2) / np.sqrt(size),
        )

    def distribution(self, loc, diag, u, size):
        base = tfl.LinearOperatorDiag(diag, is_positive_definite=True)
        operator = tfl.LinearOperatorLowRankUpdate(base, u, is_positive_definite=True)
        return tfd.MultivariateNormalLinearOperator(loc, operator)

    def moments(self, loc, diag, u, size):
        return loc, squared(tfl.diag(diag) + squared(u))


class LowRankUpdateOfScaledIdentity:
    def parameters(self, rng, batch, size):
        return (
            normal(rng, *batch, size),
            positive(rng, *batch),
            normal(rng, *batch, size, 1) / np.sqrt(size),
        )

    def distribution(self, loc, scale, u, size):
        base = tfl.LinearOperatorScaledIdentity(size, scale, is_positive_definite=True)
        operator = tfl.LinearOperatorLowRankUpdate(base, u, is_positive_definite=True)
        return tfd.MultivariateNormalLinearOperator(loc, operator)

    def moments(self, loc, scale, u, size):
        base = tf.eye(size, dtype=tf.float64) * scale[..., None, None]
        return loc, squared(base + squared(u))


class UnsymmetricLowRankUpdate:
    def parameters(self, rng, batch, size):
        u, v = (0.4 * normal(rng, *batch, size, 2) / np.sqrt(size) for _ in range(2))
        return normal(rng, *batch, size), positive(rng, *batch, size), u, normal(rng, *batch, 2), v

    def distribution(self, loc, diag, u, diag_update, v, size):
        base = tfl.LinearOperatorDiag(diag, is_non_singular=True)
        operator = tfl.LinearOperatorLowRankUpdate(base, u, diag_update, v, is_non_singular=True)
        return tfd.MultivariateNormalLinearOperator(loc, operator)

    def moments(self, loc, diag, u, diag_update, v, size):
        update = tf.linalg.matmul(u * diag_update[..., None, :], v, transpose_b=True)
        return loc, squared(tfl.diag(diag) + update)


CASES = {
    **AR1S,
    **{name: RELATIVES[name] for name in ONE_OF_EACH},
    "Diag": Diag(),
    "Diag of identity": IdentityScale(),
    "ScaledIdentity": ScaledIdentity(),
    "loc is None": WithoutLoc(),
    "Independent": IndependentNormal(),
    "Independent, shared scale": IndependentSharedScale(),
    "Independent, shared loc": IndependentSharedLoc(),
    "Sample": SampleNormal(),
    "TriL": TriL(),
    "LowerTriangular": LowerTriangular(),
    "FullMatrix": FullMatrix(),
    "LowRankUpdate": LowRankUpdate(),
    "LowRankUpdate, ScaledIdentity": LowRankUpdateOfScaledIdentity(),
    "LowRankUpdate, unsymmetric": UnsymmetricLowRankUpdate(),
}
DENSE_CASES = ("TriL", "LowerTriangular", "FullMatrix")


def five_ar1(size, by):
    """Parameters of five AR(1)s, one for each correlation."""
    loc, scale, _ = random_parameters(CASES["AR1"], (5,), size, seed=1)
    return [loc, scale, as_float32(RHO if by == "correlation" else np.arctanh(RHO))]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("size", oracles.SIZES)
class TestAgainstDense:
    @staticmethod
    def both_sides(name, size):
        # Ours has the spelling of the correlation that the case has not, so that they meet.
        ours = CASES["AR1" if name == "AR1 by fisher_z" else "AR1 by fisher_z"]
        return ours, five_ar1(size, ours.by), CASES[name]

    def test_values(self, size, name):
        ours, parameters, other = self.both_sides(name, size)
        other_parameters = random_parameters(other, (5,), size)
        dense_p = as_dense(ours, parameters, size)
        dense_q = as_dense(other, other_parameters, size)
        from_ar1, to_ar1 = dense_p.kl(dense_q), dense_q.kl(dense_p)
        for dtype in oracles.DTYPES:
            p = ours.distribution(*cast(parameters, dtype), size=size)
            q = other.distribution(*cast(other_parameters, dtype), size=size)
            actual = tfd.kl_divergence(p, q)
            assert actual.dtype == dtype
            oracles.assert_close(actual, from_ar1, err_msg=f"from AR1, {dtype}")
            oracles.assert_close(tfd.kl_divergence(q, p), to_ar1, err_msg=f"to AR1, {dtype}")

    @pytest.mark.parametrize("reverse", [False, True], ids=["from AR1", "to AR1"])
    def test_gradients(self, size, name, reverse):
        """With respect to every parameter of both sides."""
        ours, parameters, other = self.both_sides(name, size)
        members = [0, 4] if size == 700 else range(5)  # the strongest correlations alone
        parameters = [a[members] for a in parameters]
        other_parameters = random_parameters(other, (len(members),), size)
        arguments = [*parameters, *other_parameters]

        def kl(*arguments):
            p = ours.distribution(*arguments[:3], size=size)
            q = other.distribution(*arguments[3:], size=size)
            return tfd.kl_divergence(q, p) if reverse else tfd.kl_divergence(p, q)

        def dense_kl(*arguments):
            p = ours.moments(*arguments[:3], size=size)
            q = other.moments(*arguments[3:], size=size)
            return oracles.tf_kl(q, p) if reverse else oracles.tf_kl(p, q)

        expected = oracles.tf_gradients(dense_kl, arguments)
        for dtype in oracles.DTYPES:
            actual = oracles.tf_gradients(kl, cast(arguments, dtype))
            for i, (a, e) in enumerate(zip(actual, expected, strict=True)):
                # The trace and the log-determinants have gradients of order one, which may cancel.
                oracles.assert_close(
                    a, e, "gradient", a.ndim - 1, err_msg=f"argument {i}, {dtype}", at_least=0.1
                )


@pytest.mark.parametrize("name", ["AR1 by fisher_z", "Diag", "Sample", "Independent", "TriL"])
@pytest.mark.parametrize("reverse", [False, True])
def test_second_derivatives(name, reverse):
    """In the correlation and the scale."""
    size, other = 3, CASES[name]
    other_parameters = random_parameters(other, (), size)
    loc = random_parameters(CASES["AR1"], (), size, seed=1)[0]
    dense_q = other.moments(*map(tf.constant, other_parameters), size=size)

    def ours(x):
        p = MultivariateNormalAR1(loc, x[0], fisher_z=x[1])
        q = other.distribution(*other_parameters, size=size)
        return tfd.kl_divergence(q, p) if reverse else tfd.kl_divergence(p, q)

    def dense(x):
        p = CASES["AR1 by fisher_z"].moments(tf.constant(loc), x[0], x[1], size=size)
        return oracles.tf_kl(dense_q, p) if reverse else oracles.tf_kl(p, dense_q)

    def hessian(function):
        with tf.GradientTape() as outer:
            x = tf.constant([1.3, -0.7], tf.float64)
            outer.watch(x)
            with tf.GradientTape() as inner:
                inner.watch(x)
                value = function(x)
            gradient = inner.gradient(value, x)
        return outer.jacobian(gradient, x)

    oracles.assert_close(hessian(ours), hessian(dense), "second derivative", event_ndims=2)


# --- The rest of the family, with each other and with TFP's ---------------------------------

WITH_RELATIVES = (
    *("AR1", "ARH1 by fisher_z", "ANTE1", "OU", "Diag", "Independent", "Independent, shared loc"),
    *("Sample", "TriL", "FullMatrix", "LowRankUpdate"),
)
each_relative = pytest.mark.parametrize("relative", ONE_OF_EACH)


@each_relative
@pytest.mark.parametrize("name", WITH_RELATIVES)
@pytest.mark.parametrize("size", [1, 4, 150])
def test_relatives(size, name, relative):
    """Values under broadcasting, and gradients with respect to every parameter of both sides."""
    ours, other = RELATIVES[relative], (RELATIVES | CASES)[name]
    parameters = random_parameters(ours, (3,), size, seed=1)
    other_parameters = random_parameters(other, (2, 1), size)
    count, arguments = len(parameters), [*parameters, *other_parameters]
    dense_p, dense_q = as_dense(ours, parameters, size), as_dense(other, other_parameters, size)

    def kl(*arguments, reverse):
        p = ours.distribution(*arguments[:count], size=size)
        q = other.distribution(*arguments[count:], size=size)
        return tfd.kl_divergence(q, p) if reverse else tfd.kl_divergence(p, q)

    def dense_kl(*arguments, reverse):
        p = ours.moments(*arguments[:count], size=size)
        q = other.moments(*arguments[count:], size=size)
        return oracles.tf_kl(q, p) if reverse else oracles.tf_kl(p, q)

    for reverse in (False, True):
        expected = dense_q.kl(dense_p) if reverse else dense_p.kl(dense_q)
        for dtype in oracles.DTYPES:
            actual = kl(*cast(arguments, dtype), reverse=reverse)
            assert actual.dtype == dtype
            oracles.assert_close(actual, expected, err_msg=f"{dtype}, reverse={reverse}")
        if size == 150 and name in DENSE_CASES:
            continue  # whose parameters are d × d
        # The sum connects what has no influence: at size one, times and correlations.
        actual, expected = (
            oracles.tf_gradients(
                lambda *a, f=f, r=reverse: f(*a, reverse=r) + 0 * sum(map(tf.reduce_sum, a)),
                arguments,
            )
            for f in (kl, dense_kl)
        )
        for i, (a, e) in enumerate(zip(actual, expected, strict=True)):
            message = f"argument {i}, reverse={reverse}"
            oracles.assert_close(a, e, "gradient", a.ndim - 1, err_msg=message, at_least=0.1)


@each_relative
@pytest.mark.parametrize("name", WITH_RELATIVES[:8])
def test_kl_terms(name, relative):
    """The first n of them sum to the KL of the marginals of the first n coordinates."""
    size, ours, other = 6, RELATIVES[relative], (RELATIVES | CASES)[name]
    parameters = random_parameters(ours, (3,), size, seed=1)
    other_parameters = random_parameters(other, (2, 1), size)
    p, q = (
        case.distribution(*given, size=size)
        for case, given in ((ours, parameters), (other, other_parameters))
    )
    dense_p, dense_q = as_dense(ours, parameters, size), as_dense(other, other_parameters, size)
    for (left, right), (dense_left, dense_right) in (
        ((p, q), (dense_p, dense_q)),
        ((q, p), (dense_q, dense_p)),
    ):
        terms = kl_terms(left, right)
        assert terms.shape == (2, 3, size)
        assert np.all(terms >= 0)
        sums = np.cumsum(terms, axis=-1)
        for n in range(1, size + 1):
            firsts = (
                oracles.Dense(d.mean[..., :n], d.covariance[..., :n, :n])
                for d in (dense_left, dense_right)
            )
            oracles.assert_close(sums[..., n - 1], next(firsts).kl(next(firsts)), err_msg=f"{n}")


@pytest.mark.parametrize("name", ["AR1", "ANTE1", "OU", "Diag", "Sample"])
def test_kl_terms_of_an_unknown_shape(name):
    case, ours = (RELATIVES | CASES)[name], RELATIVES["ANTE1"]
    count = len(random_parameters(case, (), 2))

    @tf.function(input_signature=[tf.TensorSpec(None, tf.float64)] * (3 + count))
    def terms(loc, scale, rho, *parameters):
        p = ours.distribution(loc, scale, rho)
        q = case.distribution(*parameters, size=tf.shape(loc)[-1])
        return kl_terms(p, q), kl_terms(q, p)

    for size in (1, 4):
        given = random_parameters(ours, (3,), size, seed=1)
        other = random_parameters(case, (2, 1), size)
        p = ours.distribution(*given)
        q = case.distribution(*other, size=size)
        for actual, expected in zip(
            terms(*given, *other), (kl_terms(p, q), kl_terms(q, p)), strict=True
        ):
            oracles.assert_close(actual, expected, "same computation", 1)


def test_kl_terms_refuse_what_is_no_path():
    p = MultivariateNormalAR1(tf.zeros(3), correlation=0.5)
    for q in (tfd.MultivariateNormalTriL(tf.zeros(3), tf.eye(3)), tfd.Dirichlet(tf.ones(3))):
        for pair in ((p, q), (q, p)):
            with pytest.raises(TypeError, match="`GaussianMarkovChain` or a vector of independent"):
                kl_terms(*pair)
    with pytest.raises(ValueError, match=r"same size; got event shape \(3,\)"):
        kl_terms(p, tfd.MultivariateNormalDiag(tf.zeros(4)))


# --- Shapes ---------------------------------------------------------------------------------

# Batch shapes: those of our loc, marginal_scale and correlation, then that of the other side.
BROADCASTS = [
    ((), (), (), ()),
    ((3,), (), (), ()),
    ((), (3,), (), ()),
    ((), (), (3,), ()),
    ((), (), (), (3,)),
    ((2, 1), (), (4,), (2, 1)),
    ((2, 1), (2, 1), (2, 1), (4,)),
    ((4,), (1,), (), (2, 1)),
]


@functools.cache
def unknown_kl(name, reverse):
    """A graph that knows neither batch nor event shape."""
    case = CASES[name]
    count = len(random_parameters(case, (), 2))
    signature = [tf.TensorSpec(None, tf.float64)] * (3 + count)

    @tf.function(input_signature=signature)
    def kl(loc, scale, rho, *parameters):
        p = MultivariateNormalAR1(loc, scale, correlation=rho)
        q = case.distribution(*parameters, size=tf.shape(loc)[-1])
        return tfd.kl_divergence(q, p) if reverse else tfd.kl_divergence(p, q)

    return kl


@pytest.mark.parametrize("static", [True, False])
@pytest.mark.parametrize("reverse", [False, True], ids=["from AR1", "to AR1"])
@pytest.mark.parametrize("name", CASES)
def test_broadcasting(name, reverse, static):
    other = CASES[name]
    for loc_shape, scale_shape, rho_shape, other_shape in BROADCASTS:
        for size in (1, 4):
            rng = np.random.default_rng(2)
            loc, scale = normal(rng, *loc_shape, size), positive(rng, *scale_shape)
            rho = rng.uniform(-0.9, 0.9, rho_shape)
            parameters = random_parameters(other, other_shape, size)
            dense_p = oracles.Dense.ar1(loc, scale, rho)
            dense_q = as_dense(other, parameters, size)
            expected = dense_q.kl(dense_p) if reverse else dense_p.kl(dense_q)
            if static:
                p = MultivariateNormalAR1(loc, scale, correlation=rho)
                q = other.distribution(*parameters, size=size)
                actual = tfd.kl_divergence(q, p) if reverse else tfd.kl_divergence(p, q)
            else:
                actual = unknown_kl(name, reverse)(loc, scale, rho, *parameters)
            message = f"{loc_shape}, {scale_shape}, {rho_shape}, {other_shape}, size {size}"
            oracles.assert_close(actual, expected, err_msg=message)


@pytest.mark.parametrize("reverse", [False, True], ids=["from AR1", "to AR1"])
@pytest.mark.parametrize(
    "name", ["AR1", "ARH1", "ANTE1 by fisher_z", "OU", "Diag", "Independent", "Sample", "TriL"]
)
def test_xla_agrees_with_eager(name, reverse):
    size, other = 5, CASES[name]
    arguments = [
        tf.constant(a)
        for a in (*five_ar1(size, "correlation"), *random_parameters(other, (5,), size))
    ]

    def kl(loc, scale, rho, *parameters):
        p = MultivariateNormalAR1(loc, scale, correlation=rho)
        q = other.distribution(*parameters, size=size)
        return tfd.kl_divergence(q, p) if reverse else tfd.kl_divergence(p, q)

    compiled = tf.function(kl, jit_compile=True)(*arguments)
    oracles.assert_close(compiled, kl(*arguments), "same computation")


def test_variables_on_both_sides_have_gradients():
    variables = [tf.Variable([0.1, 0.2, 0.3]), tf.Variable(1.2), tf.Variable(0.3)]
    p = MultivariateNormalAR1(variables[0], variables[1], correlation=variables[2])
    loc, diag, scalar = tf.Variable(tf.ones(3)), tf.Variable(2 * tf.ones(3)), tf.Variable(1.5)
    others = [
        (MultivariateNormalAR1(loc, scalar, fisher_z=0.1), [loc, scalar]),
        (tfd.MultivariateNormalDiag(loc, diag), [loc, diag]),
        (tfd.Independent(tfd.Normal(loc, diag), 1), [loc, diag]),
        (tfd.Sample(tfd.Normal(0.0, scalar), 3), [scalar]),
        (tfd.MultivariateNormalTriL(loc, tf.linalg.diag(tf.ones(3))), [loc]),
    ]
    for q, q_variables in others:
        for first, second in ((p, q), (q, p)):
            with tf.GradientTape() as tape:
                kl = tfd.kl_divergence(first, second)
            gradients = tape.gradient(kl, variables + q_variables)
            assert all(g is not None for g in gradients), (first, second)


@pytest.mark.parametrize("reverse", [False, True], ids=["from AR1", "to AR1"])
@pytest.mark.parametrize(
    "name", [name for name in CASES if name not in DENSE_CASES and "Low" not in name]
)
def test_nothing_is_made_dense(name, reverse, monkeypatch):
    def refuse(*_args, **_kwargs):
        raise AssertionError("to_dense was called")

    operators = (
        LinearOperatorMarkovCholesky,
        tfl.LinearOperatorDiag,
        tfl.LinearOperatorScaledIdentity,
        tfl.LinearOperatorIdentity,
    )
    for operator in operators:
        monkeypatch.setattr(operator, "_to_dense", refuse)
    case = CASES[name]
    p = CASES["AR1"].distribution(*five_ar1(5, "correlation"), size=5)
    q = case.distribution(*random_parameters(case, (5,), 5), size=5)
    tfd.kl_divergence(*((q, p) if reverse else (p, q)))


# --- Correlations next to one ---------------------------------------------------------------


def standard_normals(size):
    zeros, ones = tf.zeros(size), tf.ones(size)
    return {
        "Diag": tfd.MultivariateNormalDiag(zeros, ones),
        "Diag of identity": tfd.MultivariateNormalDiag(zeros),
        "Independent": tfd.Independent(tfd.Normal(zeros, 1.0), 1),
        "Sample": tfd.Sample(tfd.Normal(0.0, 1.0), [size]),
        "TriL": tfd.MultivariateNormalTriL(zeros, tf.eye(size)),
        "AR1": MultivariateNormalAR1(zeros, 1.0, correlation=0.0),
    }


def compare_where_representable(actual, expected, what, err_msg, within=True):
    """Float32 must say every true value, `within` a mask, that it has a number for."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.dtype == np.float32
    fits = (np.abs(expected) < 0.99 * oracles.FLOAT32_MAX) & within
    oracles.assert_close(
        np.where(fits, actual, 0), np.where(fits, expected, 0), what, err_msg=err_msg
    )
    if what == "value":
        assert not np.any(np.isnan(actual)), err_msg
    return fits


@pytest.mark.parametrize("reverse", [False, True], ids=["from AR1", "to AR1"])
@pytest.mark.parametrize("name", standard_normals(1))
def test_extreme_against_standard_normal(name, reverse):
    loc, scale, size = np.float32([0.5, -1, 0.25, 2]), np.float32(1.3), 4
    exact_ar1 = [oracles.Exact(tuple(loc), scale, u) for u in EXTREME_FISHER_Z]
    exact_normal = oracles.Exact((0.0,) * size, 1.0, 0.0)
    scales, locs = np.full(13, scale), np.tile(loc, (13, 1))

    def kl(scale, u, loc):
        p, q = MultivariateNormalAR1(loc, scale, fisher_z=u), standard_normals(size)[name]
        return tfd.kl_divergence(q, p) if reverse else tfd.kl_divergence(p, q)

    arguments = (scales, EXTREME_FISHER_Z, locs)
    if reverse:
        expected = [exact_normal.kl(p) for p in exact_ar1]
    else:
        expected = [p.kl(exact_normal) for p in exact_ar1]
    fits = compare_where_representable(kl(*arguments), expected, "value", "value")
    assert np.all(fits[np.abs(EXTREME_FISHER_Z) <= 40])

    d_scale, d_u, d_loc = oracles.tf_gradients(kl, arguments)
    for field, gradient in (("scale", d_scale), ("fisher_z", d_u)):
        if reverse:
            expected = [exact_normal.kl_derivative_other(p, field) for p in exact_ar1]
        else:
            expected = [p.kl_derivative(exact_normal, field) for p in exact_ar1]
        compare_where_representable(gradient, expected, "gradient", field)
    # N(0, I) to the left: q's quadratic form, as in log_prob, whose gradient is tested with it.
    if not reverse:
        oracles.assert_close(d_loc, locs, "gradient", event_ndims=1)


@pytest.mark.parametrize(
    "difference",
    [[0.0] * 4, [1.0] * 4, [1.0, -1, 1, -1], [0.5, -1, 0.25, 2]],
    ids=["zero", "constant", "alternating", "ragged"],
)
def test_extreme_against_each_other(difference):
    """All pairs of extreme correlations, equal ones among them."""
    size, scale, other_scale = 4, np.float32(1.3), np.float32(0.7)
    left = [oracles.Exact((0.0,) * size, scale, u) for u in EXTREME_FISHER_Z]
    loc = np.float32(difference)
    right = [oracles.Exact(tuple(loc), other_scale, u) for u in EXTREME_FISHER_Z]
    u, other_u = np.broadcast_arrays(EXTREME_FISHER_Z[:, None], EXTREME_FISHER_Z)

    def kl(u, other_u):
        p = MultivariateNormalAR1(tf.zeros(size), scale, fisher_z=u)
        return tfd.kl_divergence(p, MultivariateNormalAR1(loc, other_scale, fisher_z=other_u))

    expected = [[p.kl(q) for q in right] for p in left]
    fits = compare_where_representable(kl(u, other_u), expected, "value", "value")
    # A KL grows as exp(2 |u|), which float32 can say up to |u| = 43.
    up_to_40 = (np.abs(u) <= 40) & (np.abs(other_u) <= 40)
    assert np.all(fits[up_to_40])

    gradients = oracles.tf_gradients(kl, (u, other_u))
    exact = (
        [[p.kl_derivative(q, "fisher_z") for q in right] for p in left],
        [[p.kl_derivative_other(q, "fisher_z") for q in right] for p in left],
    )
    for side, gradient, expected in zip(("left", "right"), gradients, exact, strict=True):
        # Beyond 40, where the KL and the squares of its derivatives are representable too.
        within = up_to_40 | (fits & (np.abs(expected) < oracles.FLOAT32_MAX**0.5))
        compare_where_representable(gradient, expected, "gradient", side, within)


@pytest.mark.parametrize("u", EXTREME_FISHER_Z)
def test_extreme_from_itself(u):
    p = MultivariateNormalAR1([1.0, 2, 3, 4, 5], 1.3, fisher_z=u)
    assert abs(float(tfd.kl_divergence(p, p))) < 1e-6


# --- Properties -----------------------------------------------------------------------------

parameters = st.tuples(st.floats(-0.999, 0.999), st.floats(0.05, 20.0), st.integers(0, 2**31))


@hypothesis.given(left=parameters, right=parameters, size=st.integers(1, 30))
def test_is_dense_and_never_negative(left, right, size):
    distributions, denses = [], []
    for rho, scale, seed in (left, right):
        loc = normal(np.random.default_rng(seed), size)
        distributions.append(MultivariateNormalAR1(loc, scale, correlation=rho))
        denses.append(oracles.Dense.ar1(loc, scale, rho))
    actual = tfd.kl_divergence(*distributions)
    oracles.assert_close(actual, denses[0].kl(denses[1]))
    assert actual > -1e-12
    assert abs(tfd.kl_divergence(distributions[0], distributions[0])) < 1e-12


@pytest.mark.parametrize("by", ["correlation", "fisher_z"])
@pytest.mark.parametrize("dtype", oracles.DTYPES)
class TestSmallDivergences:
    """Next to zero, where the terms of the textbook's formula cancel, still relatively right."""

    @staticmethod
    def pair(scale, u, dtype, by):
        """Ours and its decimals."""
        given = np.asarray(u if by == "fisher_z" else np.tanh(u), dtype)
        exact_u = given if by == "fisher_z" else np.arctanh(given.astype("float64"))
        scale = np.asarray(scale, dtype)
        ours = MultivariateNormalAR1(np.zeros(50, dtype), scale, **{by: given})
        return ours, oracles.Exact((0.0,) * 50, scale, exact_u)

    @pytest.mark.parametrize("u", [1e-2, -1e-4, 1e-6, -1e-8])
    def test_from_standard_normal(self, u, dtype, by):
        p, exact = self.pair(1.0, u, dtype, by)
        exact_normal = oracles.Exact((0.0,) * 50, 1.0, 0.0)
        normal = tfd.MultivariateNormalDiag(tf.zeros(50, dtype))
        kl = tfd.kl_divergence(p, normal)
        np.testing.assert_allclose(kl, exact.kl(exact_normal), rtol=1e-4)

    @pytest.mark.parametrize("step", [1e-2, 1e-4, 1e-6])
    @pytest.mark.parametrize("u", [0.0, 1.0, -3.0])
    def test_from_a_neighbour(self, u, step, dtype, by):
        p, exact_p = self.pair(1.0, u, dtype, by)
        for scale, other_u in ((1.0 + step, u), (1.0, u + step), (1.0 - step, u - step)):
            q, exact_q = self.pair(scale, other_u, dtype, by)
            rtol = 5e-6 if dtype == "float32" else 1e-10
            np.testing.assert_allclose(tfd.kl_divergence(p, q), exact_p.kl(exact_q), rtol=rtol)


@pytest.mark.parametrize("step", [1e-2, 1e-4, 1e-6])
@pytest.mark.parametrize("sigma", [1e-6, 1.0, 100.0, 1e6])
@pytest.mark.parametrize("u", [0.0, 0.5, -3.0, 11.0, 18.0])
def test_scales_near_each_other(u, sigma, step):
    """Right in float32 to a few eps of the KL, whatever the unit of the scales."""
    zeros, fisher_z = np.zeros(3, np.float32), np.float32([u, u + 0.125])
    scale = np.float32([0.7, 1.3, 0.9]) * np.float32(sigma)
    other = scale * np.float32([1 + step, 1 - step, 1 + step])

    def ante1(scale, fisher_z=fisher_z):
        exact = oracles.ExactChain(tuple(zeros), tuple(scale), tuple(fisher_z))
        return MultivariateNormalANTE1(zeros, scale, fisher_z=fisher_z), exact

    def diag(scale):
        return tfd.MultivariateNormalDiag(zeros, scale), ante1(scale, (0.0, 0.0))[1]

    nearly_diag = np.float32([1e-3, 1e-4])
    for (p, exact_p), (q, exact_q) in (
        (ante1(scale), ante1(other)),
        (ante1(scale), ante1(scale, fisher_z + np.float32(step))),
        (ante1(scale, nearly_diag), diag(other)),
        (diag(scale), ante1(other, nearly_diag)),
    ):
        np.testing.assert_allclose(tfd.kl_divergence(p, q), exact_p.kl(exact_q), rtol=5e-6)


def test_fisher_information_in_float32():
    """The Hessian of KL(p ‖ q) at q = p, in the parameters of q."""
    u = tf.constant([0.0, 0.5, -3.0, 11.0])
    with tf.GradientTape() as outer:
        outer.watch(u)
        with tf.GradientTape() as inner:
            inner.watch(u)
            p = MultivariateNormalAR1(tf.zeros(4), 2.0, fisher_z=tf.stop_gradient(u))
            kl = tfd.kl_divergence(p, MultivariateNormalAR1(tf.zeros(4), 2.0, fisher_z=u))
        gradient = inner.gradient(kl, u)
    np.testing.assert_allclose(gradient, np.zeros(4), atol=1e-6)
    # For each of the 3 steps ½ (d log v / du)² + (d ρ / du)² / (1 - ρ²) = 1 + ρ².
    expected = 3.0 * (1.0 + np.tanh(u.numpy().astype("float64")) ** 2)
    np.testing.assert_allclose(outer.gradient(gradient, u), expected, rtol=1e-5)


@pytest.mark.parametrize("size", [1, 5])
def test_kl_terms_of_laws_without_a_vector_of_parameters(size):
    """Where no parameter has an entry for each coordinate, the terms have one all the same."""

    def iid(loc, scale):
        return tfd.Sample(tfd.Normal(loc, scale), size)

    def exact(loc, scale):
        return oracles.Exact((loc,) * size, scale, 0.0)

    for (loc, scale), (other_loc, other_scale) in (
        ((0.0, 1.0), (1.0, 2.0)),
        ((3.0, 0.5), (3.0, 0.5)),
    ):
        expected = exact(loc, scale).kl(exact(other_loc, other_scale))
        terms = kl_terms(iid(loc, scale), iid(other_loc, other_scale))
        np.testing.assert_allclose(terms, np.full(size, expected / size), rtol=1e-5, atol=1e-7)
    terms = kl_terms(iid([0.0, 1.0], 1.0), tfd.MultivariateNormalDiag(tf.zeros(size)))
    np.testing.assert_allclose(terms, [[0.0] * size, [0.5] * size], atol=1e-7)


# --- Refusals -------------------------------------------------------------------------------


def refused():
    """Name, other side, and what the message must say."""
    zeros3, zeros4, zeros34 = tf.zeros(3), tf.zeros(4), tf.zeros([3, 4])
    both_sizes = r"3.*4|4.*3"
    return {
        "AR1 of another size": (MultivariateNormalAR1(zeros4, correlation=0.1), both_sizes),
        "Diag of another size": (tfd.MultivariateNormalDiag(zeros4), both_sizes),
        "TriL of another size": (tfd.MultivariateNormalTriL(zeros4, tf.eye(4)), both_sizes),
        "Independent of another size": (tfd.Independent(tfd.Normal(zeros4, 1.0), 1), both_sizes),
        "Sample of another size": (tfd.Sample(tfd.Normal(0.0, 1.0), 4), both_sizes),
        # Would broadcast.
        "AR1 of size one": (MultivariateNormalAR1([0.0], correlation=0.1), r"3.*1|1.*3"),
        "Diag of size one": (tfd.MultivariateNormalDiag([0.0]), r"3.*1|1.*3"),
        "Independent of size one": (tfd.Independent(tfd.Normal([0.0], 1.0), 1), r"3.*1|1.*3"),
        "Sample of size one": (tfd.Sample(tfd.Normal(0.0, 1.0), 1), r"3.*1|1.*3"),
        "Independent Laplace": (tfd.Independent(tfd.Laplace(zeros3, 1.0), 1), "Laplace"),
        "Independent matrix": (tfd.Independent(tfd.Normal(zeros34, 1.0), 2), "event|Independent"),
        "Independent scalar": (tfd.Independent(tfd.Normal(zeros3, 1.0), 0), "event|Independent"),
        "Independent of a vector": (
            tfd.Independent(tfd.MultivariateNormalDiag(zeros34), 1),
            "event|Independent",
        ),
        "Sample Laplace": (tfd.Sample(tfd.Laplace(0.0, 1.0), 3), "Laplace"),
        "Sample matrix": (tfd.Sample(tfd.Normal(0.0, 1.0), [1, 3]), "event|Sample"),
        "Sample scalar": (tfd.Sample(tfd.Normal(0.0, 1.0), []), "event|Sample"),
        "Sample of a vector": (tfd.Sample(tfd.MultivariateNormalDiag(zeros3), 1), "event|Sample"),
        "Sample of vectors, as long": (
            tfd.Sample(tfd.MultivariateNormalDiag(zeros3), []),
            "MultivariateNormalDiag",
        ),
    }


@pytest.mark.parametrize("reverse", [False, True], ids=["from AR1", "to AR1"])
@pytest.mark.parametrize("name", refused())
def test_refuses(name, reverse):
    p = MultivariateNormalAR1(tf.zeros(3), correlation=0.5)
    q, message = refused()[name]
    # As TFP has it: events of different shape are an error; other distributions have no KL.
    error = ValueError if q.event_shape != p.event_shape else NotImplementedError
    with pytest.raises(error, match=message):
        tfd.kl_divergence(*((q, p) if reverse else (p, q)))


@pytest.mark.parametrize("reverse", [False, True], ids=["from AR1", "to AR1"])
@pytest.mark.parametrize("name", ["AR1", "Diag", "Independent", "Sample", "TriL"])
def test_refuses_another_size_when_it_becomes_known(name, reverse):
    case = CASES[name]

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float64)])
    def kl(loc):
        p = MultivariateNormalAR1(loc, correlation=tf.constant(0.5, tf.float64))
        q = case.distribution(*random_parameters(case, (), 4), size=4)
        return tfd.kl_divergence(*((q, p) if reverse else (p, q)))

    kl(tf.zeros(4, tf.float64))
    for size in (1, 3):
        with pytest.raises(tf.errors.InvalidArgumentError):
            kl(tf.zeros(size, tf.float64))


def test_refuses_another_distribution():
    p = MultivariateNormalAR1(tf.zeros(3), correlation=0.5)
    with pytest.raises(NotImplementedError):
        tfd.kl_divergence(p, tfd.Dirichlet(tf.ones(3)))
