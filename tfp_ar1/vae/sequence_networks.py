"""Encoders and decoders for `SequenceVAE`."""

from __future__ import annotations

from collections.abc import Sequence

import keras

from tfp_ar1.vae.sequence_head import SequencePosteriorHead

__all__ = ["NETWORKS", "SequencePosteriorHead", "convolutional", "recurrent"]


def convolutional(
    data_shape: Sequence[int],
    channels: int,
    filters: Sequence[int] = (32, 32, 32, 32, 32, 32),
    kernel_size: int = 3,
    hidden_units: Sequence[int] = (32,),
) -> tuple[keras.Model, keras.Model]:
    """Dilated convolutions over time, and a decoder that sees one timestep at a time.

    The dilation doubles with each convolution (van den Oord et al., arXiv:1609.03499), so with `n`
    of them a feature depends on the data of `(2**n - 1) * (kernel_size - 1) / 2` timesteps on
    either side: 63 by default. Convolutions that keep the number of filters are residual (He et
    al., arXiv:1512.03385).

    Args:
      data_shape: `(num_timesteps, features)` of one series.
      channels: number of latent channels.
      filters: number of filters of each convolution.
      kernel_size: number of timesteps that a filter covers.
      hidden_units: width of each hidden layer of the decoder.

    Returns:
      The encoder and the decoder for `SequenceVAE`.

    Raises:
      ValueError: if a size is not positive, `data_shape` has not length 2, or `filters` is empty.
    """
    _check_sizes(data_shape, channels=[channels], filters=filters, kernel_size=[kernel_size])
    inputs, valid = _encoder_inputs(data_shape)
    # Zeros past the end of each series, as padding "same" has past the end of the longest.
    mask = keras.ops.expand_dims(keras.ops.cast(valid, inputs.dtype), -1)
    features = inputs
    for layer, number in enumerate(filters):
        convolution = keras.layers.Conv1D(
            number, kernel_size, padding="same", dilation_rate=2**layer, activation="relu"
        )
        new = keras.layers.Multiply()([convolution(features), mask])
        same = layer > 0 and new.shape == features.shape
        features = keras.layers.Add()([features, new]) if same else new
    encoder = keras.Model([inputs, valid], features, name="encoder")
    return encoder, _step_decoder(data_shape, channels, hidden_units)


def recurrent(
    data_shape: Sequence[int], channels: int, units: int = 32, hidden_units: Sequence[int] = (32,)
) -> tuple[keras.Model, keras.Model]:
    """A bidirectional GRU, and a decoder that sees one timestep at a time.

    Each feature depends on the whole series. On a CPU, training takes about six times as long as
    with `convolutional`, or twice as long under `compile(jit_compile=True)`.

    Args:
      data_shape: `(num_timesteps, features)` of one series.
      channels: number of latent channels.
      units: width of the GRU in each direction.
      hidden_units: width of each hidden layer of the decoder.

    Returns:
      The encoder and the decoder for `SequenceVAE`.

    Raises:
      ValueError: if a size is not positive, or `data_shape` has not length 2.
    """
    _check_sizes(data_shape, channels=[channels], units=[units])
    inputs, valid = _encoder_inputs(data_shape)
    gru = keras.layers.Bidirectional(keras.layers.GRU(units, return_sequences=True))
    encoder = keras.Model([inputs, valid], gru(inputs, mask=valid), name="encoder")
    return encoder, _step_decoder(data_shape, channels, hidden_units)


NETWORKS = {"convolutional": convolutional, "recurrent": recurrent}


def _encoder_inputs(data_shape: Sequence[int]) -> tuple[keras.KerasTensor, keras.KerasTensor]:
    """Inputs for the data, joined with indicators of what was observed, and the valid timesteps."""
    num_timesteps, features = data_shape
    inputs = keras.Input((num_timesteps, 2 * features), name="inputs")
    return inputs, keras.Input((num_timesteps,), dtype="bool", name="valid")


def _step_decoder(
    data_shape: Sequence[int], channels: int, hidden_units: Sequence[int]
) -> keras.Model:
    """A multilayer perceptron from the latents of one timestep to its data."""
    _check_sizes(data_shape, hidden_units=hidden_units)
    return keras.Sequential(
        [
            keras.Input((channels,)),
            *(keras.layers.Dense(units, activation="relu") for units in hidden_units),
            keras.layers.Dense(data_shape[-1]),
        ],
        name="decoder",
    )


def _check_sizes(data_shape: Sequence[int], **sizes: Sequence[int]) -> None:
    if len(data_shape) != 2 or min(data_shape) < 1:
        raise ValueError(
            f"`data_shape` must be (steps, features), both positive; got {tuple(data_shape)}."
        )
    for name, values in sizes.items():
        if name == "filters" and not values:
            raise ValueError("`filters` must name at least one convolution; got none.")
        if any(value < 1 for value in values):
            raise ValueError(f"`{name}` must be positive; got {values}.")
