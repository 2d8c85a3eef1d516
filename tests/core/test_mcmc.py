"""NUTS on a 100-dimensional AR(1) prior with Gaussian observations, against the exact posterior."""

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from oracles import Dense, assert_close
from scipy import stats

import tfp_ar1

tfd = tfp.distributions

D = 100
SCALE, CORRELATION = 1.5, 0.9
NUM_CHAINS, NUM_WARMUP, NUM_DRAWS = 8, 400, 3000

_rng = np.random.default_rng(20190618)
PRIOR = Dense.ar1(np.sin(np.arange(D) / 10), SCALE, CORRELATION)
NOISE = _rng.uniform(0.5, 2.0, size=D)  # the standard deviation of each observation
Y = PRIOR.mean + PRIOR.factor @ _rng.normal(size=D) + NOISE * _rng.normal(size=D)


def exact_posterior():
    gain = PRIOR.covariance @ np.linalg.inv(PRIOR.covariance + np.diag(NOISE**2))
    return Dense(PRIOR.mean + gain @ (Y - PRIOR.mean), PRIOR.covariance - gain @ PRIOR.covariance)


def target_log_prob(x, correlation):
    prior = tfp_ar1.MultivariateNormalAR1(PRIOR.mean, SCALE, correlation=correlation)
    return prior.log_prob(x) + tfd.Independent(tfd.Normal(x, NOISE), 1).log_prob(Y)


@tf.function(jit_compile=True, autograph=False)
def sample(correlation, seed):
    """Draws `[NUM_DRAWS, NUM_CHAINS, D]`, and whether each trajectory diverged.

    The correlation and the seed are arguments, so that one compilation serves every test.
    """
    kernel = tfp.mcmc.NoUTurnSampler(
        lambda x: target_log_prob(x, correlation), step_size=tf.constant(0.3, tf.float64)
    )
    kernel = tfp.mcmc.DualAveragingStepSizeAdaptation(
        kernel, num_adaptation_steps=int(0.8 * NUM_WARMUP)
    )
    start_seed, chain_seed = tf.unstack(tfp.random.split_seed(seed))
    # From the prior, which is wider than the posterior.
    start = tfp_ar1.MultivariateNormalAR1(PRIOR.mean, SCALE, correlation=correlation)
    return tfp.mcmc.sample_chain(
        NUM_DRAWS,
        start.sample(NUM_CHAINS, seed=start_seed),
        kernel=kernel,
        num_burnin_steps=NUM_WARMUP,
        trace_fn=lambda _, results: results.inner_results.has_divergence,
        seed=chain_seed,
    )


def z_scores(draws, posterior):
    """The errors of the estimated means and variances, in units of their Monte Carlo errors."""
    variance = np.diag(posterior.covariance)
    quantities = {
        # What is averaged, and the exact mean and variance of that.
        "mean": (draws, posterior.mean, variance),
        "variance": ((draws - posterior.mean) ** 2, variance, 2 * variance**2),
    }
    scores = {}
    for name, (x, mean, spread) in quantities.items():
        # Positive pairs, because the draws of NUTS are anticorrelated.
        ess = tfp.mcmc.effective_sample_size(
            x, cross_chain_dims=1, filter_beyond_positive_pairs=True
        )
        scores[name] = (np.mean(x, axis=(0, 1)) - mean) / np.sqrt(spread / ess)
    return scores


def check_moments(draws, posterior):
    """Asserts that all means and variances agree with the posterior within Monte Carlo error.

    Were the effective sample sizes exact, each z would be N(0, 1). Of 200 of them, one beyond 4.5
    comes up once in 700 seeds. Their mean square, which also sees many small errors, is 1 on
    average. As the coordinates are correlated, it has fewer than 100 degrees of freedom: d² / Σ r²
    (Satterthwaite), where r are the correlations of what is averaged: those of the posterior for
    the means, their squares for the variances. It must lie in the interval that such a χ² leaves
    once in 10,000 seeds.
    """
    sd = np.sqrt(np.diag(posterior.covariance))
    correlation = posterior.covariance / np.outer(sd, sd)
    for name, z in z_scores(draws, posterior).items():
        assert np.max(np.abs(z)) < 4.5, name
        degrees = D**2 / np.sum(correlation ** (2 if name == "mean" else 4))
        low, high = stats.chi2(degrees).ppf([5e-5, 1 - 5e-5]) / degrees
        assert low < np.mean(z**2) < high, name


@pytest.mark.slow
def test_nuts_finds_the_exact_posterior():
    draws, diverged = sample(tf.constant(CORRELATION, tf.float64), tf.constant([0, 1]))
    assert not np.any(diverged)
    assert np.max(tfp.mcmc.potential_scale_reduction(draws)) < 1.01
    check_moments(np.asarray(draws), exact_posterior())


@pytest.mark.slow
def test_the_comparison_sees_a_slightly_wrong_prior():
    draws, _ = sample(tf.constant(CORRELATION - 0.01, tf.float64), tf.constant([0, 1]))
    with pytest.raises(AssertionError, match="mean"):
        check_moments(np.asarray(draws), exact_posterior())


def test_gradient_of_the_target_in_xla_equals_eager_and_is_exact():
    def value_and_gradients(x, correlation):
        return tfp.math.value_and_gradient(target_log_prob, [x, correlation])

    x = PRIOR.mean + 2 * np.random.default_rng(1).normal(size=(NUM_CHAINS, D))
    correlation = np.full([NUM_CHAINS], CORRELATION)
    eager = value_and_gradients(tf.constant(x), tf.constant(correlation))
    compiled = tf.function(value_and_gradients, jit_compile=True)(
        tf.constant(x), tf.constant(correlation)
    )
    (_, eager_gradients), (_, compiled_gradients) = eager, compiled
    assert_close(compiled[0], eager[0], "same computation")
    assert_close(compiled_gradients[0], eager_gradients[0], "same computation", event_ndims=1)
    assert_close(compiled_gradients[1], eager_gradients[1], "same computation")
    # The posterior's log-density is the target up to a constant.
    posterior = exact_posterior()
    exact = np.linalg.solve(posterior.covariance, (posterior.mean - x).T).T
    assert_close(compiled_gradients[0], exact, "gradient", event_ndims=1)
