"""The mapping from packed parameters: its layout, and that anything finite makes finite results."""

import hypothesis
import hypothesis.extra.numpy
import hypothesis.strategies as st
import numpy as np
import oracles
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_ar1 import MultivariateNormalANTE1, MultivariateNormalAR1, MultivariateNormalARH1, params

tfd = tfp.distributions

FLOAT32_MAX = np.finfo("float32").max
EXTREMES = [0.0, -0.0, 1e-45, -1e-45, 1e-38, 1.0, -20.0, 90.0, -90.0, 1e4, -1e19, 1e38]
EXTREMES += [FLOAT32_MAX, -FLOAT32_MAX]


@pytest.mark.parametrize("event_size", [1, 2, 10, 1000])
def test_params_size(event_size):
    assert params.params_size(event_size) == event_size + 2


@pytest.mark.parametrize("dtype", oracles.DTYPES)
@pytest.mark.parametrize("batch_shape", [(), (3,), (2, 4)])
def test_layout(batch_shape, dtype):
    """`[loc, log s, fisher_z]`, along the last axis."""
    packed = np.random.default_rng(0).normal(size=(*batch_shape, 5)).astype(dtype)
    ar1 = params.new(packed, 3)
    assert isinstance(ar1, MultivariateNormalAR1)
    assert ar1.dtype == dtype
    assert ar1.batch_shape == batch_shape
    assert ar1.event_shape == (3,)
    loc, scale, u = packed[..., :3], np.exp(packed[..., 3] / 2), packed[..., 4]
    np.testing.assert_array_equal(ar1.loc, loc)
    np.testing.assert_array_equal(ar1.fisher_z, u)
    assert ar1.correlation is None
    dense = oracles.Dense.ar1(loc, scale, np.tanh(u))
    oracles.assert_close(ar1.covariance(), dense.covariance, event_ndims=2)


def test_zeros_are_the_standard_normal():
    ar1 = params.new(tf.zeros(7), 5)
    assert float(tfd.kl_divergence(ar1, tfd.MultivariateNormalDiag(tf.zeros(5)))) == 0


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


# One graph for every example.
@tf.function(input_signature=[tf.TensorSpec([None, 6])])
def sample_kl_and_gradients(packed):
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(packed)
        ar1 = params.new(packed, 4, validate_args=True)
        sample = ar1.sample(seed=(1, 2))
        kl = tfd.kl_divergence(ar1, tfd.MultivariateNormalDiag(tf.zeros(4)))
    return {
        "sample": sample,
        "kl": kl,
        "gradient of the sample": tape.gradient(sample, packed),
        "gradient of the KL": tape.gradient(kl, packed),
        "entropy": ar1.entropy(),
    }


def assert_all_finite(packed):
    for name, value in sample_kl_and_gradients(packed).items():
        finite = np.isfinite(value)
        assert np.all(finite), f"{name} of {packed[np.argwhere(~finite)[0][0]]}: {value}"


@hypothesis.given(
    hypothesis.extra.numpy.arrays(
        np.float32,
        (4, 6),
        elements=st.floats(width=32, allow_nan=False, allow_infinity=False)
        | st.sampled_from(EXTREMES).map(lambda x: float(np.float32(x))),
    )
)
@hypothesis.settings(max_examples=200)
def test_every_finite_vector_is_a_valid_distribution(packed):
    assert_all_finite(packed)


def test_all_pairs_of_extremes():
    """Of log s and fisher_z, under a mean of zeros and one of the largest numbers."""
    log_s, u = np.meshgrid(np.float32(EXTREMES), np.float32(EXTREMES))
    covariance = np.stack([log_s.ravel(), u.ravel()], axis=-1)
    for loc in (0, FLOAT32_MAX, -FLOAT32_MAX):
        mean = np.full((len(covariance), 4), loc, np.float32)
        assert_all_finite(np.concatenate([mean, covariance], axis=-1))


@pytest.mark.parametrize("size", [1, 700])
def test_extremes_at_other_event_sizes(size):
    packed = tf.constant(np.float32(EXTREMES)[:, None].repeat(size + 2, axis=1))
    with tf.GradientTape() as tape:
        tape.watch(packed)
        ar1 = params.new(packed, size)
        kl = tfd.kl_divergence(ar1, tfd.MultivariateNormalDiag(tf.zeros(size)))
    for value in (kl, tape.gradient(kl, packed), ar1.sample(seed=(1, 2))):
        assert np.all(np.isfinite(value))


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


@pytest.mark.parametrize("shape", [(4,), (2, 6), (5, 1)])
def test_wrong_last_dimension(shape):
    with pytest.raises(ValueError, match=rf"\b5\b.*\b{shape[-1]}\b"):
        params.new(tf.zeros(shape), 3)


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


# --- The other families -----------------------------------------------------------------------

FAMILIES = {"arh1": MultivariateNormalARH1, "ante1": MultivariateNormalANTE1}
each_family = pytest.mark.parametrize("family", FAMILIES)


def test_params_size_of_families():
    for family, sizes in (
        ("ar1", {1: 3, 2: 4, 10: 12}),
        ("arh1", {1: 3, 2: 5, 10: 21}),
        ("ante1", {1: 2, 2: 5, 10: 29}),
    ):
        assert {d: params.params_size(d, family) for d in sizes} == sizes


def test_unknown_family():
    message = r"Unknown family 'ar2'; expected one of \['ar1', 'arh1', 'ante1'\]"
    with pytest.raises(ValueError, match=message):
        params.params_size(3, "ar2")
    with pytest.raises(ValueError, match=message):
        params.new(tf.zeros(5), 3, family="ar2")


@each_family
@pytest.mark.parametrize("batch_shape", [(), (3,), (2, 4)])
@pytest.mark.parametrize("size", [1, 4])
def test_layout_of_families(size, batch_shape, family):
    for dtype in oracles.DTYPES:
        shape = (*batch_shape, params.params_size(size, family))
        packed = np.random.default_rng(0).normal(size=shape).astype(dtype)
        distribution = params.new(packed, size, family=family)
        assert type(distribution) is FAMILIES[family]
        assert distribution.dtype == dtype
        assert distribution.batch_shape == batch_shape
        assert distribution.event_shape == (size,)
        loc, log_s, u = np.split(np.float64(packed), [size, 2 * size], axis=-1)
        np.testing.assert_array_equal(distribution.loc, loc)
        np.testing.assert_array_equal(distribution.fisher_z, u[..., 0] if family == "arh1" else u)
        rho = np.tanh(u) if family == "ante1" else np.repeat(np.tanh(u), size - 1, axis=-1)
        scale = np.exp(log_s / 2)
        expected = scale[..., :, None] * scale[..., None, :]
        expected *= oracles.tf_antedependent_correlations(tf.constant(rho))
        oracles.assert_close(distribution.covariance(), expected, event_ndims=2)


@each_family
def test_zeros_are_the_standard_normal_of_families(family):
    distribution = params.new(tf.zeros(params.params_size(5, family)), 5, family=family)
    assert float(tfd.kl_divergence(distribution, tfd.MultivariateNormalDiag(tf.zeros(5)))) == 0


@each_family
@pytest.mark.parametrize("size", [1, 4, 150])
def test_every_finite_vector_is_valid_for_families(size, family):
    """All the largest, all the smallest, and mixtures of extremes and plain numbers."""
    count = params.params_size(size, family)
    mixed = np.random.default_rng(0).choice(np.float32(EXTREMES), size=(200, count))
    packed = tf.constant([[FLOAT32_MAX] * count, [-FLOAT32_MAX] * count, *mixed], tf.float32)
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(packed)
        distribution = params.new(packed, size, validate_args=True, family=family)
        sample = distribution.sample(seed=(1, 2))
        kl = tfd.kl_divergence(distribution, tfd.MultivariateNormalDiag(tf.zeros(size)))
    for name, value in {
        "sample": sample,
        "kl": kl,
        "entropy": distribution.entropy(),
        "gradient of the sample": tape.gradient(sample, packed),
        "gradient of the KL": tape.gradient(kl, packed),
    }.items():
        finite = np.isfinite(value)
        assert np.all(finite), f"{name} of {packed[np.argwhere(~finite)[0][0]]}: {value}"


@each_family
def test_wrong_last_dimension_of_families(family):
    size = params.params_size(3, family)
    with pytest.raises(ValueError, match=rf"must have {size} entries .*\({size + 1},\)"):
        params.new(tf.zeros(size + 1), 3, family=family)


@pytest.mark.parametrize("family", ["ar1", "arh1", "ante1"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_short_dtypes_are_finite_too(family, dtype):
    largest = float(tf.as_dtype(dtype).max)
    extremes = [0.0, 1e-7, 1.0, 12.0, -20.0, 90.0, 300.0, -1e4, largest, -largest]
    size = params.params_size(4, family)
    entries = np.random.default_rng(0).choice(extremes, (300, size))
    packed = tf.cast(np.concatenate([entries, np.full((1, size), largest)]), dtype)
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(packed)
        posterior = params.new(packed, 4, family=family)
        sample = posterior.sample(seed=(1, 2))
        kl = tfd.kl_divergence(posterior, tfd.MultivariateNormalDiag(tf.zeros(4, dtype)))
    for x in (sample, kl, tape.gradient(sample, packed), tape.gradient(kl, packed)):
        assert np.all(np.isfinite(tf.cast(x, tf.float32)))
