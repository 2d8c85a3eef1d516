"""Encoders and decoders for `SequenceVAE`, and the layer between features and posterior."""

from __future__ import annotations

from collections.abc import Sequence

import keras
import tensorflow as tf

from tfp_ar1.vae import posteriors

__all__ = ["NETWORKS", "SequencePosteriorHead", "convolutional", "recurrent"]

# What the packed parameters of each family consist of (see `posteriors`): one number for each step,
# one for each pair of neighbouring steps, or one for the whole series. The mean comes first.
_PARAMETERS = {
    "ar1": ("step", "series", "series"),
    "arh1": ("step", "step", "series"),
    "ante1": ("step", "step", "pair"),
    "diag": ("step", "step"),
    "isotropic": ("step", "series"),
}


def convolutional(
    data_shape: Sequence[int],
    channels: int,
    filters: Sequence[int] = (32, 32, 32, 32, 32, 32),
    kernel_size: int = 3,
    hidden_units: Sequence[int] = (32,),
) -> tuple[keras.Model, keras.Model]:
    """Dilated convolutions over time, and a decoder that sees one step at a time.

    Each convolution sees twice as far as the one before (van den Oord et al., arXiv:1609.03499), so
    that with `n` of them a feature depends on the data of `(2**n - 1) * (kernel_size - 1) / 2`
    steps on either side: 63 by default. Where the number of filters stays the same, a convolution
    adds to its input (He et al., arXiv:1512.03385).

    Args:
      data_shape: `(steps, features)` of one series.
      channels: number of latent channels.
      filters: number of filters of each convolution.
      kernel_size: number of steps that a filter has.
      hidden_units: width of each hidden layer of the decoder.

    Returns:
      The encoder and the decoder, as `SequenceVAE` takes them.

    Raises:
      ValueError: if a size is not positive, `data_shape` is not of length 2, or there is no filter.
    """
    _check_sizes(data_shape, channels=[channels], filters=filters, kernel_size=[kernel_size])
    inputs, valid = _encoder_inputs(data_shape)
    # Behind the end of a series there is what "same" puts behind the end of the longest: zeros.
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
    data_shape: Sequence[int],
    channels: int,
    units: int = 32,
    hidden_units: Sequence[int] = (32,),
) -> tuple[keras.Model, keras.Model]:
    """A bidirectional GRU, and a decoder that sees one step at a time.

    A feature depends on the whole series. On a CPU training takes about six times as long as with
    `convolutional`, or twice as long under `compile(jit_compile=True)`.

    Args:
      data_shape: `(steps, features)` of one series.
      channels: number of latent channels.
      units: width of the GRU in each direction.
      hidden_units: width of each hidden layer of the decoder.

    Returns:
      The encoder and the decoder, as `SequenceVAE` takes them.

    Raises:
      ValueError: if a size is not positive, or `data_shape` is not of length 2.
    """
    _check_sizes(data_shape, channels=[channels], units=[units])
    inputs, valid = _encoder_inputs(data_shape)
    gru = keras.layers.Bidirectional(keras.layers.GRU(units, return_sequences=True))
    encoder = keras.Model([inputs, valid], gru(inputs, mask=valid), name="encoder")
    return encoder, _step_decoder(data_shape, channels, hidden_units)


NETWORKS = {"convolutional": convolutional, "recurrent": recurrent}


@keras.saving.register_keras_serializable(package="tfp_ar1")
class SequencePosteriorHead(keras.layers.Layer):
    """From the features of each step to the packed parameters of each channel's posterior.

    What belongs to a step is computed from the features of that step, by one dense layer for all
    steps; what belongs to a series, such as the variance and the correlation of an AR(1) posterior,
    from the mean of the features over its valid steps. At first the means are small and the
    covariance is I.

    Args:
      posterior: name of the family.
      channels: number of latent channels.
      **kwargs: arguments of `keras.layers.Layer`.

    Raises:
      ValueError: if the family is not one that can be made step by step.
    """

    def __init__(self, posterior: str, channels: int, **kwargs):
        super().__init__(**kwargs)
        if posterior not in _PARAMETERS:
            raise ValueError(
                f"A posterior over sequences must be one of {list(_PARAMETERS)}; got {posterior!r}."
            )
        self.supports_masking = True  # a GRU passes its mask on; `valid` says the same
        self.posterior, self.channels = posterior, channels
        self._of_series = _PARAMETERS[posterior].count("series")
        self._of_steps = len(_PARAMETERS[posterior]) - self._of_series

        def dense(number: int, initializer: str | keras.Initializer, name: str) -> keras.Layer:
            return keras.layers.Dense(
                number * channels,
                kernel_initializer=initializer,
                dtype=self.dtype_policy,
                name=name,
            )

        small = keras.initializers.VarianceScaling(0.01, mode="fan_avg", distribution="uniform")
        self.loc = dense(1, small, "loc")
        self.steps = dense(self._of_steps - 1, "zeros", "steps") if self._of_steps > 1 else None
        self.series = dense(self._of_series, "zeros", "series") if self._of_series else None

    def build(self, features_shape: tuple[int | None, ...]) -> None:
        """Makes the weights for features `[batch, steps, units]`."""
        for layer in (self.loc, self.steps, self.series):
            if layer is not None:
                layer.build((None, features_shape[-1]))
        self.built = True

    def call(self, features: tf.Tensor, valid: tf.Tensor) -> tf.Tensor:
        """The packed parameters `[batch, channels, params_size]`.

        Args:
          features: `[batch, steps, units]`.
          valid: boolean `[batch, steps]`, false behind the end of a series.
        """
        size = features.shape[1]
        of_steps = [self.loc(features)]
        if self.steps is not None:
            of_steps += tf.split(self.steps(features), self._of_steps - 1, axis=-1)
        of_steps = [tf.linalg.matrix_transpose(part) for part in of_steps]
        of_series = []
        if self.series is not None:
            weights = tf.cast(valid, features.dtype)
            weights /= tf.maximum(tf.reduce_sum(weights, axis=-1, keepdims=True), 1)
            # Where there is no series, the features may be anything.
            features = tf.where(valid[..., tf.newaxis], features, 0)
            mean = tf.einsum("bt,btu->bu", weights, features)
            of_series = tf.split(self.series(mean)[..., tf.newaxis], self._of_series, axis=1)

        parts = []
        for kind in _PARAMETERS[self.posterior]:
            part = (of_series if kind == "series" else of_steps).pop(0)
            # That of a pair belongs to the later one of its two steps.
            parts.append(part[..., 1:] if kind == "pair" else part)
        packed = tf.concat(parts, axis=-1)
        return tf.ensure_shape(
            packed,
            [None, self.channels, posteriors.get(self.posterior).params_size(size)],
        )

    def get_config(self) -> dict:
        """The arguments of the constructor."""
        return {**super().get_config(), "posterior": self.posterior, "channels": self.channels}


def _encoder_inputs(data_shape: Sequence[int]) -> tuple[keras.KerasTensor, keras.KerasTensor]:
    """Data beside what says which of them were observed; and which steps there are."""
    steps, features = data_shape
    inputs = keras.Input((steps, 2 * features), name="inputs")
    return inputs, keras.Input((steps,), dtype="bool", name="valid")


def _step_decoder(
    data_shape: Sequence[int], channels: int, hidden_units: Sequence[int]
) -> keras.Model:
    """A multilayer perceptron from the latent vector of one step to the data of that step."""
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
