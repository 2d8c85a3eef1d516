"""The likelihoods against SciPy."""

import keras
import numpy as np
import oracles
import pytest
import scipy.special
import scipy.stats
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_ar1.vae import likelihoods

SHAPE = (5, 2, 3)  # a batch of 5 observations


def outputs(dtype="float32", shape=SHAPE):
    return np.random.default_rng(0).normal(size=shape).astype(dtype)


def images(dtype="float32", shape=SHAPE):
    """Intensities in [0, 1], both ends among them."""
    x = np.random.default_rng(1).uniform(-0.5, 1.5, size=shape)
    return np.clip(x, 0, 1).astype(dtype)


def learned(raw_scale):
    gaussian = likelihoods.Gaussian()
    gaussian.build(SHAPE)
    gaussian.raw_scale.assign(raw_scale)
    return gaussian


@pytest.mark.parametrize("shape", [(5, 4), (5, 2, 3, 4)])
@pytest.mark.parametrize("dtype", oracles.DTYPES)
def test_bernoulli(dtype, shape):
    logits, x = outputs(dtype, shape), images(dtype, shape)
    bernoulli, axes = likelihoods.Bernoulli(), tuple(range(1, len(shape)))
    p = scipy.special.expit(np.float64(logits))
    cross_entropy = -np.sum(x * np.log(p) + (1 - x) * np.log1p(-p), axis=axes)
    oracles.assert_close(bernoulli.log_prob(tf.constant(x), tf.constant(logits)), -cross_entropy)
    binary = np.round(x)
    expected = np.sum(scipy.stats.bernoulli.logpmf(binary, p), axis=axes)
    distribution = bernoulli.distribution(tf.constant(logits))
    assert distribution.batch_shape == [5]
    assert distribution.event_shape == shape[1:]
    oracles.assert_close(distribution.log_prob(binary), expected)
    oracles.assert_close(distribution.mean(), p)
    oracles.assert_close(likelihoods.Bernoulli(dtype=dtype)(logits), p)


def test_bernoulli_with_extreme_logits():
    logits = tf.constant([[1e4, -1e4, 1e4, -1e4]])
    log_prob = likelihoods.Bernoulli().log_prob(tf.constant([[1.0, 0.0, 0.0, 0.5]]), logits)
    np.testing.assert_allclose(log_prob, [-1.5e4])


@pytest.mark.parametrize("dtype", oracles.DTYPES)
@pytest.mark.parametrize(
    ("gaussian", "scale"),
    [
        (lambda: likelihoods.Gaussian(0.3), 0.3),
        (lambda: learned(0.0), 1e-3 + np.log(2)),
        (lambda: learned(-1.0), 1e-3 + np.log1p(np.exp(-1))),
        (lambda: learned(-1e6), 1e-3),  # the bound
    ],
    ids=["fixed", "initial", "learned", "bound"],
)
def test_gaussian(gaussian, scale, dtype):
    gaussian, means, x = gaussian(), outputs(dtype), images(dtype)
    np.testing.assert_allclose(gaussian.scale(), scale, rtol=1e-5)
    # The scale itself is a float32 weight.
    expected = scipy.stats.norm.logpdf(x, np.float64(means), scale).sum(axis=(1, 2))
    log_prob = gaussian.log_prob(tf.constant(x), tf.constant(means))
    assert log_prob.dtype == dtype
    oracles.assert_close(log_prob, expected, dtype="float32")
    distribution = gaussian.distribution(tf.constant(means))
    assert distribution.batch_shape == [5]
    assert distribution.event_shape == SHAPE[1:]
    oracles.assert_close(distribution.stddev(), np.full(SHAPE, scale), dtype="float32")
    np.testing.assert_array_equal(likelihoods.Gaussian(scale, dtype=dtype)(means), means)


@pytest.mark.parametrize("dtype", oracles.DTYPES)
@pytest.mark.parametrize("min_scale", [1e-3, 0.5])
def test_heteroscedastic_gaussian(min_scale, dtype):
    likelihood = likelihoods.HeteroscedasticGaussian(min_scale)
    given, x = outputs(dtype, (5, 2, 6)), images(dtype)
    loc, raw = np.float64(given[..., :3]), np.float64(given[..., 3:])
    scale = min_scale + np.log1p(np.exp(raw))
    expected = scipy.stats.norm.logpdf(x, loc, scale)
    oracles.assert_close(likelihood.log_prob_terms(tf.constant(x), tf.constant(given)), expected)
    oracles.assert_close(
        likelihood.log_prob(tf.constant(x), tf.constant(given)), expected.sum(axis=(1, 2))
    )
    distribution = likelihood.distribution(tf.constant(given))
    assert (distribution.batch_shape, distribution.event_shape) == ((5,), SHAPE[1:])
    oracles.assert_close(distribution.stddev(), scale)
    copy = likelihoods.HeteroscedasticGaussian(min_scale, dtype=dtype)
    np.testing.assert_array_equal(copy(given), given[..., :3])
    config = keras.saving.serialize_keras_object(copy)
    assert keras.saving.deserialize_keras_object(config).min_scale == min_scale


@pytest.mark.parametrize("min_scale", [0.0, -1.0, float("nan")])
def test_bad_min_scale(min_scale):
    with pytest.raises(ValueError, match=f"`min_scale` must be positive; got {min_scale}"):
        likelihoods.HeteroscedasticGaussian(min_scale)


def test_only_a_scale_that_is_not_given_is_learned():
    assert [v.name for v in learned(0.0).trainable_variables] == ["raw_scale"]
    fixed = likelihoods.Gaussian(0.5)
    fixed.build(SHAPE)
    assert fixed.variables == []


def test_gradient_of_the_scale():
    gaussian, means, x = learned(-1.0), outputs(), images()
    with tf.GradientTape() as tape:
        log_prob = tf.reduce_sum(gaussian.log_prob(tf.constant(x), tf.constant(means)))
    gradient = tape.gradient(log_prob, gaussian.raw_scale.value)
    scale = 1e-3 + np.log1p(np.exp(-1))
    by_scale = np.sum((np.float64(x) - means) ** 2 / scale**3 - 1 / scale)
    oracles.assert_close(gradient, by_scale * scipy.special.expit(-1))


@pytest.mark.parametrize("scale", [None, 0.5])
def test_config_round_trip(scale):
    config = keras.saving.serialize_keras_object(likelihoods.Gaussian(scale, name="mine"))
    copy = keras.saving.deserialize_keras_object(config)
    assert (copy.name, copy.fixed_scale) == ("mine", scale)


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan")])
def test_bad_scale(scale):
    with pytest.raises(ValueError, match=f"`scale` must be positive, or `None`.* got {scale}"):
        likelihoods.Gaussian(scale)


@pytest.mark.parametrize(
    ("likelihood", "value", "message"),
    [
        ("bernoulli", 16.0, r"1 values lie outside \(range 0 to 16\).*1/255"),
        ("bernoulli", -0.25, r"1 values lie outside \(range -0.25 to 1\)"),
        ("bernoulli", np.nan, "1 values that are not finite"),
        ("gaussian", np.inf, "1 values that are not finite"),
    ],
)
def test_check_refuses(likelihood, value, message):
    x = images()
    x[1, 1, 1] = value
    with pytest.raises(ValueError, match=message):
        likelihoods.get(likelihood).check(x)


def test_check_accepts():
    likelihoods.Bernoulli().check(images())
    likelihoods.Bernoulli().check(np.array([[False, True]]))
    likelihoods.Gaussian().check(100 * outputs())


def test_get():
    gaussian = likelihoods.Gaussian(0.5)
    assert likelihoods.get(gaussian) is gaussian
    assert isinstance(likelihoods.get("bernoulli"), likelihoods.Bernoulli)
    assert likelihoods.get("gaussian").fixed_scale is None
    with pytest.raises(
        ValueError, match=r"Unknown likelihood 'poisson'; .*'bernoulli', 'gaussian'"
    ):
        likelihoods.get("poisson")


class Poisson(likelihoods.Likelihood):
    """A user's own, which defines no more than it must."""

    def distribution(self, outputs):
        return tfp.distributions.Independent(tfp.distributions.Poisson(log_rate=outputs), 2)


def test_a_likelihood_of_ones_own():
    x = np.float32([[[0, 1, 2], [3, 4, 5]]] * 5)
    expected = scipy.stats.poisson.logpmf(x, np.exp(np.float64(outputs()))).sum(axis=(1, 2))
    log_prob = Poisson().log_prob(tf.constant(x), tf.constant(outputs()))
    oracles.assert_close(log_prob, expected, dtype="float32")
    oracles.assert_close(Poisson()(outputs()), np.exp(np.float64(outputs())), dtype="float32")
    with pytest.raises(NotImplementedError, match="`Likelihood` must define `distribution`"):
        likelihoods.Likelihood().distribution(outputs())
