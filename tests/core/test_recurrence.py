"""`recurrence` and `whiten` against a loop, for every scheme that a size may select."""

import functools

import numpy as np
import oracles
import pytest
import tensorflow as tf

from tfp_ar1 import recurrence as rec
from tfp_ar1.correlation import LagOneCorrelation

# One, the block of 32 and the switch from doubling to blocks at 256, and what lies next to them;
# 4097 leaves a ragged last block, and 20000 more blocks than the largest size for doubling.
SIZES = (1, 2, 3, 31, 32, 33, 127, 128, 129, 255, 256, 257, 513, 1000, 4097, 20000)
FUNCTIONS = {"recurrence": rec.recurrence, "whiten": rec.whiten}
RHO = np.array([-0.95, -0.3, 0.0, 0.6, 0.99])


def loop(name, x, rho, reverse=False, per_step=False):
    """The definition, coordinate by coordinate."""
    x, rho = np.asarray(x, np.float64), np.asarray(rho, np.float64)
    if not per_step:
        rho = np.repeat(rho[..., np.newaxis], x.shape[-1] - 1, axis=-1)
    if name == "recurrence" and reverse:
        return loop(name, x[..., ::-1], rho[..., ::-1], per_step=True)[..., ::-1]
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


def tf_loop(x, rho, reverse, per_step=False):
    """`loop` for the recurrence, differentiable."""
    if not per_step:
        rho = tf.repeat(tf.convert_to_tensor(rho)[..., tf.newaxis], x.shape[-1] - 1, axis=-1)
    if reverse:
        return tf_loop(x[..., ::-1], rho[..., ::-1], False, per_step=True)[..., ::-1]
    y = [x[..., 0] + 0 * tf.reduce_sum(rho, axis=-1)]
    for t in range(1, x.shape[-1]):
        y.append(x[..., t] + rho[..., t - 1] * y[-1])
    return tf.stack(y, axis=-1)


def draw(seed, *shape, dtype="float64"):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("dtype", oracles.DTYPES)
@pytest.mark.parametrize("size", SIZES)
def test_values(size, dtype, name, reverse):
    x, rho = draw(size, 5, size, dtype=dtype), RHO.astype(dtype)
    actual = FUNCTIONS[name](tf.constant(x), LagOneCorrelation(rho), reverse=reverse)
    assert actual.dtype == dtype
    oracles.assert_close(actual, loop(name, x, rho, reverse), event_ndims=1)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_unknown_size(name, reverse):
    @tf.function(input_signature=[tf.TensorSpec(None, "float64"), tf.TensorSpec(None, "float64")])
    def values_and_gradients(x, rho):
        with tf.GradientTape() as tape:
            tape.watch([x, rho])
            y = FUNCTIONS[name](x, LagOneCorrelation(rho), reverse=reverse)
        return y, *tape.gradient(y, [x, rho])

    for size in SIZES[:-1]:
        x = draw(size, 5, size)
        y, dx, drho = values_and_gradients(x, RHO)
        oracles.assert_close(y, loop(name, x, RHO, reverse), event_ndims=1)
        # For a sum, the gradient is the transposed matrix times ones.
        adjoint = loop(name, np.ones_like(x), RHO, not reverse)
        oracles.assert_close(dx, adjoint, "gradient", event_ndims=1)
        with tf.GradientTape() as tape:
            known_rho = tf.constant(RHO)
            tape.watch(known_rho)
            known = FUNCTIONS[name](tf.constant(x), LagOneCorrelation(known_rho), reverse=reverse)
        # A size of one leaves rho without influence: None, or zeros.
        known = tape.gradient(known, known_rho, unconnected_gradients="zero")
        oracles.assert_close(drho, known, "gradient")


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("size", [1, 2, 33, 700])
def test_gradients(size, reverse):
    x, weights = draw(0, 5, size), draw(1, 5, size)
    arguments = (x, RHO)
    actual = oracles.tf_gradients(
        lambda x, rho: rec.recurrence(x, LagOneCorrelation(rho), reverse=reverse),
        arguments,
        weights,
    )
    # At size one rho has no influence; adding it times zero makes the gradient exist.
    expected = oracles.tf_gradients(
        lambda x, rho: tf_loop(x, rho, reverse) + 0 * rho[:, None], arguments, weights
    )
    oracles.assert_close(actual[0], expected[0], "gradient", event_ndims=1)
    oracles.assert_close(actual[1], expected[1], "gradient")


@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize("size", [4, 40, 520])
def test_higher_derivatives(size, order):
    """Along one direction, mixing x and rho: the k-th derivative of t ↦ f(x + t v, rho + t r)."""
    x, v, weights = draw(0, 5, size), draw(1, 5, size), draw(2, 5, size)
    r = draw(3, 5) * 0.1

    def along_line(function, t):
        return tf.reduce_sum(weights * function(x + t[:, None] * v, RHO + t * r), axis=-1)

    def derivative(function, t, order):
        if order == 0:
            return along_line(function, t)
        with tf.GradientTape() as tape:
            tape.watch(t)
            below = derivative(function, t, order - 1)
        return tape.gradient(below, t)

    start = tf.zeros(5, "float64")
    actual = derivative(lambda x, rho: rec.recurrence(x, LagOneCorrelation(rho)), start, order)
    expected = derivative(functools.partial(tf_loop, reverse=False), start, order)
    oracles.assert_close(actual, expected, "second derivative")


@pytest.mark.parametrize(
    ("x_shape", "rho_shape"),
    [((), (3,)), ((3,), ()), ((2, 1), (4,)), ((4,), (2, 1)), ((1,), (3,)), ((5, 1, 3), (2, 1))],
)
@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("size", [1, 6, 600])
def test_broadcasting(size, name, x_shape, rho_shape):
    """Values, and gradients summed over what was broadcast."""
    x = draw(0, *x_shape, size)
    rho = np.random.default_rng(1).uniform(-0.9, 0.9, rho_shape)
    full_shape = np.broadcast_shapes(x_shape, rho_shape)
    wide = (np.broadcast_to(x, (*full_shape, size)), np.broadcast_to(rho, full_shape))
    weights = draw(2, *full_shape, size)

    def function(x, rho):
        return FUNCTIONS[name](x, LagOneCorrelation(rho))

    oracles.assert_close(
        function(tf.constant(x), tf.constant(rho)), loop(name, *wide), event_ndims=1
    )

    def broadcast_first(x, rho):
        return function(tf.broadcast_to(x, wide[0].shape), tf.broadcast_to(rho, full_shape))

    actual = oracles.tf_gradients(function, (x, rho), weights)
    expected = oracles.tf_gradients(broadcast_first, (x, rho), weights)
    oracles.assert_close(actual[0], expected[0], "gradient", event_ndims=1)
    oracles.assert_close(actual[1], expected[1], "gradient")


@pytest.mark.parametrize("size", [6, 600])
def test_vectorized_map_and_xla_agree_with_eager(size):
    x, rho = draw(0, 4, size), np.array([-0.9, 0.0, 0.5, 0.99])

    def value_and_gradients(x, rho):
        with tf.GradientTape() as tape:
            tape.watch([x, rho])
            y = rec.recurrence(x, LagOneCorrelation(rho))
            total = tf.reduce_sum(y**2, axis=-1)
        return y, *tape.gradient(total, [x, rho])

    eager = value_and_gradients(tf.constant(x), tf.constant(rho))
    mapped = tf.vectorized_map(lambda args: value_and_gradients(*args), (tf.constant(x), rho))
    compiled = tf.function(value_and_gradients, jit_compile=True)(tf.constant(x), tf.constant(rho))
    for other in (mapped, compiled):
        for ours, theirs, event_ndims in zip(eager, other, (1, 1, 0), strict=True):
            oracles.assert_close(theirs, ours, "same computation", event_ndims)


@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("size", [64, 4097])
def test_powers_where_float32_rounds_the_correlation_to_one(size, sign):
    """At u = 8 the correlation is 1 - 2.25e-7, a third of the way between float32 numbers."""
    u = np.float32(8 * sign)
    x = np.zeros(size, "float32")
    x[0] = 1
    actual = rec.recurrence(tf.constant(x), LagOneCorrelation(fisher_z=tf.constant(u)))
    expected = np.tanh(np.float64(u)) ** np.arange(size)
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


@pytest.mark.parametrize("u", [20.0, -20.0, 60.0])
def test_whitening_equal_neighbours_does_not_cancel(u):
    """`(1 - ρ) / √(1 - ρ²) = e^-|u|` is what remains of a constant vector."""
    alternating = np.where(np.arange(5) % 2, np.sign(u), 1.0).astype("float32")
    rho = LagOneCorrelation(fisher_z=tf.constant(np.float32(u)))
    actual = rec.whiten(tf.constant(alternating), rho).numpy()
    np.testing.assert_allclose(actual[1:], np.exp(-abs(u)) * alternating[1:], rtol=1e-5)


# --- A coefficient for each step --------------------------------------------------------------

# What lies next to the block of 16 and to the switch from doubling to blocks at 128; 2100 has more
# blocks than that.
STEP_SIZES = (1, 2, 3, 16, 17, 128, 129, 144, 1000, 2100)


def per_step(rho):
    return LagOneCorrelation(rho, per_step=True)


def draw_rho(seed, *shape):
    """Among them exact zeros, and some next to one."""
    rng = np.random.default_rng(seed)
    return rng.choice([0.0, 0.999, -0.999, *rng.uniform(-1, 1, 10)], size=shape)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("size", STEP_SIZES)
def test_values_per_step(size, name, reverse):
    for dtype in oracles.DTYPES:
        x, rho = draw(size, 2, 5, size, dtype=dtype), draw_rho(size, 5, size - 1).astype(dtype)
        actual = FUNCTIONS[name](tf.constant(x), per_step(rho), reverse=reverse)
        assert actual.dtype == dtype
        oracles.assert_close(actual, loop(name, x, rho, reverse, per_step=True), event_ndims=1)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_unknown_size_per_step(name, reverse):
    """And unknown rank; the gradients as those of a known size."""

    def values_and_gradients(x, rho):
        with tf.GradientTape() as tape:
            tape.watch([x, rho])
            y = FUNCTIONS[name](x, per_step(rho), reverse=reverse)
        return y, *tape.gradient(y, [x, rho], unconnected_gradients="zero")

    unknown = tf.function(values_and_gradients, [tf.TensorSpec(None, "float64")] * 2)
    for size in (1, 2, 3, 17, 150):
        x, rho = tf.constant(draw(size, 5, size)), tf.constant(draw_rho(size, 5, size - 1))
        y, dx, drho = unknown(x, rho)
        oracles.assert_close(y, loop(name, x, rho, reverse, per_step=True), event_ndims=1)
        _, known_dx, known_drho = values_and_gradients(x, rho)
        oracles.assert_close(dx, known_dx, "gradient", 1)
        oracles.assert_close(drho, known_drho, "gradient", 1)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("size", [2, 33, 150])
def test_gradients_per_step(size, reverse):
    arguments, weights = (draw(0, 5, size), draw_rho(2, 5, size - 1)), draw(1, 5, size)
    actual = oracles.tf_gradients(
        lambda x, rho: rec.recurrence(x, per_step(rho), reverse=reverse), arguments, weights
    )
    expected = oracles.tf_gradients(
        lambda x, rho: tf_loop(x, rho, reverse, per_step=True), arguments, weights
    )
    for a, e in zip(actual, expected, strict=True):
        oracles.assert_close(a, e, "gradient", event_ndims=1)


@pytest.mark.parametrize("size", [4, 150])
def test_second_derivatives_per_step(size):
    """Along one direction, mixing x and rho."""
    x, v, weights = draw(0, 5, size), draw(1, 5, size), draw(2, 5, size)
    rho, r = draw_rho(3, 5, size - 1), 0.1 * draw(4, 5, size - 1)

    def second(function):
        t = tf.zeros(5, "float64")
        with tf.GradientTape() as outer:
            outer.watch(t)
            with tf.GradientTape() as inner:
                inner.watch(t)
                along = t[:, tf.newaxis]
                y = tf.reduce_sum(weights * function(x + along * v, rho + along * r))
            slope = inner.gradient(y, t)
        return outer.gradient(slope, t)

    actual = second(lambda x, rho: rec.recurrence(x, per_step(rho)))
    expected = second(functools.partial(tf_loop, reverse=False, per_step=True))
    oracles.assert_close(actual, expected, "second derivative")


@pytest.mark.parametrize(
    ("x_shape", "rho_shape"), [((), (3,)), ((3,), ()), ((2, 1), (4,)), ((5, 1, 3), (2, 1))]
)
@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("size", [1, 6, 150])
def test_broadcasting_per_step(size, name, x_shape, rho_shape):
    """Values, and gradients summed over what was broadcast."""
    x, rho = draw(0, *x_shape, size), draw_rho(1, *rho_shape, size - 1)
    full_shape = np.broadcast_shapes(x_shape, rho_shape)

    def function(x, rho):
        return FUNCTIONS[name](x, per_step(rho)) + 0 * tf.reduce_sum(rho)

    def broadcast_first(x, rho):
        wide = (tf.broadcast_to(a, (*full_shape, a.shape[-1])) for a in (x, rho))
        return function(*wide)

    oracles.assert_close(
        function(tf.constant(x), tf.constant(rho)), loop(name, x, rho, per_step=True), event_ndims=1
    )
    weights = draw(2, *full_shape, size)
    actual = oracles.tf_gradients(function, (x, rho), weights)
    expected = oracles.tf_gradients(broadcast_first, (x, rho), weights)
    for a, e in zip(actual, expected, strict=True):
        oracles.assert_close(a, e, "gradient", event_ndims=1)


@pytest.mark.parametrize("size", [6, 150])
def test_vectorized_map_and_xla_agree_with_eager_per_step(size):
    x, rho = tf.constant(draw(0, 4, size)), tf.constant(draw_rho(1, 4, size - 1))

    def value_and_gradients(x, rho):
        with tf.GradientTape() as tape:
            tape.watch([x, rho])
            y = rec.recurrence(x, per_step(rho))
            total = tf.reduce_sum(y**2, axis=-1)
        return y, *tape.gradient(total, [x, rho])

    eager = value_and_gradients(x, rho)
    mapped = tf.vectorized_map(lambda args: value_and_gradients(*args), (x, rho))
    compiled = tf.function(value_and_gradients, jit_compile=True)(x, rho)
    for other in (mapped, compiled):
        for ours, theirs in zip(eager, other, strict=True):
            oracles.assert_close(theirs, ours, "same computation", 1)


@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("size", [64, 4097])
def test_products_where_float32_rounds_the_correlations_to_one(size, sign):
    """As for powers: 4096 factors, each rounded, would be off by 3e-4."""
    u = np.full(size - 1, np.float32(8 * sign))
    x = np.zeros(size, "float32")
    x[0] = 1
    rho = LagOneCorrelation(fisher_z=tf.constant(u), per_step=True)
    expected = np.tanh(np.float64(8 * sign)) ** np.arange(size)
    np.testing.assert_allclose(rec.recurrence(tf.constant(x), rho), expected, rtol=1e-5)


@pytest.mark.parametrize("u", [20.0, -20.0, 60.0])
def test_whitening_equal_neighbours_does_not_cancel_per_step(u):
    alternating = np.where(np.arange(5) % 2, np.sign(u), 1.0).astype("float32")
    rho = LagOneCorrelation(fisher_z=tf.fill([4], np.float32(u)), per_step=True)
    actual = rec.whiten(tf.constant(alternating), rho).numpy()
    np.testing.assert_allclose(actual[1:], np.exp(-abs(u)) * alternating[1:], rtol=1e-5)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("kind", ["one", "shared", "per step"])
@pytest.mark.parametrize("size", [1, 2, 17, 150])
def test_linked_recurrence(size, kind, reverse):
    """Of |ρ|, cut where a step is not linked; with the gradient of that."""
    x, weights = draw(0, 5, size), draw(1, 5, size)
    linked = np.random.default_rng(2).random((5, size - 1)) < 0.7
    rho = {"one": np.ones(5), "shared": RHO, "per step": draw_rho(3, 5, size - 1)}[kind]

    def ours(x, rho):
        given = None if kind == "one" else LagOneCorrelation(rho, per_step=kind == "per step")
        return rec.segmented_recurrence(x, linked, given, reverse) + 0 * tf.reduce_sum(rho)

    def steps(rho):
        rho = rho if kind == "per step" else tf.repeat(rho[:, tf.newaxis], size - 1, axis=-1)
        return tf.where(linked, tf.abs(rho), tf.zeros_like(rho))

    actual = ours(tf.constant(x), tf.constant(rho))
    expected = loop("recurrence", x, steps(tf.constant(rho)), reverse, per_step=True)
    oracles.assert_close(actual, expected, event_ndims=1)
    gradients = oracles.tf_gradients(ours, (x, rho), weights)
    expected = oracles.tf_gradients(
        lambda x, rho: tf_loop(x, steps(rho), reverse, per_step=True), (x, rho), weights
    )
    if kind == "one":
        gradients, expected = gradients[:1], expected[:1]
    for a, e in zip(gradients, expected, strict=True):
        # The derivative of |ρ| at 0 is one of two.
        where = np.abs(rho) > 0 if a.shape == rho.shape else True
        oracles.assert_close(np.where(where, a, 0), np.where(where, e, 0), "gradient", a.ndim - 1)
