"""KL divergences to a prior, for the losses of tf_keras models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tensorflow as tf
import tf_keras
from tensorflow_probability import distributions as tfd
from tf_keras.src.engine import base_layer_utils

from tfp_ar1 import _keras_common, priors


@tf_keras.saving.register_keras_serializable(package="tfp_ar1")
class KLDivergenceRegularizer(tf_keras.regularizers.Regularizer):
    """The KL divergence of a layer's distribution to a prior, as its `activity_regularizer`.

    It adds to the model's losses exactly once, as `weight` times the mean over the batch.
    (`tfp.layers.KLDivergenceRegularizer` counts twice on a `DistributionLambda`: tf_keras calls the
    regularizer on the distribution and on its value, and TFP's adds the KL both times; TFP issue
    1215.) For latents of several channels, each with its own prior, use a distribution of batch
    shape `[batch, channels]` and a prior of batch shape `[channels]`.

    The prior's parameters may be `tf.Variable`s: on a layer of `tfp_ar1.tfpl` they are trained and
    saved with the model. (tf_keras does not find them on other layers; add a `KLDivergenceAddLoss`
    after such a layer instead.)

    ```python
    # A correlation for each of 3 channels of 50 steps, learned with the model.
    prior = tfp_ar1.MultivariateNormalAR1(tf.zeros([3, 50]), fisher_z=tf.Variable(tf.zeros(3)))
    regularizer = tfp_ar1.tfpl.KLDivergenceRegularizer(prior)
    ```

    Args:
      distribution_b: the prior: a normal distribution of this package or of TFP.
      use_exact_kl: if `True`, `tfd.kl_divergence`; if `False`, a Monte Carlo estimate with the
        layer's own sample.
      weight: factor of the KL, at least 0.
      reinterpreted_batch_ndims: number of last batch axes over which the KL is summed, as in
        `tfd.Independent`; it is averaged over the axes before them. `None` for all but the first;
        0 to average over all axes.

    Raises:
      TypeError: if `distribution_b` is not a distribution.
      ValueError: if another argument is invalid, or the prior is of a class that cannot be saved
        (see `tfp_ar1.priors.to_config`); when called, if the distribution has fewer batch axes than
        `reinterpreted_batch_ndims`, or the prior's batch shape does not fit one example.
    """

    def __init__(
        self,
        distribution_b: tfd.Distribution | Mapping[str, Any],
        use_exact_kl: bool = True,
        weight: float = 1.0,
        reinterpreted_batch_ndims: int | None = None,
    ):
        self.weight = _keras_common.checked_weight(weight, "weight")
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
        ndims = _keras_common.checked_reinterpreted_batch_ndims(reinterpreted_batch_ndims)
        self.reinterpreted_batch_ndims = ndims

    def mean_kl(self, distribution_a: tfd.Distribution) -> tf.Tensor:
        """Returns `weight` times the KL divergence, averaged over the examples."""
        ndims = self.reinterpreted_batch_ndims
        _keras_common.check_batch_axes(distribution_a, self.distribution_b, ndims)
        _keras_common.check_dtype(self.distribution_b, distribution_a.dtype)
        if self.use_exact_kl:
            # Layers return a wrapper that also converts to a tensor.
            wrapped = getattr(distribution_a, "tensor_distribution", distribution_a)
            kl = priors.kl_divergence(wrapped, self.distribution_b)
        else:
            x = tf.convert_to_tensor(distribution_a)
            kl = distribution_a.log_prob(x) - self.distribution_b.log_prob(x)
        return tf.cast(self.weight, kl.dtype) * _keras_common.mean_over_examples(kl, ndims)

    def __call__(self, output: Any) -> tf.Tensor:
        """Returns mean KL times batch size, since tf_keras divides by it; 0 for a layer's value."""
        if not isinstance(output, tfd.Distribution):
            # When saving in TensorFlow's format, tf_keras traces with a value of unknown rank.
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
class KLDivergenceAddLoss(_keras_common.TFKerasMixin, tf_keras.layers.Layer):
    """Adds the KL divergence from a distribution to a prior to the losses of the model.

    Like `tfp.layers.KLDivergenceAddLoss`, except that it averages over the batch instead of
    summing, and that the KL is exact by default instead of a Monte Carlo estimate. Put it after a
    layer of `tfp.layers` or `tfp_ar1.tfpl`; it returns the distribution unchanged:

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
        kl = (distribution_b, use_exact_kl, weight, reinterpreted_batch_ndims)
        self._regularizer = KLDivergenceRegularizer(*kl)
        self._prior_variables = list(self._regularizer.distribution_b.variables)

    def call(self, distribution_a: tfd.Distribution) -> tfd.Distribution:
        """Adds the loss, and returns `distribution_a`."""
        if isinstance(distribution_a, tfd.Distribution):
            self.add_loss(self._regularizer.mean_kl(distribution_a))
        # To save in TensorFlow's format, tf_keras traces each layer separately, on a tensor. That
        # trace is not used where this class is known, and could not contain the KL elsewhere.
        elif not base_layer_utils.call_context().saving:
            raise TypeError(
                f"`KLDivergenceAddLoss` must follow a layer that returns a distribution, such as "
                f"`tfpl.MultivariateNormalAR1`; got {distribution_a!r}."
            )
        return distribution_a

    def get_config(self) -> dict[str, Any]:
        """The arguments of the constructor, the prior as a plain configuration."""
        return {**super().get_config(), **self._regularizer.get_config()}
