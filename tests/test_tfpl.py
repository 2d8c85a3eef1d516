"""The tf_keras layer and its KL regularizer: counted once, saved without pickles."""

import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
import tf_keras

import tfp_ar1
from tfp_ar1 import tfpl

tfd = tfp.distributions

D = 4
X = np.random.default_rng(0).normal(size=(7, 5)).astype(np.float32)
PRIORS = {
    "MultivariateNormalDiag": lambda: tfd.MultivariateNormalDiag(tf.zeros(D)),
    "Independent": lambda: tfd.Independent(tfd.Normal(tf.zeros(D), 1.0), 1),
    "Sample": lambda: tfd.Sample(tfd.Normal(0.0, 1.0), D),
    "AR1": lambda: tfp_ar1.MultivariateNormalAR1(tf.zeros(D), correlation=0.5),
}


def encoder(prior, style="sequential", **kwargs):
    tf_keras.utils.set_random_seed(1)
    regularizer = tfpl.KLDivergenceRegularizer(prior, **kwargs)
    dense = tf_keras.layers.Dense(tfpl.MultivariateNormalAR1.params_size(D))
    layer = tfpl.MultivariateNormalAR1(D, activity_regularizer=regularizer)
    inputs = tf_keras.Input((5,))
    if style == "sequential":
        return tf_keras.Sequential([inputs, dense, layer]), dense
    return tf_keras.Model(inputs, layer(dense(inputs))), dense


def encoder_with_add_loss(prior, style="sequential", **kwargs):
    tf_keras.utils.set_random_seed(1)
    dense = tf_keras.layers.Dense(tfpl.MultivariateNormalAR1.params_size(D))
    layers = [tfpl.MultivariateNormalAR1(D), tfpl.KLDivergenceAddLoss(prior, **kwargs)]
    inputs = tf_keras.Input((5,))
    if style == "sequential":
        return tf_keras.Sequential([inputs, dense, *layers]), dense
    return tf_keras.Model(inputs, layers[1](layers[0](dense(inputs)))), dense


ENCODERS = {"regularizer": encoder, "add loss": encoder_with_add_loss}


@pytest.mark.parametrize("style", ["sequential", "functional"])
@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("by", ENCODERS)
def test_the_kl_counts_once_also_after_saving_and_loading(by, prior, style, tmp_path):
    prior = PRIORS[prior]()
    model, dense = ENCODERS[by](prior, style, weight=0.5)
    posterior = tfp_ar1.params.new(dense(X), D)
    expected = 0.5 * np.mean(tfd.kl_divergence(posterior, prior))
    model(X)
    np.testing.assert_allclose(sum(model.losses), expected, rtol=1e-6)
    for name in ("model.keras", "model.h5", "model"):
        model.save(tmp_path / name)
        loaded = tf_keras.models.load_model(tmp_path / name)
        distribution = loaded(X)
        np.testing.assert_allclose(sum(loaded.losses), expected, rtol=1e-6, err_msg=name)
        np.testing.assert_allclose(distribution.mean(), posterior.mean(), rtol=1e-6)
        # What was called, saved or loaded can still be put to work in another model.
        for each in (model, loaded):
            inputs = tf_keras.Input((5,))
            whole = tf_keras.Model(inputs, tf_keras.layers.Dense(5)(each(inputs)))
            whole.compile("sgd")
            np.testing.assert_allclose(whole.test_on_batch(X), expected, rtol=1e-6)


def test_monte_carlo_kl_is_unbiased():
    prior = PRIORS["MultivariateNormalDiag"]()
    model, dense = encoder(prior, use_exact_kl=False)
    exact = np.mean(tfd.kl_divergence(tfp_ar1.params.new(dense(X), D), prior))
    estimates = []
    for _ in range(200):
        model(X)
        estimates.append(float(sum(model.losses)))
    assert abs(np.mean(estimates) - exact) < 5 * np.std(estimates) / np.sqrt(200)


def test_trains_evaluates_and_predicts():
    model, _ = encoder(PRIORS["Sample"]())
    outputs = tf_keras.layers.Dense(3)(model.output)
    whole = tf_keras.Model(model.inputs, outputs)
    whole.compile("adam", "mse")
    y = np.zeros((7, 3), np.float32)
    losses = whole.fit(X, y, epochs=30, verbose=0).history["loss"]
    assert np.mean(losses[-5:]) < np.mean(losses[:5])
    assert np.isfinite(whole.evaluate(X, y, verbose=0))
    assert whole.predict(X, verbose=0).shape == (7, 3)


@pytest.mark.parametrize("conversion", ["mean", tfd.Distribution.mode, "stddev"])
def test_what_stands_for_the_distribution(conversion):
    layer = tfpl.MultivariateNormalAR1(D, convert_to_tensor_fn=conversion)
    params = np.random.default_rng(1).normal(size=(2, D + 2)).astype(np.float32)
    again = tfpl.MultivariateNormalAR1.from_config(layer.get_config())
    expected = tfp_ar1.params.new(params, D)
    expected = expected.stddev() if conversion == "stddev" else expected.mean()
    for each in (layer, again):
        np.testing.assert_allclose(tf.convert_to_tensor(each(params)), expected, rtol=1e-6)


def test_same_numbers_as_the_keras_3_layer():
    params = np.random.default_rng(1).normal(size=(3, D + 2)).astype(np.float32)
    prior = PRIORS["AR1"]()
    new = tfp_ar1.layers.MultivariateNormalAR1(D, prior=prior)
    new(keras.ops.convert_to_tensor(params))
    old = tfpl.MultivariateNormalAR1(D, activity_regularizer=tfpl.KLDivergenceRegularizer(prior))
    posterior = old(params)
    np.testing.assert_array_equal(posterior.mean(), new.distribution(params).mean())
    np.testing.assert_array_equal(posterior.covariance(), new.distribution(params).covariance())
    np.testing.assert_allclose(sum(old.losses), sum(new.losses), rtol=1e-6)


@pytest.mark.parametrize("by", ENCODERS)
def test_variables_of_the_prior_are_trained_and_saved(by, tmp_path):
    fisher_z = tf.Variable(0.0, name="prior_fisher_z")
    prior = tfp_ar1.MultivariateNormalAR1(tf.zeros(D), fisher_z=fisher_z)
    model, _ = ENCODERS[by](prior)
    assert any(v is fisher_z for v in model.trainable_variables)
    model.compile(tf_keras.optimizers.Adam(0.1))
    model.fit(X, epochs=3, verbose=0)
    assert fisher_z.numpy() != 0.0
    losses = model.evaluate(X, verbose=0)
    for name in ("model.keras", "model.h5", "model"):
        model.save(tmp_path / name)
        loaded = tf_keras.models.load_model(tmp_path / name)
        assert any(np.array_equal(v, fisher_z) for v in loaded.trainable_variables), name
        np.testing.assert_allclose(loaded.evaluate(X, verbose=0), losses, rtol=1e-6)
    # Weights alone, into a model whose prior starts elsewhere.
    model.save_weights(tmp_path / "weights.h5")
    prior = tfp_ar1.MultivariateNormalAR1(tf.zeros(D), fisher_z=tf.Variable(1.0))
    other, _ = ENCODERS[by](prior)
    other.load_weights(tmp_path / "weights.h5")
    np.testing.assert_array_equal(prior.fisher_z, fisher_z)


def test_add_loss_behind_layers_of_tfp():
    prior = tfd.Independent(tfd.Normal(tf.zeros(D), 1.0), 1)
    for layer in (tfp.layers.MultivariateNormalTriL(D), tfp.layers.IndependentNormal(D)):
        model = tf_keras.Sequential(
            [
                tf_keras.layers.Dense(layer.params_size(D)),
                layer,
                tfpl.KLDivergenceAddLoss(prior),
            ]
        )
        posterior = model(X)
        mean, covariance = posterior.mean().numpy(), posterior.variance()
        if isinstance(layer, tfp.layers.MultivariateNormalTriL):
            covariance = posterior.covariance().numpy()
            log_det, trace = (
                np.linalg.slogdet(covariance)[1],
                np.trace(covariance, axis1=1, axis2=2),
            )
        else:
            log_det, trace = np.log(covariance).sum(-1), np.sum(covariance, axis=-1)
        expected = 0.5 * (trace + np.square(mean).sum(-1) - D - log_det)
        np.testing.assert_allclose(sum(model.losses), expected.mean(), rtol=1e-5)


def test_refuses_what_does_not_fit():
    with pytest.raises(TypeError, match="must follow a layer that returns a distribution"):
        tfpl.KLDivergenceAddLoss(PRIORS["Sample"]())(tf.zeros([2, D]))
    with pytest.raises(ValueError, match="`convert_to_tensor_fn` must be one of"):
        tfpl.MultivariateNormalAR1(D, convert_to_tensor_fn=lambda d: d.mean())
    with pytest.raises(ValueError, match="`event_size` must be a positive integer; got 0"):
        tfpl.MultivariateNormalAR1(0)
    with pytest.raises(ValueError, match="`weight` must not be negative; got -1"):
        tfpl.KLDivergenceRegularizer(PRIORS["Sample"](), weight=-1.0)


def test_import_of_the_package_does_not_load_it():
    code = "import sys, tfp_ar1; assert 'tfp_ar1.tfpl' not in sys.modules; tfp_ar1.tfpl"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
