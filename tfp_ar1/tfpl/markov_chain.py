"""tf_keras layers that return the members of the family, one for each packed layout."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import tensorflow as tf
import tensorflow_probability as tfp
import tf_keras
from tensorflow_probability import distributions as tfd
from tf_keras.src.engine import base_layer_utils

from tfp_ar1 import _keras_common
from tfp_ar1 import params as ar1_params
from tfp_ar1.tfpl.kl import KLDivergenceRegularizer

_CONVERSIONS = ("sample", "mean", "mode", "stddev", "variance")


class MarkovChainLayer(_keras_common.TFKerasMixin, tfp.layers.DistributionLambda):
    """Base class of the layers; each sets `family`.

    Used like `tfp.layers.MultivariateNormalTriL`: it takes packed parameters along the last axis,
    `params_size(event_size)` numbers (see `tfp_ar1.params`), and returns the distribution.

    ```python
    encoder = tf_keras.Sequential([
        tf_keras.layers.Dense(64, activation="relu"),
        tf_keras.layers.Dense(tfp_ar1.tfpl.MultivariateNormalAR1.params_size(8)),
        tfp_ar1.tfpl.MultivariateNormalAR1(
            8, activity_regularizer=tfp_ar1.tfpl.KLDivergenceRegularizer(prior)),
    ])
    ```

    Args:
      event_size: number of coordinates d, at least 1.
      convert_to_tensor_fn: converts the distribution where a tensor is needed:
        `tfd.Distribution.sample`, `mean`, `mode`, `stddev` or `variance`, or its name.
      validate_args: whether the distribution checks its parameters when the graph runs.
      scale_map: how real numbers become standard deviations, `"exp"` or `"softplus"`; see
        `tfp_ar1.params.new`.
      **kwargs: arguments of `tf_keras.layers.Layer`, such as `activity_regularizer`.

    Raises:
      ValueError: if `event_size` is not a positive integer, or `convert_to_tensor_fn` or the scale
        map is unknown.
    """

    family: str

    def __init__(
        self,
        event_size: int,
        convert_to_tensor_fn: Callable[[tfd.Distribution], Any] | str = tfd.Distribution.sample,
        validate_args: bool = False,
        scale_map: str = "exp",
        **kwargs,
    ):
        event_size = ar1_params.checked_event_size(event_size)
        name = getattr(convert_to_tensor_fn, "__name__", convert_to_tensor_fn)
        if name not in _CONVERSIONS:
            raise ValueError(
                f"`convert_to_tensor_fn` must be one of {list(_CONVERSIONS)}, or that method of "
                f"`tfd.Distribution`; got {convert_to_tensor_fn!r}."
            )
        self._event_size, self._validate_args = event_size, validate_args
        self._convert_to_tensor_name = name
        self._scale_map = ar1_params.checked_scale_map(scale_map)
        super().__init__(
            lambda params: type(self).new(params, event_size, validate_args, scale_map),
            convert_to_tensor_fn=getattr(tfd.Distribution, name),
            **kwargs,
        )
        # tf_keras tracks a layer's attributes, but not those of its regularizer.
        prior = getattr(self.activity_regularizer, "distribution_b", None)
        self._prior_variables = list(prior.variables) if prior is not None else []

    def __call__(self, *args, **kwargs) -> Any:
        """Calls the layer; in `TimeDistributed` only without a KL."""
        outer = base_layer_utils.call_context().layer
        if self.activity_regularizer and isinstance(outer, tf_keras.layers.TimeDistributed):
            raise ValueError(
                "In `TimeDistributed`, the KL would be averaged over the steps. Call the layer on "
                "all steps at once, `[batch, steps, size]`."
            )
        return super().__call__(*args, **kwargs)

    @classmethod
    def new(
        cls, params: Any, event_size: int, validate_args: bool = False, scale_map: str = "exp"
    ) -> tfd.Distribution:
        """Returns the distribution for packed parameters `[..., params_size(event_size)]`."""
        params = tf.convert_to_tensor(params)
        if params.dtype in (tf.float16, tf.bfloat16):
            # Under mixed precision: half precision is not enough for a covariance.
            params = tf.cast(params, tf.float32)
        return ar1_params.new(params, event_size, validate_args, cls.family, scale_map)

    @classmethod
    def params_size(cls, event_size: int) -> int:
        """Returns the number of packed parameters per example; see `tfp_ar1.params`."""
        return ar1_params.params_size(event_size, cls.family)

    def get_config(self) -> dict[str, Any]:
        """The arguments of the constructor; nothing is pickled."""
        return {
            **tf_keras.layers.Layer.get_config(self),
            "event_size": self._event_size,
            "convert_to_tensor_fn": self._convert_to_tensor_name,
            "validate_args": self._validate_args,
            "scale_map": self._scale_map,
            "activity_regularizer": tf_keras.regularizers.serialize(self.activity_regularizer),
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any], custom_objects: Any = None) -> MarkovChainLayer:
        """Recreates the layer from `get_config`."""
        config = dict(config)
        regularizer = config.pop("activity_regularizer", None)
        if isinstance(regularizer, Mapping):
            # Needed for h5 files, which record only the name of a class.
            classes = {"KLDivergenceRegularizer": KLDivergenceRegularizer}
            regularizer = tf_keras.regularizers.deserialize(
                regularizer, custom_objects={**classes, **(custom_objects or {})}
            )
        return cls(**config, activity_regularizer=regularizer)


@functools.cache
def layer_class(family: str) -> type[MarkovChainLayer]:
    """Returns a member's layer class, registered so that tf_keras can load it by name."""
    cls = _keras_common.member_layer(MarkovChainLayer, family, "tfp_ar1.tfpl")
    return tf_keras.saving.register_keras_serializable(package="tfp_ar1")(cls)
