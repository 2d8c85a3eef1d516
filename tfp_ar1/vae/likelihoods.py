"""Likelihoods p(x | z): how the decoder's output becomes a distribution over data."""

from __future__ import annotations

import warnings
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from tensorflow_probability import distributions as tfd
from tensorflow_probability.python.distributions.independent import _Independent

from tfp_ar1._checks import named
from tfp_ar1.vae import network_checks

__all__ = [
    "LIKELIHOODS",
    "Bernoulli",
    "Gaussian",
    "HeteroscedasticGaussian",
    "Likelihood",
    "get",
]


class Likelihood(keras.layers.Layer):
    """Base class: a layer, so that a likelihood can have weights. Computes in float32 or float64.

    Subclasses define `distribution`. They may override `log_prob` with a cheaper computation, and
    `check`, `allowed` and `needs`, which describes the accepted data in words. If the decoder
    outputs several numbers per value, `outputs_per_value` is how many; the last axis of its outputs
    is longer by this factor.
    """

    needs = "The data must be finite"
    outputs_per_value = 1

    def distribution(self, outputs: tf.Tensor) -> tfd.Distribution:
        """Returns the distribution, batch shape `[batch]`, for outputs `[batch, *data_shape]`."""
        raise NotImplementedError(f"`{type(self).__name__}` must define `distribution`.")

    def log_prob(self, x: tf.Tensor, outputs: tf.Tensor) -> tf.Tensor:
        """Returns `log p(x | z)` in nats per example, `[batch]`."""
        return self.distribution(outputs).log_prob(x)

    def log_prob_terms(self, x: tf.Tensor, outputs: tf.Tensor) -> tf.Tensor:
        """Returns `log p(x | z)` in nats per value, `[batch, *data_shape]`, for data with gaps.

        Raises:
          TypeError: if `distribution` does not return a `tfd.Independent`.
        """
        distribution = self.distribution(outputs)
        if not isinstance(distribution, _Independent):
            raise TypeError(
                f"Data with missing values need a likelihood of independent values: `distribution` "
                f"of `{type(self).__name__}` must return a `tfd.Independent`; it returned "
                f"{distribution!r}."
            )
        return distribution.distribution.log_prob(x)

    def check(self, x: np.ndarray) -> None:
        """Raises `ValueError` if this likelihood does not accept the data."""
        if not np.all(np.isfinite(x)):
            raise ValueError(f"The data have {np.sum(~np.isfinite(x))} values that are not finite.")

    def allowed(self, x: tf.Tensor) -> tf.Tensor:
        """Whether this likelihood accepts each value; the counterpart of `check` in a graph."""
        return tf.math.is_finite(x)

    def check_decoder(self, decoder: keras.Layer) -> None:
        """Warns if the decoder's outputs do not suit this likelihood."""

    def call(self, outputs: tf.Tensor) -> tf.Tensor:
        """Returns the mean of the distribution."""
        return self.distribution(outputs).mean()


@keras.saving.register_keras_serializable(package="tfp_ar1")
class Bernoulli(Likelihood):
    """Binary data, or intensities in [0, 1] taken as probabilities; decoder outputs are logits."""

    _advice = "Rescale them, for example by 1/255, or use the Gaussian likelihood"
    needs = f"A Bernoulli likelihood needs data in [0, 1]. {_advice}"

    def distribution(self, outputs: tf.Tensor) -> tfd.Distribution:
        """Returns independent Bernoulli distributions with these logits."""
        values = tfd.Bernoulli(logits=outputs, dtype=outputs.dtype)
        return tfd.Independent(values, len(outputs.shape) - 1)

    def log_prob(self, x: tf.Tensor, outputs: tf.Tensor) -> tf.Tensor:
        """Returns the negative cross-entropy, summed over each example."""
        axes = list(range(1, len(outputs.shape)))
        return tf.reduce_sum(self.log_prob_terms(x, outputs), axis=axes)

    def log_prob_terms(self, x: tf.Tensor, outputs: tf.Tensor) -> tf.Tensor:
        """Returns the negative cross-entropy of each value."""
        return -tf.nn.sigmoid_cross_entropy_with_logits(labels=x, logits=outputs)

    def check(self, x: np.ndarray) -> None:
        """Raises `ValueError` unless all values lie in [0, 1]."""
        super().check(x)
        outside = int(np.sum((x < 0) | (x > 1)))
        if outside:
            raise ValueError(
                f"A Bernoulli likelihood needs data in [0, 1]; {outside} values lie outside "
                f"(range {x.min():g} to {x.max():g}). {self._advice}."
            )

    def allowed(self, x: tf.Tensor) -> tf.Tensor:
        """Whether each value lies in [0, 1]."""
        return (x >= 0) & (x <= 1)

    def check_decoder(self, decoder: keras.Layer) -> None:
        """Warns if the decoder ends in probabilities."""
        name = network_checks.last_activation(decoder)
        if name in ("sigmoid", "hardsigmoid", "softmax"):
            warnings.warn(
                f"A Bernoulli likelihood takes the decoder's outputs as logits, but "
                f"{decoder.name!r} ends in {name}: probabilities would stay between 0.5 and 0.73. "
                "Leave the activation out.",
                stacklevel=2,
            )


@keras.saving.register_keras_serializable(package="tfp_ar1")
class Gaussian(Likelihood):
    """Real-valued data; decoder outputs are means, with one standard deviation for all values.

    Args:
      scale: the standard deviation, or `None` to learn it with the model (at least 1e-3).
      **kwargs: arguments of `keras.layers.Layer`.

    Raises:
      ValueError: if `scale` is not positive.
    """

    def __init__(self, scale: float | None = None, **kwargs):
        super().__init__(**kwargs)
        if scale is not None and not scale > 0:
            raise ValueError(f"`scale` must be positive, or `None` to learn it; got {scale}.")
        self.fixed_scale = scale

    def build(self, input_shape: Any = None) -> None:
        """Creates the weight for a learned scale."""
        if self.fixed_scale is None:
            self.raw_scale = self.add_weight(shape=(), initializer="zeros", name="raw_scale")

    def scale(self) -> tf.Tensor:
        """Returns the standard deviation, a scalar."""
        if self.fixed_scale is not None:
            return tf.constant(self.fixed_scale, self.variable_dtype)
        # Bounded below: exactly reproduced data would drive it to 0.
        return 1e-3 + tf.math.softplus(self.raw_scale.value)

    def distribution(self, outputs: tf.Tensor) -> tfd.Distribution:
        """Returns independent normals with these means."""
        scale = tf.cast(self.scale(), outputs.dtype)
        return tfd.Independent(tfd.Normal(outputs, scale), len(outputs.shape) - 1)

    def get_config(self) -> dict[str, Any]:
        """The arguments of the constructor."""
        return {**super().get_config(), "scale": self.fixed_scale}


@keras.saving.register_keras_serializable(package="tfp_ar1")
class HeteroscedasticGaussian(Likelihood):
    """Real-valued data; the decoder outputs a mean and a standard deviation for each value.

    The decoder outputs `[..., 2 * features]`: the means of all features, then a number x for each
    feature, whose standard deviation is `min_scale + softplus(x)`. For data whose noise varies:
    where it is large, errors of the mean cost less.

    Args:
      min_scale: the least standard deviation. Not 0: the likelihood of exactly reproduced data
        would be unbounded.
      **kwargs: arguments of `keras.layers.Layer`.

    Raises:
      ValueError: if `min_scale` is not positive.
    """

    outputs_per_value = 2

    def __init__(self, min_scale: float = 1e-3, **kwargs):
        super().__init__(**kwargs)
        if not min_scale > 0:
            raise ValueError(f"`min_scale` must be positive; got {min_scale}.")
        self.min_scale = min_scale

    def distribution(self, outputs: tf.Tensor) -> tfd.Distribution:
        """Returns independent normals."""
        loc, raw_scale = tf.split(outputs, 2, axis=-1)
        scale = self.min_scale + tf.math.softplus(raw_scale)
        return tfd.Independent(tfd.Normal(loc, scale), len(outputs.shape) - 1)

    def get_config(self) -> dict[str, Any]:
        """The arguments of the constructor."""
        return {**super().get_config(), "min_scale": self.min_scale}


LIKELIHOODS = {"bernoulli": Bernoulli, "gaussian": Gaussian}


def get(likelihood: str | Likelihood) -> Likelihood:
    """Returns the likelihood of that name; a likelihood is returned unchanged.

    Raises:
      ValueError: if the name is unknown; the message lists the names.
    """
    if isinstance(likelihood, Likelihood):
        return likelihood
    return named("likelihood", likelihood, LIKELIHOODS)()
