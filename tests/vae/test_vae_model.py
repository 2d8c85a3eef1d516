"""`RhoVAE` as a Keras model: training, prediction, saving, precision, errors."""

import json

import keras
import numpy as np
import oracles
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from training import DIGITS, assert_same_weights, compiled, fitted

import tfp_ar1
from tfp_ar1.vae import architectures, likelihoods, objectives

tfd = tfp.distributions

D = 3
X, X_TEST = DIGITS[:64], DIGITS[64:100]
KEYS = ["loss", "reconstruction", "kl", "correlation"]


def make(posterior="ar1", seed=0, **kwargs):
    """A small model; the same weights each time."""
    keras.utils.set_random_seed(7)
    parts = architectures.mlp((8, 8), D, (16,))
    return tfp_ar1.RhoVAE(*parts, D, posterior=posterior, seed=seed, **kwargs)


def test_eager_training_equals_graph_training():
    eager = fitted(compiled(make(), run_eagerly=True), X, epochs=2)
    both_steps = fitted(compiled(make(), steps_per_execution=2), X, epochs=2)
    assert_same_weights(both_steps, eager, atol=1e-5)


def test_training_is_reproducible():
    first, same, other = (compiled(make(seed=seed), run_eagerly=True) for seed in (1, 1, 2))
    assert_same_weights(first, same)  # drawn when the model is made, as everywhere in Keras
    for model in (first, same, other):
        keras.utils.set_random_seed(0)
        model.fit(X, batch_size=32, verbose=0)  # shuffles
    assert_same_weights(first, same)
    assert np.any(first.get_weights()[0] != other.get_weights()[0])


def test_data_in_every_form():
    """The same weights and figures from whatever holds the same data."""
    batches, held_out = (tf.data.Dataset.from_tensor_slices(x).batch(32) for x in (X, X_TEST))
    results = []
    for data, validation in (
        ((X,), (X_TEST,)),
        ((X.astype("float64"), X), (X_TEST, X_TEST)),
        ((batches,), held_out),
        ((batches.map(lambda x: (x, x)),), held_out),
    ):
        model = compiled(make(), run_eagerly=True)
        options = {"batch_size": 32} if len(results) < 2 else {}
        options |= {"validation_data": validation, "shuffle": False, "verbose": 0}
        results.append((model.fit(*data, **options).history, model))
    for history, model in results[1:]:
        assert history == results[0][0]
        assert_same_weights(model, results[0][1])
    assert "val_kl" in results[0][0]


def test_evaluate_and_predict():
    model = fitted(compiled(make(), run_eagerly=True), X)
    before = model.seed_generator.state.numpy()
    figures = model.evaluate(X_TEST, verbose=0, return_dict=True)
    assert set(figures) == set(KEYS)
    # The figures are means over examples, the last and smaller batch included.
    posterior = model.encode(X_TEST)
    kl = np.mean(tfd.kl_divergence(posterior, model.prior))
    np.testing.assert_allclose(figures["kl"], kl, rtol=1e-5)
    rho = np.mean(posterior.correlation_parameter())
    np.testing.assert_allclose(figures["correlation"], rho, rtol=1e-5)
    np.testing.assert_allclose(figures["loss"], figures["reconstruction"] + kl, rtol=1e-5)
    assert np.any(model.seed_generator.state.numpy() != before)
    images = model.predict(X_TEST, verbose=0)
    assert images.shape == X_TEST.shape
    np.testing.assert_allclose(images, model.reconstruct(X_TEST), rtol=1e-5)
    # Inference does not draw; training does.
    np.testing.assert_array_equal(model(X_TEST), model(X_TEST))
    assert np.any(model(X_TEST, training=True) != model(X_TEST, training=True))


def test_one_step_follows_the_gradient(monkeypatch):
    model = compiled(make(likelihood="gaussian"), keras.optimizers.SGD, 1e-3, run_eagerly=True)
    model(X)
    monkeypatch.setattr(model, "next_seed", lambda: tf.constant([1, 2]))
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(model.objective(model, tf.constant(X), training=True).loss)
    gradients = tape.gradient(loss, [v.value for v in model.trainable_variables])
    assert len(gradients) == 9  # four layers and the scale
    assert all(np.any(gradient != 0) for gradient in gradients)
    before = [v.numpy() for v in model.trainable_variables]
    model.fit(X, batch_size=len(X), shuffle=False, verbose=0)
    for old, new, gradient in zip(before, model.trainable_variables, gradients, strict=True):
        np.testing.assert_allclose(new, old - 1e-3 * gradient, atol=1e-6)


def convolutional(regularizer=None, dropout=0.5, **kwargs):
    keras.utils.set_random_seed(7)
    encoder = keras.Sequential(
        [
            keras.Input((8, 8)),
            keras.layers.Reshape((8, 8, 1)),
            keras.layers.Conv2D(4, 3, strides=2, kernel_regularizer=regularizer),
            keras.layers.BatchNormalization(),
            keras.layers.Dropout(dropout, seed=1),
            keras.layers.Flatten(),
        ]
    )
    _, decoder = architectures.mlp((8, 8), D, (16,))
    return tfp_ar1.RhoVAE(encoder, decoder, D, seed=0, **kwargs)


def test_training_flag():
    model = compiled(convolutional(), run_eagerly=True)
    norm = model.encoder.layers[2]
    model.evaluate(X, verbose=0)
    np.testing.assert_array_equal(norm.moving_mean, np.zeros(4))
    fitted(model, X)
    assert np.all(norm.moving_mean.numpy() != 0)
    loc = [model.encode(X, training=training).mean() for training in (True, True, False, False)]
    assert np.any(loc[0] != loc[1])  # dropout
    np.testing.assert_array_equal(loc[2], loc[3])
    mean = norm.moving_mean.numpy()
    model.log_likelihood(X, num_samples=2)
    model.correlation(X)
    model.reconstruct(X)
    np.testing.assert_array_equal(norm.moving_mean, mean)


def test_regularizer():
    factor, rate = 0.5, 1e-3
    models = []
    for regularizer in (None, keras.regularizers.L2(factor)):
        model = compiled(
            convolutional(regularizer), keras.optimizers.SGD, learning_rate=rate, run_eagerly=True
        )
        model.build((None, 8, 8))
        models.append(model)
    kernel = models[1].encoder.layers[1].kernel.numpy()
    options = {"batch_size": len(X), "shuffle": False, "verbose": 0}
    histories = [m.fit(X, **options).history for m in models]
    for history, penalty in zip(histories, (0.0, factor * np.sum(kernel**2)), strict=True):
        (difference,) = np.subtract(history["loss"], history["reconstruction"]) - history["kl"]
        np.testing.assert_allclose(difference, penalty, atol=2e-5)
    kernels = [m.encoder.layers[1].kernel.numpy() for m in models]
    np.testing.assert_allclose(kernels[1] - kernels[0], -rate * 2 * factor * kernel, atol=1e-6)


def test_regularizer_does_not_depend_on_the_sample_weight():
    model = compiled(
        convolutional(keras.regularizers.L2(0.5)), keras.optimizers.SGD, 0.1, run_eagerly=True
    )
    model(X)
    kernel = model.encoder.layers[1].kernel.numpy()
    model.fit(X, X, batch_size=len(X), sample_weight=np.zeros(len(X)), verbose=0)
    # Nothing but the decay of the weights: kernel - 0.1 * 2 * 0.5 kernel.
    np.testing.assert_allclose(model.encoder.layers[1].kernel, 0.9 * kernel, rtol=1e-5)


class SubclassedEncoder(keras.Model):
    def __init__(self):
        super().__init__()
        self.inner = [keras.layers.Flatten(), keras.layers.Dense(4)]

    def call(self, x):
        return self.inner[1](self.inner[0](x))


def test_subclassed_encoder():
    _, decoder = architectures.mlp((8, 8), D, (16,))
    model = compiled(tfp_ar1.RhoVAE(SubclassedEncoder(), decoder, D), run_eagerly=True)
    fitted(model, X)


@pytest.mark.parametrize("posterior", ["ar1", "diag", "isotropic", "full"])
def test_the_start(posterior):
    """The first covariance is I; the usual spellings of the prior suit every posterior."""
    normal = tfd.Normal(tf.zeros(D), 1.0)
    kls = []
    for prior in (None, tfd.Independent(normal, 1), tfd.Sample(tfd.Normal(0.0, 1.0), D)):
        model = make(posterior, prior=prior)
        q = model.encode(X)
        kls.append(model.kl_to_prior(q))
        np.testing.assert_allclose(kls[-1], kls[0], rtol=1e-5)
        np.testing.assert_array_equal(q.covariance(), np.broadcast_to(np.eye(D), (64, D, D)))
        assert np.all(np.std(q.mean(), axis=0) > 0)


def test_encode_and_decode():
    model = make()
    posterior = model.encode(X)
    assert isinstance(posterior, tfp_ar1.MultivariateNormalAR1)
    assert (posterior.batch_shape, posterior.event_shape) == ((64,), (D,))
    z = posterior.mean()
    images = model.decode(z)
    assert (images.batch_shape, images.event_shape) == ((64,), (8, 8))
    np.testing.assert_allclose(images.mean(), keras.ops.sigmoid(model.decoder(z)), rtol=1e-6)
    np.testing.assert_array_equal(model.reconstruct(X), images.mean())
    assert model.compute_output_shape((None, 8, 8)) == (None, 8, 8)


def test_generate():
    model = make()
    model(X)
    images = model.generate(5, seed=3)
    assert images.shape == (5, 8, 8)
    np.testing.assert_array_equal(model.generate(5, seed=3), images)
    drawn = [model.generate(5, seed=4), model.generate(5), model.generate(5)]
    for other in drawn:
        assert np.any(other != images)
    assert np.any(drawn[1] != drawn[2])
    noisy = np.stack([model.generate(500, seed=seed, noise=True) for seed in (3, 3, 4)])
    np.testing.assert_array_equal(noisy[0], noisy[1])
    assert np.any(noisy[0] != noisy[2])
    # Of the same z: zeros and ones, whose mean is what there is without noise.
    assert set(np.unique(noisy)) == {0, 1}
    means = np.asarray(model.generate(500, seed=3))
    np.testing.assert_allclose((noisy[0] - means).mean(), 0, atol=5 * 0.5 / means.size**0.5)
    assert np.corrcoef(noisy[0].ravel(), means.ravel())[0, 1] == pytest.approx(
        means.std() / noisy[0].std(), rel=0.1
    )


VARIANTS = {
    "default": {},
    "diag": {
        "posterior": "diag",
        "prior": tfp_ar1.MultivariateNormalAR1(tf.zeros(D), 2.0, fisher_z=0.5),
        "objective": objectives.ELBO(beta=4.0),
        "likelihood": likelihoods.Gaussian(0.3),
    },
    "full": {"posterior": "full", "likelihood": "gaussian", "seed": None},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_save_and_load(variant, tmp_path, monkeypatch):
    model = compiled(make(**VARIANTS[variant]), run_eagerly=True)
    fitted(model, X)
    model.save(tmp_path / "vae.keras")
    loaded = keras.saving.load_model(tmp_path / "vae.keras")
    assert loaded.run_eagerly
    assert_same_weights(loaded, model)
    json.dumps(model.get_config())
    np.testing.assert_array_equal(loaded.reconstruct(X), model.reconstruct(X))
    # Eagerly exact. In a graph, Grappler makes an AddN of the three terms of an AR(1) prior's
    # normalization, and AddN starts from whichever of its inputs' buffers is free at that moment:
    # now and then all log-weights of a call, of one and the same model, are off by an ulp of it.
    monkeypatch.setattr(
        type(model), "importance_terms", type(model).importance_terms.python_function
    )
    estimates = [each.log_likelihood(X, 2) for each in (loaded, model)]
    np.testing.assert_array_equal(*estimates)
    np.testing.assert_array_equal(loaded.generate(3), model.generate(3))  # the seed's state
    # The objective, the prior and the likelihood are the same too; and training continues exactly.
    for each in (model, loaded):
        fitted(each, X)
    assert_same_weights(loaded, model)
    for a, b in zip(loaded.optimizer.variables, model.optimizer.variables, strict=True):
        np.testing.assert_array_equal(a, b, err_msg=a.name)


@pytest.mark.slow
def test_training_resumes_exactly_in_a_graph(tmp_path):
    uninterrupted = fitted(compiled(make()), X, epochs=2)
    fitted(compiled(model := make()), X).save(tmp_path / "vae.keras")
    loaded = fitted(keras.saving.load_model(tmp_path / "vae.keras"), X)
    assert_same_weights(loaded, uninterrupted)
    model.save_weights(tmp_path / "vae.weights.h5")
    other = make(seed=5)
    other.load_weights(tmp_path / "vae.weights.h5")
    assert_same_weights(other, model)
    np.testing.assert_array_equal(other.generate(3), model.generate(3))


@pytest.mark.parametrize(
    "policy", ["mixed_float16", pytest.param("mixed_bfloat16", marks=pytest.mark.slow)]
)
def test_mixed_precision(policy, set_policy):
    steps = []
    for name in ("float32", policy):
        set_policy(name)
        model = compiled(make(), keras.optimizers.SGD, 1e-3, run_eagerly=True)
        model.build((None, 8, 8))
        before = model.get_weights()
        model.fit(X, batch_size=len(X), shuffle=False, verbose=0)
        steps.append([a - b for a, b in zip(model.get_weights(), before, strict=True)])
    # The gradients are scaled before they are rounded, and back.
    for full, half in zip(*steps, strict=True):
        assert np.linalg.norm(half - full) < 0.05 * np.linalg.norm(full)
    scaled = isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    assert scaled == (policy == "mixed_float16")
    # The networks compute in half precision, everything else in full.
    features = model.encoder(X)
    assert features.dtype == policy.removeprefix("mixed_")
    posterior = model.encode(X)
    kernel, bias = oracles.as_float64(*model.posterior_head.get_weights())
    oracles.assert_close(posterior.mean(), (np.float64(features) @ kernel + bias)[:, :D])
    assert model.decode(posterior.mean()).dtype == tf.float32
    assert model.predict(X, verbose=0).dtype == policy.removeprefix("mixed_")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"posterior": "diagonal"}, ValueError, r"Unknown posterior 'diagonal'; .* \['ar1', 'ar"),
        ({"likelihood": "normal"}, ValueError, r"Unknown likelihood 'normal'; .* \['bernoulli'"),
        ({"latent_dim": 0}, ValueError, "must be a positive integer; got 0"),
        ({"latent_dim": None}, ValueError, "must be a positive integer; got None"),
        ({"latent_dim": 1.5}, ValueError, "must be a positive integer; got 1.5"),
        ({"latent_dim": 4, "prior": VARIANTS["diag"]["prior"]}, ValueError, r"size 4; .*\(3,\)"),
        ({"prior": "normal"}, TypeError, r"must be a `tfd.Distribution`, a layer .*; got 'normal'"),
        ({"encoder": "mlp"}, TypeError, "must be Keras 3 models; got 'mlp'"),
    ],
)
def test_bad_arguments(arguments, error, message):
    encoder, decoder = architectures.mlp((8, 8), D, (4,))
    parts = {"encoder": encoder, "decoder": decoder, "latent_dim": D}
    with pytest.raises(error, match=message):
        tfp_ar1.RhoVAE(**{**parts, **arguments})


def test_parts_that_do_not_fit():
    encoder, decoder = architectures.mlp((8, 8), D, (4,))
    layers = [keras.layers.Reshape((8, 8, 1)), keras.layers.Conv2D(2, 3)]
    image_features = keras.Sequential([keras.Input((8, 8)), *layers])
    of_other_data = architectures.mlp((8, 9), D, (4,))[1]
    of_other_latents = architectures.mlp((8, 8), D + 1, (4,))[1]
    for parts, message in (
        ((image_features, decoder), r"\(batch, units\); it outputs \(\w+, 6, 6, 2\).*Flatten"),
        ((encoder, of_other_data), r"tensor of shape \(batch, 8, 8\); it outputs \(None, 8, 9\)"),
        ((encoder, of_other_latents), r"latent vectors of size 3; it takes .* \(None, 4\)"),
    ):
        with pytest.raises(ValueError, match=message):
            tfp_ar1.RhoVAE(*parts, D)


def test_compile_refuses_a_loss_and_metrics():
    model = make()
    for arguments in ({"loss": "mse"}, {"metrics": ["mae"]}, {"weighted_metrics": ["mae"]}):
        (name,) = arguments
        with pytest.raises(ValueError, match=f"loss and metrics of its own; `{name}=.*`objective`"):
            model.compile(**arguments)
    with pytest.raises(ValueError, match="loss and metrics of its own; `loss='mse'` would be"):
        model.compile("adam", "mse")


def test_decoding_before_the_model_is_built():
    with pytest.raises(ValueError, match="not built yet; call it on data, or `build` it"):
        tfp_ar1.RhoVAE(SubclassedEncoder(), architectures.mlp((8, 8), D, (4,))[1], D).generate(1)


def test_mlp_refuses():
    for arguments in (
        {"hidden_units": ()},
        {"hidden_units": (4, 0)},
        {"data_shape": (8, 0)},
        {"latent_dim": 0},
    ):
        with pytest.raises(ValueError, match="Sizes must be positive, with at least one hidden"):
            architectures.mlp(**{"data_shape": (8, 8), "latent_dim": 2, **arguments})


def test_mlp_mirrors_the_hidden_layers():
    encoder, decoder = architectures.mlp((8, 8), 2, (16, 5))
    assert encoder.output_shape == (None, 5)
    assert decoder.output_shape == (None, 8, 8)
    units = [[v.shape[-1] for v in m.trainable_variables[::2]] for m in (encoder, decoder)]
    assert units == [[16, 5], [5, 16, 64]]
