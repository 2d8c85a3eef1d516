"""tf_keras: the AR(1) normal as a layer in the manner of `tfp.layers`, and its KL regularizer.

`tfp.layers` belongs to tf_keras (Keras 2), whose layers return distributions. This module is the
counterpart there of `tfp_ar1.layers`, which is for Keras 3; both share the one mapping from packed
parameters, `tfp_ar1.params`. It is imported on first use: `import tfp_ar1` alone does not load it.

Nothing here is pickled: models are saved and loaded in safe mode as `.keras`, as h5 and in
TensorFlow's format.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import tensorflow as tf
import tensorflow_probability as tfp
import tf_keras
from tf_keras.src.engine import base_layer_utils

from tfp_ar1 import params as ar1_params
from tfp_ar1 import priors

tfd = tfp.distributions

__all__ = ["KLDivergenceAddLoss", "KLDivergenceRegularizer", "MultivariateNormalAR1"]

_CONVERSIONS = ("sample", "mean", "mode", "stddev", "variance")


@tf_keras.saving.register_keras_serializable(package="tfp_ar1")
class MultivariateNormalAR1(tfp.layers.DistributionLambda):
    """A layer that returns a normal with first-order autoregressive covariance.

    Used as `tfp.layers.MultivariateNormalTriL` is, of which it needs only `event_size + 2` inputs:

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
      convert_to_tensor_fn: what stands for the distribution where a tensor is needed:
        `tfd.Distribution.sample`, `mean`, `mode`, `stddev` or `variance`, or its name.
      validate_args: whether the distribution checks its parameters when the graph runs.
      **kwargs: arguments of `tf_keras.layers.Layer`, such as `activity_regularizer`.

    Raises:
      ValueError: if `event_size` is not a positive integer, or `convert_to_tensor_fn` is unknown.
    """

    def __init__(
        self,
        event_size: int,
        convert_to_tensor_fn: Callable[[tfd.Distribution], Any] | str = tfd.Distribution.sample,
        validate_args: bool = False,
        **kwargs,
    ):
        event_size = ar1_params.checked_event_size(event_size)
        name = getattr(convert_to_tensor_fn, "__name__", convert_to_tensor_fn)
        if name not in _CONVERSIONS:
            raise ValueError(
                f"`convert_to_tensor_fn` must be one of {list(_CONVERSIONS)}, or that method of "
                f"`tfd.Distribution`; got {convert_to_tensor_fn!r}."
            )
        self._event_size = event_size
        self._convert_to_tensor_name = name
        self._validate_args = validate_args
        super().__init__(
            lambda params: type(self).new(params, event_size, validate_args),
            convert_to_tensor_fn=getattr(tfd.Distribution, name),
            **kwargs,
        )
        # tf_keras finds variables that are attributes of a layer, not those of its regularizer.
        prior = getattr(self.activity_regularizer, "distribution_b", None)
        self._prior_variables = list(prior.variables) if prior is not None else []

    @staticmethod
    def new(params: Any, event_size: int, validate_args: bool = False) -> tfd.Distribution:
        """The distribution for packed parameters `[..., event_size + 2]`; see `tfp_ar1.params`."""
        params = tf.convert_to_tensor(params)
        if params.dtype in (tf.float16, tf.bfloat16):
            # Under mixed precision: half a precision is not enough for a covariance.
            params = tf.cast(params, tf.float32)
        return ar1_params.new(params, event_size, validate_args)

    @staticmethod
    def params_size(event_size: int) -> int:
        """The number of packed parameters, `event_size + 2`."""
        return ar1_params.params_size(event_size)

    def get_config(self) -> dict[str, Any]:
        """The arguments of the constructor; nothing is pickled."""
        return {
            **tf_keras.layers.Layer.get_config(self),
            "event_size": self._event_size,
            "convert_to_tensor_fn": self._convert_to_tensor_name,
            "validate_args": self._validate_args,
            "activity_regularizer": tf_keras.regularizers.serialize(self.activity_regularizer),
        }

    @classmethod
    def from_config(
        cls, config: Mapping[str, Any], custom_objects: Any = None
    ) -> MultivariateNormalAR1:
        """Makes the layer again from `get_config`."""
        config = dict(config)
        regularizer = config.pop("activity_regularizer", None)
        if isinstance(regularizer, Mapping):
            # By name for h5 files, which do not record where a class comes from.
            classes = {"KLDivergenceRegularizer": KLDivergenceRegularizer}
            regularizer = tf_keras.regularizers.deserialize(
                regularizer, custom_objects={**classes, **(custom_objects or {})}
            )
        return cls(**config, activity_regularizer=regularizer)


@tf_keras.saving.register_keras_serializable(package="tfp_ar1")
class KLDivergenceRegularizer(tf_keras.regularizers.Regularizer):
    """The KL divergence of a layer's distribution to a prior, as its `activity_regularizer`.

    In the losses of the model it counts exactly once, as `weight` times the mean over the batch.
    (`tfp.layers.KLDivergenceRegularizer` counts twice on a `DistributionLambda`: tf_keras calls the
    regularizer on the distribution and on its value, and TFP's answers to both; TFP issue 1215.)

    The prior's parameters may be `tf.Variable`s: on a `tfpl.MultivariateNormalAR1` layer they are
    trained and saved with the model. (tf_keras does not see them from any other layer; put a
    `KLDivergenceAddLoss` behind it.)

    Args:
      distribution_b: the prior: a `MultivariateNormalAR1`, or a normal in any of TFP's spellings.
      use_exact_kl: if `True`, `tfd.kl_divergence`; if `False`, a Monte Carlo estimate with the
        layer's own sample.
      weight: factor of the KL, at least 0.

    Raises:
      ValueError: if `weight` is negative.
    """

    def __init__(
        self,
        distribution_b: tfd.Distribution | Mapping[str, Any],
        use_exact_kl: bool = True,
        weight: float = 1.0,
    ):
        if not weight >= 0:
            raise ValueError(f"`weight` must not be negative; got {weight}.")
        if isinstance(distribution_b, Mapping):
            distribution_b = priors.from_config(distribution_b)
        self.distribution_b = distribution_b
        self.use_exact_kl = use_exact_kl
        self.weight = weight

    def mean_kl(self, distribution_a: tfd.Distribution) -> tf.Tensor:
        """`weight` times the KL divergence of `distribution_a`, averaged over its batch."""
        if self.use_exact_kl:
            # What layers return is a wrapper, which also converts to a tensor.
            wrapped = getattr(distribution_a, "tensor_distribution", distribution_a)
            kl = priors.kl_divergence(wrapped, self.distribution_b)
        else:
            x = tf.convert_to_tensor(distribution_a)
            kl = distribution_a.log_prob(x) - self.distribution_b.log_prob(x)
        return self.weight * tf.reduce_mean(kl)

    def __call__(self, output: Any) -> tf.Tensor:
        """The KL summed over axis 0, by whose size tf_keras divides; 0 for anything but a law."""
        if not isinstance(output, tfd.Distribution):
            return tf.zeros([], self.distribution_b.dtype)
        mean_kl = self.mean_kl(output)
        return mean_kl * tf.cast(tf.shape(tf.convert_to_tensor(output))[0], mean_kl.dtype)

    def get_config(self) -> dict[str, Any]:
        """The arguments of the constructor, the prior as a plain configuration."""
        return {
            "distribution_b": priors.to_config(self.distribution_b),
            "use_exact_kl": self.use_exact_kl,
            "weight": self.weight,
        }


@tf_keras.saving.register_keras_serializable(package="tfp_ar1")
class KLDivergenceAddLoss(tf_keras.layers.Layer):
    """Passes a distribution on, and adds its KL divergence to a prior to the model's losses.

    As `tfp.layers.KLDivergenceAddLoss`, which sums over the batch where this averages, and whose
    KL is by default a Monte Carlo estimate. It follows a layer of `tfp.layers` or of this module:

    ```python
    encoder = tf_keras.Sequential([
        tf_keras.layers.Dense(tfp_ar1.tfpl.MultivariateNormalAR1.params_size(8)),
        tfp_ar1.tfpl.MultivariateNormalAR1(8),
        tfp_ar1.tfpl.KLDivergenceAddLoss(prior),
    ])
    ```

    Args:
      distribution_b: the prior, as for `KLDivergenceRegularizer`; its variables are trained and
        saved with the model.
      use_exact_kl: as for `KLDivergenceRegularizer`.
      weight: factor of the KL, at least 0.
      **kwargs: arguments of `tf_keras.layers.Layer`, such as `name`.

    Raises:
      ValueError: if `weight` is negative.
      TypeError: if called on anything but a distribution.
    """

    def __init__(
        self,
        distribution_b: tfd.Distribution | Mapping[str, Any],
        use_exact_kl: bool = True,
        weight: float = 1.0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self._regularizer = KLDivergenceRegularizer(distribution_b, use_exact_kl, weight)
        self._prior_variables = list(self._regularizer.distribution_b.variables)

    def call(self, distribution_a: tfd.Distribution) -> tfd.Distribution:
        """Adds the loss, and returns `distribution_a`."""
        if isinstance(distribution_a, tfd.Distribution):
            self.add_loss(self._regularizer.mean_kl(distribution_a))
        # To save in TensorFlow's format, tf_keras traces each layer by itself, on a tensor. What
        # it traces is not used where this class is known, and could have no KL where it is not.
        elif not base_layer_utils.call_context().saving:
            raise TypeError(
                f"`KLDivergenceAddLoss` must follow a layer that returns a distribution, such as "
                f"`tfpl.MultivariateNormalAR1`; got {distribution_a!r}."
            )
        return distribution_a

    def get_config(self) -> dict[str, Any]:
        """The arguments of the constructor, the prior as a plain configuration."""
        return {**super().get_config(), **self._regularizer.get_config()}
