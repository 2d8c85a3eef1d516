"""The recurrence `y_t = ρ y_{t-1} + x_t` in O(d), its inverse, and their exact gradients.

With S the shift by one coordinate and K = diag(1, √(1-ρ²), √(1-ρ²), …), `recurrence` multiplies by
`(I - ρ S)⁻¹` and `whiten` by `K⁻¹ (I - ρ S) / σ`; `reverse=True` uses the transposed matrices.
`unwhiten` is the inverse of `whiten`. All functions work along the last axis, for one ρ per batch
member, or for one ρ_t per step t - 1 → t if `rho.per_step`; then ρ S stands for the matrix with
ρ_1, …, ρ_(d-1) below its diagonal.

Only `_scan_schemes` decides how `recurrence` is evaluated; the gradient does not depend on it,
because the gradient of the recurrence is the same recurrence run backwards:

    x̄ = (I - ρ S)⁻ᵀ ȳ,    ρ̄ = Σ_t x̄_t y_{t-1},    ρ̄_t = x̄_t y_{t-1}

so it costs about one more forward pass. Higher derivatives are those of the operations that compute
x̄ and y. Where a transformation drops the custom gradient, as `tf.vectorized_map` does, these
operations are differentiated from the start, which is also right, to any order.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf
from tensorflow_probability.python.internal import dtype_util, tensorshape_util
from tensorflow_probability.python.internal import prefer_static as ps

from tfp_ar1._backend import cheaper_gradient
from tfp_ar1._scan_schemes import (
    Coefficients,
    ScanScheme,
    broadcast_to_batch,
    matmul,
    pad,
    scaled_steps,
    scheme_of,
    shifts_below,
    step_scheme,
)
from tfp_ar1.correlation import LagOneCorrelation

__all__ = [
    "matmul",
    "pad",
    "product_of_steps",
    "recurrence",
    "scaled",
    "segmented_recurrence",
    "squared_norm_of_whitened",
    "step_recurrence",
    "sum_of_squares",
    "unwhiten",
    "whiten",
]


def recurrence(x: tf.Tensor, rho: LagOneCorrelation, reverse: bool = False) -> tf.Tensor:
    """Solves `y_t = ρ y_{t-1} + x_t` with `y_0 = x_0`, for t along the last axis.

    Args:
      x: floating-point tensor of shape `[..., d]`.
      rho: correlation of shape `[...]` (or `[..., d - 1]`, per step), broadcast against
        `x.shape[:-1]`.
      reverse: if `True`, solves the transposed system, `y_t = ρ y_{t+1} + x_t`.

    Returns:
      y: tensor of the broadcast shape `[..., d]`, differentiable to any order in `x` and ρ.
    """
    x = broadcast_to_batch(x, rho.batch_shape())
    return _recurrence(x, rho.along_steps(rho.value), scheme_of(rho, _size(x)), reverse)


def segmented_recurrence(
    x: tf.Tensor, linked: tf.Tensor, rho: LagOneCorrelation | None = None, reverse: bool = False
) -> tf.Tensor:
    """Solves `y_t = |ρ_t| y_{t-1} + x_t` where step t is linked, and `y_t = x_t` where it is not.

    Args:
      x: floating-point tensor of shape `[..., d]`.
      linked: boolean tensor of shape `[..., d - 1]`, broadcast against `x.shape[:-1]`.
      rho: correlation, as for `recurrence`; `None` for 1.
      reverse: if `True`, `y_t = |ρ_(t+1)| y_{t+1} + x_t` where step t + 1 is linked.

    Returns:
      y: tensor of the broadcast shape `[..., d]`, differentiable to any order in `x` and ρ.
    """
    if rho is None:
        value = tf.cast(linked, x.dtype)
        steps = Coefficients(value, 1.0 - value)
    else:
        size, one_minus_abs = (
            rho.along_steps(rho.sign * t) for t in (rho.value, rho.signed_one_minus_abs)
        )
        zero, one = tf.zeros([], x.dtype), tf.ones([], x.dtype)
        steps = Coefficients(tf.where(linked, size, zero), tf.where(linked, one_minus_abs, one))
    return step_recurrence(x, steps, reverse)


def step_recurrence(x: tf.Tensor, steps: Coefficients, reverse: bool = False) -> tf.Tensor:
    """Solves `y_t = a_t y_{t-1} + x_t` for any coefficients of absolute value at most 1.

    Args:
      x: floating-point tensor of shape `[..., d]`.
      steps: a and `1 - |a|`, of shape `[..., d - 1]`, broadcast against `x.shape[:-1]`.
      reverse: if `True`, `y_t = a_(t+1) y_{t+1} + x_t`.

    Returns:
      y: tensor of the broadcast shape `[..., d]`, differentiable to any order in `x` and a.
    """
    x = broadcast_to_batch(x, ps.shape(steps.value)[:-1])
    return _recurrence(x, steps.value, step_scheme(steps, _size(x)), reverse)


def product_of_steps(
    value: tf.Tensor, one_minus_abs: tf.Tensor, count: int
) -> tuple[tf.Tensor, tf.Tensor]:
    """Computes the products ρ_1 … ρ_k along the last axis, in ⌈log2 k⌉ passes over halves.

    Args:
      value: floating-point tensor of shape `[..., k]`, ρ.
      one_minus_abs: tensor of the same shape, `1 - |ρ|`.
      count: k, at least 1, a Python integer even if the static shape is unknown.

    Returns:
      The product, and 1 minus its absolute value, of shape `[...]`; both accurate where small.
    """
    shifts = shifts_below(count)
    padding = 2 ** len(shifts) - count
    product = Coefficients(pad(value, 0, padding, value=1), pad(one_minus_abs, 0, padding))
    for half in reversed(shifts):
        product = product.part(..., slice(half)).times(product.part(..., slice(half, None)))
    return product.value[..., 0], product.one_minus_abs[..., 0]


def unwhiten(x: tf.Tensor, rho: LagOneCorrelation, scale: tf.Tensor) -> tf.Tensor:
    """Converts innovations to a path, the inverse of `whiten`: `recurrence` of K σ x.

    Args:
      x: floating-point tensor of shape `[..., d]`.
      rho: correlation of shape `[...]` (or `[..., d - 1]`, per step), broadcast against
        `x.shape[:-1]`.
      scale: σ, of shape `[...]`.

    Returns:
      y: tensor of the broadcast shape `[..., d]`, differentiable to any order in `x`, ρ and σ.
    """
    if rho.per_step:
        return recurrence(scaled(x, rho, scale), rho)
    x = broadcast_to_batch(x, rho.batch_shape(), ps.shape(scale))
    later = scale * rho.unit_innovation_scale
    # From the parameters before broadcasting: once for all draws that share them.
    scheme = scheme_of(rho, _size(x))

    @cheaper_gradient
    def with_gradient(
        y: tf.Tensor, x: tf.Tensor, coefficient: tf.Tensor, scale: tf.Tensor, later: tf.Tensor
    ) -> tf.Tensor:
        def gradient(dy: tf.Tensor) -> tuple[tf.Tensor | None, ...]:
            dx = scheme.solve(dy, reverse=True)
            dcoefficient = tf.reduce_sum(dx[..., 1:] * y[..., :-1], axis=-1)
            dfirst = tf.reduce_sum(dx[..., :1] * x[..., :1], axis=-1)
            return (
                None,
                scaled_steps(dx, scale[..., tf.newaxis], later[..., tf.newaxis]),
                _sum_to(dcoefficient, coefficient),
                _sum_to(dfirst, scale),
                _sum_to(tf.reduce_sum(dx * x, axis=-1) - dfirst, later),
            )

        return tf.identity(y), gradient

    return with_gradient(scheme.unwhiten(x, scale, later), x, rho.value, scale, later)


def scaled(x: tf.Tensor, rho: LagOneCorrelation, scale: tf.Tensor) -> tf.Tensor:
    """Computes `K σ x`, innovations from white noise x `[..., d]`, for σ of shape `[...]`."""
    later = scale[..., tf.newaxis] * rho.along_steps(rho.unit_innovation_scale)
    return scaled_steps(x, scale[..., tf.newaxis], later)


def whiten(
    x: tf.Tensor, rho: LagOneCorrelation, scale: tf.Tensor | float = 1.0, reverse: bool = False
) -> tf.Tensor:
    """Returns the innovations of a path: `(x_t - ρ x_{t-1}) / (σ √(1-ρ²))`, and `x_0 / σ`.

    Evaluated as `(x_t - sign x_{t-1}) / √(1-ρ²) + sign e^(-|u|) x_{t-1}`, over σ, with u = atanh ρ:
    where neighbours are nearly equal and ρ is nearly ±1, the first difference is exact in floating
    point, so nothing cancels.

    Args:
      x: floating-point tensor of shape `[..., d]`.
      rho: correlation of shape `[...]` (or `[..., d - 1]`, per step), broadcast against
        `x.shape[:-1]`.
      scale: σ, of shape `[...]`. Default: 1.
      reverse: if `True`, the transposed matrix: `(x_t - ρ x_{t+1}) / (σ √(1-ρ²))` with `x_d = 0`,
        but `(x_0 - ρ x_1 / √(1-ρ²)) / σ` for t = 0.

    Returns:
      y: tensor of the broadcast shape `[..., d]`, differentiable to any order in `x`, ρ and σ.
    """
    scale = tf.convert_to_tensor(scale, dtype=x.dtype)
    if reverse:
        x = broadcast_to_batch(x, rho.batch_shape(), ps.shape(scale))
        return _whiten_reverse(x, rho) / scale[..., tf.newaxis]
    first, later = _first_and_later_innovations(x, rho, scale)
    return tf.concat([first, later], axis=-1)


def squared_norm_of_whitened(x: tf.Tensor, rho: LagOneCorrelation, scale: tf.Tensor) -> tf.Tensor:
    """Returns the sum of the squares of `whiten(x, rho, scale)`, of the broadcast shape `[...]`."""
    first, later = _first_and_later_innovations(x, rho, scale)
    return sum_of_squares(first) + sum_of_squares(later)


@cheaper_gradient
def sum_of_squares(x: tf.Tensor) -> tf.Tensor:
    """Computes `Σ x_t²` along the last axis, with a gradient in one pass over memory."""
    value = tf.reduce_sum(tf.square(x), axis=-1)
    return value, lambda dy: (2.0 * dy)[..., tf.newaxis] * x


def _whiten_reverse(x: tf.Tensor, rho: LagOneCorrelation) -> tf.Tensor:
    if rho.per_step:
        x = tf.concat([x[..., :1], x[..., 1:] * rho.inverse_unit_innovation_scale], axis=-1)
        later = x[..., 1:]
        y = (x[..., :-1] - rho.sign * later) + rho.signed_one_minus_abs * later
        return tf.concat([y, x[..., -1:]], axis=-1)
    parameters = (rho.sign, rho.inverse_unit_innovation_scale, rho.signed_exp_neg_abs_z)
    sign, inverse_scale, remainder = (t[..., tf.newaxis] for t in parameters)
    later = tf.concat([x[..., 1:], tf.zeros_like(x[..., :1])], axis=-1)
    y = (x - sign * later) * inverse_scale + remainder * later
    first = x[..., :1] - rho.value[..., tf.newaxis] * inverse_scale * later[..., :1]
    return tf.concat([first, y[..., 1:]], axis=-1)


def _first_and_later_innovations(
    x: tf.Tensor, rho: LagOneCorrelation, scale: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    x = broadcast_to_batch(x, rho.batch_shape(), ps.shape(scale))
    along_steps = scale[..., tf.newaxis]
    parameters = (rho.inverse_unit_innovation_scale, rho.signed_exp_neg_abs_z)
    if rho.per_step:
        # The scale may have batch axes that the correlations lack; copying these is not cheap.
        first, later = _stencil(x, *parameters, tf.ones([1], x.dtype), rho.sign)
        return first / along_steps, later / along_steps
    # Broadcasting is cheap here, and gradients then need only one sum.
    shape = ps.shape(x)[:-1]
    a, b, along_steps = (tf.broadcast_to(t, shape)[..., tf.newaxis] for t in (*parameters, scale))
    first, later = _stencil(x, a, b, along_steps, rho.sign[..., tf.newaxis])
    return first / along_steps, later


def _stencil(
    x: tf.Tensor, a: tf.Tensor, b: tf.Tensor, scale: tf.Tensor, sign: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns `[x_0]` and `(a (x_t - sign x_{t-1}) + b x_{t-1}) / scale`, with a cheap gradient.

    The parameters have a last axis of size 1 or d - 1; `a` and `b` have the batch shape of `scale`,
    unless `scale` has shape `[1]`.
    """
    a_, b_ = _over_scale(a, b, scale)

    def difference(x: tf.Tensor) -> tf.Tensor:
        return x[..., 1:] - sign * x[..., :-1]

    @cheaper_gradient
    def with_gradient(
        x: tf.Tensor, a: tf.Tensor, b: tf.Tensor, scale: tf.Tensor
    ) -> tuple[tuple[tf.Tensor, tf.Tensor], Any]:
        y = a_ * difference(x) + b_ * x[..., :-1]

        def gradient(dfirst: tf.Tensor, dy: tf.Tensor) -> tuple[tf.Tensor, ...]:
            a_, b_ = _over_scale(a, b, scale)
            dlater, dearlier = a_ * dy, (b_ - sign * a_) * dy
            # By pads, which XLA fuses into the sum, unlike concatenations.
            one, size = ps.shape(dfirst)[-1], ps.shape(dy)[-1]  # Without coordinates: 0 and 0.
            dx = tf.add_n([pad(dlater, one, 0), pad(dearlier, 0, one), pad(dfirst, 0, size)])
            # Graphs compute the difference only once; eager mode recomputes it.
            da = _sum_to(dy * difference(x), a) / scale
            db = _sum_to(dy * x[..., :-1], b) / scale
            return dx, da, db, _sum_to(-(a * da + b * db) / scale, scale)

        return (x[..., :1], y), gradient

    return with_gradient(x, a, b, scale)


def _sum_to(x: tf.Tensor, like: tf.Tensor) -> tf.Tensor:
    """Sums `x` to the shape of `like`, which broadcasts to its shape."""
    if tensorshape_util.is_fully_defined(x.shape) and tensorshape_util.is_fully_defined(like.shape):
        missing = tensorshape_util.rank(x.shape) - tensorshape_util.rank(like.shape)
        sizes = [None] * missing + list(like.shape)
        axes = [i for i in range(tensorshape_util.rank(x.shape)) if sizes[i] != x.shape[i]]
    else:
        _, axes = tf.raw_ops.BroadcastGradientArgs(s0=tf.shape(x), s1=tf.shape(like))
    if isinstance(axes, list) and not axes:
        return x
    return tf.reshape(tf.reduce_sum(x, axis=axes), ps.shape(like))


def _over_scale(a: tf.Tensor, b: tf.Tensor, scale: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """`a / scale`, at most the largest finite number, so that 0 times it is 0; and `b / scale`."""
    largest = tf.constant(0.99 * float(dtype_util.max(a.dtype)), a.dtype)
    return tf.minimum(a / scale, largest), b / scale


def _size(x: tf.Tensor) -> int | None:
    return tf.compat.dimension_value(x.shape[-1])


def _recurrence(
    x: tf.Tensor, coefficient: tf.Tensor, scheme: ScanScheme, reverse: bool
) -> tf.Tensor:
    """The recurrence with its gradient; `coefficient` is ρ, `[..., 1]` or `[..., d - 1]`."""

    # y has no gradient: first derivatives do not pass through the scheme. Derivatives of the
    # gradient do, since it consists of the scheme's operations, so they exist in every graph.
    @cheaper_gradient
    def with_gradient(y: tf.Tensor, x: tf.Tensor, coefficient: tf.Tensor) -> tf.Tensor:
        def gradient(dy: tf.Tensor) -> tuple[None, tf.Tensor, tf.Tensor]:
            dx = scheme.solve(dy, not reverse)
            products = dx[..., :-1] * y[..., 1:] if reverse else dx[..., 1:] * y[..., :-1]
            return None, dx, _sum_to(products, coefficient)

        return tf.identity(y), gradient

    return with_gradient(scheme.solve(x, reverse), x, coefficient)
