"""Evaluation of linear Gaussian models, where everything can be computed exactly."""

import functools

import keras
import numpy as np
import oracles
import pytest
import tensorflow as tf

import tfp_ar1
from tfp_ar1.vae import batching, evaluation, likelihoods, mmd

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
def test_evaluate_is_exact_up_to_noise(posterior):
    x = data(100)
    figures = evaluation.evaluate(make(posterior), x, num_importance_samples=2000)
    reconstruction, kl = exact_terms(posterior, x)
    assert list(figures) == [
        *("neg_elbo", "reconstruction", "kl", "nll_iw"),
        *("num_importance_samples", "active_units", "mmd"),
        *("rho_mean", "rho_std", "scale_mean", "scale_std", "num_examples"),
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
    assert all(type(value) in (int, float) for value in figures.values())  # as JSON needs them


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


def test_active_units():
    """Means that vary with standard deviations just below and above 0.1, and widely."""
    noise = np.random.default_rng(1).normal(size=(400, D))
    noise = (noise - np.mean(noise, axis=0)) / np.std(noise, axis=0)
    model = make("ar1")
    for scales, active in (([0.099, 0.101, 1], 2), ([0, 0.099, 0.05], 0), ([0.2, 0.101, 3], 3)):
        means = 5 + noise * scales
        x = BIAS + means @ np.linalg.pinv(GAIN).T
        np.testing.assert_allclose(model.encode(x.astype("float32")).mean(), means, atol=1e-4)
        figures = evaluation.evaluate(model, x.astype("float32"), 1)
        assert figures["active_units"] == active


def expected_kernel(first, second):
    """E[exp(-‖a - b‖² / d²)] for a and b from two normals, each a mean and a covariance."""
    matrix = np.eye(D) + 2 * (first[1] + second[1]) / D**2
    shift = first[0] - second[0]
    exponent = -shift @ np.linalg.solve(matrix, shift) / D**2
    return np.exp(exponent) / np.sqrt(np.linalg.det(matrix))


@pytest.mark.parametrize("stretch", [1.0, 2.5])
@pytest.mark.parametrize("posterior", ["ar1", "full"])
def test_mmd(posterior, stretch):
    """Of the normal that the aggregate posterior is, for data that are normal themselves."""
    n = 3000
    shift = np.float32([0.5, 0, -1, 2]) * (stretch - 1)
    x = BIAS + shift + stretch * (data(n, seed=2) - BIAS)
    actual = evaluation.evaluate(make(posterior), x, 1, batch_size=500)["mmd"]
    spread = stretch**2 * GAIN @ MARGINAL.covariance @ GAIN.T + COVARIANCES[posterior]
    aggregate, prior = (GAIN @ shift, spread), (np.zeros(D), np.eye(D))
    within = expected_kernel(aggregate, aggregate), expected_kernel(prior, prior)
    across = expected_kernel(aggregate, prior)
    # The pairs of a vector with itself: 1 instead of the kernel's mean.
    expected = sum(within) - 2 * across + (2 - sum(within)) / n
    assert expected > (0.05 if stretch > 1 else 0)
    np.testing.assert_allclose(actual, expected, rtol=0.1, atol=5e-4)


def test_mmd_in_blocks(monkeypatch):
    x, model = data(70), make("ar1")
    whole = evaluation.evaluate(model, x, 1, batch_size=70)["mmd"]
    rows, compute = [], mmd.witness
    monkeypatch.setattr(
        mmd,
        "witness",
        lambda points, *args: rows.append(len(points)) or compute(points, *args),
    )
    monkeypatch.setattr(batching, "MAX_OUTPUTS", 4 * 70 * 32)
    blocks = evaluation.evaluate(model, x, 1, batch_size=70)["mmd"]
    assert rows == [32, 32, 6] * 2
    np.testing.assert_allclose(blocks, whole, rtol=1e-12)


@pytest.mark.parametrize("posterior", ["ar1", "diag"])
def test_scale_and_correlation(posterior):
    """Where they differ between the examples."""
    model = make.__wrapped__(posterior)  # one of its own
    kernel, bias = model.posterior_head.get_weights()
    kernel[:, D:] = np.random.default_rng(3).normal(size=kernel[:, D:].shape, scale=0.3)
    model.posterior_head.set_weights([kernel, bias])
    x = data(50)
    figures = evaluation.evaluate(model, x, 1, batch_size=20)
    rest = x @ np.float64(kernel[:, D:]) + bias[D:]
    scale, rho = np.exp(rest[:, 0] / 2), np.tanh(rest[:, 1])
    if posterior == "diag":
        scale, rho = np.sqrt(np.sum(np.exp(rest), axis=1) / D), np.zeros(50)
    expected = {"scale_mean": np.mean(scale), "scale_std": np.std(scale)}
    expected |= {"rho_mean": np.mean(rho), "rho_std": np.std(rho)}
    assert expected["scale_std"] > 0.05
    for key, value in expected.items():
        np.testing.assert_allclose(figures[key], value, rtol=1e-4, atol=1e-7, err_msg=key)


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
    monkeypatch.setattr(batching, "MAX_OUTPUTS", limit)
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
    monkeypatch.setattr(batching, "MAX_OUTPUTS", 1)
    assert make("ar1").log_likelihood(data(3), num_samples=2).shape == (3,)
    assert [n for *_, n in calls] == [1, 1]


def test_figures_are_reproducible():
    x, model = data(10), make("ar1")
    first, same, other = (
        evaluation.evaluate(model, x, num_importance_samples=5, seed=seed) for seed in (0, 0, 1)
    )
    assert first == same
    for key in ("nll_iw", "mmd"):
        assert first[key] != other[key]
    model.generate(1)  # the model's own seed does not matter
    assert evaluation.evaluate(model, x, num_importance_samples=5) == first


def test_every_batch_has_noise_of_its_own(monkeypatch):
    model, seeds = make("ar1"), set()
    compute = model.posterior_summary
    monkeypatch.setattr(
        model, "posterior_summary", lambda x, seed: seeds.add((*seed.numpy(),)) or compute(x, seed)
    )
    evaluation.evaluate(model, data(10), 1, batch_size=4)
    assert len(seeds) == 3


def test_progress():
    done = []
    evaluation.evaluate(make("ar1"), data(10), 2, batch_size=4, progress=lambda *n: done.append(n))
    assert done == [(4, 10), (8, 10), (10, 10)]


def test_bad_arguments():
    model, nothing = make("ar1"), np.zeros([0, SIZE], "float32")
    for arguments, message in (
        ({"num_samples": 0}, "`num_samples` must be an integer of at least 1; got 0"),
        ({"num_samples": -3}, "`num_samples` must be an integer of at least 1; got -3"),
        ({"batch_size": 0}, "`batch_size` must be an integer of at least 1; got 0"),
        ({"x": nothing}, r"N at least 1; got \(0, 4\)"),
        ({"x": np.zeros([SIZE], "float32")}, r"shape \[N, \*data_shape\].*got \(4,\)"),
    ):
        with pytest.raises(ValueError, match=message):
            model.log_likelihood(**{"x": data(2), "num_samples": 2, **arguments})
    for function, arguments, message in (
        (evaluation.evaluate, {"x": nothing}, "N at least 1"),
        (evaluation.evaluate, {"num_importance_samples": 0}, "`num_samples` must be an integer"),
        (evaluation.correlation, {"x": nothing}, "N at least 1"),
        (evaluation.correlation, {"batch_size": 0}, "`batch_size` must be an integer"),
    ):
        with pytest.raises(ValueError, match=message):
            function(model, **{"x": data(2), **arguments})
