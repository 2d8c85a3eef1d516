"""A prior that is learned with a Keras model."""

import keras
import numpy as np
import oracles
import packed
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from training import compiled, fitted

import tfp_ar1
from tfp_ar1.vae import architectures

D = 4
Prior = tfp_ar1.layers.MultivariateNormalAR1Prior
DATA = np.random.default_rng(0).uniform(size=(64, 6)).astype("float32")


def autoencoder(prior):
    """The posterior comes from one dense layer, the prior is `prior`."""
    keras.utils.set_random_seed(1)
    return keras.Sequential(
        [
            keras.Input((6,)),
            keras.layers.Dense(D + 2),
            tfp_ar1.layers.MultivariateNormalAR1(D, prior=prior, seed=0),
            keras.layers.Dense(6),
        ]
    )


def vae(prior, **kwargs):
    keras.utils.set_random_seed(1)
    return tfp_ar1.RhoVAE(*architectures.mlp((6,), D, (8,)), D, prior=prior, seed=0, **kwargs)


def test_starts_where_it_is_told():
    for kwargs, rho in (({}, 0.0), ({"correlation": 0.75}, 0.75)):
        covariance = Prior(D, **kwargs).distribution().covariance()
        np.testing.assert_allclose(covariance, oracles.ar1_covariance(1.0, rho, D), rtol=1e-6)


def test_learns_what_it_is_told():
    for learn, names in (
        ((), []),
        ("correlation", ["fisher_z"]),
        (["loc", "marginal_scale", "correlation"], ["loc", "log_s", "fisher_z"]),
    ):
        assert [v.name for v in Prior(D, learn=learn).trainable_variables] == names
    prior = Prior(D, learn=["loc", "marginal_scale"], correlation=0.3)
    model = autoencoder(prior)
    model.compile(keras.optimizers.Adam(0.1), "mse")
    before = {v.name: np.array(v) for v in prior.variables}
    model.fit(DATA, DATA, epochs=2, verbose=0)
    for v in prior.variables:
        assert np.any(np.array(v) != before[v.name]) == (v.name in ("loc", "log_s")), v.name


def test_gradients_of_the_weights():
    """KL(q ‖ p) averaged over equal posteriors q has its minimum where p is q."""
    prior = Prior(D, learn=["loc", "marginal_scale", "correlation"])
    layer = tfp_ar1.layers.MultivariateNormalAR1(D, prior=prior)
    loc, log_s, fisher_z = [1.0, -0.5, 0.0, 2.0], [np.log(0.25)], [np.arctanh(0.6)]
    params = tf.constant([[*loc, *log_s, *fisher_z]] * 2, tf.float32)

    def gradients():
        with tf.GradientTape() as tape:
            layer(params)
            (loss,) = layer.losses
        return tape.gradient(loss, [v.value for v in prior.trainable_variables])

    assert all(np.any(np.abs(gradient) > 0.01) for gradient in gradients())
    for weight, value in ((prior.loc, loc), (prior.log_s, log_s), (prior.fisher_z, fisher_z)):
        weight.assign(value)
    for gradient in gradients():
        np.testing.assert_allclose(gradient, np.zeros_like(gradient), atol=1e-5)
    (loss,) = layer.losses
    np.testing.assert_allclose(loss, 0.0, atol=1e-6)


@pytest.mark.slow
def test_in_a_vae(tmp_path):
    model = vae(Prior(D, correlation=0.5), posterior="full")
    posteriors = model.encode(DATA)
    expected = oracles.Dense(np.zeros(D), oracles.ar1_covariance(1.0, 0.5, D))
    q = oracles.Dense(np.float64(posteriors.mean()), np.float64(posteriors.covariance()))
    np.testing.assert_allclose(model.kl_to_prior(posteriors), q.kl(expected), rtol=1e-4)

    model.compile(keras.optimizers.Adam(0.01))
    history = model.fit(DATA, epochs=2, verbose=0).history
    assert len(history["prior_correlation"]) == 2
    fisher_z = float(model.prior.fisher_z)
    assert fisher_z != pytest.approx(np.arctanh(0.5))
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert float(loaded.prior.fisher_z) == fisher_z
    np.testing.assert_array_equal(loaded.generate(3, seed=1), model.generate(3, seed=1))
    # Training resumes exactly, with the prior and its optimizer state.
    for each in (model, loaded):
        each.fit(DATA, epochs=1, shuffle=False, verbose=0)
    assert float(loaded.prior.fisher_z) == float(model.prior.fisher_z) != fisher_z


def test_channels(tmp_path):
    """A batch of priors, each with weights of its own."""
    prior = Prior(D, learn=["loc", "marginal_scale", "correlation"], correlation=0.5, channels=3)
    distribution = prior.distribution()
    assert (distribution.batch_shape, distribution.event_shape) == ((3,), (D,))
    expected = np.tile(oracles.ar1_covariance(1.0, 0.5, D), (3, 1, 1))
    np.testing.assert_allclose(distribution.covariance(), expected, rtol=1e-6)

    prior.fisher_z.assign(np.arctanh([[0.1], [-0.2], [0.9]]))
    prior.log_s.assign(np.log([[1.0], [2.0], [0.25]]))
    prior.loc.assign(np.arange(3 * D).reshape(3, D))
    distribution = prior.distribution()
    expected = oracles.ar1_covariance(np.sqrt([1.0, 2.0, 0.25]), [0.1, -0.2, 0.9], D)
    np.testing.assert_allclose(distribution.covariance(), expected, rtol=1e-5)
    np.testing.assert_array_equal(distribution.mean(), np.arange(3 * D).reshape(3, D))

    layer = tfp_ar1.layers.MultivariateNormalAR1(D, prior=prior)
    model = keras.Sequential([keras.Input((3, D + 2)), layer])
    model.save(tmp_path / "model.keras")
    copy = keras.saving.load_model(tmp_path / "model.keras").layers[-1].prior
    assert (copy.channels, copy.event_size, copy.learn) == (3, D, prior.learn)
    for a, b in zip(prior.weights, copy.weights, strict=True):
        np.testing.assert_array_equal(a, b)
    params = packed.random("ar1", D, 5, 3)
    model(params)
    kl = packed.dense(params, "ar1", D).kl(
        oracles.Dense(np.arange(3.0 * D).reshape(3, D), expected)
    )
    np.testing.assert_allclose(model.losses, [np.sum(kl) / 5], rtol=1e-5)
    with pytest.raises(ValueError, match=rf"one distribution over vectors of size {D}; .*\(3,\)"):
        vae(prior)


def test_a_correlation_for_each_channel(tmp_path):
    rho = [0.0, 0.9, -0.999]
    prior = Prior(D, correlation=rho, channels=3)
    covariance = prior.distribution().covariance()
    np.testing.assert_allclose(covariance, oracles.ar1_covariance(1.0, rho, D), rtol=1e-5)
    layer = tfp_ar1.layers.MultivariateNormalAR1(D, prior=prior)
    keras.Sequential([keras.Input((3, D + 2)), layer]).save(tmp_path / "model.keras")
    copy = keras.saving.load_model(tmp_path / "model.keras").layers[-1].prior
    assert copy.correlation == rho
    np.testing.assert_array_equal(copy.fisher_z, prior.fisher_z)


def test_full_precision_under_a_half_precision_policy(set_policy):
    set_policy("mixed_bfloat16")
    model = fitted(compiled(vae(Prior(D, correlation=0.999)), run_eagerly=True), DATA)
    assert model.prior.dtype == tf.float32
    assert all(v.dtype == "float32" for v in model.variables if "prior" in v.path)


def of_a_variable():
    return tfp_ar1.MultivariateNormalAR1(tf.zeros(D), fisher_z=tf.Variable(0.0))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: vae(keras.layers.Dense(3)), "a layer that learns one, such as"),
        (lambda: vae(of_a_variable()), "let a layer own its weights"),
        (lambda: Prior(0), "`event_size` must be a positive integer; got 0"),
        (lambda: Prior(D, channels=0), "`channels` must be a positive integer, or `None`; got 0"),
        (lambda: Prior(D, channels=1.5), "`channels` must be a positive integer, .* got 1.5"),
        (lambda: Prior(D, learn=["rho"]), r"`learn` may name .*; got \['rho'\]"),
        (lambda: Prior(D, correlation=1.0), r"`correlation` must lie strictly in \(-1, 1\)"),
        (lambda: Prior(D, correlation=[0.5, -1.0], channels=2), r"lie strictly in .*\[0.5, -1.0\]"),
        (lambda: Prior(D, correlation=[0.5], channels=2), "one for each channel .channels=2"),
        (lambda: Prior(D, correlation=[0.5]), "one for each channel .channels=None"),
        (lambda: autoencoder(Prior(D + 1)), f"distribution over vectors of size {D}"),
        (lambda: autoencoder(Prior(D, dtype="float64")), "must be of dtype float32; got float64"),
        (lambda: vae(Prior(D, dtype="float64")), "must be of dtype float32; got float64"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make()


def test_a_layer_of_the_users_own():
    class Diagonal(keras.layers.Layer):
        def __init__(self):
            super().__init__()
            self.log_scale = self.add_weight(shape=(D,), initializer="zeros")
            self.built = True

        def distribution(self):
            scale = tf.exp(tf.convert_to_tensor(self.log_scale))
            return tfp.distributions.MultivariateNormalDiag(tf.zeros(D), scale)

    prior = Diagonal()
    model = vae(prior)
    model.compile(keras.optimizers.Adam(0.01))
    model.fit(DATA, verbose=0)
    assert np.all(np.array(prior.log_scale) != 0)
