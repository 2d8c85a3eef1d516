"""The networks of Healing MNIST on JAX: against what they are a faster form of."""

import os

import numpy as np
import pytest

os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
pytest.importorskip("optax")
try:
    from experiments.healing import model
except (AttributeError, ImportError) as error:
    pytest.skip(str(error), allow_module_level=True)

import jax
import jax.numpy as jnp

from experiments.healing import data
from experiments.healing.latents import METHODS


def pixels(num=2):
    rng = np.random.default_rng(0)
    white = rng.random((num, data.FRAMES, data.PIXELS)) < 0.2
    hidden = rng.random(white.shape) < 0.6
    return jnp.asarray(white * data.WHITE + hidden * data.HIDDEN, jnp.uint8)


def convolutions(parameters, white):
    x = white.reshape(-1, data.SIDE, data.SIDE, 1).astype(jnp.float32)
    for weight, bias in (parameters["pixels_in"], parameters["pixels_out"]):
        x = jax.lax.conv_general_dilated(
            x, weight, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        x = jax.nn.relu(x + bias)
    return x.reshape(white.shape)


def test_looking_up_neighbourhoods_is_two_convolutions():
    """Values and gradients, with biases that are not 0."""
    weights = model.initial(METHODS["vae"], 0).parameters
    keys = jax.random.split(jax.random.key(1), 2)
    parameters = {
        name: (
            weights[name][0],
            0.2 + 0.1 * jax.random.normal(key, weights[name][1].shape, "float32"),
        )
        for name, key in zip(("pixels_in", "pixels_out"), keys, strict=True)
    }
    white = pixels() == data.WHITE
    factor = jax.random.normal(jax.random.key(2), white.shape, "float32")

    def value(function):
        return jax.value_and_grad(lambda p: jnp.sum(function(p, white) * factor))(parameters)

    (ours, gradients), (theirs, expected) = value(model.preprocess), value(convolutions)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)
    for x, y in zip(jax.tree.leaves(gradients), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(x, y, atol=2e-5 * np.abs(y).max())


@pytest.mark.parametrize("name", ["vae", "gp_vae_cauchy", "ante1_ar1"])
def test_missing_pixels_are_not_seen(name):
    """They play no part in the loss, but for the VAE, which takes them for black."""
    method = METHODS[name]
    parameters = model.initial(method, 0).parameters
    x, key = pixels(), jax.random.key(3)
    flipped = jnp.where(x >= data.HIDDEN, x ^ data.WHITE, x)
    seen = jnp.where((x & data.WHITE) & (x < data.HIDDEN), x ^ data.WHITE, x)
    value, of_flipped, of_seen = (
        float(model.loss(parameters, method, 0.8, y, key)) for y in (x, flipped, seen)
    )
    assert np.isfinite(value)
    assert value == of_flipped
    assert abs(value - of_seen) > 1.0


def test_pixels_that_a_model_is_sure_of_and_wrong_about_have_finite_likelihoods():
    """By one draw and by the mean of 20, also where no probability other than 0 is a float32."""
    method = METHODS["diag_ar1"]
    parameters = model.initial(method, 0).parameters
    weight, bias = parameters["decoder_4"]
    parameters |= {"decoder_4": (0 * weight, bias - 200.0)}
    sums, _ = model.evaluate(parameters, pixels(), jax.random.key(4), method)
    expected = 200.0 * jnp.sum((pixels() & data.WHITE) & (pixels() >= data.HIDDEN))
    np.testing.assert_allclose(float(jnp.sum(sums["nll"])), expected, rtol=1e-5)
    np.testing.assert_allclose(float(jnp.sum(sums["nll_mixed"])), expected, rtol=1e-5)
