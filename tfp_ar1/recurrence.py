"""The recurrence `y_t = ρ y_{t-1} + x_t` in O(d), its inverse, and their exact gradients.

With S the shift by one coordinate and K = diag(1, √(1-ρ²), √(1-ρ²), …), `recurrence` is
multiplication by `(I - ρ S)⁻¹` and `whiten` multiplication by `K⁻¹ (I - ρ S) / σ`; `reverse=True`
takes the transposed matrices. `unwhiten` is the inverse of `whiten`. All work along the last axis,
for one ρ per batch member, or for one ρ_t per step t - 1 → t where `rho.per_step`; then ρ S stands
for the matrix with ρ_1, …, ρ_(d-1) below its diagonal.

How `recurrence` is evaluated is decided in `_scheme` and `_step_scheme` alone; the gradient does
not depend on it, because the gradient of the recurrence is the same recurrence run backwards:

    x̄ = (I - ρ S)⁻ᵀ ȳ,    ρ̄ = Σ_t x̄_t y_{t-1},    ρ̄_t = x̄_t y_{t-1}

so it costs about one more forward pass. Its own derivatives are those of the operations that
evaluate x̄ and y; and where a transformation drops this gradient, as `tf.vectorized_map` does, these
are differentiated to begin with. That is right too, to any order.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from tensorflow_probability.python.internal import dtype_util
from tensorflow_probability.python.internal import prefer_static as ps

from tfp_ar1.correlation import LagOneCorrelation, with_derivatives_of

# Measured by `python -m benchmarks run --suite schemes` (benchmarks/results/speed.md): doubling is
# faster up to a few hundred coordinates, blocks beyond; blocks of 16 and of 32 are about alike.
_LARGEST_SIZE_FOR_DOUBLING = 256
_BLOCK_SIZE = 32
# Where each path has a ρ of its own, the matrix of its blocks should not outweigh it.
_LARGEST_SIZE_FOR_SMALL_BLOCKS = 1024
_SMALL_BLOCK_SIZE = 16
# With a coefficient for each step; limits from 64 to 256 and blocks of 16 and 32 are about alike.
_LARGEST_SIZE_FOR_DOUBLING_STEPS = 128
_BLOCK_SIZE_FOR_STEPS = 16


class _ScalarPowers(NamedTuple):
    """A number ρ whose powers are taken: right for large exponents and where ρ rounds to ±1."""

    value: tf.Tensor
    sign: tf.Tensor
    log_abs: tf.Tensor

    @classmethod
    def of(cls, rho: LagOneCorrelation) -> _ScalarPowers:
        return cls(rho.value, rho.sign, rho.log_abs)

    def power(self, k: int, value: tf.Tensor) -> _ScalarPowers:
        """Its power `value`, to the exponent k."""
        sign = self.sign if k % 2 else tf.ones_like(self.sign)
        return _ScalarPowers(value, sign, k * self.log_abs)

    def powers(self, exponents: Any) -> tf.Tensor:
        """ρ^k for the exponents 1, 2, 3, … or 1, 2, 4, … given, along a new last axis."""
        later = np.asarray(exponents)[1:]
        factors = later.astype(self.value.dtype.as_numpy_dtype)
        value, sign, log_abs = (t[..., tf.newaxis] for t in self)
        powers = tf.math.exp(factors * log_abs)
        powers = tf.where(later % 2 == 0, powers, sign * powers)
        # The derivatives are those of products, which a logarithm has not at 0.
        parts = [value]
        for k in _shifts(exponents[-1]):
            if 2 * k - 1 in exponents[1:]:
                part = tf.concat(parts, axis=-1)
                parts = [part, part * part[..., -1:]]
            else:
                parts.append(tf.square(parts[-1]))
        # ρ itself as it is.
        return with_derivatives_of(tf.concat(parts, axis=-1), tf.concat([value, powers], axis=-1))


class _Coefficients(NamedTuple):
    """Coefficients, one for each step: long products are right also where they round to ±1.

    `value` holds ρ_1, …, ρ_(d-1) along the last axis, and `one_minus_abs` 1 - |ρ_t|.
    """

    value: tf.Tensor
    one_minus_abs: tf.Tensor

    @classmethod
    def of(cls, rho: LagOneCorrelation) -> _Coefficients:
        return cls(rho.value, rho.sign * rho.signed_one_minus_abs)

    def times(self, other: _Coefficients) -> _Coefficients:
        value = self.value * other.value
        one_minus_abs = (
            self.one_minus_abs + other.one_minus_abs - self.one_minus_abs * other.one_minus_abs
        )
        # Many factors next to 1, each rounded, would add up their errors; a sum of complements
        # has none that counts.
        near_one = tf.math.sign(value) * (1.0 - one_minus_abs)
        return _Coefficients(tf.where(one_minus_abs < 0.5, near_one, value), one_minus_abs)

    def part(self, *index: Any) -> _Coefficients:
        return _Coefficients(self.value[index], self.one_minus_abs[index])


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
    x = _broadcast_to_batch(x, rho.batch_shape())
    if rho.per_step:
        return _recurrence(x, rho.value, _step_scheme(_Coefficients.of(rho), _size(x)), reverse)
    return _recurrence(
        x, rho.along_steps(rho.value), _scheme(_ScalarPowers.of(rho), _size(x)), reverse
    )


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
        steps = _Coefficients(value, 1.0 - value)
    else:
        size, one_minus_abs = (
            rho.along_steps(rho.sign * t) for t in (rho.value, rho.signed_one_minus_abs)
        )
        zero, one = tf.zeros([], x.dtype), tf.ones([], x.dtype)
        steps = _Coefficients(tf.where(linked, size, zero), tf.where(linked, one_minus_abs, one))
    x = _broadcast_to_batch(x, ps.shape(steps.value)[:-1])
    return _recurrence(x, steps.value, _step_scheme(steps, _size(x)), reverse)


def product_of_steps(
    value: tf.Tensor, one_minus_abs: tf.Tensor, count: int
) -> tuple[tf.Tensor, tf.Tensor]:
    """The products ρ_1 … ρ_k along the last axis, in ⌈log2 k⌉ passes over halves.

    Args:
      value: floating-point tensor of shape `[..., k]`, ρ.
      one_minus_abs: tensor of the same shape, `1 - |ρ|`.
      count: k, at least 1, also where the tensors do not know it.

    Returns:
      The product, and 1 minus its size, of shape `[...]`: accurate where they are small.
    """
    shifts = _shifts(count)
    padding = 2 ** len(shifts) - count
    product = _Coefficients(pad(value, 0, padding, value=1), pad(one_minus_abs, 0, padding))
    for half in reversed(shifts):
        product = product.part(..., slice(half)).times(product.part(..., slice(half, None)))
    return product.value[..., 0], product.one_minus_abs[..., 0]


def unwhiten(x: tf.Tensor, rho: LagOneCorrelation, scale: tf.Tensor) -> tf.Tensor:
    """The path that innovations make, the inverse of `whiten`: `recurrence` of K σ x.

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
    x = _broadcast_to_batch(x, rho.batch_shape(), ps.shape(scale))
    later = scale * rho.unit_innovation_scale
    # From the parameters as they are, not broadcast: once for all draws that share them.
    scheme = _scheme(_ScalarPowers.of(rho), _size(x))

    @tf.custom_gradient
    def with_gradient(
        y: tf.Tensor, x: tf.Tensor, coefficient: tf.Tensor, scale: tf.Tensor, later: tf.Tensor
    ) -> tf.Tensor:
        def gradient(dy: tf.Tensor) -> tuple[tf.Tensor | None, ...]:
            dx = scheme.solve(dy, reverse=True)
            dcoefficient = tf.reduce_sum(dx[..., 1:] * y[..., :-1], axis=-1)
            dfirst = tf.reduce_sum(dx[..., :1] * x[..., :1], axis=-1)
            return (
                None,
                _scaled(dx, scale[..., tf.newaxis], later[..., tf.newaxis]),
                _sum_to(dcoefficient, coefficient),
                _sum_to(dfirst, scale),
                _sum_to(tf.reduce_sum(dx * x, axis=-1) - dfirst, later),
            )

        return tf.identity(y), gradient

    return with_gradient(scheme.unwhiten(x, scale, later), x, rho.value, scale, later)


def scaled(x: tf.Tensor, rho: LagOneCorrelation, scale: tf.Tensor) -> tf.Tensor:
    """`K σ x`: white noise as innovations, for σ of shape `[...]` and x of shape `[..., d]`."""
    later = scale[..., tf.newaxis] * rho.along_steps(rho.unit_innovation_scale)
    return _scaled(x, scale[..., tf.newaxis], later)


def _scaled(x: tf.Tensor, first: tf.Tensor, later: tf.Tensor) -> tf.Tensor:
    """`first x_0` and `later x_t`, for factors `[..., 1]`, and `[..., 1]` or `[..., d - 1]`."""
    parts = [x[..., :1] * first, x[..., 1:] * later]
    batch_shape = ps.broadcast_shape(*(ps.shape(part)[:-1] for part in parts))
    return tf.concat([_broadcast_to_batch(part, batch_shape) for part in parts], axis=-1)


def whiten(
    x: tf.Tensor, rho: LagOneCorrelation, scale: tf.Tensor | float = 1.0, reverse: bool = False
) -> tf.Tensor:
    """The innovations of a path: `(x_t - ρ x_{t-1}) / (σ √(1-ρ²))`, and `x_0 / σ`.

    Evaluated as `(x_t - sign x_{t-1}) / √(1-ρ²) + sign e^(-|u|) x_{t-1}`, over σ, with u = atanh ρ:
    where neighbours are nearly equal and ρ is nearly ±1, the first difference is exact in floating
    point and nothing cancels.

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
        x = _broadcast_to_batch(x, rho.batch_shape(), ps.shape(scale))
        return _whiten_reverse(x, rho) / scale[..., tf.newaxis]
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
    x = _broadcast_to_batch(x, rho.batch_shape(), ps.shape(scale))
    along_steps = scale[..., tf.newaxis]
    parameters = (rho.inverse_unit_innovation_scale, rho.signed_exp_neg_abs_z)
    if rho.per_step:
        # The scale may have a batch that the correlations lack; a copy of these is not small.
        first, later = _stencil(x, *parameters, tf.ones([1], x.dtype), rho.sign)
        return first / along_steps, later / along_steps
    # Small, and their gradients then need one sum only.
    shape = ps.shape(x)[:-1]
    a, b, along_steps = (tf.broadcast_to(t, shape)[..., tf.newaxis] for t in (*parameters, scale))
    first, later = _stencil(x, a, b, along_steps, rho.sign[..., tf.newaxis])
    return first / along_steps, later


def _stencil(
    x: tf.Tensor, a: tf.Tensor, b: tf.Tensor, scale: tf.Tensor, sign: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """`[x_0]`, and `(a (x_t - sign x_{t-1}) + b x_{t-1}) / scale`; few passes for the gradient.

    The parameters have a last axis of size 1 or d - 1; `a` and `b` the batch of `scale`, or that is
    `[1]`.
    """
    a_, b_ = _over_scale(a, b, scale)

    def difference(x: tf.Tensor) -> tf.Tensor:
        return x[..., 1:] - sign * x[..., :-1]

    @tf.custom_gradient
    def with_gradient(
        x: tf.Tensor, a: tf.Tensor, b: tf.Tensor, scale: tf.Tensor
    ) -> tuple[tuple[tf.Tensor, tf.Tensor], Any]:
        y = a_ * difference(x) + b_ * x[..., :-1]

        def gradient(dfirst: tf.Tensor, dy: tf.Tensor) -> tuple[tf.Tensor, ...]:
            a_, b_ = _over_scale(a, b, scale)
            dlater, dearlier = a_ * dy, (b_ - sign * a_) * dy
            # By pads, which XLA fuses into the sum, as it does not do with concatenations.
            one, size = ps.shape(dfirst)[-1], ps.shape(dy)[-1]  # Without coordinates: 0 and 0.
            dx = tf.add_n([pad(dlater, one, 0), pad(dearlier, 0, one), pad(dfirst, 0, size)])
            # Graphs compute the difference once; eagerly, again.
            da = _sum_to(dy * difference(x), a) / scale
            db = _sum_to(dy * x[..., :-1], b) / scale
            return dx, da, db, _sum_to(-(a * da + b * db) / scale, scale)

        return (x[..., :1], y), gradient

    return with_gradient(x, a, b, scale)


def _sum_to(x: tf.Tensor, like: tf.Tensor) -> tf.Tensor:
    """Sums `x` to the shape of `like`, which broadcasts to its shape."""
    if x.shape.is_fully_defined() and like.shape.is_fully_defined():
        missing = x.shape.rank - like.shape.rank
        sizes = [None] * missing + list(like.shape)
        axes = [i for i in range(x.shape.rank) if sizes[i] != x.shape[i]]
    else:
        _, axes = tf.raw_ops.BroadcastGradientArgs(s0=tf.shape(x), s1=tf.shape(like))
    if isinstance(axes, list) and not axes:
        return x
    return tf.reshape(tf.reduce_sum(x, axis=axes), ps.shape(like))


def _over_scale(a: tf.Tensor, b: tf.Tensor, scale: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """`a / scale`, at most the largest finite number, so that its product with 0 is 0; and b's."""
    largest = tf.constant(0.99 * float(dtype_util.max(a.dtype)), a.dtype)
    return tf.minimum(a / scale, largest), b / scale


def pad(x: tf.Tensor, before: Any, after: Any, value: float = 0) -> tf.Tensor:
    """`x` with zeros, or another value, at both ends of its last axis."""
    if value:
        # Not `tf.pad`, which pads with zeros under `tf.vectorized_map`, whatever the value.
        batch_shape = ps.shape(x)[:-1]
        ends = (
            tf.fill(ps.concat([batch_shape, [n]], axis=0), tf.cast(value, x.dtype))
            for n in (before, after)
        )
        return tf.concat([next(ends), x, next(ends)], axis=-1)
    no_padding = ps.zeros([ps.rank(x) - 1, 2], dtype=tf.int32)
    return tf.pad(x, ps.concat([no_padding, [[before, after]]], axis=0))


def _broadcast_to_batch(x: tf.Tensor, *batch_shapes: Any) -> tf.Tensor:
    shape = ps.shape(x)
    batch_shape = functools.reduce(ps.broadcast_shape, batch_shapes, shape[:-1])
    full_shape = ps.concat([batch_shape, shape[-1:]], axis=0)
    static = tf.get_static_value(full_shape)
    if static is not None and x.shape.is_fully_defined() and list(static) == list(x.shape):
        return x
    return tf.broadcast_to(x, full_shape)


def _size(x: tf.Tensor) -> int | None:
    return tf.compat.dimension_value(x.shape[-1])


def _recurrence(
    x: tf.Tensor, coefficient: tf.Tensor, scheme: _ScanScheme, reverse: bool
) -> tf.Tensor:
    """The recurrence with its gradient; `coefficient` is ρ, `[..., 1]` or `[..., d - 1]`."""

    # There is no gradient for y: the first derivatives do not pass through the scheme. Those of the
    # gradient do, which is made of its operations, so that they exist in every graph.
    @tf.custom_gradient
    def with_gradient(y: tf.Tensor, x: tf.Tensor, coefficient: tf.Tensor) -> tf.Tensor:
        def gradient(dy: tf.Tensor) -> tuple[None, tf.Tensor, tf.Tensor]:
            dx = scheme.solve(dy, not reverse)
            products = dx[..., :-1] * y[..., 1:] if reverse else dx[..., 1:] * y[..., :-1]
            return None, dx, _sum_to(products, coefficient)

        return tf.identity(y), gradient

    return with_gradient(scheme.solve(x, reverse), x, coefficient)


def _scheme(base: _ScalarPowers, size: int | None) -> _ScanScheme:
    """Chooses how the recurrence is evaluated, by the size of its axis."""
    if size is None:
        return _DynamicDoubling(base)
    if size <= _LARGEST_SIZE_FOR_DOUBLING:
        return _Doubling(base, size)
    return _Blocks(base, size)


def _step_scheme(steps: _Coefficients, size: int | None) -> _ScanScheme:
    """Chooses how a recurrence with a coefficient for each step is evaluated."""
    if size is None:
        return _DynamicDoublingOfSteps(steps)
    if size <= _LARGEST_SIZE_FOR_DOUBLING_STEPS:
        return _DoublingOfSteps(steps, size)
    return _BlocksOfSteps(steps, size)


class _ScanScheme:
    """A way to evaluate the recurrence for one ρ.

    What does not depend on x is computed when it is made: once for a recurrence and its gradient.
    """

    def solve(self, x: tf.Tensor, reverse: bool) -> tf.Tensor:
        """`(I - ρ S)⁻¹ x`, or with the transposed matrix."""
        raise NotImplementedError

    def unwhiten(self, x: tf.Tensor, first: tf.Tensor, later: tf.Tensor) -> tf.Tensor:
        """The recurrence of `first · x_0` and `later · x_t`, where later = first √(1-ρ²)."""
        return self.solve(_scaled(x, first[..., tf.newaxis], later[..., tf.newaxis]), reverse=False)


def _shifts(size: int) -> list[int]:
    return [2**level for level in range((size - 1).bit_length())]


class _Doubling(_ScanScheme):
    """`y ← y + ρ^k shift(y, k)` for k = 1, 2, 4, …: log2(d) passes over memory."""

    def __init__(self, base: _ScalarPowers, size: int):
        self.shifts, self.powers = _shifts(size), []
        if self.shifts:
            powers = base.powers(self.shifts)[..., tf.newaxis, :]
            self.powers = tf.unstack(powers, axis=-1)

    def solve(self, x: tf.Tensor, reverse: bool) -> tf.Tensor:
        for shift, power in zip(self.shifts, self.powers, strict=True):
            if reverse:
                x += pad(power * x[..., shift:], 0, shift)
            else:
                x += pad(power * x[..., :-shift], shift, 0)
        return x


class _DoublingOfSteps(_Doubling):
    """The same with the products ρ_(t-k+1) … ρ_t of k steps for ρ^k."""

    def __init__(self, steps: _Coefficients, size: int):
        self.shifts, self.powers = _shifts(size), []
        for shift in self.shifts:
            self.powers.append(steps.value)
            steps = steps.part(..., slice(shift, None)).times(steps.part(..., slice(-shift)))


# The levels of any size that an int32 can hold. XLA differentiates no loop without a limit.
_AT_MOST = {"maximum_iterations": 31}


class _DynamicDoubling(_ScanScheme):
    """Doubling for a size that is known only when the graph runs."""

    def __init__(self, base: _ScalarPowers):
        self.base = base

    def solve(self, x: tf.Tensor, reverse: bool) -> tf.Tensor:
        size = tf.shape(x)[-1]
        positions = tf.range(size)

        def step(shift: tf.Tensor, product: tf.Tensor, y: tf.Tensor) -> tuple[tf.Tensor, ...]:
            power = tf.math.exp(tf.cast(shift, x.dtype) * self.base.log_abs)
            power = tf.where(tf.equal(shift, 1), self.base.value, power)
            power = with_derivatives_of(product, power)[..., tf.newaxis]
            source = positions + shift if reverse else positions - shift
            inside = tf.logical_and(source >= 0, source < size)
            # A gather, because XLA needs every shape in the loop to stay the same.
            shifted = tf.gather(y, tf.clip_by_value(source, 0, size - 1), axis=-1)
            y += tf.where(inside, power * shifted, tf.zeros_like(y))
            return 2 * shift, tf.square(product), y

        state = (tf.constant(1), self.base.value, x)
        return tf.while_loop(lambda shift, *_: shift < size, step, state, **_AT_MOST)[2]


class _DynamicDoublingOfSteps(_ScanScheme):
    """Doubling of steps for a size that is known only when the graph runs."""

    def __init__(self, steps: _Coefficients):
        # A first coefficient of 0 makes all products 0 that reach beyond the first step.
        self.steps = _Coefficients(pad(steps.value, 1, 0), pad(steps.one_minus_abs, 1, 0, value=1))

    def solve(self, x: tf.Tensor, reverse: bool) -> tf.Tensor:
        size = tf.shape(x)[-1]
        positions = tf.range(size)

        def step(shift: tf.Tensor, y: tf.Tensor, *steps: tf.Tensor) -> tuple[tf.Tensor, ...]:
            def shifted(x: tf.Tensor, by: tf.Tensor) -> tf.Tensor:
                return tf.gather(x, tf.clip_by_value(positions + by, 0, size - 1), axis=-1)

            steps = _Coefficients(*steps)
            if reverse:
                term = shifted(steps.value * y, shift)
                y += tf.where(positions < size - shift, term, tf.zeros_like(term))
            else:
                y += steps.value * shifted(y, -shift)
            earlier = _Coefficients(*(shifted(part, -shift) for part in steps))
            return 2 * shift, y, *steps.times(earlier)

        state = (tf.constant(1), x, *self.steps)
        return tf.while_loop(lambda shift, *_: shift < size, step, state, **_AT_MOST)[1]


class _BlocksOfSteps(_ScanScheme):
    """Blocks, one coordinate after the other in all of them at once; and what each carries on."""

    def __init__(self, steps: _Coefficients, size: int):
        self.size, self.num_blocks = size, math.ceil(size / _BLOCK_SIZE_FOR_STEPS)
        padding = self.num_blocks * _BLOCK_SIZE_FOR_STEPS - size
        # Coefficients of 0, before the first coordinate too.
        value = self._to_blocks(pad(steps.value, 1, padding))
        one_minus_abs = self._to_blocks(pad(steps.one_minus_abs, 1, padding, value=1))
        self.coefficients = tf.unstack(value)
        product = _Coefficients(value, one_minus_abs)
        while product.value.shape[0] > 1:
            # In halves, not of neighbours: a strided slice of the first axis is slow.
            half = product.value.shape[0] // 2
            product = product.part(slice(half)).times(product.part(slice(half, None)))
        self.carry_scheme = _step_scheme(product.part(0, ..., slice(1, None)), self.num_blocks)

    def solve(self, x: tf.Tensor, reverse: bool) -> tf.Tensor:
        # Zeros at the end reach no other coordinate, in either direction.
        padding = self.num_blocks * _BLOCK_SIZE_FOR_STEPS - self.size
        xs = tf.unstack(self._to_blocks(pad(x, 0, padding) if padding else x))
        # What each block makes of its own coordinates, and then with what is carried into it.
        if reverse:
            first = self._run(xs, None, reverse)[0]
            from_next = pad((self.coefficients[0] * first)[..., 1:], 0, 1)
            carried = self.carry_scheme.solve(from_next, reverse)
        else:
            last = self.carry_scheme.solve(self._run(xs, None, reverse)[-1], reverse)
            carried = pad(last[..., :-1], 1, 0)
        y = tf.stack(self._run(xs, carried, reverse))
        y = tf.transpose(y, [*range(1, y.shape.rank), 0])
        y = tf.reshape(y, ps.concat([ps.shape(y)[:-2], [-1]], axis=0))
        return y[..., : self.size] if padding else y

    def _run(
        self, xs: list[tf.Tensor], carried: tf.Tensor | None, reverse: bool
    ) -> list[tf.Tensor]:
        """The recurrence inside the blocks; entry j holds coordinate j of each of them."""
        ys, a = list(xs), self.coefficients
        positions = range(len(xs))
        if reverse:
            if carried is not None:
                ys[-1] += carried
            for j in positions[-2::-1]:
                ys[j] += a[j + 1] * ys[j + 1]
        else:
            if carried is not None:
                ys[0] += a[0] * carried
            for j in positions[1:]:
                ys[j] += a[j] * ys[j - 1]
        return ys

    def _to_blocks(self, x: tf.Tensor) -> tf.Tensor:
        """`[..., d]`, d a multiple of the block size, as `[block size, ..., blocks]`."""
        shape = [self.num_blocks, _BLOCK_SIZE_FOR_STEPS]
        x = tf.reshape(x, ps.concat([ps.shape(x)[:-1], shape], axis=0))
        return tf.transpose(x, [x.shape.rank - 1, *range(x.shape.rank - 1)])


class _Blocks(_ScanScheme):
    """Blocks: one Toeplitz product inside each, then the recurrence over what each carries on."""

    def __init__(self, base: _ScalarPowers, size: int):
        is_shared = base.value.shape.num_elements() == 1
        is_short = size <= _LARGEST_SIZE_FOR_SMALL_BLOCKS
        self.block_size = _SMALL_BLOCK_SIZE if is_short and not is_shared else _BLOCK_SIZE
        self.size, self.num_blocks = size, math.ceil(size / self.block_size)
        self.rho = base.value
        self.powers = base.powers(range(1, self.block_size + 1))
        self.toeplitz = _toeplitz(self.powers)
        carried = base.power(self.block_size, self.powers[..., -1])
        self.carry_scheme = _scheme(carried, self.num_blocks)

    def solve(self, x: tf.Tensor, reverse: bool) -> tf.Tensor:
        return self._solve(x, reverse, self.toeplitz, tf.zeros_like(x[..., :1]))

    def unwhiten(self, x: tf.Tensor, first: tf.Tensor, later: tf.Tensor) -> tf.Tensor:
        toeplitz = later[..., tf.newaxis, tf.newaxis] * self.toeplitz
        # `later` for all, and a coordinate before the first that makes up for the difference:
        # (first - later) / ρ with later = first √(1-ρ²), without the difference.
        before = self.rho * first / (1.0 + later / first)
        return self._solve(x, False, toeplitz, before[..., tf.newaxis] * x[..., :1])

    def _solve(
        self, x: tf.Tensor, reverse: bool, toeplitz: tf.Tensor, before: tf.Tensor
    ) -> tf.Tensor:
        """The product with `toeplitz` in each block; `before` is carried into the first."""
        batch_shape = ps.shape(x)[:-1]
        padding = self.num_blocks * self.block_size - self.size
        if padding:
            # Zeros at the end reach no other coordinate, in either direction.
            x = pad(x, 0, padding)
        x = tf.reshape(x, ps.concat([batch_shape, [self.num_blocks, self.block_size]], axis=0))
        y = _matmul(x, toeplitz, transpose_b=reverse)

        parts = [y[..., 1:, 0], before] if reverse else [before, y[..., :-1, -1]]
        carried = self.carry_scheme.solve(tf.concat(parts, axis=-1), reverse)
        powers = self.powers[..., ::-1] if reverse else self.powers
        y += _matmul(carried[..., tf.newaxis], powers[..., tf.newaxis, :])

        y = tf.reshape(y, ps.concat([batch_shape, [self.num_blocks * self.block_size]], axis=0))
        return y[..., : self.size] if padding else y


def _toeplitz(powers: tf.Tensor) -> tf.Tensor:
    """The upper triangular `[..., m, m]` with ρ^(i-j) in row j, column i, from ρ^1, …, ρ^m."""
    m = powers.shape[-1]
    # A row of 2m numbers, laid out again and again, one place later in each line of 2m - 1.
    row = tf.concat([tf.ones_like(powers[..., :1]), powers[..., :-1], tf.zeros_like(powers)], -1)
    batch = ps.shape(row)[:-1]
    lines = tf.tile(row, ps.concat([tf.ones_like(batch), [m]], axis=0))[..., : m * (2 * m - 1)]
    return tf.reshape(lines, ps.concat([batch, [m, 2 * m - 1]], axis=0))[..., :m]


def matmul(a: tf.Tensor, b: tf.Tensor, **transposed: bool) -> tf.Tensor:
    """`tf.linalg.matmul` as accurate as the rest of the package, on GPUs too.

    There TensorFlow rounds the factors of float32 products to TensorFloat-32, which has 10 bits,
    unless the user has switched that off. No operation can be exempted, so such products are taken
    in float64; they are small here. Decided when a graph is made: one made where there is no GPU
    rounds if it is run on one.
    """
    rounds = tf.config.experimental.tensor_float_32_execution_enabled()
    if a.dtype == tf.float32 and rounds and tf.config.list_physical_devices("GPU"):
        a, b = (tf.cast(x, tf.float64) for x in (a, b))
        return tf.cast(tf.linalg.matmul(a, b, **transposed), tf.float32)
    return tf.linalg.matmul(a, b, **transposed)


def _matmul(x: tf.Tensor, matrix: tf.Tensor, transpose_b: bool = False) -> tf.Tensor:
    if matrix.shape[:-2].num_elements() != 1:
        return matmul(x, matrix, transpose_b=transpose_b)
    # One matrix for all: one product.
    rows, matrix = tf.reshape(x, [-1, x.shape[-1]]), tf.reshape(matrix, matrix.shape[-2:])
    y = matmul(rows, matrix, transpose_b=transpose_b)
    return tf.reshape(y, ps.concat([ps.shape(x)[:-1], ps.shape(y)[-1:]], axis=0))
