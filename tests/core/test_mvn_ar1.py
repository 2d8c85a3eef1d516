"""`MultivariateNormalAR1` against dense Gaussians, decimals, and a Gaussian process."""

import functools
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import hypothesis
import hypothesis.strategies as st
import numpy as np
import oracles
import pytest
import scipy.stats
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_ar1
from tfp_ar1 import MultivariateNormalAR1

tfd = tfp.distributions

SCALE = np.array([0.7, 1.0, 1.3, 2.0, 0.5])
RHO = np.array(oracles.CORRELATIONS)
# From independence to correlations that float32, and at last float64, rounds to one.
EXTREME_FISHER_Z = np.float32([0, 1e-4, -1e-4, 3, -3, 9, -9, 20, -20, 40, -40, 60, -60])


def draw(*shape, dtype="float64", seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def spelled(by, rho, dtype):
    """The keyword argument that makes a correlation of rho, and the correlation that it makes."""
    if by == "correlation":
        given = np.asarray(rho).astype(dtype)
        return {"correlation": given}, given.astype("float64")
    given = np.arctanh(rho).astype(dtype)
    return {"fisher_z": given}, np.tanh(given.astype("float64"))


@functools.lru_cache(maxsize=2)
def ar1_and_dense(size, dtype, by):
    """A batch of five, one for each correlation; as the package has it and as the oracle does."""
    loc, scale = draw(5, size, dtype=dtype), SCALE.astype(dtype)
    argument, rho = spelled(by, RHO, dtype)
    ar1 = MultivariateNormalAR1(loc, scale, **argument)
    return ar1, oracles.Dense.ar1(loc, scale, rho)


@pytest.mark.parametrize("by", ["correlation", "fisher_z"])
@pytest.mark.parametrize("dtype", oracles.DTYPES)
@pytest.mark.parametrize("size", oracles.SIZES)
class TestAgainstDense:
    def test_values(self, size, dtype, by):
        ar1, dense = ar1_and_dense(size, dtype, by)
        value = draw(5, size, dtype=dtype, seed=1)
        actual = ar1.log_prob(value)
        assert actual.dtype == dtype
        oracles.assert_close(actual, dense.log_prob(value))
        variance = np.diagonal(dense.covariance, axis1=-2, axis2=-1)
        for name, expected, event_ndims in (
            ("entropy", dense.entropy(), 0),
            ("mean", dense.mean, 1),
            ("mode", dense.mean, 1),
            ("variance", variance, 1),
            ("stddev", np.sqrt(variance), 1),
            ("covariance", dense.covariance, 2),
        ):
            actual = getattr(ar1, name)()
            assert actual.dtype == dtype
            oracles.assert_close(actual, expected, event_ndims=event_ndims, err_msg=name)


def test_the_oracle_agrees_with_scipy():
    dense = oracles.Dense.ar1(draw(5, 17), SCALE, RHO)
    value = draw(5, 17, seed=1)
    scipys = [
        scipy.stats.multivariate_normal(m, c)
        for m, c in zip(dense.mean, dense.covariance, strict=True)
    ]
    oracles.assert_close(dense.entropy(), [p.entropy() for p in scipys])
    expected = [p.logpdf(x) for p, x in zip(scipys, value, strict=True)]
    oracles.assert_close(dense.log_prob(value), expected)


def test_decimals_agree_with_dense():
    mean, value = (0.0, 0.5, 1.0, 0.2), (1.0, -0.3, 0.1, 2.0)
    for u in (-1.2, 0.0, 0.3, 2.5):
        p, q = oracles.Exact(mean, 1.3, u), oracles.Exact(value, 0.7, 0.4)
        dense_p = oracles.Dense.ar1(mean, 1.3, np.tanh(u))
        dense_q = oracles.Dense.ar1(value, 0.7, np.tanh(0.4))
        oracles.assert_close(p.log_prob(value), dense_p.log_prob(value), dtype="float64")
        oracles.assert_close(p.entropy(), dense_p.entropy(), dtype="float64")
        oracles.assert_close(p.kl(q), dense_p.kl(dense_q), dtype="float64")


@pytest.mark.parametrize("length_scale", [0.3, 2.0, 40.0])
def test_is_a_gaussian_process_with_a_matern_one_half_kernel(length_scale):
    size, step, amplitude = 50, 0.7, 1.7
    kernel = tfp.math.psd_kernels.MaternOneHalf(
        tf.constant(amplitude, tf.float64), tf.constant(length_scale, tf.float64)
    )
    process = tfd.GaussianProcess(
        kernel, step * np.arange(size)[:, None], mean_fn=lambda x: tf.sin(x[..., 0]), jitter=0.0
    )
    ar1 = MultivariateNormalAR1(
        np.sin(step * np.arange(size)), amplitude, correlation=np.exp(-step / length_scale)
    )
    value = draw(3, size)
    oracles.assert_close(ar1.log_prob(value), process.log_prob(value))


# --- Gradients ------------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["correlation", "fisher_z"])
@pytest.mark.parametrize("dtype", oracles.DTYPES)
@pytest.mark.parametrize("size", oracles.SIZES)
class TestGradients:
    """Against automatic differentiation through the dense covariance and its factorization."""

    @staticmethod
    def compare(function, size, dtype, by, value):
        """function(distribution, value) -> tensor; gradients in loc, scale, correlation, value."""
        loc, scale = draw(5, size, dtype=dtype), SCALE.astype(dtype)
        argument, _ = spelled(by, RHO, dtype)
        given = argument[by]

        def ours(loc, scale, given, value):
            return function(MultivariateNormalAR1(loc, scale, **{by: given}), value)

        def dense(loc, scale, given, value):
            rho = given if by == "correlation" else tf.tanh(given)
            loc = loc + 0 * rho[:, None] + 0 * scale[:, None]  # connected at size one too
            return function(oracles.tf_ar1(loc, scale, rho), value)

        arguments = (loc, scale, given, value)
        actual = oracles.tf_gradients(ours, arguments)
        expected = oracles.tf_gradients(dense, oracles.as_float64(*arguments))
        names = ("loc", "marginal_scale", by, "value")
        for name, a, e, event_ndims in zip(names, actual, expected, (1, 0, 0, 1), strict=True):
            assert a.dtype == dtype
            oracles.assert_close(a, e, "gradient", event_ndims, err_msg=name)

    def test_log_prob(self, size, dtype, by):
        value = draw(5, size, dtype=dtype, seed=1)
        self.compare(lambda p, x: p.log_prob(x), size, dtype, by, value)

    def test_entropy(self, size, dtype, by):
        # The mean and the value take part with weight zero, to have gradients at all.
        value = draw(5, size, dtype=dtype, seed=1)
        self.compare(
            lambda p, x: p.entropy() + 0 * tf.reduce_sum(p.mean() * x, -1), size, dtype, by, value
        )

    def test_sample(self, size, dtype, by):
        """The noise is recovered from a draw, then held fixed on both paths."""
        ar1, _ = ar1_and_dense(size, dtype, by)
        noise = ar1.scale.solvevec(ar1.sample(seed=(1, 2)) - ar1.loc).numpy()
        weights = draw(5, size, dtype=dtype, seed=3)

        def weighted_sample(distribution, noise):
            if isinstance(distribution, MultivariateNormalAR1):
                sample = distribution.sample(seed=(1, 2)) + 0 * noise
            else:
                sample = distribution.loc + distribution.scale.matvec(tf.stop_gradient(noise))
                sample += 0 * noise
            return tf.reduce_sum(tf.cast(weights, sample.dtype) * sample, axis=-1)

        self.compare(weighted_sample, size, dtype, by, noise)


def test_gradients_by_finite_differences():
    """A third witness, which shares no automatic differentiation with the other two."""
    loc, scale, rho, value = draw(3), 1.3, -0.4, draw(3, seed=1)
    packed = np.concatenate([loc, [scale, rho], value])

    def log_prob(packed):
        return MultivariateNormalAR1(
            packed[..., :3], packed[..., 3], correlation=packed[..., 4]
        ).log_prob(packed[..., 5:])

    (actual,) = oracles.tf_gradients(log_prob, (packed,))
    steps = 1e-5 * np.eye(packed.size)
    expected = (log_prob(packed + steps) - log_prob(packed - steps)) / 2e-5
    oracles.assert_close(actual, expected, "finite difference", event_ndims=1)


@pytest.mark.parametrize("by", ["correlation", "fisher_z"])
@pytest.mark.parametrize("size", [1, 2, 4])
def test_second_derivatives(size, by):
    packed = np.concatenate([draw(size), [1.3, 0.4], draw(size, seed=1)])

    def ours(p):
        return MultivariateNormalAR1(p[:size], p[size], **{by: p[size + 1]}).log_prob(p[size + 2 :])

    def dense(p):
        rho = p[size + 1] if by == "correlation" else tf.tanh(p[size + 1])
        return oracles.tf_ar1(p[:size], p[size], rho).log_prob(p[size + 2 :])

    def hessian(function):
        with tf.GradientTape() as outer:
            p = tf.constant(packed)
            outer.watch(p)
            with tf.GradientTape() as inner:
                inner.watch(p)
                value = function(p)
            gradient = inner.gradient(value, p)
        return outer.jacobian(gradient, p)

    oracles.assert_close(hessian(ours), hessian(dense), "second derivative", event_ndims=2)


# --- Shapes ---------------------------------------------------------------------------------

# Batch shapes of loc, marginal_scale, correlation and value.
BROADCASTS = [
    ((), (), (), ()),
    ((3,), (), (), ()),
    ((), (3,), (), ()),
    ((), (), (3,), ()),
    ((), (), (), (3,)),
    ((2, 1), (4,), (), ()),
    ((4,), (), (2, 1), (4,)),
    ((), (2, 1), (4,), (2, 4)),
    ((1,), (3,), (1,), (5, 1)),
    ((2, 1), (2, 1), (2, 1), (4,)),
    ((4,), (2, 1), (1,), (6, 2, 4)),
]


def everything(loc, scale, rho, value):
    ar1 = MultivariateNormalAR1(loc, scale, correlation=rho)
    result = {
        name: getattr(ar1, name)()
        for name in ("entropy", "mean", "mode", "variance", "stddev", "covariance")
    }
    return result | {
        "log_prob": ar1.log_prob(value),
        "sample": ar1.sample([2, 3], seed=(0, 1)),
        "one sample": ar1.sample(seed=(0, 1)),
        "batch_shape": ar1.batch_shape_tensor(),
        "event_shape": ar1.event_shape_tensor(),
    }


# One graph for every shape: it knows none of them.
everything_unknown = tf.function(everything, input_signature=[tf.TensorSpec(None, "float64")] * 4)


@pytest.mark.parametrize("static", [True, False])
@pytest.mark.parametrize(("loc_shape", "scale_shape", "rho_shape", "value_shape"), BROADCASTS)
@pytest.mark.parametrize("size", [1, 4])
def test_broadcasting(size, loc_shape, scale_shape, rho_shape, value_shape, static):
    rng = np.random.default_rng(5)
    loc, value = rng.normal(size=(*loc_shape, size)), rng.normal(size=(*value_shape, size))
    scale, rho = rng.uniform(0.5, 2, scale_shape), rng.uniform(-0.9, 0.9, rho_shape)
    dense = oracles.Dense.ar1(loc, scale, rho)
    batch_shape = dense.batch_shape
    if static:
        actual = everything(*(tf.constant(a) for a in (loc, scale, rho, value)))
        ar1 = MultivariateNormalAR1(loc, scale, correlation=rho)
        assert ar1.batch_shape == batch_shape
        assert ar1.event_shape == (size,)
    else:
        actual = everything_unknown(loc, scale, rho, value)

    mean = np.broadcast_to(dense.mean, (*batch_shape, size))
    covariance = np.broadcast_to(dense.covariance, (*batch_shape, size, size))
    variance = np.diagonal(covariance, axis1=-2, axis2=-1)
    for name, expected, event_ndims in (
        ("log_prob", dense.log_prob(value), 0),
        ("entropy", dense.entropy(), 0),
        ("mean", mean, 1),
        ("mode", mean, 1),
        ("variance", variance, 1),
        ("stddev", np.sqrt(variance), 1),
        ("covariance", covariance, 2),
    ):
        oracles.assert_close(actual[name], expected, event_ndims=event_ndims, err_msg=name)
    assert actual["sample"].shape == (2, 3, *batch_shape, size)
    assert actual["one sample"].shape == (*batch_shape, size)
    assert tuple(actual["batch_shape"]) == batch_shape
    assert tuple(actual["event_shape"]) == (size,)


@pytest.mark.parametrize(
    ("loc_shape", "parameter_shape", "batch_shape", "event_shape"),
    [
        ([None, 3], [], [None], [3]),
        ([3, None], [], [3], [None]),
        ([None, None], [None], [None], [None]),
        ([None], [], [], [None]),
    ],
)
def test_static_shapes_are_kept_where_known(loc_shape, parameter_shape, batch_shape, event_shape):
    signature = [
        tf.TensorSpec(loc_shape),
        tf.TensorSpec(parameter_shape),
        tf.TensorSpec(parameter_shape),
    ]

    @tf.function(input_signature=signature)
    def function(loc, scale, rho):
        ar1 = MultivariateNormalAR1(loc, scale, correlation=rho)
        assert ar1.batch_shape.as_list() == batch_shape
        assert ar1.event_shape.as_list() == event_shape
        sample = ar1.sample(seed=(0, 1))
        return sample, ar1.log_prob(sample), ar1.entropy(), ar1.stddev(), ar1.covariance()

    function.get_concrete_function()


def test_eager_function_and_xla_agree():
    arguments = [tf.constant(a) for a in (draw(5, 17), SCALE, RHO, draw(5, 17, seed=1))]

    def values_and_gradients(*arguments):
        with tf.GradientTape() as tape:
            tape.watch(arguments)
            loc, scale, rho, value = arguments
            ar1 = MultivariateNormalAR1(loc, scale, correlation=rho)
            log_prob, entropy = ar1.log_prob(value), ar1.entropy()
        gradients = tape.gradient((log_prob, entropy), arguments)
        # XLA has another generator, so samples are compared with what their noise should make.
        noise = MultivariateNormalAR1(tf.zeros_like(loc), correlation=0.0).sample(seed=(0, 1))
        from_noise = ar1.sample(seed=(0, 1)) - loc - ar1.scale.matvec(noise)
        return log_prob, entropy, 1 + from_noise, *gradients

    eager = values_and_gradients(*arguments)
    for options in ({}, {"jit_compile": True}):
        graph = tf.function(values_and_gradients, **options)(*arguments)
        for e, g in zip(eager, graph, strict=True):
            event_ndims = 1 if e.shape.rank == 2 else 0
            oracles.assert_close(g, e, "same computation", event_ndims)


# --- Samples --------------------------------------------------------------------------------


def test_seeds_reproduce():
    ar1, _ = ar1_and_dense(17, "float32", "correlation")
    first = ar1.sample(4, seed=(1, 2)).numpy()
    np.testing.assert_array_equal(first, ar1.sample(4, seed=(1, 2)))
    in_graph = tf.function(lambda: ar1.sample(4, seed=(1, 2)))()
    oracles.assert_close(in_graph, first, "same computation", event_ndims=1)
    assert not np.any(first == ar1.sample(4, seed=(1, 3)))
    tf.random.set_seed(3)
    stateful = ar1.sample(4, seed=7).numpy()
    tf.random.set_seed(3)
    np.testing.assert_array_equal(stateful, ar1.sample(4, seed=7))


@pytest.mark.parametrize(("loc_shape", "scale_shape"), [((3,), ()), ((), (3,)), ((2, 1), (3,))])
def test_every_batch_member_and_draw_has_its_own_noise(loc_shape, scale_shape):
    ar1 = MultivariateNormalAR1(tf.zeros([*loc_shape, 4]), tf.ones(scale_shape), correlation=0.5)
    samples = ar1.sample(5, seed=(1, 2)).numpy()
    assert np.unique(samples).size == samples.size


@pytest.mark.parametrize(
    ("size", "num_samples"), [(1, 50_000), (2, 50_000), (16, 20_000), (700, 4000)]
)
def test_moments_of_samples(size, num_samples):
    """The mean and every covariance within 6.5 standard errors of a normal sample's."""
    loc, scale, rho = draw(3, size, dtype="float32"), np.float32([0.5, 1, 2]), [-0.9, 0.5, 0.999]
    ar1 = MultivariateNormalAR1(loc, scale, correlation=np.float32(rho))
    samples = ar1.sample(num_samples, seed=(4, 5)).numpy().astype("float64")
    dense = oracles.Dense.ar1(loc, scale, np.float32(rho))
    variance = np.diagonal(dense.covariance, axis1=-2, axis2=-1)

    error = np.abs(samples.mean(axis=0) - loc) / np.sqrt(variance / num_samples)
    assert np.max(error) < 6.5

    centred = np.moveaxis(samples - loc, 0, 1)
    covariance = centred.swapaxes(-1, -2) @ centred / num_samples
    standard_error = np.sqrt(
        (variance[:, :, None] * variance[:, None, :] + dense.covariance**2) / num_samples
    )
    assert np.max(np.abs(covariance - dense.covariance) / standard_error) < 6.5


# --- Correlations next to one ---------------------------------------------------------------


def each_exact(size=5, loc=0.0, scale=1.3):
    return [oracles.Exact((loc,) * size, np.float32(scale), u) for u in EXTREME_FISHER_Z]


def extreme(size=5, loc=0.0, scale=1.3):
    """One batch member for each extreme Fisher z, float32."""
    return MultivariateNormalAR1(
        tf.fill([size], np.float32(loc)), np.float32(scale), fisher_z=EXTREME_FISHER_Z
    )


def assert_close_where_representable(actual, exact, what="value", err_msg=""):
    """Never NaN; and right wherever float32 has a number for the true value."""
    actual, exact = np.asarray(actual), np.asarray(exact)
    assert actual.dtype == np.float32
    assert not np.any(np.isnan(actual)), f"{err_msg}: NaN at {np.argwhere(np.isnan(actual))}"
    fits = np.abs(exact) < 0.99 * oracles.FLOAT32_MAX
    oracles.assert_close(np.where(fits, actual, 0), np.where(fits, exact, 0), what, err_msg=err_msg)
    return fits


@pytest.mark.parametrize("size", [1, 2, 5])
def test_extreme_entropy(size):
    exact = each_exact(size)
    fits = assert_close_where_representable(extreme(size).entropy(), [p.entropy() for p in exact])
    assert np.all(fits)

    def entropy(u):
        return MultivariateNormalAR1(tf.zeros(size), 1.3, fisher_z=u).entropy()

    (gradient,) = oracles.tf_gradients(lambda u: entropy(u) + 0 * u, (EXTREME_FISHER_Z,))
    expected = [p.entropy_derivative("fisher_z") for p in exact]
    assert_close_where_representable(gradient, expected, "gradient")


@pytest.mark.parametrize(
    "value",
    [[1.0] * 5, [1.0, -1, 1, -1, 1], [0.0] * 5, [0.3, -1.2, 0.5, 2.0, 2.0]],
    ids=["constant", "alternating", "zero", "ragged"],
)
def test_extreme_log_prob(value):
    """The ragged value is 1e34 standard deviations off at u = 40, which float32 still can say."""
    value = np.float32(value)
    exact = each_exact()
    up_to_40 = np.abs(EXTREME_FISHER_Z) <= 40

    def log_prob(scale, u, value):
        return MultivariateNormalAR1(tf.zeros(5), scale, fisher_z=u).log_prob(value)

    scales, values = np.full(13, 1.3, np.float32), np.tile(value, (13, 1))
    actual = log_prob(scales, EXTREME_FISHER_Z, values)
    fits = assert_close_where_representable(actual, [p.log_prob(value) for p in exact])
    assert np.all(fits[up_to_40])

    d_scale, d_u, d_value = oracles.tf_gradients(log_prob, (scales, EXTREME_FISHER_Z, values))
    for name, gradient in (("scale", d_scale), ("fisher_z", d_u)):
        expected = [p.log_prob_derivative(value, name) for p in exact]
        fits = np.abs(expected) < 0.99 * oracles.FLOAT32_MAX
        oracles.assert_close(gradient[fits], np.array(expected)[fits], "gradient", err_msg=name)
        assert np.all(fits[up_to_40])
    expected = np.array([p.log_prob_gradient(value) for p in exact])
    fits = np.all(np.abs(expected) < 0.99 * oracles.FLOAT32_MAX, axis=-1)
    oracles.assert_close(d_value[fits], expected[fits], "gradient", 1, err_msg="value")
    assert np.all(fits[up_to_40])


@pytest.mark.parametrize("size", [5, 600])
def test_extreme_samples(size):
    ar1 = extreme(size)
    samples = ar1.sample(2000, seed=(6, 7)).numpy()
    assert np.all(np.isfinite(samples))
    # One variance for every coordinate at every u: 2000 draws tell it to 3.2 %, one sigma.
    np.testing.assert_allclose(np.mean(samples**2, axis=0), 1.3**2, rtol=6.5 * 0.032)
    alternating = np.where(np.arange(size) % 2, -1, 1)
    for u, path in zip(EXTREME_FISHER_Z, np.moveaxis(samples, 1, 0), strict=True):
        if abs(u) >= 20:
            unfolded = path if u > 0 else path * alternating
            np.testing.assert_allclose(unfolded, unfolded[:, :1].repeat(size, 1), 1e-5, 1e-6)


def test_extreme_log_prob_of_own_samples():
    """float32 rounds a sample to where it is many innovations off the path: still a number."""
    samples = extreme().sample(seed=(8, 9)).numpy()
    exact = [p.log_prob(x) for p, x in zip(each_exact(), samples, strict=True)]
    fits = assert_close_where_representable(extreme().log_prob(samples), exact)
    assert np.all(fits[np.abs(EXTREME_FISHER_Z) <= 40])
    # With a mean, the sample less the mean is rounded; what is left may not be NaN.
    for loc, scale in ((3.0, 1.0), (1e6, 1e-3), (-1e-6, 1e3)):
        ar1 = extreme(700, loc, scale)
        log_prob = ar1.log_prob(ar1.sample(20, seed=(10, 11))).numpy()
        assert not np.any(np.isnan(log_prob))
        assert np.all(log_prob < np.inf)


def test_extreme_gradients_of_samples():
    """Of `z_t = ρ z_{t−1} + √(1−ρ²) ε_t`; at u = 0 and unit scale the sample is the noise."""
    size = 5
    zeros = np.zeros_like(EXTREME_FISHER_Z)

    def sample(u):
        return MultivariateNormalAR1(tf.zeros(size), 1.0, fisher_z=u).sample(seed=(1, 2))

    noise = sample(zeros).numpy().astype("float64")
    weights = draw(13, size, seed=3)
    (actual,) = oracles.tf_gradients(sample, (EXTREME_FISHER_Z,), weights)
    u = EXTREME_FISHER_Z.astype("float64")
    rho, sech = np.tanh(u), 1 / np.cosh(u)
    z, slope, expected = noise[:, 0], 0, 0
    for t in range(1, size):
        slope = rho * slope + sech**2 * z - sech * rho * noise[:, t]
        z = rho * z + sech * noise[:, t]
        expected = expected + weights[:, t] * slope
    # Relative to each: at u = 60 the gradient is 1e-26 and not yet zero.
    np.testing.assert_allclose(actual, expected, rtol=1e-3)


@pytest.mark.parametrize("sign", [-1, 1])
def test_correlation_next_to_one_in_float32(sign):
    """`1 − ρ` is exact in floating point; nothing may square ρ first."""
    distance = np.append(np.logspace(-2, -7, 40), 2.0**-24)
    rho = sign * np.float32(1 - distance)
    ar1 = MultivariateNormalAR1(tf.zeros(5), 1.3, correlation=rho)
    exact = [
        oracles.Exact((0.0,) * 5, np.float32(1.3), np.arctanh(r.astype("float64"))) for r in rho
    ]
    oracles.assert_close(ar1.entropy(), [p.entropy() for p in exact], "without cancellation")
    samples = ar1.sample(seed=(1, 2)).numpy()
    expected = [p.log_prob(x) for p, x in zip(exact, samples, strict=True)]
    oracles.assert_close(ar1.log_prob(samples), expected)


# --- Nothing of shape d × d -----------------------------------------------------------------

MILLION = """
    import json, resource, sys
    import numpy as np
    import tensorflow as tf
    import tensorflow_probability as tfp
    from tfp_ar1 import MultivariateNormalAR1
    tfd = tfp.distributions

    def standard_normals(size):
        zeros, ones = tf.zeros(size), tf.ones(size)
        return {
            "diag": tfd.MultivariateNormalDiag(zeros, ones),
            "identity": tfd.MultivariateNormalDiag(zeros),
            "independent": tfd.Independent(tfd.Normal(zeros, 1.0), 1),
            "sample": tfd.Sample(tfd.Normal(0.0, 1.0), size),
        }

    def run(size):
        loc = tf.constant(np.sin(np.arange(size)), tf.float32)
        value = tf.constant(np.cos(np.arange(size)), tf.float32)
        other_loc = tf.zeros(size)
        scale, rho, other_rho = tf.constant(1.3), tf.constant(0.7), tf.constant(-0.2)
        watched = [loc, scale, rho, value, other_loc, other_rho]
        results = {}
        def record(name, function):
            with tf.GradientTape() as tape:
                tape.watch(watched)
                p = MultivariateNormalAR1(loc, scale, correlation=rho)
                q = MultivariateNormalAR1(other_loc, 1.1, correlation=other_rho)
                result = function(p, q)
            gradients = [g for g in tape.gradient(result, watched) if g is not None]
            assert gradients
            assert all(np.all(np.isfinite(g)) for g in (result, *gradients)), name
            results[name] = float(tf.reduce_mean(result))
        record("sample", lambda p, q: p.sample(seed=(1, 2)))
        record("log_prob", lambda p, q: p.log_prob(value))
        record("entropy", lambda p, q: p.entropy())
        record("kl to AR1", lambda p, q: p.kl_divergence(q))
        factor = tf.ones([size, 2]) / size
        low_rank = tf.linalg.LinearOperatorLowRankUpdate(
            tf.linalg.LinearOperatorIdentity(size), factor, is_positive_definite=True
        )
        normals = standard_normals(size)
        # The update is one of 2e-6 in norm, which no comparison below will see.
        normals["low rank"] = tfd.MultivariateNormalLinearOperator(tf.zeros(size), low_rank)
        for name, normal in normals.items():
            record("kl to " + name, lambda p, q: p.kl_divergence(normal))
            record("kl from " + name, lambda p, q: normal.kl_divergence(p))
        return results

    def peak():
        unit = 1 if sys.platform == "darwin" else 1024
        return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    run(1000)
    before = peak()
    results = run(1_000_000)
    print(json.dumps({"growth": peak() - before, **results}))
"""


@pytest.mark.slow
def test_a_million_coordinates_in_little_memory():
    """With gradients, in less than 2 GiB more than a small one; a dense factor takes 4 TB."""
    package_root = str(Path(tfp_ar1.__file__).parents[1])
    path = os.pathsep.join([package_root, os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    completed = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(MILLION)],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert completed.returncode == 0, completed.stderr[-3000:]
    results = json.loads(completed.stdout.splitlines()[-1])
    assert results.pop("growth") < 2 * 2**30

    # What the conditional densities say, in float64.
    size, rho = 1_000_000, np.float64(np.float32(0.7))
    scale, other_scale, other_rho = (np.float64(np.float32(x)) for x in (1.3, 1.1, -0.2))
    loc, value = np.sin(np.arange(size)), np.cos(np.arange(size))

    def squared(w, rho):
        return w[0] ** 2 + np.sum((w[1:] - rho * w[:-1]) ** 2) / (1 - rho**2)

    log_det = 2 * size * np.log(scale) + (size - 1) * np.log1p(-(rho**2))
    other_log_det = 2 * size * np.log(other_scale) + (size - 1) * np.log1p(-(other_rho**2))
    to_standard = 0.5 * (size * (scale**2 - 1) + np.sum(loc**2) - log_det)
    from_standard = 0.5 * (
        (2 + (size - 2) * (1 + rho**2)) / (1 - rho**2) / scale**2
        - size
        + squared(loc, rho) / scale**2
        + log_det
    )
    trace = (2 + (size - 2) * (1 + other_rho**2) - 2 * (size - 1) * rho * other_rho) / (
        1 - other_rho**2
    )
    to_ar1 = 0.5 * (
        (scale**2 * trace + squared(loc, other_rho)) / other_scale**2
        - size
        + other_log_det
        - log_det
    )
    expected = {
        "log_prob": -0.5
        * (size * np.log(2 * np.pi) + log_det + squared(value - loc, rho) / scale**2),
        "entropy": 0.5 * (size * (1 + np.log(2 * np.pi)) + log_det),
        "kl to AR1": to_ar1,
    }
    for name in ("diag", "identity", "independent", "sample", "low rank"):
        expected |= {f"kl to {name}": to_standard, f"kl from {name}": from_standard}
    assert abs(results.pop("sample")) < 0.05  # the mean of sin, and of a million draws
    assert results.keys() == expected.keys()
    for name, value in expected.items():
        oracles.assert_close(results[name], value, dtype="float32", err_msg=name)


# --- Construction ---------------------------------------------------------------------------


class TestConstruction:
    def test_dtype_follows_the_arguments(self):
        assert MultivariateNormalAR1([0.0, 1.0], correlation=0.5).dtype == tf.float32
        ar1 = MultivariateNormalAR1(np.zeros(3), correlation=0.5)
        assert ar1.dtype == tf.float64
        assert ar1.sample(seed=(0, 1)).dtype == tf.float64
        assert MultivariateNormalAR1([0.0], 1.0, fisher_z=np.float64(0.5)).dtype == tf.float64

    def test_properties_are_what_was_passed(self):
        ar1 = MultivariateNormalAR1([0.0, 1.0], [2.0, 3.0], correlation=0.5)
        np.testing.assert_array_equal(ar1.loc, [0, 1])
        np.testing.assert_array_equal(ar1.marginal_scale, [2, 3])
        assert float(ar1.correlation) == 0.5
        assert ar1.fisher_z is None
        assert isinstance(ar1, tfd.MultivariateNormalLinearOperator)
        assert isinstance(ar1.scale, tfp_ar1.LinearOperatorAR1Cholesky)
        ar1 = MultivariateNormalAR1([0.0, 1.0], fisher_z=0.5)
        assert ar1.correlation is None
        assert float(ar1.fisher_z) == 0.5

    @pytest.mark.parametrize("given", [{}, {"correlation": 0.1, "fisher_z": 0.1}])
    @pytest.mark.parametrize("validate_args", [True, False])
    def test_neither_or_both_correlations(self, given, validate_args):
        with pytest.raises(ValueError, match=r"correlation.*fisher_z"):
            MultivariateNormalAR1(tf.zeros(3), **given, validate_args=validate_args)

    @pytest.mark.parametrize("dtype", [tf.int32, tf.complex64])
    def test_dtype_that_is_not_a_float(self, dtype):
        zero = tf.zeros([], dtype)
        with pytest.raises(TypeError, match=r"dtype|float"):
            MultivariateNormalAR1(tf.zeros(3, dtype), zero, correlation=zero)

    @pytest.mark.parametrize("name", ["marginal_scale", "correlation", "fisher_z"])
    def test_mixed_dtypes(self, name):
        parameters = {"marginal_scale": tf.ones([]), "correlation": tf.zeros([])}
        if name == "fisher_z":
            del parameters["correlation"]
        parameters[name] = tf.zeros([], tf.float64)
        with pytest.raises((TypeError, ValueError)):
            MultivariateNormalAR1(tf.zeros(3), **parameters)

    def test_scalar_loc(self):
        with pytest.raises(ValueError, match="loc"):
            MultivariateNormalAR1(0.0, correlation=0.1)

    def test_incompatible_batch_shapes(self):
        with pytest.raises((ValueError, tf.errors.InvalidArgumentError)):
            MultivariateNormalAR1(tf.zeros([3, 4]), tf.ones(2), correlation=0.1)

    @pytest.mark.parametrize("validate_args", [True, False])
    def test_value_of_the_wrong_size(self, validate_args):
        ar1 = MultivariateNormalAR1(tf.zeros(3), correlation=0.1, validate_args=validate_args)
        with pytest.raises((ValueError, tf.errors.InvalidArgumentError)):
            ar1.log_prob(tf.zeros(4))

    @pytest.mark.parametrize(
        ("name", "bad", "good"),
        [
            ("marginal_scale", [1.0, 0.0], [1.0, 2.0]),
            ("marginal_scale", -1.0, 1.0),
            ("correlation", [0.5, 1.0], [0.5, 0.9]),
            ("correlation", -1.0, 0.0),
            ("correlation", 1.5, 0.0),
            ("correlation", np.nan, 0.0),
        ],
    )
    def test_validate_args(self, name, bad, good):
        parameters = {"correlation": 0.1, "validate_args": True}
        error = (ValueError, tf.errors.InvalidArgumentError)
        with pytest.raises(error, match=name):
            MultivariateNormalAR1(tf.zeros(3), **(parameters | {name: bad}))
        # Inside a graph whose inputs it does not know, the same when it runs.
        function = tf.function(
            lambda x: MultivariateNormalAR1(tf.zeros(3), **(parameters | {name: x})).entropy()
        )
        with pytest.raises(error, match=name):
            function(tf.constant(bad))
        function(tf.constant(good))
        # A variable is checked again whenever it is used.
        variable = tf.Variable(good)
        ar1 = MultivariateNormalAR1(tf.zeros(3), **(parameters | {name: variable}))
        ar1.sample(seed=(0, 1))
        variable.assign(bad)
        for use in (
            lambda: ar1.sample(seed=(0, 1)),
            lambda: ar1.log_prob(tf.zeros(3)),
            ar1.entropy,
        ):
            with pytest.raises(error, match=name):
                use()

    def test_invalid_is_not_checked_unless_asked(self):
        MultivariateNormalAR1(tf.zeros(3), -1.0, correlation=2.0)

    def test_variables_are_read_when_used_and_tracked(self):
        variables = [tf.Variable(draw(3)), tf.Variable(1.0, dtype="float64")]
        variables.append(tf.Variable(0.3, dtype="float64"))
        loc, scale, rho = variables
        ar1 = MultivariateNormalAR1(loc, scale, correlation=rho)
        assert {id(v) for v in ar1.trainable_variables} == {id(v) for v in variables}
        loc.assign(loc + 1)
        scale.assign(2.0)
        rho.assign(-0.6)
        value = draw(3, seed=1)
        with tf.GradientTape() as tape:
            log_prob = ar1.log_prob(value)
        dense = oracles.Dense.ar1(loc, scale, rho)
        oracles.assert_close(log_prob, dense.log_prob(value))
        oracles.assert_close(ar1.entropy(), dense.entropy())
        oracles.assert_close(ar1.covariance(), dense.covariance, event_ndims=2)
        assert all(g is not None for g in tape.gradient(log_prob, variables))

    def test_passes_through_a_function(self):
        ar1, dense = ar1_and_dense(5, "float64", "fisher_z")
        value = draw(5, 5)
        log_prob = tf.function(lambda p, x: p.log_prob(x))(ar1, tf.constant(value))
        oracles.assert_close(log_prob, dense.log_prob(value))
        returned = tf.function(lambda u: MultivariateNormalAR1(tf.zeros(3), fisher_z=u))(
            tf.constant(0.5)
        )
        assert isinstance(returned, MultivariateNormalAR1)
        returned.log_prob(tf.zeros(3))

    def test_copy(self):
        ar1 = MultivariateNormalAR1(draw(3, 4), 2.0, correlation=0.5, validate_args=True)
        copied = ar1.copy(marginal_scale=3.0)
        assert copied.validate_args
        oracles.assert_close(copied.stddev(), np.full((3, 4), 3.0), event_ndims=1)
        respelled = ar1.copy(correlation=None, fisher_z=np.arctanh(0.5))
        oracles.assert_close(respelled.covariance(), ar1.covariance(), event_ndims=2)

    @pytest.mark.parametrize(
        "index",
        [0, (Ellipsis, 1), (slice(None), 0), (slice(None), tf.newaxis), (1, slice(1, 3))],
        ids=str,
    )
    def test_slices(self, index):
        """Parameters of unequal rank: each must be sliced along its own batch dimensions."""
        loc, scale = draw(2, 1, 3), np.random.default_rng(1).uniform(1, 2, 4)
        rho = np.random.default_rng(2).uniform(-0.9, 0.9, (2, 4))
        ar1 = MultivariateNormalAR1(loc, scale, correlation=rho)
        value = draw(3, seed=1)
        expected = ar1.log_prob(value).numpy()[index]
        oracles.assert_close(ar1[index].log_prob(value), expected)
        assert ar1[index].batch_shape == expected.shape


class TestParameterProperties:
    def test_names_and_event_ndims(self):
        properties = MultivariateNormalAR1.parameter_properties()
        event_ndims = {name: p.event_ndims for name, p in properties.items()}
        assert event_ndims == {"loc": 1, "marginal_scale": 0, "correlation": 0, "fisher_z": 0}

    @pytest.mark.parametrize("by", ["correlation", "fisher_z"])
    @pytest.mark.parametrize("dtype", oracles.DTYPES)
    @pytest.mark.parametrize("spread", [1, 10, 50])
    def test_constraining_bijectors_map_to_valid_parameters(self, spread, dtype, by):
        """At a spread of 50, tanh and softplus saturate in float32."""
        properties = MultivariateNormalAR1.parameter_properties(dtype=tf.as_dtype(dtype))
        batch_shape = {"loc": (200, 3), "marginal_scale": (200,), by: (200,)}
        parameters = {
            name: properties[name].default_constraining_bijector_fn()(
                tf.constant(spread * draw(*shape, dtype=dtype, seed=len(name)))
            )
            for name, shape in batch_shape.items()
        }
        ar1 = MultivariateNormalAR1(**parameters, validate_args=True)
        assert ar1.dtype == dtype
        assert np.all(parameters["marginal_scale"] > 0)
        assert np.all(np.isfinite(ar1.sample(seed=(0, 1))))
        assert np.all(np.isfinite(ar1.entropy()))

    def test_event_space_bijector_is_the_identity(self):
        ar1 = MultivariateNormalAR1(tf.zeros(3), correlation=0.5)
        value = draw(3, dtype="float32")
        bijector = ar1.experimental_default_event_space_bijector()
        np.testing.assert_array_equal(bijector(value), value)


@hypothesis.given(
    rho=st.floats(-0.999, 0.999),
    scale=st.floats(1e-2, 1e2),
    size=st.integers(1, 40),
    seed=st.integers(0, 2**31),
)
def test_log_prob_and_entropy_for_any_parameters(rho, scale, size, seed):
    loc, value = draw(size, seed=seed), draw(size, seed=seed + 1)
    ar1 = MultivariateNormalAR1(loc, scale, correlation=rho)
    dense = oracles.Dense.ar1(loc, scale, rho)
    oracles.assert_close(ar1.log_prob(value), dense.log_prob(value))
    oracles.assert_close(ar1.entropy(), dense.entropy())
