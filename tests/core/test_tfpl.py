"""The tf_keras layers and their KL regularizer: counted once, saved without pickles."""

import itertools
import subprocess
import sys

import keras
import numpy as np
import oracles
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
import tf_keras
from packed import dense as dense_of_packed

import tfp_ar1
from tfp_ar1 import tfpl

tfd = tfp.distributions

LAYERS = {
    "ar1": tfpl.MultivariateNormalAR1,
    "arh1": tfpl.MultivariateNormalARH1,
    "ante1": tfpl.MultivariateNormalANTE1,
}
every_family = pytest.mark.parametrize("family", LAYERS)

D = 4
X = np.random.default_rng(0).normal(size=(7, 5)).astype(np.float32)
PRIORS = {
    "MultivariateNormalDiag": lambda: tfd.MultivariateNormalDiag(tf.zeros(D)),
    "Independent": lambda: tfd.Independent(tfd.Normal(tf.zeros(D), 1.0), 1),
    "Sample": lambda: tfd.Sample(tfd.Normal(0.0, 1.0), D),
    "AR1": lambda: tfp_ar1.MultivariateNormalAR1(tf.zeros(D), correlation=0.5),
}
# Their covariances; the means are 0.
COVARIANCES = {name: np.eye(D) for name in PRIORS} | {"AR1": oracles.ar1_covariance(1.0, 0.5, D)}


def with_regularizer(layer, prior, **kwargs):
    return [layer(D, activity_regularizer=tfpl.KLDivergenceRegularizer(prior, **kwargs))]


def with_add_loss(layer, prior, **kwargs):
    return [layer(D), tfpl.KLDivergenceAddLoss(prior, **kwargs)]


# Two ways to add the KL.
WAYS = {"regularizer": with_regularizer, "add loss": with_add_loss}


def encoder(prior, style="sequential", by="regularizer", family="ar1", channels=None, **kwargs):
    """A model, and a function of its inputs that gives the packed parameters."""
    tf_keras.utils.set_random_seed(1)
    size = LAYERS[family].params_size(D)
    dense = tf_keras.layers.Dense((channels or 1) * size)
    reshape = [] if channels is None else [tf_keras.layers.Reshape((channels, size))]
    layers = [dense, *reshape, *WAYS[by](LAYERS[family], prior, **kwargs)]
    inputs = tf_keras.Input((5,))
    shape = (-1, size) if channels is None else (-1, channels, size)
    if style == "sequential":
        model = tf_keras.Sequential([inputs, *layers])
    else:
        outputs = inputs
        for layer in layers:
            outputs = layer(outputs)
        model = tf_keras.Model(inputs, outputs)
    return model, lambda x: tf.reshape(dense(x), shape)


# Every prior with AR(1) in models of both styles, and each other family once each way.
MODELS = [
    *itertools.product(["ar1"], WAYS, PRIORS, ["sequential", "functional"]),
    *itertools.product(["arh1", "ante1"], WAYS, ["AR1"], ["functional"]),
]


@pytest.mark.parametrize(("family", "by", "prior", "style"), MODELS)
def test_the_kl_counts_once_also_after_saving_and_loading(family, by, prior, style, tmp_path):
    distribution_b, covariance = PRIORS[prior](), COVARIANCES[prior]
    model, params = encoder(distribution_b, style, by, family, weight=0.5)
    posterior = dense_of_packed(params(X), family, D)
    expected = 0.5 * np.mean(posterior.kl(oracles.Dense(np.zeros(D), covariance)))
    model(X)
    np.testing.assert_allclose(sum(model.losses), expected, rtol=1e-5)
    expected = float(sum(model.losses))
    for name in ("model.keras", "model.h5", "model"):
        model.save(tmp_path / name)
        loaded = tf_keras.models.load_model(tmp_path / name)
        assert type(loaded.layers[-1]) is type(model.layers[-1])
        distribution = loaded(X)
        np.testing.assert_allclose(sum(loaded.losses), expected, rtol=1e-6, err_msg=name)
        np.testing.assert_allclose(distribution.mean(), posterior.mean, rtol=1e-6)
        # What was called, saved or loaded can still be put to work in another model.
        for each in (model, loaded):
            inputs = tf_keras.Input((5,))
            whole = tf_keras.Model(inputs, tf_keras.layers.Dense(5)(each(inputs)))
            whole.compile("sgd")
            np.testing.assert_allclose(whole.test_on_batch(X), expected, rtol=1e-6)


def test_monte_carlo_kl_is_unbiased():
    prior = PRIORS["MultivariateNormalDiag"]()
    model, params = encoder(prior, use_exact_kl=False)
    exact = np.mean(tfd.kl_divergence(tfp_ar1.params.new(params(X), D), prior))
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


def packed(family, *shape):
    size = LAYERS[family].params_size(D)
    return np.random.default_rng(1).normal(size=(*shape, size)).astype(np.float32)


@every_family
def test_params_size(family):
    sizes = {"ar1": D + 2, "arh1": D + D + 1, "ante1": D + D + (D - 1)}
    assert LAYERS[family].params_size(D) == sizes[family]
    with pytest.raises(ValueError, match=rf"`params` must have {sizes[family]} entries"):
        LAYERS[family](D)(tf.zeros([2, sizes[family] + 1]))


@pytest.mark.parametrize("conversion", ["mean", tfd.Distribution.mode, "stddev"])
@every_family
def test_what_stands_for_the_distribution(family, conversion):
    cls, params = LAYERS[family], packed(family, 2)
    layer = cls(D, convert_to_tensor_fn=conversion)
    again = cls.from_config(layer.get_config())
    expected = dense_of_packed(params, family, D)
    deviations = np.sqrt(np.diagonal(expected.covariance, axis1=-2, axis2=-1))
    expected = deviations if conversion == "stddev" else expected.mean
    for each in (layer, again):
        np.testing.assert_allclose(tf.convert_to_tensor(each(params)), expected, rtol=1e-6)


@every_family
def test_same_numbers_as_the_keras_3_layer(family):
    params, prior = packed(family, 3), PRIORS["AR1"]()
    new = getattr(tfp_ar1.layers, LAYERS[family].__name__)(D, prior=prior)
    new(keras.ops.convert_to_tensor(params))
    old = LAYERS[family](D, activity_regularizer=tfpl.KLDivergenceRegularizer(prior))
    posterior = old(params)
    wanted = getattr(tfp_ar1, LAYERS[family].__name__)
    assert isinstance(posterior.tensor_distribution, wanted)
    np.testing.assert_array_equal(posterior.mean(), new.distribution(params).mean())
    np.testing.assert_array_equal(posterior.covariance(), new.distribution(params).covariance())
    np.testing.assert_allclose(sum(old.losses), sum(new.losses), rtol=1e-6)


@every_family
def test_half_precision(family):
    """The parameters come in half precision; the law and its KL are in single precision."""
    prior = PRIORS["AR1"]()
    layer = LAYERS[family](
        D, activity_regularizer=tfpl.KLDivergenceRegularizer(prior), dtype="mixed_float16"
    )
    params = tf.cast(packed(family, 6), tf.float16)
    posterior = layer(params)
    assert posterior.dtype == tf.float32
    prior = oracles.Dense(np.zeros(D), COVARIANCES["AR1"])
    expected = np.mean(dense_of_packed(params, family, D).kl(prior))
    np.testing.assert_allclose(sum(layer.losses), expected, rtol=1e-5)


CHANNELS = 3


def prior_of_channels(fisher_z):
    """A path for each channel, with a correlation of its own."""
    loc = tf.zeros([CHANNELS, D])
    return tfp_ar1.MultivariateNormalAR1(loc, fisher_z=tf.Variable(fisher_z, name="fisher_z"))


@pytest.mark.parametrize("ndims", [0, 1, None])
@pytest.mark.parametrize("by", WAYS)
@every_family
def test_kl_of_channels(family, by, ndims):
    """`[batch, channels]`: the mean over the batch of sums over channels, or the mean over both."""
    prior = prior_of_channels([0.0, 0.5, -1.0])
    model, params = encoder(
        prior, by=by, family=family, channels=CHANNELS, weight=0.5, reinterpreted_batch_ndims=ndims
    )
    posterior = model(X)
    assert posterior.batch_shape == (len(X), CHANNELS)
    covariance = oracles.ar1_covariance(1.0, np.tanh([0.0, 0.5, -1.0]), D)
    kl = dense_of_packed(params(X), family, D).kl(oracles.Dense(np.zeros(D), covariance))
    assert kl.shape == (len(X), CHANNELS)
    expected = 0.5 * np.mean(kl if ndims == 0 else kl.sum(-1))
    np.testing.assert_allclose(sum(model.losses), expected, rtol=1e-5)
    # As part of the loss that is trained, too.
    model.compile("sgd")
    np.testing.assert_allclose(model.test_on_batch(X), expected, rtol=1e-5)


def test_kl_of_channels_by_samples():
    prior = prior_of_channels([0.0, 0.5, -1.0])
    options = {"channels": CHANNELS, "reinterpreted_batch_ndims": 1}
    model, params = encoder(prior, use_exact_kl=False, **options)
    covariance = oracles.ar1_covariance(1.0, np.tanh([0.0, 0.5, -1.0]), D)
    kl = dense_of_packed(params(X), "ar1", D).kl(oracles.Dense(np.zeros(D), covariance))
    estimates = []
    for _ in range(200):
        model(X)
        estimates.append(float(sum(model.losses)))
    expected = np.mean(np.sum(kl, axis=-1))
    assert abs(np.mean(estimates) - expected) < 5 * np.std(estimates) / np.sqrt(200)


@pytest.mark.parametrize("by", WAYS)
def test_correlations_of_channels_are_trained_and_saved(by, tmp_path):
    prior = prior_of_channels([0.0, 0.5, -1.0])
    options = {"by": by, "channels": CHANNELS, "reinterpreted_batch_ndims": 1}
    model, _ = encoder(prior, **options)
    assert any(v is prior.fisher_z for v in model.trainable_variables)
    model.compile(tf_keras.optimizers.Adam(0.1))
    before = prior.fisher_z.numpy()
    model.fit(X, epochs=2, verbose=0)
    assert np.all(prior.fisher_z.numpy() != before)
    loss = model.evaluate(X, verbose=0)
    for name in ("model.keras", "model.h5", "model"):
        model.save(tmp_path / name)
        loaded = tf_keras.models.load_model(tmp_path / name)
        assert any(np.array_equal(v, prior.fisher_z) for v in loaded.trainable_variables), name
        np.testing.assert_allclose(loaded.evaluate(X, verbose=0), loss, rtol=1e-6, err_msg=name)
        before = [v.numpy() for v in loaded.trainable_variables]
        loaded.fit(X, verbose=0)
        assert all(np.any(v != w) for v, w in zip(loaded.trainable_variables, before, strict=True))
    model.save_weights(tmp_path / "weights.h5")
    other_prior = prior_of_channels([1.0, 1.0, 1.0])
    other, _ = encoder(other_prior, **options)
    other.load_weights(tmp_path / "weights.h5")
    np.testing.assert_array_equal(other_prior.fisher_z, prior.fisher_z)


@pytest.mark.parametrize("by", WAYS)
def test_variables_of_the_prior_are_trained_and_saved(by, tmp_path):
    fisher_z = tf.Variable(0.0, name="prior_fisher_z")
    prior = tfp_ar1.MultivariateNormalAR1(tf.zeros(D), fisher_z=fisher_z)
    model, _ = encoder(prior, by=by)
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
    other, _ = encoder(prior, by=by)
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
    for cls in (tfpl.KLDivergenceRegularizer, tfpl.KLDivergenceAddLoss):
        with pytest.raises(ValueError, match="class `Laplace` cannot be saved; use one of"):
            cls(tfd.Independent(tfd.Laplace(tf.zeros(D), 1.0), 1))
        with pytest.raises(ValueError, match="`weight` must not be negative; got -1"):
            cls(PRIORS["Sample"](), weight=-1.0)
        for ndims in (-1, 0.5):
            with pytest.raises(ValueError, match=f"non-negative integer or `None`; got {ndims}"):
                cls(PRIORS["Sample"](), reinterpreted_batch_ndims=ndims)
    with pytest.raises(ValueError, match=r"`reinterpreted_batch_ndims=2` needs .*shape \(None,\)"):
        encoder(PRIORS["Sample"](), reinterpreted_batch_ndims=2)[0](X)
    three = prior_of_channels([0.0, 0.5, -1.0])
    with pytest.raises(ValueError, match=r"prior has batch shape \(3,\) where .* has \(None,\)"):
        encoder(three)
    (layer,) = with_regularizer(tfpl.MultivariateNormalAR1, PRIORS["AR1"]())
    with pytest.raises(ValueError, match="Call the layer on all steps at once"):
        tf_keras.layers.TimeDistributed(layer)(tf_keras.Input((3, D + 2)))
    double = tfd.MultivariateNormalDiag(np.zeros(D))
    with pytest.raises(ValueError, match="The prior must be of dtype float32; got float64"):
        encoder(double)
    for prior in (tfp_ar1.layers.MultivariateNormalAR1Prior(D), tfd.Normal, None, lambda: three):
        for cls in (tfpl.KLDivergenceRegularizer, tfpl.KLDivergenceAddLoss):
            with pytest.raises(TypeError, match=r"`distribution_b` must be a `tfd.Distribution`"):
                cls(prior)


def layers_of_tf_keras():
    regularizer = tfpl.KLDivergenceRegularizer(PRIORS["AR1"]())
    return [
        tfpl.MultivariateNormalAR1(D, activity_regularizer=regularizer),
        *with_add_loss(tfpl.MultivariateNormalAR1, PRIORS["AR1"]()),
    ]


def layer_of_keras_3():
    return tfp_ar1.layers.MultivariateNormalAR1(D, prior=PRIORS["AR1"]())


def test_layers_of_the_other_keras_say_what_to_use():
    """In lists, on placeholders and in subclasses, where the KL would be lost and nothing said."""
    to_keras_3 = "a tf_keras layer; in Keras 3 models use tfp_ar1.layers, with `prior` for the KL"
    for layer in layers_of_tf_keras():
        with pytest.raises(ValueError, match=to_keras_3):
            keras.Sequential([keras.Input((D + 2,)), layer])
        with pytest.raises(TypeError, match=f"model of the other Keras: .*{to_keras_3}"):
            layer(keras.Input((D + 2,)))
        with pytest.raises(TypeError, match=f"model of the other Keras: .*{to_keras_3}"):
            in_call(keras.Model, layer)(packed("ar1", 2))
    to_tf_keras = "of Keras 3; in tf_keras models use tfp_ar1.tfpl"
    with pytest.raises(TypeError, match=to_tf_keras):
        tf_keras.Sequential([tf_keras.Input((D + 2,)), layer_of_keras_3()])
    with pytest.raises(TypeError, match=f"model of the other Keras: .*{to_tf_keras}"):
        layer_of_keras_3()(tf_keras.Input((D + 2,)))
    with pytest.raises(TypeError, match=f"model of the other Keras: .*{to_tf_keras}"):
        in_call(tf_keras.Model, layer_of_keras_3())(packed("ar1", 2))
    with pytest.raises(TypeError, match=f"model of the other Keras: .*{to_tf_keras}"):
        tfp.layers.MixtureSameFamily(2, layer_of_keras_3())(tf.zeros([3, 2 * (D + 3)]))


def in_call(model, layer):
    """A model of a user's class that calls the layer."""

    class Subclassed(model):
        def call(self, x):
            return layer(x)

    return Subclassed()


def test_regularizer_of_a_layer_without_a_distribution():
    """Not a KL of 0."""
    for layer in (keras.layers.Dense, tf_keras.layers.Dense, tfp_ar1.layers.MultivariateNormalAR1):
        with pytest.raises(TypeError, match="for tf_keras layers that return a distribution"):
            layer(D, activity_regularizer=tfpl.KLDivergenceRegularizer(PRIORS["AR1"]()))(
                packed("ar1", 2)
            )


def test_vae_and_tf_keras():
    models = [
        [k.Sequential([k.Input((size,)), k.layers.Dense(5)]) for size in (5, D)]
        for k in (keras, tf_keras)
    ]
    vae = tfp_ar1.RhoVAE(*models[0], D)
    with pytest.raises(TypeError, match=r"model of the other Keras: <RhoVAE .*of Keras 3"):
        vae(tf_keras.Input((5,)))
    for encoder_of, decoder_of in ((1, 0), (0, 1)):
        with pytest.raises(TypeError, match="must be Keras 3 models; got <tf_keras"):
            tfp_ar1.RhoVAE(models[encoder_of][0], models[decoder_of][1], D)


def mixture(family, components=3, **kwargs):
    """A layer of TFP whose components are of this package, and the function of its parameters."""
    layer = tfp.layers.MixtureSameFamily(components, LAYERS[family](D), **kwargs)
    size = layer.params_size(components, LAYERS[family].params_size(D))
    assert size == components * (1 + LAYERS[family].params_size(D))
    dense = tf_keras.layers.Dense(int(size))
    return layer, dense


@every_family
def test_mixture_layer(family):
    """Its size is known before there are data, so that other layers can follow it."""
    layer, dense = mixture(family)
    inputs = tf_keras.Input((5,))
    outputs = layer(dense(inputs))
    assert tuple(outputs.shape) == (None, D)
    model = tf_keras.Model(inputs, outputs)
    assert tf_keras.Model(inputs, tf_keras.layers.Dense(2)(outputs)).output_shape == (None, 2)

    y = np.random.default_rng(3).normal(size=(7, D)).astype(np.float32)
    params = np.float64(dense(X))
    components = dense_of_packed(params[:, 3:].reshape(7, 3, -1), family, D)
    weighted = components.log_prob(y[:, np.newaxis]) + params[:, :3]
    expected = np.logaddexp.reduce(weighted, -1) - np.logaddexp.reduce(params[:, :3], -1)
    np.testing.assert_allclose(model(X).log_prob(y), expected, rtol=1e-5)
    model.compile(tf_keras.optimizers.SGD(0.0), lambda y, law: -law.log_prob(y))
    losses = model.fit(X, y, verbose=0).history["loss"]
    np.testing.assert_allclose(losses, [-np.mean(expected)], rtol=1e-5)
    with pytest.raises(NotImplementedError, match="No KL"):
        tfd.kl_divergence(model(X), PRIORS["AR1"]())


@pytest.mark.parametrize("conversion", ["mean", "stddev"])
def test_what_stands_for_a_mixture(conversion):
    layer, dense = mixture("ante1", convert_to_tensor_fn=conversion)
    inputs = tf_keras.Input((5,))
    assert tf_keras.Model(inputs, layer(dense(inputs))).output_shape == (None, D)


def test_import_of_the_package_does_not_load_it():
    code = "import sys, tfp_ar1; assert 'tfp_ar1.tfpl' not in sys.modules; tfp_ar1.tfpl"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
