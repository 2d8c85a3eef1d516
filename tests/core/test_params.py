"""The mapping from packed parameters: its layout, and that anything finite makes finite results."""

import derivatives
import ml_dtypes
import numpy as np
import oracles
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_ar1 import MultivariateNormalANTE1, MultivariateNormalAR1, MultivariateNormalARH1, params

tfd = tfp.distributions

EXTREMES = [0.0, -0.0, 1e-45, -1e-45, 1e-38, 1.0, -20.0, 90.0, -90.0, 1e4, -1e19, 1e38]


# Each with its sizes at 1, 2 and 10 coordinates.
FAMILIES = {
    "ar1": (MultivariateNormalAR1, [3, 4, 12]),
    "arh1": (MultivariateNormalARH1, [3, 5, 21]),
    "ante1": (MultivariateNormalANTE1, [2, 5, 29]),
}
each_family = pytest.mark.parametrize("family", FAMILIES)


@each_family
def test_params_size(family):
    assert [params.params_size(d, family) for d in (1, 2, 10)] == FAMILIES[family][1]
    assert params.params_size(10) == 12


@each_family
@pytest.mark.parametrize("batch_shape", [(), (2, 4)])
@pytest.mark.parametrize("size", [1, 4])
def test_layout(size, batch_shape, family):
    """`[loc, log s, fisher_z]`, along the last axis."""
    for dtype in oracles.DTYPES:
        shape = (*batch_shape, params.params_size(size, family))
        packed = np.random.default_rng(0).normal(size=shape).astype(dtype)
        distribution = params.new(packed, size, family=family)
        assert type(distribution) is FAMILIES[family][0]
        assert distribution.dtype == tf.as_dtype(dtype)
        assert distribution.batch_shape == batch_shape
        assert distribution.event_shape == (size,)
        split = size + (1 if family == "ar1" else size)
        loc, log_s, u = np.split(np.float64(packed), [size, split], axis=-1)
        np.testing.assert_array_equal(distribution.loc, loc)
        np.testing.assert_array_equal(distribution.fisher_z, u if family == "ante1" else u[..., 0])
        rho = np.tanh(u) if family == "ante1" else np.repeat(np.tanh(u), size - 1, axis=-1)
        scale = np.exp(log_s / 2) * np.ones(size)
        expected = scale[..., :, None] * scale[..., None, :]
        expected *= oracles.tf_antedependent_correlations(tf.constant(rho))
        oracles.assert_close(distribution.covariance(), expected, event_ndims=2)


@each_family
def test_zeros_are_the_standard_normal(family):
    distribution = params.new(tf.zeros(params.params_size(5, family)), 5, family=family)
    assert float(tfd.kl_divergence(distribution, tfd.MultivariateNormalDiag(tf.zeros(5)))) == 0


def test_bounds_clip_and_are_wide():
    bounds = np.float32([params.LOC_BOUND] * 2 + [params.LOG_S_BOUND, params.FISHER_Z_BOUND])
    # A standard deviation of 1e-6, a correlation that float32 rounds to one, data in any unit.
    assert params.LOC_BOUND >= 1e10
    assert np.exp(params.LOG_S_BOUND / 2) >= 1e6
    assert np.float32(np.tanh(params.FISHER_Z_BOUND)) == 1
    for sign in (-1, 1):
        at, beyond = (params.new(sign * factor * bounds, 2) for factor in (1, 2))
        for name in ("loc", "marginal_scale", "fisher_z"):
            np.testing.assert_array_equal(getattr(beyond, name), getattr(at, name))
        inside = params.new(sign * 0.99 * bounds, 2)
        for name in ("loc", "marginal_scale", "fisher_z"):
            assert np.all(getattr(inside, name) != getattr(at, name))


@each_family
@pytest.mark.parametrize(
    ("size", "dtype"), [(1, "float32"), (150, "float32"), (4, "float16"), (4, "bfloat16")]
)
def test_extremes(size, dtype, family):
    """All the largest, all the smallest, and mixtures of extremes, any and plain numbers."""
    count, rng = params.params_size(size, family), np.random.default_rng(0)
    largest = float(ml_dtypes.finfo(dtype).max)
    anything = rng.choice([-1, 1], 99) * 10 ** rng.uniform(-45, 38.5, 99)
    entries = [largest, -largest, *EXTREMES, *anything, *rng.normal(size=20)]
    mixed = rng.choice(np.clip(entries, -largest, largest), (300, count))
    packed = tf.cast([[largest] * count, [-largest] * count, *mixed], dtype)

    def results_of(packed):
        distribution = params.new(packed, size, validate_args=True, family=family)
        kl = tfd.kl_divergence(distribution, tfd.MultivariateNormalDiag(tf.zeros(size, dtype)))
        sample, entropy = distribution.sample(seed=(1, 2)), distribution.entropy()
        return {"sample": sample, "kl": kl, "entropy": entropy}

    results, gradients = derivatives.values_and_gradients(results_of, [packed])
    of_gradients = {f"gradient of {key}": gradient for key, (gradient,) in gradients.items()}
    for name, value in (results | of_gradients).items():
        finite = np.isfinite(tf.cast(value, tf.float32))
        assert np.all(finite), f"{name} of {packed[np.argwhere(~finite)[0][0]]}: {value}"


def test_gradients_inside_the_bounds():
    packed = np.random.default_rng(0).normal(size=(3, 6))

    def dense(packed):
        loc, scale, rho = packed[..., :4], tf.exp(packed[..., 4] / 2), tf.tanh(packed[..., 5])
        return oracles.tf_ar1(loc, scale, rho).log_prob(tf.ones(4, tf.float64))

    actual = oracles.tf_gradients(
        lambda x: params.new(x, 4).log_prob(tf.ones(4, x.dtype)), [packed]
    )
    expected = oracles.tf_gradients(dense, [packed])
    oracles.assert_close(actual[0], expected[0], "gradient", event_ndims=1)


@each_family
def test_wrong_last_dimension(family):
    size = params.params_size(3, family)
    for shape in ((size - 1,), (2, size + 1)):
        with pytest.raises(ValueError, match=rf"must have {size} entries .*{shape[-1]},?\)"):
            params.new(tf.zeros(shape), 3, family=family)


def test_scalar_params():
    with pytest.raises(ValueError, match="params"):
        params.new(tf.zeros([]), 3)


def test_unknown_last_dimension():
    @tf.function(input_signature=[tf.TensorSpec(None)])
    def log_prob(packed):
        return params.new(packed, 3).log_prob(tf.zeros(3))

    expected = tfd.MultivariateNormalDiag(tf.zeros(3)).log_prob(tf.zeros(3))
    oracles.assert_close(log_prob(tf.zeros([2, 5])), np.full(2, expected))


@pytest.mark.parametrize("event_size", [0, -1, 2.5])
def test_event_size_that_is_none(event_size):
    with pytest.raises(ValueError, match="event_size"):
        params.params_size(event_size)
    with pytest.raises(ValueError, match="event_size"):
        params.new(tf.zeros(2), event_size)


def test_unknown_family():
    message = r"Unknown family '{}'; expected one of \['ar1', 'arh1', 'ante1'{}\]"
    with pytest.raises(ValueError, match=message.format("ar2", ", 'sites'")):
        params.params_size(3, "ar2")
    for name in ("ar2", "sites"):  # sites need a prior
        with pytest.raises(ValueError, match=message.format(name, "")):
            params.new(tf.zeros(6), 3, family=name)
