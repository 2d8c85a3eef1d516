"""The recurrence `y_t = ρ y_{t-1} + x_t` in O(d), its inverse, and their exact gradients.

With S the shift by one coordinate and K = diag(1, √(1-ρ²), √(1-ρ²), …), `recurrence` is
multiplication by `(I - ρ S)⁻¹` and `whiten` multiplication by `K⁻¹ (I - ρ S)`; `reverse=True` takes
the transposed matrices. Both work along the last axis, for one ρ per batch member.

How `recurrence` is evaluated is decided in `_recurrence_value` alone; the gradient does not depend
on it, because the gradient of the recurrence is the same recurrence run backwards:

    x̄ = (I - ρ S)⁻ᵀ ȳ,    ρ̄ = Σ_t x̄_t y_{t-1}

so it costs about one more forward pass, to any order; nothing of the forward pass is kept but y.
"""

from __future__ import annotations

import math

import tensorflow as tf
from tensorflow_probability.python.internal import prefer_static as ps

from tfp_ar1.correlation import LagOneCorrelation

# Measured on two CPU cores, (batch x d), microseconds for doubling / blocks: 128 x 64: 610 / 1250,
# 128 x 256: 960 / 1700, 64 x 4096: 5600 / 2100, 1 x 10⁶: 21000 / 3200.
_LARGEST_SIZE_FOR_DOUBLING = 512
_BLOCK_SIZE = 32


def recurrence(x: tf.Tensor, rho: LagOneCorrelation, reverse: bool = False) -> tf.Tensor:
    """Solves `y_t = ρ y_{t-1} + x_t` with `y_0 = x_0`, for t along the last axis.

    Args:
      x: floating-point tensor of shape `[..., d]`.
      rho: correlation of shape `[...]`, broadcast against `x.shape[:-1]`.
      reverse: if `True`, solves the transposed system, `y_t = ρ y_{t+1} + x_t`.

    Returns:
      y: tensor of the broadcast shape `[..., d]`, differentiable to any order in `x` and ρ.
    """
    x = _broadcast_to_batch(x, rho)
    coefficient = tf.broadcast_to(rho.value, ps.shape(x)[:-1])
    return _recurrence(x, coefficient, tf.stop_gradient(rho.sign), rho.log_abs, reverse)


def whiten(x: tf.Tensor, rho: LagOneCorrelation, reverse: bool = False) -> tf.Tensor:
    """The innovations of a path at marginal scale 1: `(x_t - ρ x_{t-1}) / √(1-ρ²)`, and `x_0`.

    Evaluated as `(x_t - sign x_{t-1}) / √(1-ρ²) + sign e^(-|u|) x_{t-1}`, with u = atanh ρ: where
    neighbours are nearly equal and ρ is nearly ±1, the first difference is exact in floating point
    and nothing cancels.

    Args:
      x: floating-point tensor of shape `[..., d]`.
      rho: correlation of shape `[...]`, broadcast against `x.shape[:-1]`.
      reverse: if `True`, the transposed matrix: `(x_t - ρ x_{t+1}) / √(1-ρ²)` with `x_d = 0`, but
        `x_0 - ρ x_1 / √(1-ρ²)` for t = 0.

    Returns:
      y: tensor of the broadcast shape `[..., d]`.
    """
    x = _broadcast_to_batch(x, rho)
    sign, inverse_scale, remainder = (
        t[..., tf.newaxis]
        for t in (rho.sign, rho.innovation_precision_scale, rho.relative_complement)
    )
    if reverse:
        later = tf.concat([x[..., 1:], tf.zeros_like(x[..., :1])], axis=-1)
        y = (x - sign * later) * inverse_scale + remainder * later
        first = x[..., :1] - rho.value[..., tf.newaxis] * inverse_scale * later[..., :1]
        return tf.concat([first, y[..., 1:]], axis=-1)
    earlier, later = x[..., :-1], x[..., 1:]
    y = (later - sign * earlier) * inverse_scale + remainder * earlier
    return tf.concat([x[..., :1], y], axis=-1)


def _broadcast_to_batch(x: tf.Tensor, rho: LagOneCorrelation) -> tf.Tensor:
    shape, batch_shape = ps.shape(x), ps.shape(rho.sign)
    full_shape = ps.concat([ps.broadcast_shape(shape[:-1], batch_shape), shape[-1:]], axis=0)
    static = tf.get_static_value(full_shape)
    if static is not None and x.shape.is_fully_defined() and list(static) == list(x.shape):
        return x
    return tf.broadcast_to(x, full_shape)


def _recurrence(
    x: tf.Tensor,
    coefficient: tf.Tensor,
    sign: tf.Tensor,
    log_abs: tf.Tensor,
    reverse: bool,
) -> tf.Tensor:
    """The recurrence with its gradient.

    `coefficient` has the batch shape of `x` and carries the gradient. `sign` and `log_abs` are the
    same ρ, not broadcast and without gradient: powers of ρ are taken from them, so that ρ^k is
    right for large k where ρ is within a rounding error of 1.
    """
    y = _recurrence_value(tf.stop_gradient(x), sign, log_abs, reverse)

    # Derivatives of any order pass through this function alone, never through the scheme that
    # evaluated y; and the tape keeps no intermediate of that scheme.
    @tf.custom_gradient
    def with_gradient(y: tf.Tensor, x: tf.Tensor, coefficient: tf.Tensor) -> tf.Tensor:
        def gradient(dy: tf.Tensor) -> tuple[None, tf.Tensor, tf.Tensor]:
            dx = _recurrence(dy, coefficient, sign, log_abs, not reverse)
            y_ = with_gradient(tf.stop_gradient(y), x, coefficient)
            products = dx[..., :-1] * y_[..., 1:] if reverse else dx[..., 1:] * y_[..., :-1]
            return None, dx, tf.reduce_sum(products, axis=-1)

        return tf.identity(y), gradient

    return with_gradient(y, x, coefficient)


def _recurrence_value(
    x: tf.Tensor, sign: tf.Tensor, log_abs: tf.Tensor, reverse: bool
) -> tf.Tensor:
    """Chooses the scheme by the size of the last axis; values only, no gradient."""
    size = tf.compat.dimension_value(x.shape[-1])
    if size is None:
        return _doubling_dynamic(x, sign, log_abs, reverse)
    if size <= _LARGEST_SIZE_FOR_DOUBLING:
        return _doubling(x, size, sign, log_abs, reverse)
    return _blocks(x, size, sign, log_abs, reverse)


def _power(sign: tf.Tensor, log_abs: tf.Tensor, exponent: int) -> tf.Tensor:
    """ρ^exponent for a positive exponent."""
    power = tf.math.exp(exponent * log_abs)
    return sign * power if exponent % 2 else power


def _doubling(
    x: tf.Tensor, size: int, sign: tf.Tensor, log_abs: tf.Tensor, reverse: bool
) -> tf.Tensor:
    """`y ← y + ρ^k shift(y, k)` for k = 1, 2, 4, …: log2(d) passes over memory."""
    shift = 1
    while shift < size:
        power = _power(sign, log_abs, shift)[..., tf.newaxis]
        if reverse:
            x = tf.concat([x[..., :-shift] + power * x[..., shift:], x[..., -shift:]], axis=-1)
        else:
            x = tf.concat([x[..., :shift], x[..., shift:] + power * x[..., :-shift]], axis=-1)
        shift *= 2
    return x


def _doubling_dynamic(
    x: tf.Tensor, sign: tf.Tensor, log_abs: tf.Tensor, reverse: bool
) -> tf.Tensor:
    """Doubling for a size that is known only when the graph runs."""
    size = tf.shape(x)[-1]
    positions = tf.range(size)

    def step(shift: tf.Tensor, y: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        power = tf.math.exp(tf.cast(shift, x.dtype) * log_abs)
        power = tf.where(tf.equal(shift, 1), sign * power, power)[..., tf.newaxis]
        source = positions + shift if reverse else positions - shift
        inside = tf.logical_and(source >= 0, source < size)
        # A gather, because XLA needs every shape in the loop to stay the same.
        shifted = tf.gather(y, tf.clip_by_value(source, 0, size - 1), axis=-1)
        return 2 * shift, y + tf.where(inside, power * shifted, tf.zeros_like(y))

    _, y = tf.while_loop(lambda shift, _: shift < size, step, (tf.constant(1), x))
    return y


def _blocks(
    x: tf.Tensor, size: int, sign: tf.Tensor, log_abs: tf.Tensor, reverse: bool
) -> tf.Tensor:
    """Blocks: one Toeplitz product inside each, then the recurrence over what each carries on."""
    m = _BLOCK_SIZE
    num_blocks = math.ceil(size / m)
    padding = num_blocks * m - size
    shape = ps.shape(x)
    if padding:
        # Zeros at the end reach no other coordinate, in either direction.
        x = tf.concat([x, tf.zeros(ps.concat([shape[:-1], [padding]], 0), x.dtype)], axis=-1)
    x = tf.reshape(x, ps.concat([shape[:-1], [num_blocks, m]], axis=0))

    lags = tf.range(m)[:, tf.newaxis] - tf.range(m)
    log_abs_matrix, sign_matrix = (t[..., tf.newaxis, tf.newaxis] for t in (log_abs, sign))
    powers = tf.math.exp(tf.cast(lags, x.dtype) * log_abs_matrix)
    powers = tf.where(lags % 2 == 0, powers, sign_matrix * powers)
    # The diagonal apart, since 0 · log 0 is not a number.
    toeplitz = tf.where(lags > 0, powers, tf.cast(lags == 0, x.dtype))
    y = tf.linalg.matmul(x, toeplitz, transpose_b=not reverse)

    carried = _recurrence_value(y[..., 0 if reverse else -1], sign**m, m * log_abs, reverse)
    none = tf.zeros_like(carried[..., :1])
    if reverse:
        carried = tf.concat([carried[..., 1:], none], axis=-1)
    else:
        carried = tf.concat([none, carried[..., :-1]], axis=-1)
    distance = tf.range(m, 0, -1) if reverse else tf.range(1, m + 1)
    decay = tf.math.exp(tf.cast(distance, x.dtype) * log_abs[..., tf.newaxis])
    decay = tf.where(distance % 2 == 0, decay, sign[..., tf.newaxis] * decay)
    y += carried[..., tf.newaxis] * decay[..., tf.newaxis, :]

    y = tf.reshape(y, ps.concat([shape[:-1], [num_blocks * m]], axis=0))
    return y[..., :size] if padding else y
