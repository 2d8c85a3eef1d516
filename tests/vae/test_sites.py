"""Posteriors by sites: against dense products of prior and sites, masks, training, saving."""

from unittest import mock

import keras
import numpy as np
import oracles
import packed as packed_params
import pytest
import tensorflow as tf
from tensorflow_probability import distributions as tfd
from test_vae_sequence import LENGTHS, C, F, N, T, ar1_series, data, dense, make, series
from training import assert_same_weights, compiled, fitted

import tfp_ar1
from tfp_ar1 import params
from tfp_ar1.vae import objectives, posteriors, sequence_networks

SITES = {"posterior": "sites"}


def with_prior(model, fisher_z=(0.8, -0.5), log_s=(0.6, -0.4), loc=0.3):
    """A learned prior that is far from N(0, I)."""
    model._prior.fisher_z.assign(np.reshape(fisher_z, (C, 1)))
    model._prior.log_s.assign(np.reshape(log_s, (C, 1)))
    model._prior.loc.assign(np.full((C, T), loc))
    return model


def product(prior, packed, observed):
    """Mean and covariance of N(prior) times the sites that are observed, dense in float64."""
    m, precision = np.float64(packed[:T]), np.exp(np.float64(packed[T:]))
    information = np.where(observed, (1 + precision) * m, 0.0)
    inverse = np.linalg.inv(prior.covariance)
    covariance = np.linalg.inv(inverse + np.diag(np.where(observed, precision, 0.0)))
    return oracles.Dense(covariance @ (inverse @ prior.mean + information), covariance)


def head_outputs(model, x):
    """What the head gives, `[N, C, 2 T]`, and the posterior."""
    with mock.patch.object(model.posterior, "new", wraps=model.posterior.new) as new:
        q = model.encode(x)
    return new.call_args.args[0].numpy(), q


def test_posterior_and_kl_against_the_dense_product():
    """Beside `test_vae_sequence`, which takes the posterior as it is for its log-weights."""
    model, x = with_prior(make(**SITES)), data("missing, lengths")
    packed, q = head_outputs(model, x)
    assert isinstance(q, tfp_ar1.MultivariateNormalANTE1)
    observed = np.any(~np.isnan(x["x"]), axis=-1) & (np.arange(T) < LENGTHS[:, None])
    assert 0 < np.sum(observed) < np.sum(LENGTHS)
    kl, rho = np.zeros(N), np.zeros(N)
    for i, n in enumerate(LENGTHS):
        for c in range(C):
            prior = dense(model.prior, None, c, T)
            expected = product(prior, packed[i, c], observed[i])
            oracles.assert_close(q.mean()[i, c], expected.mean, dtype="float32", event_ndims=1)
            oracles.assert_close(q.covariance()[i, c], expected.covariance, event_ndims=2)
            own, prior_of_own = (
                oracles.Dense(d.mean[:n], d.covariance[:n, :n]) for d in (expected, prior)
            )
            kl[i] += own.kl(prior_of_own)
            # Past the end the posterior is the prior's continuation: nothing more is added.
            assert expected.kl(prior) == pytest.approx(own.kl(prior_of_own), abs=1e-9)
            if n > 1:
                rho[i] += packed_params.correlation(own) / C
    oracles.assert_close(model.kl_to_prior(q, x), kl)
    oracles.assert_close(model.kl_to_prior(q), kl)
    np.testing.assert_allclose(model.posterior_correlation(q, x), rho, rtol=1e-4, atol=1e-5)


def test_kl_where_rounded_parameters_do_not_tell_it():
    """Near a unit root the KL follows from the sites: the prior is the object they are of."""
    model = make(**SITES)
    model._prior.fisher_z.assign(np.full((C, 1), 15.0))
    packed, q = head_outputs(model, series())
    # All coordinates are one number, up to 1e-6: its posterior is that of T observations.
    m, precision = np.float64(packed[..., :T]), np.exp(np.float64(packed[..., T:]))
    total, information = precision.sum(-1), ((1 + precision) * m).sum(-1)
    kl = 0.5 * (np.log1p(total) - total / (1 + total) + (information / (1 + total)) ** 2)
    np.testing.assert_allclose(model.kl_to_prior(q), kl.sum(-1), rtol=1e-4)


def test_nothing_observed_is_the_prior():
    model = with_prior(make(**SITES))
    q = model.encode(np.full((N, T, F), np.nan))
    np.testing.assert_allclose(q.mean(), np.broadcast_to(model.prior.mean(), (N, C, T)), rtol=1e-6)
    for name in ("stddev", "correlation_parameter"):
        expected = np.array(getattr(model.prior, name)())
        expected = np.broadcast_to(expected if expected.ndim == 2 else expected[:, None], (C, T))
        actual = getattr(q, name)()
        np.testing.assert_allclose(
            actual, np.broadcast_to(expected, (N, C, T))[..., : actual.shape[-1]], rtol=1e-5
        )
    np.testing.assert_array_equal(model.kl_to_prior(q), np.zeros(N))


def quantity(model, q, x):
    """What depends on the prior through the posterior, and through the KL."""
    moments = tf.reduce_sum(q.mean()[:, :, 0]) + tf.reduce_sum(q.stddev()[:, :, 0])
    return moments + tf.reduce_sum(model.kl_to_prior(q, x))


def test_gradients_reach_the_prior():
    """Through the posterior and through the KL; what is missing changes none, whatever it is."""
    x, results = data("missing, lengths"), []
    past = np.arange(T) >= LENGTHS[:, None]
    for rest in (0.0, np.nan):
        x["x"][past] = rest
        model = with_prior(make(seed=3, **SITES))
        with tf.GradientTape(persistent=True) as tape:
            q = model.encode(x)
            parts = (
                quantity(model, q, x),
                tf.reduce_mean(model.objective(model, x, training=True).loss),
            )
        variables = [v.value for v in model.trainable_variables]
        results.append([tape.gradient(part, variables) for part in parts])
    for first, second in zip(*results, strict=True):
        for a, b in zip(first, second, strict=True):
            assert (a is None) == (b is None)
            if a is not None:
                np.testing.assert_array_equal(a, b)
    of_prior = [v.path for v in model.trainable_variables].index("prior/fisher_z")
    differences, step = np.zeros(C), 1e-2
    for c in range(C):
        for sign in (1, -1):
            with_prior(model, fisher_z=np.array([0.8, -0.5]) + sign * step * np.eye(C)[c])
            differences[c] += sign * float(quantity(model, model.encode(x), x)) / (2 * step)
    np.testing.assert_allclose(np.ravel(results[0][0][of_prior]), differences, rtol=5e-3)


def test_fit_save_load(set_policy, tmp_path):
    set_policy("mixed_bfloat16")
    x = data("missing, lengths")
    model = make(objective=objectives.ImportanceWeighted(2), **SITES)
    fitted(compiled(model, run_eagerly=True), x, batch_size=N)
    assert all(np.all(np.isfinite(w)) for w in model.get_weights())
    assert model.encode(x).dtype == tf.float32
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras", safe_mode=True)
    assert loaded.posterior_name == "sites"
    assert_same_weights(model, loaded)
    np.testing.assert_array_equal(loaded.encode(x).mean(), model.encode(x).mean())


@pytest.mark.slow
def test_learns_and_does_not_collapse():
    """And computes the same under XLA."""
    x = ar1_series(256, 12)
    keras.utils.set_random_seed(0)
    parts = sequence_networks.convolutional((12, 3), 2, filters=(16,), kernel_size=5)
    model = tfp_ar1.SequenceVAE(*parts, 2, 12, posterior="sites", seed=0)
    history = (
        compiled(model, learning_rate=0.02).fit(x, epochs=15, batch_size=32, verbose=0).history
    )
    assert history["loss"][-1] < history["loss"][0] - 20  # with η = λ m it falls by 16
    assert history["kl"][-1] > 6
    gaps = np.where(np.arange(12)[:, None] % 7 == 3, np.nan, x[:5]).astype("float32")
    assert np.all(np.isfinite(model.impute(gaps, num_samples=4)))

    def kl(x):
        return model.kl_to_prior(model.encode(x), x)

    by_xla = tf.function(kl, jit_compile=True, autograph=False)(tf.constant(gaps))
    np.testing.assert_allclose(by_xla, kl(gaps), rtol=1e-3)


def test_refused_for_vectors():
    networks = tfp_ar1.vae.architectures.mlp((4,), 2, hidden_units=(3,))
    with pytest.raises(ValueError, match="'sites' is for latents that are paths in time"):
        tfp_ar1.RhoVAE(*networks, 2, posterior="sites")
    with pytest.raises(TypeError, match=r"chain of this package.*got None"):
        posteriors.get("sites").new(tf.zeros([4]), 2)
    with pytest.raises(TypeError, match="`observed` must be boolean; got dtype float32"):
        params.sites(tf.zeros(4), tfp_ar1.MultivariateNormalAR1(tf.zeros(2), 1.0, 0.5), tf.ones(2))
    with pytest.raises(TypeError, match="chain of this package"):
        params.sites(tf.zeros(4), tfd.MultivariateNormalDiag(tf.zeros(2)))
