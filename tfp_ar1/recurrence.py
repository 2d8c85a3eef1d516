"""The recurrence `y_t = ρ y_{t-1} + x_t` in O(d), its inverse, and their exact gradients.

With S the shift by one coordinate and K = diag(1, √(1-ρ²), √(1-ρ²), …), `recurrence` is
multiplication by `(I - ρ S)⁻¹` and `whiten` multiplication by `K⁻¹ (I - ρ S) / σ`; `reverse=True`
takes the transposed matrices. `color` is the inverse of `whiten`. All work along the last axis, for
one ρ per batch member.

How `recurrence` is evaluated is decided in `_recurrence_value` alone; the gradient does not depend
on it, because the gradient of the recurrence is the same recurrence run backwards:

    x̄ = (I - ρ S)⁻ᵀ ȳ,    ρ̄ = Σ_t x̄_t y_{t-1}

so it costs about one more forward pass, to any order. Where a transformation drops this gradient,
as `tf.vectorized_map` does, the operations that evaluated y are differentiated; that is right too.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from tensorflow_probability.python.internal import prefer_static as ps

from tfp_ar1.correlation import LagOneCorrelation

# Measured with a prototype, (batch x d), microseconds for doubling / blocks: 128 x 64: 610 / 1250,
# 128 x 256: 960 / 1700, 64 x 4096: 5600 / 2100, 1 x 10⁶: 21000 / 3200.
_LARGEST_SIZE_FOR_DOUBLING = 512
_BLOCK_SIZE = 32


class _Base(NamedTuple):
    """A number ρ whose powers are taken: right for large exponents and where ρ rounds to ±1."""

    value: tf.Tensor
    sign: tf.Tensor
    log_abs: tf.Tensor

    @classmethod
    def of(cls, rho: LagOneCorrelation) -> _Base:
        return cls(rho.value, rho.sign, rho.log_abs)

    def power(self, k: int) -> _Base:
        power = tf.math.exp(k * self.log_abs)
        sign = self.sign if k % 2 else tf.ones_like(self.sign)
        return _Base(sign * power, sign, k * self.log_abs)

    def powers(self, exponents: Any) -> tf.Tensor:
        """ρ^k for the exponents 1, … given, along a new last axis."""
        later = np.asarray(exponents)[1:]
        factors = later.astype(self.value.dtype.as_numpy_dtype)
        powers = tf.math.exp(factors * self.log_abs[..., tf.newaxis])
        powers = tf.where(later % 2 == 0, powers, self.sign[..., tf.newaxis] * powers)
        # ρ itself as it is, for its gradient at 0.
        return tf.concat([self.value[..., tf.newaxis], powers], axis=-1)


def recurrence(x: tf.Tensor, rho: LagOneCorrelation, reverse: bool = False) -> tf.Tensor:
    """Solves `y_t = ρ y_{t-1} + x_t` with `y_0 = x_0`, for t along the last axis.

    Args:
      x: floating-point tensor of shape `[..., d]`.
      rho: correlation of shape `[...]`, broadcast against `x.shape[:-1]`.
      reverse: if `True`, solves the transposed system, `y_t = ρ y_{t+1} + x_t`.

    Returns:
      y: tensor of the broadcast shape `[..., d]`, differentiable to any order in `x` and ρ.
    """
    x = _broadcast_to_batch(x, rho.sign)
    coefficient = tf.broadcast_to(rho.value, ps.shape(x)[:-1])
    return _recurrence(x, coefficient, _Base.of(rho), reverse)


def color(x: tf.Tensor, rho: LagOneCorrelation, scale: tf.Tensor) -> tf.Tensor:
    """The path that innovations make, the inverse of `whiten`: `recurrence` of K σ x.

    Args:
      x: floating-point tensor of shape `[..., d]`.
      rho: correlation of shape `[...]`, broadcast against `x.shape[:-1]`.
      scale: σ, of the same shape.

    Returns:
      y: tensor of the broadcast shape `[..., d]`, differentiable to any order in `x`, ρ and σ.
    """
    x = _broadcast_to_batch(x, rho.sign, scale)
    batch_shape = ps.shape(x)[:-1]
    later = scale * rho.innovation_scale
    # From the parameters as they are, not broadcast: once for all draws that share them.
    base = _Base.of(rho)
    y = _color_value(x, base, scale, later)
    coefficient, scale, later = (tf.broadcast_to(t, batch_shape) for t in (rho.value, scale, later))

    @tf.custom_gradient
    def with_gradient(
        y: tf.Tensor, x: tf.Tensor, coefficient: tf.Tensor, scale: tf.Tensor, later: tf.Tensor
    ) -> tf.Tensor:
        def gradient(dy: tf.Tensor) -> tuple[tf.Tensor | None, ...]:
            dx = _recurrence(dy, coefficient, base, reverse=True)
            y_ = with_gradient(y, x, coefficient, scale, later)
            dx_later = dx[..., 1:]
            return (
                None,
                dx * first_and_later(scale, later, ps.shape(x)[-1]),
                tf.reduce_sum(dx_later * y_[..., :-1], axis=-1),
                tf.reduce_sum(dx[..., :1] * x[..., :1], axis=-1),
                tf.reduce_sum(dx_later * x[..., 1:], axis=-1),
            )

        return tf.identity(y), gradient

    return with_gradient(y, x, coefficient, scale, later)


def first_and_later(first: tf.Tensor, later: tf.Tensor, size: Any) -> tf.Tensor:
    """`first` for coordinate 0 and `later` for the others, `[..., size]`."""
    is_first = tf.equal(tf.range(size), 0)
    return tf.where(is_first, first[..., tf.newaxis], later[..., tf.newaxis])


def whiten(
    x: tf.Tensor, rho: LagOneCorrelation, scale: tf.Tensor | float = 1.0, reverse: bool = False
) -> tf.Tensor:
    """The innovations of a path: `(x_t - ρ x_{t-1}) / (σ √(1-ρ²))`, and `x_0 / σ`.

    Evaluated as `(x_t - sign x_{t-1}) / √(1-ρ²) + sign e^(-|u|) x_{t-1}`, over σ, with u = atanh ρ:
    where neighbours are nearly equal and ρ is nearly ±1, the first difference is exact in floating
    point and nothing cancels.

    Args:
      x: floating-point tensor of shape `[..., d]`.
      rho: correlation of shape `[...]`, broadcast against `x.shape[:-1]`.
      scale: σ, of the same shape. Default: 1.
      reverse: if `True`, the transposed matrix: `(x_t - ρ x_{t+1}) / (σ √(1-ρ²))` with `x_d = 0`,
        but `(x_0 - ρ x_1 / √(1-ρ²)) / σ` for t = 0.

    Returns:
      y: tensor of the broadcast shape `[..., d]`, differentiable to any order in `x`, ρ and σ.
    """
    scale = tf.convert_to_tensor(scale, dtype=x.dtype)
    if reverse:
        x = _broadcast_to_batch(x, rho.sign, scale)
        parameters = (rho.sign, rho.innovation_precision_scale, rho.relative_complement)
        sign, inverse_scale, remainder = (t[..., tf.newaxis] for t in parameters)
        later = tf.concat([x[..., 1:], tf.zeros_like(x[..., :1])], axis=-1)
        y = (x - sign * later) * inverse_scale + remainder * later
        first = x[..., :1] - rho.value[..., tf.newaxis] * inverse_scale * later[..., :1]
        return tf.concat([first, y[..., 1:]], axis=-1) / scale[..., tf.newaxis]
    first, later = _first_and_later_innovations(x, rho, scale)
    return tf.concat([first, later], axis=-1)


def squared_norm_of_whitened(x: tf.Tensor, rho: LagOneCorrelation, scale: tf.Tensor) -> tf.Tensor:
    """The sum of the squares of `whiten(x, rho, scale)`, of the broadcast shape `[...]`."""
    first, later = _first_and_later_innovations(x, rho, scale)
    return sum_of_squares(first) + sum_of_squares(later)


@tf.custom_gradient
def sum_of_squares(x: tf.Tensor) -> tf.Tensor:
    """`Σ x_t²` along the last axis, with a gradient that takes one pass over memory."""
    value = tf.reduce_sum(tf.square(x), axis=-1)
    return value, lambda dy: (2.0 * dy)[..., tf.newaxis] * x


def _first_and_later_innovations(
    x: tf.Tensor, rho: LagOneCorrelation, scale: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    x = _broadcast_to_batch(x, rho.sign, scale)
    shape = ps.shape(x)[:-1]
    parameters = (rho.innovation_precision_scale, rho.relative_complement, scale)
    first, later = _stencil(x, *(tf.broadcast_to(t, shape) for t in parameters), rho.sign)
    return first / scale[..., tf.newaxis], later


def _stencil(
    x: tf.Tensor, a: tf.Tensor, b: tf.Tensor, scale: tf.Tensor, sign: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """`[x_0]`, and `(a (x_t - sign x_{t-1}) + b x_{t-1}) / scale`; few passes for the gradient."""
    a_, b_ = _over_scale(a, b, scale)

    def difference(x: tf.Tensor) -> tf.Tensor:
        return x[..., 1:] - sign[..., tf.newaxis] * x[..., :-1]

    @tf.custom_gradient
    def with_gradient(
        x: tf.Tensor, a: tf.Tensor, b: tf.Tensor, scale: tf.Tensor
    ) -> tuple[tuple[tf.Tensor, tf.Tensor], Any]:
        y = a_[..., tf.newaxis] * difference(x) + b_[..., tf.newaxis] * x[..., :-1]

        def gradient(dfirst: tf.Tensor, dy: tf.Tensor) -> tuple[tf.Tensor, ...]:
            a_, b_ = _over_scale(a, b, scale)
            dlater, dearlier = a_[..., tf.newaxis] * dy, (b_ - sign * a_)[..., tf.newaxis] * dy
            dx = tf.concat([dfirst, dlater], axis=-1)
            dx += tf.concat([dearlier, tf.zeros_like(dfirst)], axis=-1)
            # Graphs compute the difference once; eagerly, again.
            da = tf.reduce_sum(dy * difference(x), axis=-1) / scale
            db = tf.reduce_sum(dy * x[..., :-1], axis=-1) / scale
            return dx, da, db, -(a * da + b * db) / scale

        return (x[..., :1], y), gradient

    return with_gradient(x, a, b, scale)


def _over_scale(a: tf.Tensor, b: tf.Tensor, scale: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """`a / scale`, at most the largest finite number, so that its product with 0 is 0; and b's."""
    largest = np.asarray(0.999 * np.finfo(a.dtype.as_numpy_dtype).max, a.dtype.as_numpy_dtype)
    return tf.minimum(a / scale, largest), b / scale


def _broadcast_to_batch(x: tf.Tensor, *parameters: tf.Tensor) -> tf.Tensor:
    shape = ps.shape(x)
    batch_shape = functools.reduce(
        ps.broadcast_shape, [ps.shape(parameter) for parameter in parameters], shape[:-1]
    )
    full_shape = ps.concat([batch_shape, shape[-1:]], axis=0)
    static = tf.get_static_value(full_shape)
    if static is not None and x.shape.is_fully_defined() and list(static) == list(x.shape):
        return x
    return tf.broadcast_to(x, full_shape)


def _recurrence(x: tf.Tensor, coefficient: tf.Tensor, base: _Base, reverse: bool) -> tf.Tensor:
    """The recurrence with its gradient.

    `coefficient` is ρ with the batch shape of `x`, and `base` the same ρ, not broadcast: its powers
    are computed once for all draws that share them.
    """
    y = _recurrence_value(x, base, reverse)

    # Derivatives of any order pass through this function alone, not through the scheme that
    # evaluated y: that is why there is no gradient for y.
    @tf.custom_gradient
    def with_gradient(y: tf.Tensor, x: tf.Tensor, coefficient: tf.Tensor) -> tf.Tensor:
        def gradient(dy: tf.Tensor) -> tuple[None, tf.Tensor, tf.Tensor]:
            dx = _recurrence(dy, coefficient, base, not reverse)
            y_ = with_gradient(y, x, coefficient)
            products = dx[..., :-1] * y_[..., 1:] if reverse else dx[..., 1:] * y_[..., :-1]
            return None, dx, tf.reduce_sum(products, axis=-1)

        return tf.identity(y), gradient

    return with_gradient(y, x, coefficient)


def _recurrence_value(x: tf.Tensor, base: _Base, reverse: bool) -> tf.Tensor:
    """Chooses the scheme by the size of the last axis."""
    size = tf.compat.dimension_value(x.shape[-1])
    if size is None:
        return _doubling_dynamic(x, base, reverse)
    if size <= _LARGEST_SIZE_FOR_DOUBLING:
        return _doubling(x, size, base, reverse)
    return _blocks(x, size, base, reverse)


def _color_value(x: tf.Tensor, base: _Base, first: tf.Tensor, later: tf.Tensor) -> tf.Tensor:
    """The recurrence of `first · x_0` and `later · x_t`."""
    size = tf.compat.dimension_value(x.shape[-1])
    if size is None or size <= _LARGEST_SIZE_FOR_DOUBLING:
        return _recurrence_value(x * first_and_later(first, later, ps.shape(x)[-1]), base, False)
    # `later` for all, and a coordinate before the first that makes up for the difference:
    # (first - later) / ρ with later = first √(1-ρ²), without the difference.
    before = base.value * first / (1.0 + later / first)
    return _blocks(x, size, base, False, later, before * x[..., 0])


def _doubling(x: tf.Tensor, size: int, base: _Base, reverse: bool) -> tf.Tensor:
    """`y ← y + ρ^k shift(y, k)` for k = 1, 2, 4, …: log2(d) passes over memory."""
    shifts = [2**level for level in range((size - 1).bit_length())]
    if not shifts:
        return x
    powers = tf.unstack(base.powers(shifts)[..., tf.newaxis, :], axis=-1)
    no_padding = [[0, 0]] * (x.shape.rank - 1)
    for shift, power in zip(shifts, powers, strict=True):
        if reverse:
            x += tf.pad(power * x[..., shift:], [*no_padding, [0, shift]])
        else:
            x += tf.pad(power * x[..., :-shift], [*no_padding, [shift, 0]])
    return x


def _doubling_dynamic(x: tf.Tensor, base: _Base, reverse: bool) -> tf.Tensor:
    """Doubling for a size that is known only when the graph runs."""
    size = tf.shape(x)[-1]
    positions = tf.range(size)

    def step(shift: tf.Tensor, y: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        power = tf.math.exp(tf.cast(shift, x.dtype) * base.log_abs)
        power = tf.where(tf.equal(shift, 1), base.value, power)[..., tf.newaxis]
        source = positions + shift if reverse else positions - shift
        inside = tf.logical_and(source >= 0, source < size)
        # A gather, because XLA needs every shape in the loop to stay the same.
        shifted = tf.gather(y, tf.clip_by_value(source, 0, size - 1), axis=-1)
        return 2 * shift, y + tf.where(inside, power * shifted, tf.zeros_like(y))

    _, y = tf.while_loop(lambda shift, _: shift < size, step, (tf.constant(1), x))
    return y


def _blocks(
    x: tf.Tensor,
    size: int,
    base: _Base,
    reverse: bool,
    scale: tf.Tensor | None = None,
    before: tf.Tensor | None = None,
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

    powers = base.powers(range(1, m + 1))
    toeplitz = _toeplitz(powers)
    if scale is not None:
        toeplitz *= scale[..., tf.newaxis, tf.newaxis]
    y = _matmul(x, toeplitz, transpose_b=reverse)

    carried = y[..., 1:, 0] if reverse else y[..., :-1, -1]
    none = tf.zeros_like(y[..., :1, 0]) if before is None else before[..., tf.newaxis]
    carried = tf.concat([carried, none] if reverse else [none, carried], axis=-1)
    carried = _recurrence_value(carried, base.power(m), reverse)
    powers = powers[..., ::-1] if reverse else powers
    y += carried[..., tf.newaxis] * powers[..., tf.newaxis, :]

    y = tf.reshape(y, ps.concat([shape[:-1], [num_blocks * m]], axis=0))
    return y[..., :size] if padding else y


def _toeplitz(powers: tf.Tensor) -> tf.Tensor:
    """The upper triangular `[..., m, m]` with ρ^(i-j) in row j, column i, from ρ^1, …, ρ^m."""
    m = powers.shape[-1]
    # A row of 2m numbers, laid out again and again, one place later in each line of 2m - 1.
    row = tf.concat([tf.ones_like(powers[..., :1]), powers[..., :-1], tf.zeros_like(powers)], -1)
    batch = ps.shape(row)[:-1]
    lines = tf.tile(row, ps.concat([tf.ones_like(batch), [m]], axis=0))[..., : m * (2 * m - 1)]
    return tf.reshape(lines, ps.concat([batch, [m, 2 * m - 1]], axis=0))[..., :m]


def _matmul(x: tf.Tensor, matrix: tf.Tensor, transpose_b: bool) -> tf.Tensor:
    if matrix.shape.rank != 2:
        return tf.linalg.matmul(x, matrix, transpose_b=transpose_b)
    # One matrix for all: one product.
    rows = tf.reshape(x, [-1, matrix.shape[-1]])
    return tf.reshape(tf.linalg.matmul(rows, matrix, transpose_b=transpose_b), ps.shape(x))
