"""The tf_keras layers and their KL regularizer: counted once, saved without pickles."""

import keras
import numpy as np
import oracles
import packed
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
import tf_keras

import tfp_ar1
from tfp_ar1 import tfpl

tfd = tfp.distributions

LAYERS = {
    "ar1": tfpl.MultivariateNormalAR1,
    "arh1": tfpl.MultivariateNormalARH1,
    "ante1": tfpl.MultivariateNormalANTE1,
}
every_family = pytest.mark.parametrize("family", LAYERS)

D, CHANNELS = 4, 3
X = np.random.default_rng(0).normal(size=(7, 5)).astype(np.float32)
PRIORS = {
    "MultivariateNormalDiag": lambda: tfd.MultivariateNormalDiag(tf.zeros(D)),
    "Independent": lambda: tfd.Independent(tfd.Normal(tf.zeros(D), 1.0), 1),
    "Sample": lambda: tfd.Sample(tfd.Normal(0.0, 1.0), D),
    "AR1": lambda: tfp_ar1.MultivariateNormalAR1(tf.zeros(D), correlation=0.5),
}
FISHER_Z = [0.0, 0.5, -1.0]


def prior_of_channels(fisher_z=FISHER_Z):
    """A path for each channel, with a correlation of its own."""
    loc = tf.zeros([CHANNELS, D])
    return tfp_ar1.MultivariateNormalAR1(loc, fisher_z=tf.Variable(fisher_z, name="fisher_z"))


def dense_prior(correlation):
    return oracles.Dense(np.zeros(D), oracles.ar1_covariance(1.0, correlation, D))


def with_regularizer(layer, prior, **kwargs):
    return [layer(D, activity_regularizer=tfpl.KLDivergenceRegularizer(prior, **kwargs))]


def with_add_loss(layer, prior, **kwargs):
    return [layer(D), tfpl.KLDivergenceAddLoss(prior, **kwargs)]


# Two ways to add the KL.
WAYS = {"regularizer": with_regularizer, "add loss": with_add_loss}


def encoder(prior, by="regularizer", family="ar1", channels=None, **kwargs):
    """A model, and a function of its inputs that gives the packed parameters."""
    tf_keras.utils.set_random_seed(1)
    size = LAYERS[family].params_size(D)
    dense = tf_keras.layers.Dense((channels or 1) * size)
    shape = (size,) if channels is None else (channels, size)
    layers = [tf_keras.layers.Reshape(shape), *WAYS[by](LAYERS[family], prior, **kwargs)]
    model = tf_keras.Sequential([tf_keras.Input((5,)), dense, *layers])
    return model, lambda x: tf.reshape(dense(x), (-1, *shape))


def slow(*cases):
    """Those of the same branches, and of TensorFlow's format, whose tracing takes long."""
    return [pytest.param(*case, marks=pytest.mark.slow) for case in cases]


@pytest.mark.parametrize(
    ("family", "by", "prior", "name"),
    [
        ("ar1", "regularizer", "MultivariateNormalDiag", "model.keras"),
        ("ante1", "add loss", "AR1", "model.h5"),
        *slow(
            ("ar1", "regularizer", "Independent", "model"),
            ("arh1", "regularizer", "AR1", "model.h5"),
            ("ar1", "add loss", "Sample", "model"),
            ("arh1", "add loss", "AR1", "model.keras"),
        ),
    ],
)
def test_the_kl_counts_once_also_after_saving_and_loading(family, by, prior, name, tmp_path):
    model, params = encoder(PRIORS[prior](), by, family, weight=0.5)
    posterior = packed.dense(params(X), family, D)
    expected = 0.5 * np.mean(posterior.kl(dense_prior(0.5 if prior == "AR1" else 0.0)))
    model.save(tmp_path / name)
    loaded = tf_keras.models.load_model(tmp_path / name)
    assert type(loaded.layers[-1]) is type(model.layers[-1])
    for each in (model, loaded):
        distribution = each(X)
        np.testing.assert_allclose(sum(each.losses), expected, rtol=1e-5)
        np.testing.assert_allclose(distribution.mean(), posterior.mean, rtol=1e-6)
        # What was called, saved or loaded can still be put to work in another model.
        inputs = tf_keras.Input((5,))
        whole = tf_keras.Model(inputs, tf_keras.layers.Dense(5)(each(inputs)))
        whole.compile("sgd")
        np.testing.assert_allclose(whole.test_on_batch(X), expected, rtol=1e-5)


@pytest.mark.parametrize("channels", [None, CHANNELS])
def test_monte_carlo_kl_is_unbiased(channels):
    prior = PRIORS["MultivariateNormalDiag"]() if channels is None else prior_of_channels()
    model, params = encoder(prior, channels=channels, use_exact_kl=False)
    kl = packed.dense(params(X), "ar1", D).kl(dense_prior(np.tanh(FISHER_Z if channels else 0.0)))
    exact = np.mean(np.sum(kl, axis=-1) if channels else kl)
    call = tf.function(lambda: (model(X), sum(model.losses))[1])
    estimates = [float(call()) for _ in range(200)]
    assert abs(np.mean(estimates) - exact) < 5 * np.std(estimates) / np.sqrt(200)


@every_family
def test_params_size(family):
    sizes = {"ar1": D + 2, "arh1": D + D + 1, "ante1": D + D + (D - 1)}
    assert LAYERS[family].params_size(D) == sizes[family]
    with pytest.raises(ValueError, match=rf"`params` must have {sizes[family]} entries"):
        LAYERS[family](D)(tf.zeros([2, sizes[family] + 1]))


@pytest.mark.parametrize("conversion", ["mean", tfd.Distribution.mode, "stddev"])
def test_what_stands_for_the_distribution(conversion):
    params = packed.random("arh1", D, 2)
    layer = LAYERS["arh1"](D, convert_to_tensor_fn=conversion)
    dense = packed.dense(params, "arh1", D)
    deviations = np.sqrt(np.diagonal(dense.covariance, axis1=-2, axis2=-1))
    expected = deviations if conversion == "stddev" else dense.mean
    for each in (layer, LAYERS["arh1"].from_config(layer.get_config())):
        np.testing.assert_allclose(tf.convert_to_tensor(each(params)), expected, rtol=1e-6)


@every_family
def test_same_numbers_as_the_keras_3_layer(family):
    params, prior = packed.random(family, D, 3), PRIORS["AR1"]()
    new = getattr(tfp_ar1.layers, LAYERS[family].__name__)(D, prior=prior)
    new(keras.ops.convert_to_tensor(params))
    (old,) = with_regularizer(LAYERS[family], prior)
    posterior = old(params)
    assert type(posterior.tensor_distribution) is getattr(tfp_ar1, LAYERS[family].__name__)
    np.testing.assert_array_equal(posterior.mean(), new.distribution(params).mean())
    np.testing.assert_array_equal(posterior.covariance(), new.distribution(params).covariance())
    np.testing.assert_allclose(sum(old.losses), sum(new.losses), rtol=1e-6)


def test_half_precision():
    """The parameters come in half precision; the distribution and its KL are in single."""
    regularizer = tfpl.KLDivergenceRegularizer(PRIORS["AR1"]())
    layer = LAYERS["ante1"](D, activity_regularizer=regularizer, dtype="mixed_float16")
    params = tf.cast(packed.random("ante1", D, 6), tf.float16)
    assert layer(params).dtype == tf.float32
    expected = np.mean(packed.dense(params, "ante1", D).kl(dense_prior(0.5)))
    np.testing.assert_allclose(sum(layer.losses), expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("family", "by", "ndims"),
    [("ar1", "regularizer", 0), ("arh1", "add loss", 1), ("ante1", "regularizer", None)],
)
def test_kl_of_channels(family, by, ndims):
    """`[batch, channels]`: the mean over the batch of sums over channels, or the mean over both."""
    options = {"weight": 0.5, "reinterpreted_batch_ndims": ndims}
    prior = prior_of_channels()
    model, params = encoder(prior, by, family, CHANNELS, **options)
    assert any(v is prior.fisher_z for v in model.trainable_variables)
    assert model(X).batch_shape == (len(X), CHANNELS)
    kl = packed.dense(params(X), family, D).kl(dense_prior(np.tanh(FISHER_Z)))
    expected = 0.5 * np.mean(kl if ndims == 0 else kl.sum(-1))
    np.testing.assert_allclose(sum(model.losses), expected, rtol=1e-5)
    # As part of the loss that is trained, too.
    model.compile("sgd")
    np.testing.assert_allclose(model.test_on_batch(X), expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("by", "name"),
    [
        ("regularizer", "model.keras"),
        *slow(
            ("regularizer", "model.h5"),
            ("regularizer", "model"),
            ("add loss", "model.keras"),
            ("add loss", "model.h5"),
            ("add loss", "model"),
        ),
    ],
)
def test_variables_of_the_prior_are_trained_and_saved(by, name, tmp_path):
    prior = prior_of_channels()
    options = {"by": by, "channels": CHANNELS, "reinterpreted_batch_ndims": 1}
    model, _ = encoder(prior, **options)
    model.compile(tf_keras.optimizers.Adam(0.1))
    model.fit(X, epochs=2, verbose=0)
    assert np.all(prior.fisher_z.numpy() != FISHER_Z)
    model.save(tmp_path / name)
    loaded = tf_keras.models.load_model(tmp_path / name)
    assert any(np.array_equal(v, prior.fisher_z) for v in loaded.trainable_variables)
    loss = model.evaluate(X, verbose=0)
    np.testing.assert_allclose(loaded.evaluate(X, verbose=0), loss, rtol=1e-6)
    before = [v.numpy() for v in loaded.trainable_variables]
    loaded.fit(X, verbose=0)
    assert all(np.any(v != w) for v, w in zip(loaded.trainable_variables, before, strict=True))
    # Weights alone, into a model whose prior starts elsewhere.
    model.save_weights(tmp_path / "weights.h5")
    other_prior = prior_of_channels([1.0, 1.0, 1.0])
    other, _ = encoder(other_prior, **options)
    other.load_weights(tmp_path / "weights.h5")
    np.testing.assert_array_equal(other_prior.fisher_z, prior.fisher_z)


@pytest.mark.parametrize("name", ["MultivariateNormalTriL", "IndependentNormal"])
def test_add_loss_after_layers_of_tfp(name):
    layer, prior = getattr(tfp.layers, name)(D), PRIORS["Independent"]()
    dense = tf_keras.layers.Dense(layer.params_size(D))
    model = tf_keras.Sequential([dense, layer, tfpl.KLDivergenceAddLoss(prior)])
    posterior = model(X)
    if name == "IndependentNormal":
        covariance = np.eye(D) * posterior.variance()[:, np.newaxis]
    else:
        covariance = posterior.covariance()
    dense = oracles.Dense(np.float64(posterior.mean()), np.float64(covariance))
    expected = np.mean(dense.kl(dense_prior(0.0)))
    np.testing.assert_allclose(sum(model.losses), expected, rtol=1e-5)


def test_refuses_what_does_not_fit():
    with pytest.raises(TypeError, match="must follow a layer that returns a distribution"):
        tfpl.KLDivergenceAddLoss(PRIORS["Sample"]())(tf.zeros([2, D]))
    with pytest.raises(ValueError, match="`convert_to_tensor_fn` must be one of"):
        tfpl.MultivariateNormalAR1(D, convert_to_tensor_fn=lambda d: d.mean())
    with pytest.raises(ValueError, match="`event_size` must be a positive integer; got 0"):
        tfpl.MultivariateNormalAR1(0)
    three = prior_of_channels()
    for cls in (tfpl.KLDivergenceRegularizer, tfpl.KLDivergenceAddLoss):
        with pytest.raises(ValueError, match="class `Laplace` cannot be saved; use one of"):
            cls(tfd.Independent(tfd.Laplace(tf.zeros(D), 1.0), 1))
        with pytest.raises(ValueError, match="`weight` must not be negative; got -1"):
            cls(PRIORS["Sample"](), weight=-1.0)
        for ndims in (-1, 0.5):
            with pytest.raises(ValueError, match=f"non-negative integer or `None`; got {ndims}"):
                cls(PRIORS["Sample"](), reinterpreted_batch_ndims=ndims)
        for prior in (tfp_ar1.layers.MultivariateNormalAR1Prior(D), tfd.Normal, None):
            with pytest.raises(TypeError, match=r"`distribution_b` must be a `tfd.Distribution`"):
                cls(prior)
    with pytest.raises(ValueError, match=r"`reinterpreted_batch_ndims=2` needs .*shape \(None,\)"):
        encoder(PRIORS["Sample"](), reinterpreted_batch_ndims=2)
    with pytest.raises(ValueError, match=r"prior has batch shape \(3,\) where .* has \(None,\)"):
        encoder(three)
    (layer,) = with_regularizer(tfpl.MultivariateNormalAR1, PRIORS["AR1"]())
    with pytest.raises(ValueError, match="Call the layer on all steps at once"):
        tf_keras.layers.TimeDistributed(layer)(tf_keras.Input((3, D + 2)))
    with pytest.raises(ValueError, match="The prior must be of dtype float32; got float64"):
        encoder(tfd.MultivariateNormalDiag(np.zeros(D)))
    # Layers without a distribution: not a KL of 0.
    for layer in (keras.layers.Dense, tf_keras.layers.Dense, tfp_ar1.layers.MultivariateNormalAR1):
        with pytest.raises(TypeError, match="for tf_keras layers that return a distribution"):
            with_regularizer(layer, PRIORS["AR1"]())[0](packed.random("ar1", D, 2))


def in_call(model, layer):
    """A model of a user's class that calls the layer."""

    class Subclassed(model):
        def call(self, x):
            return layer(x)

    return Subclassed()


def test_layers_of_the_other_keras_say_what_to_use():
    """In lists, on placeholders and in subclasses, where the KL would be lost and nothing said."""
    params, prior = packed.random("ar1", D, 2), PRIORS["AR1"]()
    to_keras_3 = "a tf_keras layer; in Keras 3 models use tfp_ar1.layers, with `prior` for the KL"
    called = "model of the other Keras: .*"
    layers = (way(tfpl.MultivariateNormalAR1, prior) for way in WAYS.values())
    for layer in (layer for way in layers for layer in way):
        with pytest.raises(ValueError, match=to_keras_3):
            keras.Sequential([keras.Input((D + 2,)), layer])
        with pytest.raises(TypeError, match=called + to_keras_3):
            layer(keras.Input((D + 2,)))
        with pytest.raises(TypeError, match=called + to_keras_3):
            in_call(keras.Model, layer)(params)
    to_tf_keras = "of Keras 3; in tf_keras models use tfp_ar1.tfpl"
    layer = tfp_ar1.layers.MultivariateNormalAR1(D, prior=prior)
    with pytest.raises(TypeError, match=to_tf_keras):
        tf_keras.Sequential([tf_keras.Input((D + 2,)), layer])
    with pytest.raises(TypeError, match=called + to_tf_keras):
        layer(tf_keras.Input((D + 2,)))
    with pytest.raises(TypeError, match=called + to_tf_keras):
        in_call(tf_keras.Model, layer)(params)
    with pytest.raises(TypeError, match=called + to_tf_keras):
        tfp.layers.MixtureSameFamily(2, layer)(tf.zeros([3, 2 * (D + 3)]))


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


def test_mixture_layer():
    """Its size is known before there are data, so that other layers can follow it."""
    layer = tfp.layers.MixtureSameFamily(3, LAYERS["ante1"](D))
    dense = tf_keras.layers.Dense(3 * (1 + LAYERS["ante1"].params_size(D)))
    inputs = tf_keras.Input((5,))
    outputs = layer(dense(inputs))
    assert tf_keras.Model(inputs, tf_keras.layers.Dense(2)(outputs)).output_shape == (None, 2)
    model = tf_keras.Model(inputs, outputs)
    y = np.random.default_rng(3).normal(size=(7, D)).astype(np.float32)
    params = np.float64(dense(X))
    components = packed.dense(params[:, 3:].reshape(7, 3, -1), "ante1", D)
    weighted = components.log_prob(y[:, np.newaxis]) + params[:, :3]
    expected = np.logaddexp.reduce(weighted, -1) - np.logaddexp.reduce(params[:, :3], -1)
    np.testing.assert_allclose(model(X).log_prob(y), expected, rtol=1e-5)
    model.compile(tf_keras.optimizers.SGD(0.0), lambda y, mixture: -mixture.log_prob(y))
    losses = model.fit(X, y, verbose=0).history["loss"]
    np.testing.assert_allclose(losses, [-np.mean(expected)], rtol=1e-5)
    with pytest.raises(NotImplementedError, match="No KL"):
        tfd.kl_divergence(model(X), PRIORS["AR1"]())
    layer = tfp.layers.MixtureSameFamily(3, LAYERS["ante1"](D), convert_to_tensor_fn="stddev")
    assert tf_keras.Model(inputs, layer(dense(inputs))).output_shape == (None, D)
