"""Layers and models on JAX, by Keras: what the tests of TensorFlow's do not say of it.

Run by `make test-jax`, with KERAS_BACKEND=jax.
"""

import gc
import os
import subprocess
import sys
import weakref

import both
import numpy as np
import pytest

try:
    both.jax()
    import keras

    if keras.config.backend() != "jax":
        raise ImportError("KERAS_BACKEND is not jax")
except ImportError as error:
    pytest.skip(str(error), allow_module_level=True)

import jax
import models

import tfp_ar1_jax

IMAGES, SERIES = models.data("image"), models.data("series")


def image_model(posterior="ar1", **kwargs):
    keras.utils.set_random_seed(0)
    parts = tfp_ar1_jax.vae.architectures.mlp((4, 4), 3, (5,))
    return tfp_ar1_jax.RhoVAE(*parts, 3, posterior=posterior, seed=0, **kwargs)


def compiled(model, rate=0.01, **kwargs):
    model.compile(keras.optimizers.SGD(rate), **kwargs)
    return model


def fresh_process(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )


def test_files_of_both_backends():
    for backend in ("tensorflow", "jax"):
        models.check_files_of(backend)


def test_compiled_steps_equal_eager_steps():
    """Also of a batch that is smaller, and several steps in one call."""
    weights = []
    for options in ({"run_eagerly": True}, {}, {"steps_per_execution": 2}):
        model = compiled(image_model(), **options)
        history = model.fit(IMAGES, epochs=2, batch_size=4, shuffle=False, verbose=0).history
        weights.append([*model.get_weights(), history["loss"]])
    for other in weights[1:]:
        for a, b in zip(weights[0], other, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_the_loss_counts_the_steps_of_a_compiled_training():
    objective = tfp_ar1_jax.vae.objectives.ELBO(beta=2.0, warmup_steps=4)
    model = compiled(image_model(objective=objective), rate=0.0)
    factors = []
    for _ in range(6):
        logs = model.train_on_batch(IMAGES, return_dict=True)
        factors.append((logs["loss"] - logs["reconstruction"]) / logs["kl"])
        model.reset_metrics()
    np.testing.assert_allclose(factors, [0.5, 1.0, 1.5, 2.0, 2.0, 2.0], rtol=1e-3)


def test_gradients_are_those_of_the_loss():
    """A step of SGD against central differences of the loss, for the same noise."""
    model = compiled(image_model(prior=tfp_ar1_jax.layers.MultivariateNormalAR1Prior(3)), 1.0)
    model.build((None, 4, 4))
    before = [np.array(w) for w in model.get_weights()]
    seeds = np.array(model.seed_generator.state)

    def loss(weights):
        model.set_weights(weights)
        model.seed_generator.state.assign(seeds)
        model.reset_metrics()
        return model.train_on_batch(IMAGES, return_dict=True)["loss"]

    start = loss(before)
    after = model.get_weights()
    assert np.isfinite(start)
    for i in (0, len(before) - 1):
        direction = np.random.default_rng(i).normal(size=before[i].shape).astype("float32")
        sides = [[*before[:i], before[i] + h * direction, *before[i + 1 :]] for h in (1e-2, -1e-2)]
        difference = (loss(sides[0]) - loss(sides[1])) / 2e-2
        exact = np.sum((before[i] - after[i]) * direction)
        np.testing.assert_allclose(difference, exact, rtol=2e-2, atol=2e-3)


def test_weights_of_examples():
    model = compiled(image_model(), rate=0.0)
    weight = np.array([1, 2, 0, 1, 0, 3], "float32")
    x = np.where(weight[:, None, None] == 0, 1 - IMAGES, IMAGES)
    losses = []
    for data in (IMAGES, x):
        model.seed_generator.state.assign(np.array([5, 0], np.uint32))
        losses.append(model.evaluate(data, sample_weight=weight, verbose=0))
    np.testing.assert_allclose(*losses, rtol=1e-6)


def test_training_that_is_resumed_draws_the_same_noise(tmp_path):
    whole, first = compiled(image_model()), compiled(image_model())
    whole.fit(IMAGES, epochs=4, shuffle=False, verbose=0)
    first.fit(IMAGES, epochs=2, shuffle=False, verbose=0)
    first.save(tmp_path / "model.keras")
    resumed = keras.saving.load_model(tmp_path / "model.keras")
    resumed.fit(IMAGES, epochs=2, shuffle=False, verbose=0)
    for a, b in zip(whole.get_weights(), resumed.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_compiled_methods_see_new_weights_and_hold_no_model():
    model = image_model()
    before = model.log_likelihood(IMAGES, num_samples=3)
    np.testing.assert_array_equal(before, model.log_likelihood(IMAGES, num_samples=3))
    model.set_weights([2 * w for w in model.get_weights()])
    assert not np.allclose(before, model.log_likelihood(IMAGES, num_samples=3))
    reference = weakref.ref(model)
    del model
    gc.collect()
    assert reference() is None


def test_draws_of_series():
    parts = tfp_ar1_jax.vae.sequence_networks.convolutional((7, 2), 2, filters=(4,))
    model = tfp_ar1_jax.SequenceVAE(*parts, 2, 7, seed=0)
    draws = model.impute(SERIES, num_samples=5, seed=1)
    observed = ~np.isnan(SERIES)
    np.testing.assert_array_equal(draws[:, observed], np.broadcast_to(SERIES[observed], (5, 66)))
    assert np.all(np.std(draws[:, ~observed], axis=0) > 0)
    np.testing.assert_array_equal(draws, model.impute(SERIES, num_samples=5, seed=1))
    assert model.forecast(SERIES, 3, num_samples=5).shape == (5, 5, 3, 2)


class Batches(keras.utils.PyDataset):
    def __init__(self, *batches):
        super().__init__()
        self.batches = batches

    def __len__(self):
        return len(self.batches)

    def __getitem__(self, index):
        return (self.batches[index],)


def test_every_batch_of_a_stream_is_checked():
    model = compiled(image_model())
    bad = 3 * IMAGES
    model.fit(Batches(IMAGES, IMAGES), epochs=2, verbose=0)
    with pytest.raises(ValueError, match=r"data in \[0, 1\]"):
        model.fit(Batches(IMAGES, bad), verbose=0)
    with pytest.raises(ValueError, match=r"data in \[0, 1\]"):
        model.fit(((x,) for x in (IMAGES, bad)), steps_per_epoch=2, verbose=0)
    with pytest.raises(ValueError, match=r"data in \[0, 1\]"):
        model.fit(bad, verbose=0)


def test_what_cannot_be_done():
    with pytest.raises(NotImplementedError, match="save the model as a"):
        image_model().export("nowhere")
    model = image_model()
    model.compile(None)
    with pytest.raises(ValueError, match="compiled without an optimizer"):
        model.fit(IMAGES)
    prior = tfp_ar1_jax.priors.standard_normal(2, np.float32)
    layer = tfp_ar1_jax.layers.MultivariateNormalAR1(2, prior)
    with pytest.raises(ValueError, match="Call the layer on all steps at once"):
        keras.ops.vectorized_map(layer, np.zeros((3, 5, 4), "float32"))
    for backend in ("torch", "tensorflow"):
        code = "import tfp_ar1_jax.layers"
        failed = fresh_process(code, KERAS_BACKEND=backend)
        assert failed.returncode == 1
        assert "KERAS_BACKEND=jax" in failed.stderr or "No module named" in failed.stderr


def test_several_devices():
    """Under `keras.distribution` the losses are those of one device."""
    code = """
import keras, numpy as np
import models
losses = []
for distribution in (None, keras.distribution.DataParallel()):
    keras.distribution.set_distribution(distribution)
    model = models.trained("image", "ar1")
    losses.append(model.fit(models.data("image"), epochs=2).history["loss"])
np.testing.assert_allclose(*losses, rtol=1e-4)
assert len(keras.distribution.list_devices()) == 2
"""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=2"
    done = fresh_process(code, XLA_FLAGS=flags, PYTHONPATH=os.pathsep.join(sys.path))
    assert done.returncode == 0, done.stderr


def test_nothing_imports_tensorflow():
    code = "import keras, sys, tfp_ar1_jax.vae; assert 'tensorflow' not in sys.modules"
    done = fresh_process(code)
    assert done.returncode == 0, done.stderr


def test_a_model_of_mixed_precision():
    model = compiled(image_model(dtype="mixed_bfloat16"))
    assert np.isfinite(model.fit(IMAGES, verbose=0).history["loss"][0])
    assert model.encode(IMAGES).dtype == jax.numpy.float32
