"""`recurrence` and `whiten` against a loop, for every scheme that a size may select."""

import derivatives
import numpy as np
import oracles
import pytest
import tensorflow as tf

from tfp_ar1 import recurrence as rec
from tfp_ar1.correlation import LagOneCorrelation

FUNCTIONS = {"recurrence": rec.recurrence, "whiten": rec.whiten}
RHO = np.array([-0.95, -0.3, 0.0, 0.6, 0.99])
# What lies next to the blocks of 16 and 32 and to the switches from doubling to blocks: at 256
# coordinates for one ρ, at 128 for one of each step. 4097 leaves a ragged last block; 20000, and
# 2100 steps, more blocks than the largest size for doubling.
SIZES = {
    "shared": (1, 2, 3, 32, 33, 256, 257, 1025, 4097, 20000),
    "per step": (1, 2, 3, 16, 17, 128, 129, 144, 1000, 2100),
}
KINDS = [*SIZES]
each_size = pytest.mark.parametrize(("kind", "size"), [(k, n) for k in KINDS for n in SIZES[k]])
# One without blocks, one with, for both kinds.
two_sizes = pytest.mark.parametrize(
    ("kind", "size"), [("shared", 6), ("shared", 600), ("per step", 6), ("per step", 150)]
)


def draw(seed, *shape, dtype="float64"):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def draw_rho(kind, batch, size, seed=0):
    """Among those of each step exact zeros, and some next to one."""
    rng = np.random.default_rng(seed)
    if kind == "shared":
        return RHO if batch == (5,) else rng.uniform(-0.9, 0.9, batch)
    return rng.choice([0.0, 0.999, -0.999, *rng.uniform(-1, 1, 10)], size=(*batch, size - 1))


def correlation(kind, rho):
    return LagOneCorrelation(rho, per_step=kind == "per step")


def steps_of(kind, rho, size):
    """One for each step."""
    return rho if kind == "per step" else tf.repeat(rho[..., tf.newaxis], size - 1, axis=-1)


def loop(name, x, rho, reverse=False):
    """The definition, coordinate by coordinate; `rho` for each step."""
    x, rho = np.asarray(x, np.float64), np.asarray(rho, np.float64)
    if name == "recurrence" and reverse:
        return loop(name, x[..., ::-1], rho[..., ::-1])[..., ::-1]
    zero = np.zeros(rho.shape[:-1])
    y = [x[..., t] + zero for t in range(x.shape[-1])]
    step = np.sqrt(1 - rho**2)
    for t in range(1, len(y)):
        if name == "recurrence":
            y[t] = x[..., t] + rho[..., t - 1] * y[t - 1]
        elif reverse:
            y[t] = x[..., t] / step[..., t - 1]
            y[t - 1] = y[t - 1] - rho[..., t - 1] * y[t]
        else:
            y[t] = (x[..., t] - rho[..., t - 1] * x[..., t - 1]) / step[..., t - 1]
    return np.stack(y, axis=-1)


def tf_loop(x, rho, reverse=False):
    """`loop` for the recurrence, differentiable."""
    if reverse:
        return tf_loop(x[..., ::-1], rho[..., ::-1])[..., ::-1]
    y = [x[..., 0] + 0 * tf.reduce_sum(rho, axis=-1)]
    for t in range(1, x.shape[-1]):
        y.append(x[..., t] + rho[..., t - 1] * y[-1])
    return tf.stack(y, axis=-1)


def assert_gradients_close(actual, expected, what="gradient"):
    """Of x and ρ."""
    for a, e in zip(actual, expected, strict=True):
        oracles.assert_close(a, e, what, event_ndims=a.ndim - 1)


@each_size
@pytest.mark.parametrize("name", FUNCTIONS)
def test_values(size, kind, name):
    for dtype in oracles.DTYPES:
        x, rho = draw(size, 2, 5, size, dtype=dtype), draw_rho(kind, (5,), size).astype(dtype)
        for reverse in (False, True):
            actual = FUNCTIONS[name](tf.constant(x), correlation(kind, rho), reverse=reverse)
            assert actual.dtype == dtype
            expected = loop(name, x, steps_of(kind, rho, size), reverse)
            oracles.assert_close(actual, expected, event_ndims=1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_unknown_size(name, reverse, kind):
    """And unknown rank; the gradients, and theirs in ρ, as those of a known size."""

    def values_and_gradients(x, rho):
        def of(x, rho):
            return FUNCTIONS[name](x, correlation(kind, rho), reverse=reverse)

        def weighted(rho):
            return derivatives.gradients(of, [x, rho])[0] * x

        gradients = derivatives.gradients(of, [x, rho])
        return of(x, rho), *gradients, *derivatives.gradients(weighted, [rho])

    unknown = tf.function(values_and_gradients, [tf.TensorSpec(None, "float64")] * 2)
    for size in (1, 2, 3, 33, 300):
        x = tf.constant(draw(size, 5, size))
        rho = tf.constant(draw_rho(kind, (5,), size))
        y, *gradients = (np.asarray(a) for a in unknown(x, rho))
        expected = loop(name, x, steps_of(kind, rho, size), reverse)
        oracles.assert_close(y, expected, event_ndims=1)
        assert_gradients_close(gradients, values_and_gradients(x, rho)[1:])


@pytest.mark.parametrize(("kind", "size"), [(k, n) for k in KINDS for n in (2, 33, 300)])
@pytest.mark.parametrize("reverse", [False, True])
def test_gradients(size, kind, reverse):
    arguments = draw(0, 5, size), draw_rho(kind, (5,), size)
    weights = draw(1, 5, size)
    actual, expected = (
        oracles.tf_gradients(f, arguments, weights)
        for f in (
            lambda x, rho: rec.recurrence(x, correlation(kind, rho), reverse=reverse),
            lambda x, rho: tf_loop(x, steps_of(kind, rho, size), reverse),
        )
    )
    assert_gradients_close(actual, expected)


@pytest.mark.parametrize(
    ("kind", "size", "order"),
    [("shared", 4, 3), ("shared", 260, 3), ("per step", 4, 2), ("per step", 150, 2)],
)
def test_higher_derivatives(size, kind, order):
    """Along one direction, mixing x and rho: the k-th derivative of t ↦ f(x + t v, rho + t r)."""
    x, v, weights = draw(0, 5, size), draw(1, 5, size), draw(2, 5, size)
    rho = draw_rho(kind, (5,), size)
    r = 0.1 * draw(3, *rho.shape)

    def derivative(function, t, order):
        if order == 0:
            along = tf.reshape(t, [5] + [1] * (rho.ndim - 1))
            y = function(x + t[:, None] * v, rho + along * r)
            return tf.reduce_sum(weights * y, axis=-1)
        return derivatives.gradients(lambda t: derivative(function, t, order - 1), [t])[0]

    start = tf.zeros(5, "float64")
    actual, expected = (
        derivative(f, start, order)
        for f in (
            lambda x, rho: rec.recurrence(x, correlation(kind, rho)),
            lambda x, rho: tf_loop(x, steps_of(kind, rho, size)),
        )
    )
    oracles.assert_close(actual, expected, "second derivative")


@two_sizes
@pytest.mark.parametrize("name", FUNCTIONS)
def test_broadcasting(size, kind, name):
    """Values, and gradients summed over what was broadcast."""

    def function(x, rho):
        return FUNCTIONS[name](x, correlation(kind, rho)) + 0 * tf.reduce_sum(rho)

    for x_shape, rho_shape in (((), (3,)), ((3,), ()), ((2, 1), (4,)), ((5, 1, 3), (2, 1))):
        x, rho = draw(0, *x_shape, size), draw_rho(kind, rho_shape, size)
        full_shape = np.broadcast_shapes(x_shape, rho_shape)

        def broadcast_first(x, rho, full_shape=full_shape):
            rho_shape = [*full_shape, size - 1] if kind == "per step" else full_shape
            return function(
                tf.broadcast_to(x, [*full_shape, size]), tf.broadcast_to(rho, rho_shape)
            )

        expected = loop(name, x, steps_of(kind, tf.constant(rho), size))
        oracles.assert_close(function(tf.constant(x), tf.constant(rho)), expected, event_ndims=1)
        weights = draw(2, *full_shape, size)
        actual = oracles.tf_gradients(function, (x, rho), weights)
        assert_gradients_close(actual, oracles.tf_gradients(broadcast_first, (x, rho), weights))


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "size"), [("shared", 300), ("per step", 150)])
def test_vectorized_map_and_xla_agree_with_eager(size, kind):
    x, rho = tf.constant(draw(0, 5, size)), tf.constant(draw_rho(kind, (5,), size))

    def value_and_gradients(x, rho):
        def of(x, rho):
            return rec.recurrence(x, correlation(kind, rho))

        total = derivatives.gradients(lambda x, rho: tf.reduce_sum(of(x, rho) ** 2), [x, rho])
        return of(x, rho), *total

    eager = [np.asarray(a) for a in value_and_gradients(x, rho)]
    mapped = tf.vectorized_map(lambda args: value_and_gradients(*args), (x, rho))
    compiled = tf.function(value_and_gradients, jit_compile=True)(x, rho)
    for other in (mapped, compiled):
        assert_gradients_close([np.asarray(a) for a in other], eager, "same computation")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("size", [64, 4097])
def test_products_where_float32_rounds_the_correlation_to_one(size, sign, kind):
    """At u = 8 the correlation is 1 - 2.25e-7, a third of the way between float32 numbers."""
    u = np.full(size - 1 if kind == "per step" else (), 8 * sign, np.float32)
    x = np.zeros(size, "float32")
    x[0] = 1
    rho = LagOneCorrelation(fisher_z=tf.constant(u), per_step=kind == "per step")
    expected = np.tanh(np.float64(8 * sign)) ** np.arange(size)
    np.testing.assert_allclose(rec.recurrence(tf.constant(x), rho), expected, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("u", [20.0, -20.0, 60.0])
def test_whitening_equal_neighbours_does_not_cancel(u, kind):
    """`(1 - ρ) / √(1 - ρ²) = e^-|u|` is what remains of a constant vector."""
    alternating = np.where(np.arange(5) % 2, np.sign(u), 1.0).astype("float32")
    fisher_z = tf.fill([4] if kind == "per step" else [], np.float32(u))
    rho = LagOneCorrelation(fisher_z=fisher_z, per_step=kind == "per step")
    actual = np.asarray(rec.whiten(tf.constant(alternating), rho))
    np.testing.assert_allclose(actual[1:], np.exp(-abs(u)) * alternating[1:], rtol=1e-5)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("kind", ["one", *KINDS])
@pytest.mark.parametrize("size", [1, 2, 17, 150])
def test_segmented_recurrence(size, kind, reverse):
    """Of |ρ|, cut where a step is not linked; with the gradient of that."""
    x, weights = draw(0, 5, size), draw(1, 5, size)
    linked = np.random.default_rng(2).random((5, size - 1)) < 0.7
    rho = np.ones(5) if kind == "one" else draw_rho(kind, (5,), size)

    def ours(x, rho):
        given = None if kind == "one" else correlation(kind, rho)
        return rec.segmented_recurrence(x, linked, given, reverse) + 0 * tf.reduce_sum(rho)

    def steps(rho):
        rho = steps_of(kind, rho, size)
        return tf.where(linked, tf.abs(rho), tf.zeros_like(rho))

    actual = ours(tf.constant(x), tf.constant(rho))
    expected = loop("recurrence", x, steps(tf.constant(rho)), reverse)
    oracles.assert_close(actual, expected, event_ndims=1)
    gradients, expected = (
        oracles.tf_gradients(f, (x, rho), weights)
        for f in (ours, lambda x, rho: tf_loop(x, steps(rho), reverse))
    )
    # The derivative of |ρ| at 0 is one of two.
    where = [True, np.abs(rho) > 0]
    gradients, expected = (
        [np.where(w, g, 0) for w, g in zip(where, each, strict=True)]
        for each in (gradients, expected)
    )
    count = 1 if kind == "one" else 2
    assert_gradients_close(gradients[:count], expected[:count])
