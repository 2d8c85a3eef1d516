"""A prior that is learned with the model, and checks of prior arguments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import keras
import numpy as np
import tensorflow as tf
from tensorflow_probability import distributions as tfd

from tfp_ar1 import _keras_common, priors
from tfp_ar1 import params as ar1_params
from tfp_ar1._checks import checked_count


@keras.saving.register_keras_serializable(package="tfp_ar1")
class MultivariateNormalAR1Prior(keras.layers.Layer):
    """A prior with first-order autoregressive covariance that is learned with the model.

    Pass it as `prior` to `RhoVAE` or to the layer `MultivariateNormalAR1`, which then own its
    weights; it takes no input. If the decoder is free to rotate and scale the latent space, most
    priors are equivalent; correlation matters where the decoder must respect the order of the
    latent coordinates.

    Args:
      event_size: number of coordinates d, at least 1.
      learn: which of `"loc"`, `"marginal_scale"` and `"correlation"` are trained.
      correlation: initial ρ, in (-1, 1); or one for each channel, such as `[0.5, 0.9, 0.99]`, for
        different initial time scales. With 0 the prior starts as N(0, I).
      channels: number of channels with separate parameters, for batch shape `[channels]`, as
        `SequenceVAE` needs; `None` for a single distribution of batch shape `[]`.
      **kwargs: arguments of `keras.layers.Layer`, such as `name` and `dtype`.

    Raises:
      ValueError: if an argument is invalid.
    """

    def __init__(
        self,
        event_size: int,
        learn: Sequence[str] = ("correlation",),
        correlation: float | Sequence[float] = 0.0,
        channels: int | None = None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.event_size = ar1_params.checked_event_size(event_size)
        self.channels = channels
        if channels is not None:
            wanted = "a positive integer, or `None`"
            self.channels = checked_count("channels", channels, 1, wanted)
        self.learn = [learn] if isinstance(learn, str) else list(learn)
        unknown = sorted(set(self.learn) - {"loc", "marginal_scale", "correlation"})
        if unknown:
            raise ValueError(
                f"`learn` may name 'loc', 'marginal_scale' and 'correlation'; got {unknown}."
            )
        at_start = np.asarray(correlation, np.float64)
        if at_start.shape not in ((), (self.channels,)):
            raise ValueError(
                f"`correlation` must be a number, or one for each channel "
                f"(channels={self.channels}); got {correlation}."
            )
        if not np.all(np.abs(at_start) < 1.0):
            raise ValueError(f"`correlation` must lie strictly in (-1, 1); got {correlation}.")
        self.correlation = at_start.tolist()  # a number, or a list of them

        def weight(name: str, size: int, value: Any, learned: str) -> Any:
            return self.add_weight(
                name=name,
                shape=(size,) if self.channels is None else (self.channels, size),
                initializer=keras.initializers.Constant(value),
                trainable=learned in self.learn,
                autocast=False,  # half precision is not enough for a covariance
            )

        self.loc = weight("loc", self.event_size, 0.0, "loc")
        self.log_s = weight("log_s", 1, 0.0, "marginal_scale")
        fisher_z = np.arctanh(at_start)[..., np.newaxis]
        self.fisher_z = weight("fisher_z", 1, fisher_z, "correlation")
        self.built = True

    def distribution(self) -> tfd.Distribution:
        """Returns the prior for the current weights, of batch shape `[]` or `[channels]`."""
        packed = keras.ops.concatenate([self.loc, self.log_s, self.fisher_z], axis=-1)
        return ar1_params.new(packed, self.event_size)

    def get_config(self) -> dict[str, Any]:
        """The arguments of the constructor."""
        return {
            **super().get_config(),
            "event_size": self.event_size,
            "learn": self.learn,
            "correlation": self.correlation,
            "channels": self.channels,
        }


Prior: TypeAlias = tfd.Distribution | keras.layers.Layer


def current_prior(prior: Prior) -> tfd.Distribution:
    """Returns the prior as a distribution; for a layer, with its current weights."""
    return prior.distribution() if isinstance(prior, keras.layers.Layer) else prior


def prior_to_config(prior: Prior) -> dict[str, Any]:
    """Returns the prior in a form that Keras can save and `checked_prior` accepts."""
    if isinstance(prior, keras.layers.Layer):
        return keras.saving.serialize_keras_object(prior)
    return priors.to_config(prior)


def checked_prior(
    prior: Prior | Mapping[str, Any] | None,
    event_size: int,
    dtype: tf.DType,
    batch_shape: Sequence[int] | None = (),
) -> Prior | None:
    """Checks a prior, given as such or as its configuration, and returns it.

    A `batch_shape` of `None` allows any batch shape.

    Raises:
      TypeError: if the prior is neither a distribution nor a layer with a method `distribution`.
      ValueError: if the prior is not over vectors of size `event_size`, has another batch shape or
        dtype, holds variables (Keras would not see them), or is of a class that cannot be saved.
    """
    if isinstance(prior, Mapping):
        is_layer = "class_name" in prior
        prior = (keras.saving.deserialize_keras_object if is_layer else priors.from_config)(prior)
    if prior is None:
        return None
    learned = isinstance(prior, keras.layers.Layer) and hasattr(prior, "distribution")
    if not isinstance(prior, tfd.Distribution) and not learned:
        raise TypeError(
            f"The prior must be a `tfd.Distribution`, a layer that learns one, such as "
            f"`MultivariateNormalAR1Prior`, or `None`; got {prior!r}."
        )
    distribution = current_prior(prior)
    batch_fits = tf.TensorShape(batch_shape).is_compatible_with(distribution.batch_shape)
    if distribution.event_shape != [event_size] or not batch_fits:
        one = f"of batch shape {tuple(batch_shape)}" if batch_shape else "one distribution"
        raise ValueError(
            f"The prior must be {one} over vectors of size {event_size}; got batch shape "
            f"{distribution.batch_shape} and event shape {distribution.event_shape}."
        )
    _keras_common.check_dtype(distribution, dtype)
    if distribution.variables:
        raise ValueError(
            f"The prior holds variables ({[v.name for v in distribution.variables]}), which Keras "
            f"would neither train nor save. Give it constants, or let a layer own its weights: "
            f"`tfp_ar1.layers.MultivariateNormalAR1Prior`."
        )
    if not learned:
        priors.check_can_be_saved(distribution)
    return prior
