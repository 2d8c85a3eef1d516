"""tf_keras: AR(1) and its relatives as layers in the manner of `tfp.layers`; KL regularizers.

`tfp.layers` belongs to tf_keras (Keras 2), whose layers return distributions. This module is the
counterpart there of `tfp_ar1.layers`, which is for Keras 3; both share the one mapping from packed
parameters, `tfp_ar1.params`. It is imported on first use: `import tfp_ar1` alone does not load it.

Nothing here is pickled: models are saved and loaded in safe mode as `.keras`, as h5 and in
TensorFlow's format.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

import tensorflow as tf
import tensorflow_probability as tfp
import tf_keras
from tf_keras.src.engine import base_layer_utils

from tfp_ar1 import params as ar1_params
from tfp_ar1 import priors

tfd = tfp.distributions

__all__ = [
    "KLDivergenceAddLoss",
    "KLDivergenceRegularizer",
    "MultivariateNormalANTE1",
    "MultivariateNormalAR1",
    "MultivariateNormalARH1",
]

_CONVERSIONS = ("sample", "mean", "mode", "stddev", "variance")


class _TFKerasLayer:
    """For layers that belong in tf_keras models: says so in a Keras 3 model."""

    def __repr__(self) -> str:
        """Says which Keras it belongs to; errors of the other Keras print it."""
        return (
            f"<{type(self).__name__} name={self.name}, a tf_keras layer; in Keras 3 models use "
            f"tfp_ar1.layers, with `prior` for the KL>"
        )

    def __call__(self, inputs: Any, *args, **kwargs) -> Any:
        """Calls the layer, in tf_keras models only: Keras 3 would lose the KL."""
        keras = sys.modules.get("keras.src.backend.common.global_state")
        inside = keras is not None and keras.get_global_attribute("current_call_ctx") is not None
        if inside or type(inputs).__module__.startswith("keras."):
            raise TypeError(f"A layer was called in a model of the other Keras: {self!r}.")
        outer = base_layer_utils.call_context().layer
        if self.activity_regularizer and isinstance(outer, tf_keras.layers.TimeDistributed):
            raise ValueError(
                "In `TimeDistributed`, the KL would be averaged over the steps. Call the layer on "
                "all steps at once, `[batch, steps, size]`."
            )
        return super().__call__(inputs, *args, **kwargs)


class _MarkovChainLayer(_TFKerasLayer, tfp.layers.DistributionLambda):
    """What the layers share: they return the normal of a family of `params`.

    Subclasses name the `family`; the arguments are described in `MultivariateNormalAR1`.
    """

    family: str

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

    @classmethod
    def new(cls, params: Any, event_size: int, validate_args: bool = False) -> tfd.Distribution:
        """The distribution for packed parameters `[..., params_size(event_size)]`."""
        params = tf.convert_to_tensor(params)
        if params.dtype in (tf.float16, tf.bfloat16):
            # Under mixed precision: half a precision is not enough for a covariance.
            params = tf.cast(params, tf.float32)
        return ar1_params.new(params, event_size, validate_args, cls.family)

    @classmethod
    def params_size(cls, event_size: int) -> int:
        """The number of packed parameters for each example; see `tfp_ar1.params`."""
        return ar1_params.params_size(event_size, cls.family)

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
    ) -> _MarkovChainLayer:
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
class MultivariateNormalAR1(_MarkovChainLayer):
    """A layer that returns a normal with first-order autoregressive covariance.

    Used as `tfp.layers.MultivariateNormalTriL` is, but it needs only `event_size + 2` inputs,
    `[loc (d), log s, fisher_z]` (see `tfp_ar1.params`):

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

    family = "ar1"


@tf_keras.saving.register_keras_serializable(package="tfp_ar1")
class MultivariateNormalARH1(_MarkovChainLayer):
    """A layer that returns a normal with ARH(1) covariance: AR(1) with a scale per coordinate.

    As `MultivariateNormalAR1`, with the same arguments and errors, for `2 event_size + 1` inputs,
    `[loc (d), log s (d), fisher_z]`. It returns `tfp_ar1.MultivariateNormalARH1`.
    """

    family = "arh1"


@tf_keras.saving.register_keras_serializable(package="tfp_ar1")
class MultivariateNormalANTE1(_MarkovChainLayer):
    """A layer that returns a normal with ANTE(1) covariance: a scale per coordinate, ρ per step.

    As `MultivariateNormalAR1`, with the same arguments and errors, for `3 event_size - 1` inputs,
    `[loc (d), log s (d), fisher_z (d - 1)]`. It returns `tfp_ar1.MultivariateNormalANTE1`.
    """

    family = "ante1"


@tf_keras.saving.register_keras_serializable(package="tfp_ar1")
class KLDivergenceRegularizer(tf_keras.regularizers.Regularizer):
    """The KL divergence of a layer's distribution to a prior, as its `activity_regularizer`.

    In the losses of the model it counts exactly once, as `weight` times the mean over the batch.
    (`tfp.layers.KLDivergenceRegularizer` counts twice on a `DistributionLambda`: tf_keras calls the
    regularizer on the distribution and on its value, and TFP's answers to both; TFP issue 1215.)

    The KL of an example is summed over all batch axes but the first, as the ELBO has it, and as in
    TFP. Latents of several channels, each a path with a prior of its own, are a distribution of
    batch shape `[batch, channels]` and a prior of batch shape `[channels]`.

    The prior's parameters may be `tf.Variable`s: on a layer of this module they are trained and
    saved with the model. (tf_keras does not see them from any other layer; put a
    `KLDivergenceAddLoss` behind it.)

    ```python
    # A correlation for each of 3 channels of 50 steps, learned with the model.
    prior = tfp_ar1.MultivariateNormalAR1(tf.zeros([3, 50]), fisher_z=tf.Variable(tf.zeros(3)))
    regularizer = tfp_ar1.tfpl.KLDivergenceRegularizer(prior)
    ```

    Args:
      distribution_b: the prior: a normal of this package, or one in any of TFP's spellings.
      use_exact_kl: if `True`, `tfd.kl_divergence`; if `False`, a Monte Carlo estimate with the
        layer's own sample.
      weight: factor of the KL, at least 0.
      reinterpreted_batch_ndims: over how many of the last batch axes the KL is summed, as in
        `tfd.Independent`; it is averaged over those before. `None` for all but the first; 0 for
        the mean over all.

    Raises:
      TypeError: if `distribution_b` is not a distribution.
      ValueError: if `weight` is negative, the prior is of a class that cannot be saved (see
        `tfp_ar1.priors.to_config`), or `reinterpreted_batch_ndims` is not a non-negative integer;
        when called, if the distribution has fewer batch axes than that, or the prior has batch axes
        that are not those of one example.
    """

    def __init__(
        self,
        distribution_b: tfd.Distribution | Mapping[str, Any],
        use_exact_kl: bool = True,
        weight: float = 1.0,
        reinterpreted_batch_ndims: int | None = None,
    ):
        if not weight >= 0:
            raise ValueError(f"`weight` must not be negative; got {weight}.")
        if isinstance(distribution_b, Mapping):
            distribution_b = priors.from_config(distribution_b)
        if not isinstance(distribution_b, tfd.Distribution):
            raise TypeError(
                f"`distribution_b` must be a `tfd.Distribution`, whose `tf.Variable`s are learned; "
                f"got {distribution_b!r}."
            )
        priors.check_can_be_saved(distribution_b)
        self.distribution_b = distribution_b
        self.use_exact_kl = use_exact_kl
        self.weight = weight
        self.reinterpreted_batch_ndims = priors.checked_reinterpreted_batch_ndims(
            reinterpreted_batch_ndims
        )

    def mean_kl(self, distribution_a: tfd.Distribution) -> tf.Tensor:
        """`weight` times the KL divergence of `distribution_a`, averaged over the examples."""
        ndims = self.reinterpreted_batch_ndims
        priors.check_batch_axes(distribution_a, self.distribution_b, ndims)
        if distribution_a.dtype != self.distribution_b.dtype:
            raise ValueError(
                f"The prior is of dtype {self.distribution_b.dtype.name}, the distribution of "
                f"{distribution_a.dtype.name}. (NumPy arrays are float64 unless told otherwise.)"
            )
        if self.use_exact_kl:
            # What layers return is a wrapper, which also converts to a tensor.
            wrapped = getattr(distribution_a, "tensor_distribution", distribution_a)
            kl = priors.kl_divergence(wrapped, self.distribution_b)
        else:
            x = tf.convert_to_tensor(distribution_a)
            kl = distribution_a.log_prob(x) - self.distribution_b.log_prob(x)
        return tf.cast(self.weight, kl.dtype) * priors.mean_over_examples(kl, ndims)

    def __call__(self, output: Any) -> tf.Tensor:
        """The KL summed over axis 0, by whose size tf_keras divides; 0 for the value of a law."""
        if not isinstance(output, tfd.Distribution):
            # A value of unknown rank is what tf_keras traces to save in TensorFlow's format.
            if hasattr(output, "_tfp_distribution") or output.shape.rank is None:
                return tf.zeros([], self.distribution_b.dtype)
            raise TypeError(
                "`KLDivergenceRegularizer` is for tf_keras layers that return a distribution, such "
                "as those of `tfp_ar1.tfpl`; the Keras 3 layers of `tfp_ar1.layers` take a `prior`."
            )
        mean_kl = self.mean_kl(output)
        return mean_kl * tf.cast(tf.shape(tf.convert_to_tensor(output))[0], mean_kl.dtype)

    def get_config(self) -> dict[str, Any]:
        """The arguments of the constructor, the prior as a plain configuration."""
        return {
            "distribution_b": priors.to_config(self.distribution_b),
            "use_exact_kl": self.use_exact_kl,
            "weight": float(self.weight),
            "reinterpreted_batch_ndims": self.reinterpreted_batch_ndims,
        }


@tf_keras.saving.register_keras_serializable(package="tfp_ar1")
class KLDivergenceAddLoss(_TFKerasLayer, tf_keras.layers.Layer):
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
      reinterpreted_batch_ndims: as for `KLDivergenceRegularizer`.
      **kwargs: arguments of `tf_keras.layers.Layer`, such as `name`.

    Raises:
      ValueError: as for `KLDivergenceRegularizer`.
      TypeError: if called on anything but a distribution.
    """

    def __init__(
        self,
        distribution_b: tfd.Distribution | Mapping[str, Any],
        use_exact_kl: bool = True,
        weight: float = 1.0,
        reinterpreted_batch_ndims: int | None = None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self._regularizer = KLDivergenceRegularizer(
            distribution_b, use_exact_kl, weight, reinterpreted_batch_ndims
        )
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
