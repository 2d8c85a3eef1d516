"""The terms of the loss, for fixed noise, against NumPy in float64."""

import keras
import numpy as np
import oracles
import pytest
import scipy.special
import scipy.stats
import tensorflow as tf
from sklearn.datasets import load_digits

import tfp_ar1
from tfp_ar1.vae import architectures, likelihoods, objectives

D = 3
X = (load_digits().images[:20] / 16).astype("float32")
SEED = tf.constant([3, 4])
AR1_PRIOR = (0.5, 2.0, -0.6)  # loc, marginal scale, correlation


def make(posterior, monkeypatch, prior=None, **kwargs):
    """A model whose noise is fixed, and whose posterior depends on the data enough to matter."""
    keras.utils.set_random_seed(11)
    if prior is not None:
        loc, scale, correlation = prior
        prior = tfp_ar1.MultivariateNormalAR1(tf.fill([D], loc), scale, correlation)
    model = tfp_ar1.RhoVAE(
        *architectures.mlp((8, 8), D, (16,)), D, posterior=posterior, prior=prior, **kwargs
    )
    model.build((None, 8, 8))
    for weight in model.posterior_head.weights:
        weight.assign(keras.random.normal(weight.shape, stddev=0.4, seed=5))
    monkeypatch.setattr(model, "next_seed", lambda: SEED)
    return model


def dense(layer, x):
    kernel, bias = oracles.as_float64(*layer.get_weights())
    y = x @ kernel + bias
    return np.maximum(y, 0) if layer.activation is keras.activations.relu else y


def posterior_by_hand(model, x):
    """Mean, covariance, and the correlation of neighbours, from the weights of the network."""
    params = dense(model.posterior_head, dense(model.encoder.layers[1], x.reshape(len(x), -1)))
    loc, rest = params[:, :D], params[:, D:]
    correlation = np.zeros(len(x))
    if model.posterior_name == "ar1":
        correlation = np.tanh(rest[:, 1])
        covariance = oracles.ar1_covariance(np.exp(rest[:, 0] / 2), correlation, D)
    elif model.posterior_name == "full":
        factor = np.zeros([len(x), D, D])
        factor[:, 1, 0], factor[:, 2, 0], factor[:, 2, 1] = rest[:, 5], rest[:, 2], rest[:, 1]
        factor[:, range(D), range(D)] = np.exp(rest[:, [3, 4, 0]] / 2)
        covariance = factor @ factor.transpose(0, 2, 1)
        c01, c12 = covariance[:, 0, 1], covariance[:, 1, 2]
        v0, v1, v2 = (covariance[:, i, i] for i in range(D))
        correlation = (c01 / np.sqrt(v0 * v1) + c12 / np.sqrt(v1 * v2)) / 2
    else:
        covariance = np.exp(rest)[..., None] * np.eye(D)
    return oracles.Dense(loc, covariance), correlation


def decoder_by_hand(model, z):
    hidden, linear, _ = model.decoder.layers
    return dense(linear, dense(hidden, np.float64(z))).reshape(-1, 8, 8)


@pytest.mark.parametrize("beta", [0.0, 1.0, 4.0])
@pytest.mark.parametrize("prior", [None, AR1_PRIOR], ids=["standard normal", "ar1 prior"])
@pytest.mark.parametrize("posterior", ["ar1", "diag", "isotropic", "full"])
def test_terms(posterior, prior, beta, monkeypatch):
    model = make(posterior, monkeypatch, prior)
    terms = objectives.ELBO(beta)(model, tf.constant(X), training=True)
    q, correlation = posterior_by_hand(model, X)
    loc, scale, rho = prior or (0.0, 1.0, 0.0)
    kl = q.kl(oracles.Dense.ar1(np.full(D, loc), scale, rho))
    z = model.encode(X).sample(seed=SEED)
    p = scipy.special.expit(decoder_by_hand(model, z))
    cross_entropy = -np.sum(X * np.log(p) + (1 - X) * np.log1p(-p), axis=(1, 2))
    oracles.assert_close(terms.kl, kl)
    oracles.assert_close(terms.reconstruction, cross_entropy)
    oracles.assert_close(terms.loss, cross_entropy + beta * kl)
    oracles.assert_close(terms.correlation, correlation)


def test_the_noise_makes_the_covariance_of_the_posterior(monkeypatch):
    """What the decoder sees, over many draws for one image."""
    model, seen = make("ar1", monkeypatch), []
    monkeypatch.setattr(
        model, "decoder_outputs", lambda z, training: seen.append(z) or tf.zeros([len(z), 8, 8])
    )
    objectives.ELBO()(model, tf.constant(np.repeat(X[:1], 40_000, axis=0)), training=True)
    q, _ = posterior_by_hand(model, X[:1])
    noise = np.linalg.solve(q.factor[0], (np.float64(seen[0]) - q.mean).T)
    np.testing.assert_allclose(np.mean(noise, axis=1), np.zeros(D), atol=0.025)
    np.testing.assert_allclose(np.cov(noise), np.eye(D), atol=0.035)


def test_equation_3(monkeypatch):
    model = make("diag", monkeypatch)
    kl = objectives.ELBO()(model, tf.constant(X), training=True).kl
    q, _ = posterior_by_hand(model, X)
    s = np.diagonal(q.covariance, axis1=-2, axis2=-1)
    oracles.assert_close(kl, 0.5 * np.sum(s + q.mean**2 - 1 - np.log(s), axis=-1))


def test_equation_6(monkeypatch):
    model = make("ar1", monkeypatch)
    kl = objectives.ELBO()(model, tf.constant(X), training=True).kl
    q, rho = posterior_by_hand(model, X)
    s, mean_squared = q.covariance[:, 0, 0], np.sum(q.mean**2, axis=-1)
    twice = mean_squared + D * (s - 1 - np.log(s)) - (D - 1) * np.log(1 - rho**2)
    oracles.assert_close(kl, twice / 2)


@pytest.mark.parametrize("scale", [0.3, None], ids=["fixed", "learned"])
def test_gaussian_reconstruction(scale, monkeypatch):
    model = make("ar1", monkeypatch, likelihood=likelihoods.Gaussian(scale))
    if scale is None:
        model.likelihood.raw_scale.assign(-0.7)
        scale = 1e-3 + np.log1p(np.exp(-0.7))
    terms = objectives.ELBO()(model, tf.constant(X), training=True)
    means = decoder_by_hand(model, model.encode(X).sample(seed=SEED))
    expected = -np.sum(scipy.stats.norm.logpdf(X, means, scale), axis=(1, 2))
    oracles.assert_close(terms.reconstruction, expected)


@pytest.mark.parametrize("beta", [-1.0, float("nan")])
def test_bad_beta(beta):
    with pytest.raises(ValueError, match=f"`beta` must not be negative; got {beta}"):
        objectives.ELBO(beta)


def test_config_round_trip():
    config = keras.saving.serialize_keras_object(objectives.ELBO(2.5))
    assert keras.saving.deserialize_keras_object(config).beta == 2.5
