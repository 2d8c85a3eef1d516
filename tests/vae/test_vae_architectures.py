"""The convolutional networks: shapes, sizes, training and saving; `mlp` is in test_vae_model.py."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from training import DIGITS

import tfp_ar1
from tfp_ar1.vae import architectures

D = 3
CONVOLUTIONAL = ("cnn", "dcgan")


def make(network, data_shape, **kwargs):
    keras.utils.set_random_seed(7)
    return tfp_ar1.RhoVAE(*architectures.NETWORKS[network](data_shape, D), D, seed=0, **kwargs)


def layers(model, kind):
    return [layer for layer in model.layers if type(layer) is kind]


def test_names():
    assert list(architectures.NETWORKS) == ["mlp", "cnn", "dcgan"]
    for name, network in architectures.NETWORKS.items():
        assert network is getattr(architectures, name)


@pytest.mark.parametrize("network", CONVOLUTIONAL)
@pytest.mark.parametrize("data_shape", [(4, 4), (7, 6, 2), (9, 33)])
def test_shapes(network, data_shape):
    encoder, decoder = architectures.NETWORKS[network](data_shape, D)
    features = encoder(np.zeros([2, *data_shape], "float32"))
    assert features.shape == (2, encoder.output_shape[-1])
    assert decoder(np.zeros([5, D], "float32")).shape == (5, *data_shape)
    # As RhoVAE asks for them.
    assert decoder.output_shape == (None, *data_shape)
    tfp_ar1.RhoVAE(encoder, decoder, D)


def test_cnn_is_the_network_of_the_paper():
    encoder, decoder = architectures.cnn((28, 28), 10)
    convolutions = layers(encoder, keras.layers.Conv2D)
    transposed = layers(decoder, keras.layers.Conv2DTranspose)
    assert [layer.filters for layer in convolutions] == [64, 128]
    assert [layer.filters for layer in transposed] == [64, 1]
    for layer in (*convolutions, *transposed):
        assert (layer.kernel_size, layer.strides, layer.padding) == ((4, 4), (2, 2), "same")
    assert encoder.output_shape == (None, 7 * 7 * 128)
    # Weights and biases.
    assert encoder.count_params() == (16 * 64 + 64) + (16 * 64 * 128 + 128)
    dense = (10 + 1) * 7 * 7 * 128
    assert decoder.count_params() == dense + (16 * 128 * 64 + 64) + (16 * 64 + 1)


@pytest.mark.parametrize("network", CONVOLUTIONAL)
def test_activations(network):
    """The first layers and the last ones, by hand; negative outputs are possible."""
    encoder, decoder = architectures.NETWORKS[network]((8, 8), D)
    x = np.random.default_rng(0).normal(size=(4, 8, 8)).astype("float32")
    convolution, activation = encoder.layers[1:3]
    before = convolution(x[..., None]).numpy()
    slope = 0.2 if network == "dcgan" else 0.0
    expected = np.where(before > 0, before, slope * before)
    np.testing.assert_allclose(activation(before), expected, rtol=1e-6)
    z = np.random.default_rng(1).normal(size=(4, D)).astype("float32")
    outputs = decoder(z).numpy()
    assert np.min(outputs) < 0 < np.max(outputs)
    hidden = [layer for layer in decoder.layers if isinstance(layer, keras.layers.ReLU)]
    assert all(layer.negative_slope == 0 for layer in hidden)
    assert len(hidden) == len(layers(decoder, keras.layers.Conv2DTranspose))


@pytest.mark.parametrize(
    ("side", "smallest", "filters"),
    [
        (4, 2, [64]),
        (12, 6, [64]),
        (14, 4, [64, 128]),
        (33, 5, [64, 128, 256]),
        pytest.param(128, 4, [64, 128, 256, 512, 512], marks=pytest.mark.slow),
    ],
)
def test_dcgan_halves_down_to_4x4(side, smallest, filters):
    encoder, decoder = architectures.dcgan((side, side + 3, 3), D)
    convolutions = layers(encoder, keras.layers.Conv2D)
    assert [layer.filters for layer in convolutions] == filters
    assert convolutions[-1].output.shape[1] == smallest
    transposed = layers(decoder, keras.layers.Conv2DTranspose)
    assert [layer.filters for layer in transposed] == [*reversed(filters[:-1]), 3]
    # All but the layers next to the image are normalized.
    for model, number in ((encoder, len(filters) - 1), (decoder, len(filters))):
        assert len(layers(model, keras.layers.BatchNormalization)) == number
    assert not layers(encoder, keras.layers.Dense)
    assert len(layers(decoder, keras.layers.Dense)) == 1


@pytest.mark.parametrize("network", CONVOLUTIONAL)
@pytest.mark.parametrize("data_shape", [(5, 6), (9, 8, 1)])
def test_the_middle_is_cropped(network, data_shape):
    """A pixel more at the far end where the excess is odd."""
    _, decoder = architectures.NETWORKS[network](data_shape, D)
    last, cropping, _ = decoder.layers[-3:]
    large = np.random.default_rng(0).normal(size=(2, *last.output.shape[1:])).astype("float32")
    starts = [(a - b) // 2 for a, b in zip(large.shape[1:3], data_shape[:2], strict=True)]
    rows, columns = (slice(s, s + n) for s, n in zip(starts, data_shape[:2], strict=True))
    np.testing.assert_array_equal(cropping(large), large[:, rows, columns])
    assert all(0 <= a - b < a for a, b in zip(large.shape[1:3], data_shape[:2], strict=True))


@pytest.mark.parametrize("network", CONVOLUTIONAL)
def test_bad_arguments(network):
    for shape in ((784,), (), (28, 28, 1, 1), (3, 28), (28, 2, 3), (28, 28, 0)):
        with pytest.raises(ValueError, match=r"needs images of shape .*4x4; got data_shape="):
            architectures.NETWORKS[network](shape, D)
    with pytest.raises(ValueError, match=r"Sizes must be positive.*got latent_dim=0"):
        architectures.NETWORKS[network]((8, 8), 0)


@pytest.mark.slow
@pytest.mark.parametrize("jit_compile", [False, True], ids=["graph", "XLA"])
@pytest.mark.parametrize("network", CONVOLUTIONAL)
def test_fit_lowers_the_loss(network, jit_compile):
    model = make(network, (8, 8))
    model.compile(keras.optimizers.Adam(2e-3), jit_compile=jit_compile)
    # The last batch is smaller.
    loss = model.fit(DIGITS[:500], epochs=6, batch_size=64, verbose=0).history["loss"]
    assert loss[-1] < loss[0] - 5
    assert np.all(np.isfinite(loss))


@pytest.mark.slow
@pytest.mark.parametrize("network", CONVOLUTIONAL)
def test_train_save_and_export(network, tmp_path):
    model = make(network, (9, 11))
    model.compile(keras.optimizers.Adam(2e-3), run_eagerly=True)
    x = np.random.default_rng(0).uniform(size=(40, 9, 11)).astype("float32")
    loss = model.fit(x, epochs=3, batch_size=16, verbose=0).history["loss"]
    assert loss[-1] < loss[0]
    model.save(tmp_path / "vae.keras")
    loaded = keras.saving.load_model(tmp_path / "vae.keras")
    np.testing.assert_array_equal(loaded.reconstruct(x), model.reconstruct(x))
    np.testing.assert_array_equal(loaded.generate(3), model.generate(3))
    model.export(tmp_path / "vae", verbose=False)
    served = tf.saved_model.load(tmp_path / "vae")
    np.testing.assert_allclose(served.serve(x), model.reconstruct(x), rtol=1e-5, atol=1e-6)


def test_batch_normalization_uses_the_batch_in_training_only():
    model = make("dcgan", (14, 14))
    model.compile("adam", run_eagerly=True)
    norms = [
        layer
        for part in (model.encoder, model.decoder)
        for layer in layers(part, keras.layers.BatchNormalization)
    ]
    x = np.random.default_rng(0).uniform(size=(40, 14, 14)).astype("float32")
    model.evaluate(x, verbose=0)
    model.log_likelihood(x, num_samples=2)
    assert all(np.all(norm.moving_mean == 0) for norm in norms)
    model.fit(x, batch_size=20, verbose=0)
    assert all(np.any(norm.moving_mean != 0) for norm in norms)
    # Without training, an example's posterior does not depend on the rest of the batch.
    alone, together = (model.encode(x[:n]).mean()[0] for n in (1, 40))
    np.testing.assert_allclose(alone, together, rtol=1e-4, atol=1e-6)
