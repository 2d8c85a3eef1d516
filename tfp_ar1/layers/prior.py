"""A prior that is learned with the model, and what may be given as a prior."""

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

    To be given as `prior` to `RhoVAE` or to the layer `MultivariateNormalAR1`, whose weights it
    joins; it takes no input. A decoder that may rotate and scale its latent space makes most priors
    equal; where the latent coordinates have an order that it must respect, correlation matters.

    Args:
      event_size: number of coordinates d, at least 1.
      learn: which of `"loc"`, `"marginal_scale"` and `"correlation"` are trained.
      correlation: ρ at the start, in (-1, 1); or one for each channel, such as `[0.5, 0.9, 0.99]`,
        so that channels start with time scales of their own. At 0 the prior starts as N(0, I).
      channels: makes a distribution of batch shape `[channels]`, each with parameters of its own,
        as `SequenceVAE` needs it; `None` for a single distribution of batch shape `[]`.
      **kwargs: arguments of `keras.layers.Layer`, such as `name` and `dtype`.

    Raises:
      ValueError: if an argument is not what is described.
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
                f"`correlation` must be a number, or one for each of the channels, which are "
                f"{self.channels}; got {correlation}."
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
                autocast=False,  # half a precision is not enough for a covariance
            )

        self.loc = weight("loc", self.event_size, 0.0, "loc")
        self.log_s = weight("log_s", 1, 0.0, "marginal_scale")
        fisher_z = np.arctanh(at_start)[..., np.newaxis]
        self.fisher_z = weight("fisher_z", 1, fisher_z, "correlation")
        self.built = True

    def distribution(self) -> tfd.Distribution:
        """The prior for the present weights, of batch shape `[]` or `[channels]`."""
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
    """The prior as a distribution: itself, or what a layer that learns it makes it now."""
    return prior.distribution() if isinstance(prior, keras.layers.Layer) else prior


def prior_to_config(prior: Prior) -> dict[str, Any]:
    """The prior in a form that Keras can save, and `checked_prior` takes."""
    if isinstance(prior, keras.layers.Layer):
        return keras.saving.serialize_keras_object(prior)
    return priors.to_config(prior)


def checked_prior(
    prior: Prior | Mapping[str, Any] | None,
    event_size: int,
    dtype: tf.DType,
    batch_shape: Sequence[int] | None = (),
) -> Prior | None:
    """A prior as given or from its configuration, or an error if it does not fit.

    A `batch_shape` of `None` allows any.

    Raises:
      TypeError: if the prior is neither a distribution nor a layer with a method `distribution`.
      ValueError: if the prior is not over vectors of `event_size`, is of another batch shape or
        dtype, holds variables, which Keras would not see, or is of a class that cannot be saved.
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
