"""The lag-one correlation ρ and what follows from it, without cancellation near |ρ| = 1."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow_probability.python.internal import dtype_util
from tensorflow_probability.python.internal import prefer_static as ps

# `tf.vectorized_map`, and so TFP's auto-batched joint distributions, drops custom gradients and
# differentiates the operations beneath. These therefore have gradients that are finite, and right
# to rounding; the custom ones are more accurate, or cheaper.


@tf.custom_gradient
def _tanh(u: tf.Tensor) -> tf.Tensor:
    # The gradient of tf.tanh is 1 - tanh(u)², which float32 rounds to 0 from |u| = 8 on.
    return tf.math.tanh(
        u
    ), lambda dy: dy * 4.0 * tf.math.sigmoid(2.0 * u) * tf.math.sigmoid(-2.0 * u)


@tf.custom_gradient
def _log_cosh(u: tf.Tensor) -> tf.Tensor:
    # TFP's own loses relative accuracy near 0, and its second derivative where tanh(u) rounds to 1.
    # Each branch gets a harmless number where it is not chosen, or its gradient could be NaN.
    is_small = tf.math.abs(u) < 0.5
    small = tf.where(is_small, u, tf.zeros_like(u))
    near_zero = -0.5 * tf.math.log1p(-tf.math.square(tf.math.tanh(small)))
    large = tf.where(is_small, tf.ones_like(u), tf.math.abs(u))
    away = large + tf.math.softplus(-2.0 * large) - np.log(2.0)
    return tf.where(is_small, near_zero, away), lambda dy: dy * _tanh(u)


class LagOneCorrelation:
    """Tensors that follow from ρ, or from its Fisher z-transform u = atanh ρ, computed on demand.

    Everything has the shape of the parameter that was given. With `fisher_z` all of it keeps full
    relative accuracy where ρ itself rounds to ±1, as logits do for probabilities. An instance
    reads its parameter once, when it is made; make one for each computation.

    Args:
      correlation: floating-point tensor, ρ in (-1, 1). Exactly one of `correlation` and `fisher_z`.
      fisher_z: floating-point tensor, u = atanh ρ, any finite value.
      per_step: whether the last axis of the parameter runs over the d - 1 steps of a path of d
        coordinates; else one ρ holds for all steps.

    Raises:
      ValueError: if both or none of `correlation` and `fisher_z` are given.
    """

    def __init__(
        self,
        correlation: tf.Tensor | None = None,
        fisher_z: tf.Tensor | None = None,
        per_step: bool = False,
    ):
        check_one_given(correlation, fisher_z)
        self.per_step = per_step
        self._rho = None if correlation is None else tf.convert_to_tensor(correlation)
        self._u = None if fisher_z is None else tf.convert_to_tensor(fisher_z)
        self.dtype = (self._u if self._rho is None else self._rho).dtype

    def cast(self, dtype: tf.DType) -> LagOneCorrelation:
        """The same correlation in another dtype, by the same parameter."""
        rho, u = (None if x is None else tf.cast(x, dtype) for x in (self._rho, self._u))
        return LagOneCorrelation(rho, u, self.per_step)

    def batch_shape(self) -> Any:
        """The shape of the parameter, without the axis of the steps."""
        shape = ps.shape(self._u if self._rho is None else self._rho)
        return shape[:-1] if self.per_step else shape

    def along_steps(self, x: tf.Tensor) -> tf.Tensor:
        """One of this object's tensors, with an axis of steps at its end: of size 1 if shared."""
        return x if self.per_step else x[..., tf.newaxis]

    @functools.cached_property
    def value(self) -> tf.Tensor:
        """The correlation ρ itself."""
        return _tanh(self._u) if self._rho is None else self._rho

    @functools.cached_property
    def sign(self) -> tf.Tensor:
        """The sign of ρ, where 0 counts as positive; -1 or 1, without gradient."""
        given = self._u if self._rho is None else self._rho
        return tf.where(given < 0, -tf.ones_like(given), tf.ones_like(given))

    @functools.cached_property
    def complement(self) -> tf.Tensor:
        """`sign - ρ`, in (-1, 1]: the distance to the nearer end, with its sign."""
        if self._rho is None:
            return self.sign * 2.0 * tf.math.sigmoid(-2.0 * self.sign * self._u)
        return self.sign - self._rho

    @functools.cached_property
    def log_innovation_variance(self) -> tf.Tensor:
        """`log(1 - ρ²)`: the log-variance of a step given the one before, at marginal scale 1."""
        if self._rho is None:
            return -2.0 * _log_cosh(self._u)
        # The product is accurate near ±1, where the square is not, and the other way round near 0.
        near_zero = tf.math.log1p(-tf.math.square(self._rho))
        near_one = tf.math.log(self._innovation_variance)
        return tf.where(tf.math.abs(self._rho) < 0.5, near_zero, near_one)

    @functools.cached_property
    def _innovation_variance(self) -> tf.Tensor:
        """`1 - ρ²`, where ρ is given."""
        return (1.0 - self._rho) * (1.0 + self._rho)

    @functools.cached_property
    def innovation_scale(self) -> tf.Tensor:
        """`√(1 - ρ²)`."""
        if self._rho is None:
            return tf.math.exp(-_log_cosh(self._u))
        return tf.math.sqrt(self._innovation_variance)

    @functools.cached_property
    def innovation_precision_scale(self) -> tf.Tensor:
        """`1 / √(1 - ρ²)`, at most the largest finite number, so that its product with 0 is 0."""
        if self._rho is None:
            largest = 0.999 * np.log(float(dtype_util.max(self.dtype)))
            return tf.math.exp(tf.math.minimum(_log_cosh(self._u), tf.cast(largest, self.dtype)))
        return tf.math.rsqrt(self._innovation_variance)

    @functools.cached_property
    def relative_complement(self) -> tf.Tensor:
        """`(sign - ρ) / √(1 - ρ²) = sign e^(-|u|)`; does not underflow before e^(-|u|) does."""
        if self._rho is None:
            return self.sign * tf.math.exp(-self.sign * self._u)
        return self.complement * self.innovation_precision_scale

    @functools.cached_property
    def log_abs(self) -> tf.Tensor:
        """`log |ρ|`; for ρ = 0, that of the smallest normal number, whose square is 0."""
        tiny = 4.0 / float(dtype_util.max(self.dtype))  # NumPy's finfo does not know bfloat16
        log_abs = tf.math.log(tf.math.maximum(tf.math.abs(self.value), tiny))
        if self._rho is None:
            distance = tf.math.abs(self.complement)
            near_one = tf.math.log1p(-tf.math.minimum(distance, 0.5))
            log_abs = tf.where(distance < 0.5, near_one, log_abs)
        return log_abs

    def decay(self, lag: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """`|ρ|^k` and `1 - ρ^(2k)`: the size of the correlation at lag k, and what it leaves.

        Args:
          lag: integer tensor of non-negative lags k, broadcast against ρ.

        Returns:
          Two tensors of the broadcast shape, each with full relative accuracy, also where |ρ|^k is
          nearly 1.
        """
        shape = ps.broadcast_shape(ps.shape(lag), ps.shape(self.sign))
        size = tf.broadcast_to(self.sign * self.value, shape)
        return _decay(size, self.log_abs, tf.cast(lag, self.dtype))


def _decay(
    size: tf.Tensor, log_size: tf.Tensor, exponent: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """`size^k` and `1 - size^(2k)`."""
    log_power = log_size * exponent
    power = tf.where(tf.equal(exponent, 1.0), size, tf.math.exp(log_power))
    # 1 - e^(2x) = -tanh(x) (1 + e^(2x)); several times as fast as expm1, and as accurate.
    remainder = tf.math.tanh(log_power) * (-1.0 - tf.math.square(power))

    # In terms of powers, not of the logarithm: right at ρ = 0 too, and accurate next to it.
    @tf.custom_gradient
    def with_gradient(size: tf.Tensor) -> tuple[tuple[tf.Tensor, tf.Tensor], Any]:
        def gradient(d_power: tf.Tensor, d_remainder: tf.Tensor) -> tf.Tensor:
            lower, _ = _decay(size, log_size, tf.maximum(exponent - 1.0, 0.0))
            lower_of_square, _ = _decay(size, log_size, tf.maximum(2.0 * exponent - 1.0, 0.0))
            return exponent * (d_power * lower - 2.0 * d_remainder * lower_of_square)

        return (tf.identity(power), tf.identity(remainder)), gradient

    return with_gradient(size)


def check_one_given(correlation: object, fisher_z: object) -> None:
    """Raises `ValueError` unless exactly one of the two parametrizations is given."""
    if (correlation is None) == (fisher_z is None):
        given = "neither" if correlation is None else "both"
        raise ValueError(
            f"Pass exactly one of `correlation` and `fisher_z` (= atanh of the correlation); "
            f"got {given}."
        )
