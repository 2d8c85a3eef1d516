"""The layer of `SequenceVAE` from the encoder's features to the posterior's parameters."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from tfp_ar1 import params as ar1_params
from tfp_ar1.families import PACKED
from tfp_ar1.vae import posteriors


def parameters_of(posterior: str) -> tuple[str, ...]:
    """Returns what each packed parameter of a family belongs to, in order; see `params.layout`.

    Raises:
      ValueError: if the name is unknown, or the family has no order of coordinates.
    """
    parameters = posteriors.get(posterior).parameters
    if parameters is None:
        every = dict.fromkeys([*PACKED, *posteriors.POSTERIORS])
        names = [name for name in every if posteriors.get(name).parameters]
        raise ValueError(f"A posterior over sequences must be one of {names}; got {posterior!r}.")
    return parameters


@keras.saving.register_keras_serializable(package="tfp_ar1")
class SequencePosteriorHead(keras.layers.Layer):
    """Maps the features of each timestep to the packed parameters of each channel's posterior.

    Parameters of a timestep come from the features of that timestep, through a dense layer shared
    by all timesteps. Parameters of a series, such as the variance and the correlation of an AR(1)
    posterior, come from the mean of the features over its valid timesteps. Initially the means are
    small and the covariance is I; sites have precision 1 and small means. A head with a single
    dense layer needs no class: see `tfp_ar1.params.from_time_major`.

    Args:
      posterior: name of the family.
      channels: number of latent channels.
      **kwargs: arguments of `keras.layers.Layer`.

    Raises:
      ValueError: if the name is unknown, or the family has no order of coordinates.
    """

    def __init__(self, posterior: str, channels: int, **kwargs):
        super().__init__(**kwargs)
        self.parameters = parameters_of(posterior)
        self.supports_masking = True  # the mask that a GRU passes on equals `valid`
        self.posterior, self.channels = posterior, channels
        self._of_series = self.parameters.count("member")
        self._of_steps = len(self.parameters) - self._of_series

        def dense(number: int, initializer: Any, name: str) -> keras.Layer:
            options = {"kernel_initializer": initializer, "dtype": self.dtype_policy, "name": name}
            return keras.layers.Dense(number * channels, **options)

        small = keras.initializers.VarianceScaling(0.01, mode="fan_avg", distribution="uniform")
        self.loc = dense(1, small, "loc")
        self.steps = dense(self._of_steps - 1, "zeros", "steps") if self._of_steps > 1 else None
        self.series = dense(self._of_series, "zeros", "series") if self._of_series else None

    def build(self, features_shape: tuple[int | None, ...]) -> None:
        """Creates the weights for features `[batch, num_timesteps, units]`."""
        for layer in (self.loc, self.steps, self.series):
            if layer is not None:
                layer.build((None, features_shape[-1]))
        self.built = True

    def call(self, features: tf.Tensor, valid: tf.Tensor) -> tf.Tensor:
        """Returns the packed parameters `[batch, channels, params_size]`.

        Args:
          features: `[batch, num_timesteps, units]`.
          valid: boolean `[batch, num_timesteps]`, false past the end of a series.
        """
        num_timesteps = features.shape[1]
        of_steps, of_series = [self.loc(features)], []
        if self.steps is not None:
            of_steps += tf.split(self.steps(features), self._of_steps - 1, axis=-1)
        of_steps = [tf.linalg.matrix_transpose(part) for part in of_steps]
        if self.series is not None:
            weights = tf.cast(valid, features.dtype)
            weights /= tf.maximum(tf.reduce_sum(weights, axis=-1, keepdims=True), 1)
            # Past the end of a series the features may be anything, NaN too.
            features = tf.where(valid[..., tf.newaxis], features, 0)
            mean = tf.einsum("bt,btu->bu", weights, features)
            of_series = tf.split(self.series(mean)[..., tf.newaxis], self._of_series, axis=1)
        parts = [(of_series if p == "member" else of_steps).pop(0) for p in self.parameters]
        size = posteriors.get(self.posterior).params_size(num_timesteps)
        packed = ar1_params.joined(parts, self.parameters)
        return tf.ensure_shape(packed, [None, self.channels, size])

    def get_config(self) -> dict[str, Any]:
        """The arguments of the constructor."""
        return {**super().get_config(), "posterior": self.posterior, "channels": self.channels}
