"""Encoders and decoders for `RhoVAE`."""

from __future__ import annotations

import math
from collections.abc import Sequence

import keras

__all__ = ["mlp"]


def mlp(
    data_shape: Sequence[int], latent_dim: int, hidden_units: Sequence[int] = (400,)
) -> tuple[keras.Model, keras.Model]:
    """The paper's multilayer perceptron; 784-400-d-400-784 for MNIST.

    Args:
      data_shape: shape of one observation, such as `(28, 28)`.
      latent_dim: size d of the latent vectors.
      hidden_units: width of each hidden layer of the encoder; the decoder has them reversed.

    Returns:
      The encoder `[batch, *data_shape]` to `[batch, hidden_units[-1]]` (`RhoVAE` adds the layer
      that makes the posterior's parameters), and the decoder `[batch, latent_dim]` to
      `[batch, *data_shape]`, linear at the end.

    Raises:
      ValueError: if a size is not positive, or there is no hidden layer.
    """
    data_shape, hidden_units = tuple(data_shape), tuple(hidden_units)
    if not hidden_units or min(*data_shape, latent_dim, *hidden_units) < 1:
        raise ValueError(
            f"Sizes must be positive, with at least one hidden layer; got data_shape={data_shape}, "
            f"latent_dim={latent_dim}, hidden_units={hidden_units}."
        )
    encoder = keras.Sequential(
        [
            keras.Input(data_shape),
            keras.layers.Flatten(),
            *(keras.layers.Dense(units, activation="relu") for units in hidden_units),
        ],
        name="encoder",
    )
    decoder = keras.Sequential(
        [
            keras.Input((latent_dim,)),
            *(keras.layers.Dense(units, activation="relu") for units in reversed(hidden_units)),
            keras.layers.Dense(math.prod(data_shape)),
            keras.layers.Reshape(data_shape),
        ],
        name="decoder",
    )
    return encoder, decoder
