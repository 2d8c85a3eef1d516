"""Sums over more coordinates than float16 can count to, against NumPy in float64."""

import derivatives
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_ar1

tfd = tfp.distributions

SIZE = 70_000
LOG_TWO_PI = np.log(2 * np.pi)
DTYPES = {"float16": 2.0**-10, "bfloat16": 2.0**-7}
NAMES = ["AR1", "AR1 by fisher_z", "ARH1", "ANTE1", "OU"]


def make(name, dtype):
    """A member of 70,000 coordinates, and its mean, scales and correlations in float64."""
    rng = np.random.default_rng(0)

    def rounded(x):
        return tf.constant(x, dtype)

    kind, _, by_fisher_z = name.partition(" by ")
    # Half precision has not numbers enough for more times than this.
    times = np.unique(np.asarray(tf.cast(rounded(np.linspace(0, 600, 4000)), tf.float64)))
    size = times.size if kind == "OU" else SIZE
    loc = rounded(rng.normal(size=size))
    scale = rounded(rng.uniform(0.5, 0.75, size if kind in ("ARH1", "ANTE1") else ()))
    rho = rounded(rng.uniform(-0.5, 0.9, size - 1) if kind == "ANTE1" else 0.7)
    key = "scale_diag" if kind in ("ARH1", "ANTE1") else "marginal_scale"
    parameters = {"loc": loc, key: scale, "fisher_z" if by_fisher_z else "correlation": rho}
    if kind == "OU":
        parameters = {"loc": loc, key: scale, "length_scale": rounded(1.5), "times": rounded(times)}
        rho = np.exp(-np.diff(times) / 1.5)
    else:
        rho = np.asarray(tf.cast(rho, tf.float64))
        rho = np.tanh(rho) if by_fisher_z else rho
    loc, scale = (np.asarray(tf.cast(x, tf.float64)) for x in (loc, scale))
    law = getattr(tfp_ar1, f"MultivariateNormal{kind}")(**parameters)
    return law, loc, scale, np.broadcast_to(rho, [loc.size - 1])


def draw(dtype, loc, scale, rho):
    """A path whose distance from the mean is 0.9 of what it is on average; and that distance."""
    noise = 0.9 * np.random.default_rng(1).normal(size=loc.size)
    w = noise.copy()
    for t in range(1, w.size):
        w[t] = rho[t - 1] * w[t - 1] + np.sqrt(1 - rho[t - 1] ** 2) * noise[t]
    x = tf.constant(loc + scale * w, dtype)
    return x, (np.asarray(tf.cast(x, tf.float64)) - loc) / scale


def log_density(w, scale, rho):
    squares = w[0] ** 2 + np.sum((w[1:] - rho * w[:-1]) ** 2 / (1 - rho**2))
    log_scale = np.sum(np.log(np.broadcast_to(scale, w.shape)))
    return -0.5 * (squares + np.sum(np.log(1 - rho**2)) + w.size * LOG_TWO_PI) - log_scale


def assert_close(actual, desired, dtype):
    assert actual.dtype == dtype
    actual, desired = (tf.cast(tf.cast(a, dtype), tf.float64) for a in (actual, desired))
    np.testing.assert_allclose(actual, desired, rtol=4 * DTYPES[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NAMES)
def test_sums_over_coordinates(name, dtype):
    law, loc, scale, rho = make(name, dtype)
    x, w = draw(dtype, loc, scale, rho)
    log_det = np.sum(np.log(np.broadcast_to(scale, loc.shape))) + 0.5 * np.sum(np.log(1 - rho**2))
    assert_close(law.log_prob(x), log_density(w, scale, rho), dtype)
    assert_close(law.entropy(), 0.5 * loc.size * (1 + LOG_TWO_PI) + log_det, dtype)
    assert_close(law.scale.log_abs_determinant(), log_det, dtype)
    assert_close(law.precision().log_abs_determinant(), -2 * log_det, dtype)
    diagonal = scale * np.sqrt(1 - np.r_[0, rho] ** 2)
    assert_close(law.scale.trace(), diagonal.sum(), dtype)


@pytest.mark.parametrize("name", ["AR1 by fisher_z", "ANTE1"])
def test_log_density_of_every_second_coordinate(name):
    dtype = "float16"
    law, loc, scale, rho = make(name, dtype)
    x, w = draw(dtype, loc, scale, rho)
    scale = np.broadcast_to(scale, w.shape)[::2]
    expected = log_density(
        w[::2], scale, (rho[: rho.size // 2 * 2].reshape(-1, 2).prod(-1))[: scale.size - 1]
    )
    conditional = law.conditional(x, tf.range(loc.size) % 2 == 0)
    assert_close(conditional.observed_log_prob(), expected, dtype)
    for result in (conditional.mean(), conditional.variance(), conditional.sample(seed=[1, 2])):
        assert result.dtype == dtype


@pytest.mark.parametrize("dtype", DTYPES)
def test_log_density_of_a_draw(dtype):
    law = tfp_ar1.MultivariateNormalAR1(tf.zeros([60_000], dtype), fisher_z=tf.constant(0.5, dtype))
    x, actual = law.experimental_sample_and_log_prob(seed=[1, 2])
    w = np.asarray(tf.cast(x, tf.float64))
    assert_close(actual, log_density(w, 1.0, np.full(w.size - 1, np.tanh(0.5))), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_whose_terms_exceed_the_largest_number(dtype):
    _, loc, scale, rho = make("AR1 by fisher_z", dtype)
    x, w = draw(dtype, loc, scale, rho)
    loc, scale, fisher_z = (tf.constant(a, dtype) for a in (loc, scale, 0.7))

    def results_of(scale, fisher_z):
        law = tfp_ar1.MultivariateNormalAR1(loc, scale, fisher_z=fisher_z)
        return {"log_prob": law.log_prob(x), "entropy": law.entropy()}

    _, gradients = derivatives.values_and_gradients(results_of, [scale, fisher_z])
    squares = w[0] ** 2 + np.sum((w[1:] - rho * w[:-1]) ** 2 / (1 - rho**2))
    expected = (squares - SIZE) / tf.cast(scale, tf.float64)
    assert_close(gradients["log_prob"][0], expected, dtype)
    assert_close(gradients["entropy"][1], -(SIZE - 1) * rho[0], dtype)


@pytest.mark.parametrize("kind", ["AR1", "ARH1"])
def test_every_66000th_coordinate(kind):
    # 66,000 is infinite in float16.
    scale = {"scale_diag": tf.ones([SIZE], "float16")} if kind == "ARH1" else {}
    cls = getattr(tfp_ar1, f"MultivariateNormal{kind}")
    law = cls(tf.zeros([SIZE], "float16"), **scale, fisher_z=tf.constant(6.0, "float16"))
    expected = np.tanh(6.0) ** 66_000
    assert_close(law.marginal(step=66_000).correlation_parameter(), expected, "float16")


@pytest.mark.parametrize("name", NAMES)
def test_kl(name):
    dtype = "float16"
    law, loc, scale, rho = make(name, dtype)
    diag = tfd.MultivariateNormalDiag(tf.zeros([loc.size], dtype), tf.ones([loc.size], dtype))
    log_det = np.sum(np.log(np.broadcast_to(scale, loc.shape))) + 0.5 * np.sum(np.log(1 - rho**2))
    squares = np.sum(np.broadcast_to(scale, loc.shape) ** 2 + loc**2)
    assert_close(tfd.kl_divergence(law, diag), 0.5 * (squares - loc.size) - log_det, dtype)
    # The same but for a part of the mean.
    shift = tf.cast(tf.range(loc.size) < 1000, dtype)
    w = np.where(np.arange(loc.size) < 1000, 1 / scale, 0)
    innovations = np.r_[w[0], (w[1:] - rho * w[:-1]) / np.sqrt(1 - rho**2)]
    moved = type(law)(**{**law.parameters, "loc": tf.zeros_like(law.loc)})
    other = type(law)(**{**law.parameters, "loc": shift})
    assert_close(tfd.kl_divergence(moved, other), 0.5 * np.sum(innovations**2), dtype)
