"""Evaluation of linear Gaussian models, where everything can be computed exactly."""

import functools

import keras
import numpy as np
import oracles
import pytest
import tensorflow as tf

import tfp_ar1
from tfp_ar1.vae import evaluation, likelihoods

D, SIZE = 3, 4  # latent and data dimensions
SCALE = 0.8
rng = np.random.default_rng(6)
WEIGHTS = rng.normal(size=(D, SIZE)).astype("float32")
BIAS = rng.normal(size=SIZE).astype("float32")

MARGINAL = oracles.Dense(np.float64(BIAS), WEIGHTS.T @ WEIGHTS + SCALE**2 * np.eye(SIZE))
COVARIANCE = np.linalg.inv(np.eye(D) + WEIGHTS @ WEIGHTS.T / SCALE**2)  # of p(z | x)
GAIN = COVARIANCE @ WEIGHTS / SCALE**2  # E[z | x] = GAIN (x - BIAS)

# Covariances near that of p(z | x) in each family, large enough for importance weights of finite
# variance; "full" is p(z | x) itself.
SPREAD = np.mean(np.diag(COVARIANCE))
COVARIANCES = {
    "ar1": oracles.ar1_covariance(1.4 * np.sqrt(SPREAD), 0.3, D),
    "diag": np.diag(1.4 * np.diag(COVARIANCE)),
    "isotropic": 1.4 * SPREAD * np.eye(D),
    "full": COVARIANCE,
}


def data(n, seed=0):
    noise = np.random.default_rng(seed).normal(size=(n, SIZE))
    return (MARGINAL.mean + noise @ MARGINAL.factor.T).astype("float32")


def covariance_params(posterior):
    covariance = COVARIANCES[posterior]
    log_s = np.log(np.diag(covariance))
    if posterior == "ar1":
        return [log_s[0], np.arctanh(covariance[0, 1] / covariance[0, 0])]
    if posterior == "full":
        factor = np.linalg.cholesky(covariance)
        diagonal = 2 * np.log(np.diag(factor))
        return [diagonal[2], factor[2, 1], factor[2, 0], *diagonal[:2], factor[1, 0]]
    return log_s if posterior == "diag" else log_s[:1]


@functools.cache
def make(posterior):
    """A model whose posterior has the exact mean; compiled functions are kept between tests."""
    encoder = keras.Sequential([keras.Input((SIZE,)), keras.layers.Identity()])
    decoder = keras.Sequential([keras.Input((D,)), keras.layers.Dense(SIZE)])
    model = tfp_ar1.RhoVAE(
        encoder, decoder, D, posterior=posterior, likelihood=likelihoods.Gaussian(SCALE), seed=0
    )
    model.build((None, SIZE))
    model.decoder.set_weights([WEIGHTS, BIAS])
    rest = np.asarray(covariance_params(posterior), np.float64)
    model.posterior_head.set_weights(
        [
            np.concatenate([GAIN.T, np.zeros([SIZE, len(rest)])], axis=-1),
            np.concatenate([-GAIN @ BIAS, rest]),
        ]
    )
    return model


def exact_terms(posterior, x):
    """Reconstruction and KL of each example, in closed form."""
    mean, covariance = (x - np.float64(BIAS)) @ GAIN.T, COVARIANCES[posterior]
    error = x - BIAS - mean @ WEIGHTS
    square = np.sum(error**2, axis=-1) + np.trace(WEIGHTS.T @ covariance @ WEIGHTS)
    reconstruction = 0.5 * (SIZE * np.log(2 * np.pi * SCALE**2) + square / SCALE**2)
    kl = oracles.Dense(mean, covariance).kl(oracles.Dense(np.zeros(D), np.eye(D)))
    return reconstruction, kl


@pytest.mark.parametrize("posterior", ["ar1", "diag", "isotropic"])
def test_log_likelihood_converges(posterior):
    x = data(20)
    estimate = make(posterior).log_likelihood(x, num_samples=20_000)
    assert estimate.shape == (20,)
    # The importance weights have a relative standard deviation of at most 1.1: 5 standard errors.
    np.testing.assert_allclose(estimate, MARGINAL.log_prob(x), atol=0.04)


@pytest.mark.parametrize("posterior", ["ar1", "diag", "isotropic"])
def test_evaluate_is_exact_up_to_noise(posterior):
    x = data(100)
    figures = evaluation.evaluate(make(posterior), x, num_importance_samples=2000)
    reconstruction, kl = exact_terms(posterior, x)
    assert list(figures) == [
        *("neg_elbo", "reconstruction", "kl", "nll_iw"),
        *("num_importance_samples", "rho_mean", "num_examples"),
    ]
    assert (figures["num_importance_samples"], figures["num_examples"]) == (2000, 100)
    # 100 * 2000 draws of a quadratic with a standard deviation of at most 4: 5 standard errors.
    np.testing.assert_allclose(figures["reconstruction"], np.mean(reconstruction), atol=0.045)
    np.testing.assert_allclose(figures["kl"], np.mean(kl), rtol=1e-5)
    np.testing.assert_allclose(figures["neg_elbo"], figures["reconstruction"] + figures["kl"])
    nll = -np.mean(MARGINAL.log_prob(x))
    np.testing.assert_allclose(figures["nll_iw"], nll, atol=0.02)
    assert figures["neg_elbo"] - figures["nll_iw"] > 0.15  # the bound is from below
    expected_rho = 0.3 if posterior == "ar1" else 0.0
    np.testing.assert_allclose(figures["rho_mean"], expected_rho, rtol=1e-5)


def test_the_exact_posterior_has_no_noise():
    """Every importance weight is p(x), whatever the number of draws, batches and portions."""
    x = data(10)
    for num_samples, batch_size in ((1, 128), (7, 128), (7, 1), (3, 4)):
        estimate = make("full").log_likelihood(x, num_samples, batch_size)
        np.testing.assert_allclose(estimate, MARGINAL.log_prob(x), rtol=1e-4)


def test_one_sample_is_a_sample_of_the_elbo():
    x = data(30)
    model = make("ar1")
    estimate = model.log_likelihood(x, num_samples=1)
    # The draws of the first batch, and their densities by dense Gaussians.
    z, _ = model.encode(x).experimental_sample_and_log_prob(1, seed=tf.constant([0, 0]))
    z = np.float64(z)[0]
    log_p = oracles.Dense(z @ WEIGHTS + BIAS, SCALE**2 * np.eye(SIZE)).log_prob(x)
    log_prior = oracles.Dense(np.zeros(D), np.eye(D)).log_prob(z)
    mean = (x - np.float64(BIAS)) @ GAIN.T
    log_q = oracles.Dense(mean, COVARIANCES["ar1"]).log_prob(z)
    oracles.assert_close(estimate, log_p + log_prior - log_q, dtype="float32")


def test_one_sample_is_the_elbo_on_average():
    x = data(5000)
    estimate = make("diag").log_likelihood(x, num_samples=1, batch_size=5000)
    reconstruction, kl = exact_terms("diag", x)
    error = estimate + reconstruction + kl
    assert abs(np.mean(error)) < 4 * np.std(error) / np.sqrt(len(x))


# --- Portions and batches -------------------------------------------------------------------------


@pytest.fixture
def calls(monkeypatch):
    """The model "ar1" and a list of what its `importance_terms` is called with."""
    model, calls = make("ar1"), []
    compute = model.importance_terms

    def importance_terms(x, seed, num_samples):
        calls.append((len(x), tuple(np.asarray(seed)), num_samples))
        return compute(x, seed, num_samples)

    monkeypatch.setattr(model, "importance_terms", importance_terms)
    return calls


def test_memory_is_bounded(calls, monkeypatch):
    limit = 4 * SIZE * 10  # 10 draws for a batch of 4
    monkeypatch.setattr(evaluation, "_MAX_OUTPUTS", limit)
    x = data(6)
    estimate = make("ar1").log_likelihood(x, num_samples=25, batch_size=4)
    assert [(n, draws) for n, _, draws in calls] == [
        *((4, 10), (4, 10), (4, 5)),
        *((2, 10), (2, 10), (2, 5)),
    ]
    assert len({seed for _, seed, _ in calls}) == len(calls)  # nowhere the same noise
    # The portions are put together rightly: the same from the terms themselves.
    weights = [
        np.float64(make("ar1").importance_terms(x[start : start + 4], tf.constant(seed), n)[1])
        for start, (_, seed, n) in zip([0, 0, 0, 4, 4, 4], list(calls), strict=True)
    ]
    for part, batch in ((weights[:3], slice(0, 4)), (weights[3:], slice(4, 6))):
        expected = np.log(np.mean(np.exp(np.concatenate(part)), axis=0))
        np.testing.assert_allclose(estimate[batch], expected, rtol=1e-6)


def test_an_observation_larger_than_the_limit(calls, monkeypatch):
    monkeypatch.setattr(evaluation, "_MAX_OUTPUTS", 1)
    assert make("ar1").log_likelihood(data(3), num_samples=2).shape == (3,)
    assert [n for *_, n in calls] == [1, 1]


def test_portions_and_batches_change_only_the_noise(monkeypatch):
    x, model = data(50), make("isotropic")
    figures = [evaluation.evaluate(model, x, num_importance_samples=400, batch_size=50)]
    monkeypatch.setattr(evaluation, "_MAX_OUTPUTS", 50 * SIZE * 150)
    figures.append(evaluation.evaluate(model, x, num_importance_samples=400, batch_size=50))
    figures.append(evaluation.evaluate(model, x, num_importance_samples=400, batch_size=15))
    for other in figures[1:]:
        np.testing.assert_allclose(other["kl"], figures[0]["kl"], rtol=1e-6)
        for key in ("reconstruction", "nll_iw"):
            assert other[key] != figures[0][key]
            np.testing.assert_allclose(other[key], figures[0][key], atol=0.06)


def test_figures_are_reproducible():
    x, model = data(10), make("ar1")
    first, same, other = (
        evaluation.evaluate(model, x, num_importance_samples=5, seed=seed) for seed in (0, 0, 1)
    )
    assert first == same
    assert first["nll_iw"] != other["nll_iw"]
    model.generate(1)  # the model's own seed does not matter
    assert evaluation.evaluate(model, x, num_importance_samples=5) == first


def test_progress():
    done = []
    x = data(10)
    evaluation.evaluate(make("ar1"), x, 2, batch_size=4, progress=lambda *args: done.append(args))
    assert done == [(4, 10), (8, 10), (10, 10)]


# --- Correlation and errors -----------------------------------------------------------------------


@pytest.mark.parametrize("posterior", COVARIANCES)
def test_correlation(posterior):
    covariance = COVARIANCES[posterior]
    deviations = np.sqrt(np.diag(covariance))
    matrix = covariance / np.outer(deviations, deviations)
    expected = np.full(5, np.mean(np.diag(matrix, k=1)))
    actual = make(posterior).correlation(data(5), batch_size=2)
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_samples": 0}, "number of samples must be at least 1; got 0"),
        ({"num_samples": -3}, "number of samples must be at least 1; got -3"),
        ({"batch_size": 0}, "`batch_size` must be at least 1; got 0"),
        ({"batch_size": -1}, "`batch_size` must be at least 1; got -1"),
        ({"x": np.zeros([0, SIZE], "float32")}, r"N at least 1; got \(0, 4\)"),
        ({"x": np.zeros([SIZE], "float32")}, r"shape \[N, \*data_shape\].*got \(4,\)"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        make("ar1").log_likelihood(**{"x": data(2), "num_samples": 2, **arguments})


def test_bad_arguments_of_the_others():
    model, nothing = make("ar1"), np.zeros([0, SIZE], "float32")
    with pytest.raises(ValueError, match="N at least 1"):
        evaluation.evaluate(model, nothing)
    with pytest.raises(ValueError, match="number of samples must be at least 1"):
        evaluation.evaluate(model, data(2), num_importance_samples=0)
    with pytest.raises(ValueError, match="N at least 1"):
        model.correlation(nothing)
    with pytest.raises(ValueError, match="`batch_size` must be at least 1"):
        model.correlation(data(2), batch_size=0)
