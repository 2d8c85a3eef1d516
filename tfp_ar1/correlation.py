"""The lag-one correlation ρ and functions of it, without cancellation near |ρ| = 1."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import tensorflow as tf
from tensorflow_probability.python.internal import dtype_util
from tensorflow_probability.python.internal import prefer_static as ps

from tfp_ar1._backend import elementwise_gradient, expm1

# The gradient function of a `tf.custom_gradient` may be differentiated in another graph, where the
# tensors that it closes over are out of scope unless they are inputs of plain operations; and when
# saved with a model, it loses the custom gradients inside it. So throughout the package, gradient
# functions consist of plain operations, whose own derivatives are right.
#
# `tf.vectorized_map`, and with it TFP's auto-batched joint distributions, drops custom gradients
# and differentiates the operations underneath. So their gradients must be finite, and right up to
# rounding; the custom ones are more accurate, or cheaper.


def with_derivatives_of(other: tf.Tensor, value: tf.Tensor) -> tf.Tensor:
    """Returns `value` with the derivatives of `other`, to any order."""
    return tf.stop_gradient(value) + (other - tf.stop_gradient(other))


def _tanh(u: tf.Tensor, signed_one_minus_abs: tf.Tensor) -> tf.Tensor:
    # The gradient of tf.tanh is 1 - tanh(u)², which rounds to 0 in float32 from |u| = 8 on.
    return tf.stop_gradient(tf.math.tanh(u)) + (
        tf.stop_gradient(signed_one_minus_abs) - signed_one_minus_abs
    )


@elementwise_gradient
def _log_cosh(u: tf.Tensor) -> tf.Tensor:
    # TFP's function loses relative accuracy near 0, and so does its second derivative where tanh(u)
    # rounds to 1. Beyond the bound, which keeps sinh from overflowing, the value is |u| - log 2 up
    # to rounding.
    bound = 2.5 * dtype_util.size(u.dtype)
    near = tf.clip_by_value(u, -bound, bound)
    value = 0.5 * tf.math.log1p(tf.math.square(tf.math.sinh(near))) + tf.math.abs(u - near)

    def gradient(dy: tf.Tensor) -> tf.Tensor:
        # tanh u, in a form whose derivatives stay accurate where 1 - tanh² rounds to 0.
        factor = tf.where(u < 0.0, tf.constant(2.0, u.dtype), tf.constant(-2.0, u.dtype))
        t = expm1(factor * u)
        return dy * (0.5 * factor * t / (2.0 + t))

    return value, gradient


class LagOneCorrelation:
    """Functions of ρ, or of its Fisher z-transform u = atanh ρ, computed on demand.

    All tensors have the shape of the given parameter. With `fisher_z`, all keep full relative
    accuracy where ρ itself rounds to ±1, as logits do for probabilities. An instance reads its
    parameter once, in the constructor; make a new one for each computation.

    Args:
      correlation: floating-point tensor, ρ in (-1, 1). Exactly one of `correlation` and `fisher_z`.
      fisher_z: floating-point tensor, u = atanh ρ, any finite value.
      per_step: whether the last axis of the parameter runs over the d - 1 steps of a path of d
        coordinates; otherwise all steps share one ρ.

    Raises:
      ValueError: if both or neither of `correlation` and `fisher_z` are given.
    """

    def __init__(
        self,
        correlation: tf.Tensor | None = None,
        fisher_z: tf.Tensor | None = None,
        per_step: bool = False,
    ):
        check_one_given(correlation, fisher_z)
        self.per_step = per_step
        self._rho: Any = None if correlation is None else tf.convert_to_tensor(correlation)
        self._u: Any = None if fisher_z is None else tf.convert_to_tensor(fisher_z)
        self.dtype = self._given.dtype

    @property
    def _given(self) -> Any:
        """The parameter that was given."""
        return self._u if self._rho is None else self._rho

    def cast(self, dtype: tf.DType) -> LagOneCorrelation:
        """Returns the same correlation in another dtype, with the same parametrization."""
        return self.map(lambda x: tf.cast(x, dtype))

    def map(self, function: Callable[[tf.Tensor], tf.Tensor]) -> LagOneCorrelation:
        """Applies a function that does not change values; keeps the parametrization."""
        rho, u = (None if x is None else function(x) for x in (self._rho, self._u))
        return LagOneCorrelation(rho, u, self.per_step)

    def batch_shape(self) -> Any:
        """Returns the shape of the parameter without the axis of the steps."""
        shape = ps.shape(self._given)
        return shape[:-1] if self.per_step else shape

    def along_steps(self, x: tf.Tensor) -> tf.Tensor:
        """Adds a last axis of steps, of size 1, to one of this object's tensors if ρ is shared."""
        return x if self.per_step else tf.expand_dims(x, -1)

    def reversed(self) -> LagOneCorrelation:
        """Returns the correlations of the steps in reverse order."""
        if not self.per_step:
            return self
        rho, u = (None if x is None else x[..., ::-1] for x in (self._rho, self._u))
        return LagOneCorrelation(rho, u, per_step=True)

    @functools.cached_property
    def value(self) -> tf.Tensor:
        """The correlation ρ itself."""
        return _tanh(self._u, self.signed_one_minus_abs) if self._rho is None else self._rho

    @functools.cached_property
    def sign(self) -> tf.Tensor:
        """The sign of ρ, where 0 counts as positive; -1 or 1, without gradient."""
        given = self._given
        return tf.where(given < 0, -tf.ones_like(given), tf.ones_like(given))

    @functools.cached_property
    def signed_one_minus_abs(self) -> tf.Tensor:
        """`sign - ρ`, in (-1, 1]: the distance to the nearer end, with its sign."""
        if self._rho is None:
            return self.sign * 2.0 * tf.math.sigmoid(-2.0 * self.sign * self._u)
        return self.sign - self._rho

    @functools.cached_property
    def _log_cosh(self) -> tf.Tensor:
        """`log cosh u = -½ log(1 - ρ²)`, where u is given."""
        return _log_cosh(self._u)

    @functools.cached_property
    def log1m_rho2(self) -> tf.Tensor:
        """`log(1 - ρ²)`: the log-variance of a step given the one before, at marginal scale 1."""
        if self._rho is None:
            return -2.0 * self._log_cosh
        # The product is accurate near ±1, where the square is not; near 0 it is the reverse.
        near_zero = tf.math.log1p(-tf.math.square(self._rho))
        near_one = tf.math.log(self._innovation_variance)
        return tf.where(tf.math.abs(self._rho) < 0.5, near_zero, near_one)

    @functools.cached_property
    def _innovation_variance(self) -> tf.Tensor:
        """`1 - ρ²`, where ρ is given."""
        return (1.0 - self._rho) * (1.0 + self._rho)

    @functools.cached_property
    def unit_innovation_scale(self) -> tf.Tensor:
        """`√(1 - ρ²)`."""
        if self._rho is None:
            return tf.math.exp(-self._log_cosh)
        return tf.math.sqrt(self._innovation_variance)

    @functools.cached_property
    def inverse_unit_innovation_scale(self) -> tf.Tensor:
        """`1 / √(1 - ρ²)`, at most the largest finite number, so that 0 times it is 0."""
        if self._rho is None:
            largest = 0.999 * math.log(float(dtype_util.max(self.dtype)))
            return tf.math.exp(tf.math.minimum(self._log_cosh, tf.cast(largest, self.dtype)))
        return tf.math.rsqrt(self._innovation_variance)

    @functools.cached_property
    def signed_exp_neg_abs_z(self) -> tf.Tensor:
        """`(sign - ρ) / √(1 - ρ²) = sign e^(-|u|)`; underflows only where e^(-|u|) does."""
        if self._rho is None:
            return self.sign * tf.math.exp(-self.sign * self._u)
        return self.signed_one_minus_abs * self.inverse_unit_innovation_scale

    @functools.cached_property
    def log_abs(self) -> tf.Tensor:
        """`log |ρ|`; for ρ = 0, the log of the smallest normal number, whose square is 0."""
        tiny = 4.0 / float(dtype_util.max(self.dtype))  # NumPy's finfo does not know bfloat16
        log_abs = tf.math.log(tf.math.maximum(tf.math.abs(self.value), tiny))
        if self._rho is None:
            distance = tf.math.abs(self.signed_one_minus_abs)
            near_one = tf.math.log1p(-tf.math.minimum(distance, 0.5))
            log_abs = tf.where(distance < 0.5, near_one, log_abs)
        return log_abs

    def decay(self, lag: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns `|ρ|^k` and `1 - ρ^(2k)`: correlation and remaining variance at lag k.

        Args:
          lag: integer tensor of positive lags k, broadcast against ρ.

        Returns:
          Two tensors of the broadcast shape, each with full relative accuracy, even where |ρ|^k is
          nearly 1.
        """
        exponent = tf.cast(lag, self.dtype)
        size = self.sign * self.value
        log_power = self.log_abs * exponent
        # Via the logarithm, there would be no derivatives where the power underflows.
        by_power = tf.math.pow(tf.math.minimum(size, 0.1), exponent)
        power = tf.where(size < 0.1, by_power, tf.math.exp(log_power))
        # 1 - e^(2x) = -tanh(x) (1 + e^(2x)); several times as fast as expm1, and as accurate.
        square = tf.math.square(power)
        remainder = tf.math.tanh(log_power) * (-1.0 - square)
        return power, with_derivatives_of(-square, remainder)


def correlation_of_times(times: tf.Tensor, length_scale: tf.Tensor) -> LagOneCorrelation:
    """Returns the correlations of an Ornstein–Uhlenbeck process: `exp(-(τ_t - τ_(t-1)) / ℓ)`.

    Args:
      times: floating-point tensor `[..., d]`, non-decreasing along the last axis. Between
        equal times 1 - ρ is not 0, but negligible (4e-18 in float32).
      length_scale: positive tensor `[...]`, ℓ.
    """
    steps = times[..., 1:] - times[..., :-1]
    length_scale = length_scale[..., tf.newaxis]
    shape = ps.broadcast_shape(ps.shape(steps), ps.shape(length_scale))
    fisher_z = _fisher_z(tf.broadcast_to(steps, shape), tf.broadcast_to(length_scale, shape))
    return LagOneCorrelation(fisher_z=fisher_z, per_step=True)


# Steps of this many length scales have correlation 0 in every floating-point type.
_FAR = 1e4
# The `fisher_z` of a step between equal times; up to this value all gradients are finite.
_OF_EQUAL_TIMES = {tf.float16: 5.0, tf.float64: 60.0}


@elementwise_gradient
def _fisher_z(steps: tf.Tensor, length_scale: tf.Tensor) -> tuple[tf.Tensor, Any]:
    """Computes `atanh(e^-x)` for x = steps / length_scale, two tensors of the same shape."""
    # Where ρ = e^-x rounds to 0 anyway, the quotient, or its derivative, may overflow.
    far = steps > _FAR * tf.math.abs(length_scale)
    length_scale = tf.where(far, tf.ones_like(length_scale), length_scale)
    x = tf.where(far, tf.constant(_FAR, steps.dtype), steps / length_scale)
    equal = tf.equal(steps, 0.0)
    least = 2.0 * math.exp(-2.0 * _OF_EQUAL_TIMES.get(steps.dtype, 20.0))
    x = tf.where(equal, tf.constant(least, steps.dtype), x)
    rho, complement = tf.math.exp(-x), -expm1(-x)

    # Via the derivative with respect to log x, at most 1/2; that with respect to x may overflow.
    def gradient(dy: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        slope = dy * (x / complement) * (rho / (1.0 + rho))
        slope = tf.where(equal, tf.zeros_like(slope), slope)
        return -slope / tf.where(equal, tf.ones_like(steps), steps), slope / length_scale

    return 0.5 * tf.math.log1p(2.0 * rho / complement), gradient


def compare(p: LagOneCorrelation, q: LagOneCorrelation) -> tuple[tf.Tensor, tf.Tensor]:
    """Computes `log((1 - p²) / (1 - q²))` and `(p - q) / √(1 - q²)`, even where p ≈ q.

    With D = atanh p - atanh q and e = exp(D) - 1,

    ```none
    √(1 - q²) / √(1 - p²) = cosh(atanh p) / cosh(atanh q) = 1 + ½ e (e + q (2 + e)) / (1 + e)
    (p - q) / √(1 - q²) = √(1 - p²) sinh D,    sinh D = ½ e (2 + e) / (1 + e)
    ```

    Returns:
      Two tensors of the broadcast shape `[..., 1 or d - 1]`, with an axis of steps at the end.
    """

    def both(name: str) -> tuple[tf.Tensor, tf.Tensor]:
        return tuple(rho.along_steps(getattr(rho, name)) for rho in (p, q))

    scale, _ = both("unit_innovation_scale")
    signs, distances = (tf.math.subtract(*both(name)) for name in ("sign", "signed_one_minus_abs"))
    _, inverse_scale = both("inverse_unit_innovation_scale")
    far_log_ratio = tf.math.subtract(*both("log1m_rho2"))
    far_difference = (signs - distances) * inverse_scale

    # Clipped so that it and its derivatives are finite where it is not used.
    difference = tf.clip_by_value(_fisher_z_difference(p, q, both), -1.0, 1.0)
    e, (_, q_value) = expm1(difference), both("value")
    half = 0.5 * e / (1.0 + e)
    near_log_ratio = -2.0 * tf.math.log1p(half * (e + q_value * (2.0 + e)))
    # The derivatives of this form in p and q would be differences of large numbers for ρ near 0.
    near_log_ratio = with_derivatives_of(far_log_ratio, near_log_ratio)
    is_near = tf.math.abs(difference) < 1.0
    return (
        tf.where(is_near, near_log_ratio, far_log_ratio),
        tf.where(is_near, scale * half * (2.0 + e), far_difference),
    )


def _fisher_z_difference(p: LagOneCorrelation, q: LagOneCorrelation, both: Any) -> tf.Tensor:
    """Computes `atanh p - atanh q`; values beyond ±1 may be clipped."""
    if p._rho is None and q._rho is None:
        return tf.math.subtract(*both("_u"))
    signs, distances = both("sign"), both("signed_one_minus_abs")
    if p._rho is None or q._rho is None:
        difference = tf.math.subtract(*signs) - tf.math.subtract(*distances)
    else:
        difference = tf.math.subtract(*both("value"))
    # 1 - p q from 1 - |p| and 1 - |q|
    sign = tf.math.multiply(*signs)
    of_p, of_q = (tf.math.abs(x) for x in distances)
    remainder = (1.0 - sign) + sign * (of_p + of_q - of_p * of_q)
    return tf.math.atanh(tf.clip_by_value(difference / remainder, -0.8, 0.8))


def check_one_given(correlation: object, fisher_z: object) -> None:
    """Raises `ValueError` unless exactly one of the two parametrizations is given."""
    if (correlation is None) == (fisher_z is None):
        given = "neither" if correlation is None else "both"
        raise ValueError(
            f"Pass exactly one of `correlation` and `fisher_z` (= atanh of the correlation); "
            f"got {given}."
        )
