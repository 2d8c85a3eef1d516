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


@pytest.mark.parametrize("style", ["sequential", "functional"])
@pytest.mark.parametrize("prior", PRIORS)
def test_the_kl_counts_once_also_after_saving_and_loading(prior, style, tmp_path):
    prior = PRIORS[prior]()
    model, dense = encoder(prior, style, weight=0.5)
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


def test_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="`convert_to_tensor_fn` must be one of"):
        tfpl.MultivariateNormalAR1(D, convert_to_tensor_fn=lambda d: d.mean())
    with pytest.raises(ValueError, match="`event_size` must be a positive integer; got 0"):
        tfpl.MultivariateNormalAR1(0)
    with pytest.raises(ValueError, match="`weight` must not be negative; got -1"):
        tfpl.KLDivergenceRegularizer(PRIORS["Sample"](), weight=-1.0)


def test_import_of_the_package_does_not_load_it():
    code = "import sys, tfp_ar1; assert 'tfp_ar1.tfpl' not in sys.modules; tfp_ar1.tfpl"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
