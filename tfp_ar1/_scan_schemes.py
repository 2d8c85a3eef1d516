"""Evaluation of the recurrence: recursive doubling for short paths, blocked scan for long ones."""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from tensorflow_probability.python.internal import dtype_util, tensorshape_util
from tensorflow_probability.python.internal import prefer_static as ps

from tfp_ar1._backend import matmul
from tfp_ar1.correlation import LagOneCorrelation, with_derivatives_of

# Measured by `python -m benchmarks run --suite schemes` (benchmarks/results/speed.md): doubling is
# faster up to a few hundred coordinates, blocks beyond; blocks of 16 and of 32 are about equal.
_LARGEST_SIZE_FOR_DOUBLING = 256
_BLOCK_SIZE = 32
# If each path has its own ρ, the matrix for its blocks should not be larger than the path.
_LARGEST_SIZE_FOR_SMALL_BLOCKS = 1024
_SMALL_BLOCK_SIZE = 16
# With a coefficient for each step; limits from 64 to 256 and blocks of 16 and 32 are about equal.
_LARGEST_SIZE_FOR_DOUBLING_STEPS = 128
_BLOCK_SIZE_FOR_STEPS = 16


class _ScalarPowers(NamedTuple):
    """A number ρ with accurate powers, for large exponents and where ρ rounds to ±1."""

    value: tf.Tensor
    sign: tf.Tensor
    log_abs: tf.Tensor

    @classmethod
    def of(cls, rho: LagOneCorrelation) -> _ScalarPowers:
        return cls(rho.value, rho.sign, rho.log_abs)

    def power(self, k: int, value: tf.Tensor) -> _ScalarPowers:
        """Returns ρ^k, whose value is given as `value`."""
        sign = self.sign if k % 2 else tf.ones_like(self.sign)
        return _ScalarPowers(value, sign, k * self.log_abs)

    def powers(self, exponents: Any) -> tf.Tensor:
        """Returns ρ^k for given exponents 1, 2, 3, … or 1, 2, 4, …, along a new last axis."""
        later = np.asarray(exponents)[1:]
        factors = later.astype(dtype_util.as_numpy_dtype(self.value.dtype))
        value, sign, log_abs = (t[..., tf.newaxis] for t in self)
        powers = tf.math.exp(factors * log_abs)
        powers = tf.where(later % 2 == 0, powers, sign * powers)
        # Derivatives come from products, because the logarithm has none at 0.
        parts = [value]
        for k in shifts_below(exponents[-1]):
            if 2 * k - 1 in exponents[1:]:
                part = tf.concat(parts, axis=-1)
                parts = [part, part * part[..., -1:]]
            else:
                parts.append(tf.square(parts[-1]))
        # The first power is ρ itself.
        return with_derivatives_of(tf.concat(parts, axis=-1), tf.concat([value, powers], axis=-1))


class Coefficients(NamedTuple):
    """Coefficients, one for each step, with accurate long products where they round to ±1.

    `value` holds ρ_1, …, ρ_(d-1) along the last axis, `one_minus_abs` holds 1 - |ρ_t|.
    """

    value: tf.Tensor
    one_minus_abs: tf.Tensor

    @classmethod
    def of(cls, rho: LagOneCorrelation) -> Coefficients:
        return cls(rho.value, rho.sign * rho.signed_one_minus_abs)

    def times(self, other: Coefficients) -> Coefficients:
        value = self.value * other.value
        one_minus_abs = (
            self.one_minus_abs + other.one_minus_abs - self.one_minus_abs * other.one_minus_abs
        )
        # The rounding errors of many factors near 1 would add up; those of a sum of complements
        # are negligible.
        near_one = tf.math.sign(value) * (1.0 - one_minus_abs)
        return Coefficients(tf.where(one_minus_abs < 0.5, near_one, value), one_minus_abs)

    def part(self, *index: Any) -> Coefficients:
        return Coefficients(self.value[index], self.one_minus_abs[index])


def scheme_of(rho: LagOneCorrelation, size: int | None) -> ScanScheme:
    """Chooses how to evaluate the recurrence, by the size of its axis if known."""
    if rho.per_step:
        return step_scheme(Coefficients.of(rho), size)
    return _scalar_scheme(_ScalarPowers.of(rho), size)


def _scalar_scheme(base: _ScalarPowers, size: int | None) -> ScanScheme:
    if size is None:
        return _DynamicDoubling(base)
    if size <= _LARGEST_SIZE_FOR_DOUBLING:
        return _Doubling(base, size)
    return _Blocks(base, size)


def step_scheme(steps: Coefficients, size: int | None) -> ScanScheme:
    """Chooses how to evaluate a recurrence with a coefficient for each step."""
    if size is None:
        return _DynamicDoublingOfSteps(steps)
    if size <= _LARGEST_SIZE_FOR_DOUBLING_STEPS:
        return _DoublingOfSteps(steps, size)
    return _BlocksOfSteps(steps, size)


class ScanScheme:
    """A way to evaluate the recurrence for a given ρ.

    The constructor computes everything that does not depend on x, once for a recurrence and its
    gradient.
    """

    def solve(self, x: tf.Tensor, reverse: bool) -> tf.Tensor:
        """`(I - ρ S)⁻¹ x`, or with the transposed matrix."""
        raise NotImplementedError

    def unwhiten(self, x: tf.Tensor, first: tf.Tensor, later: tf.Tensor) -> tf.Tensor:
        """The recurrence of `first · x_0` and `later · x_t`, where later = first √(1-ρ²)."""
        return self.solve(
            scaled_steps(x, first[..., tf.newaxis], later[..., tf.newaxis]), reverse=False
        )


def shifts_below(size: int) -> list[int]:
    return [2**level for level in range((size - 1).bit_length())]


class _Doubling(ScanScheme):
    """`y ← y + ρ^k shift(y, k)` for k = 1, 2, 4, …: log2(d) passes over memory."""

    def __init__(self, base: _ScalarPowers, size: int):
        self.shifts, self.powers = shifts_below(size), []
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
    """The same with products of k steps, ρ_(t-k+1) … ρ_t, in place of ρ^k."""

    def __init__(self, steps: Coefficients, size: int):
        self.shifts, self.powers = shifts_below(size), []
        for shift in self.shifts:
            self.powers.append(steps.value)
            steps = steps.part(..., slice(shift, None)).times(steps.part(..., slice(-shift)))


# Enough levels for any int32 size. XLA cannot differentiate loops without a limit.
_AT_MOST = {"maximum_iterations": 31}


class _DynamicDoubling(ScanScheme):
    """Doubling for a size that is not known at trace time."""

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


class _DynamicDoublingOfSteps(ScanScheme):
    """Doubling with a coefficient for each step, for a size not known at trace time."""

    def __init__(self, steps: Coefficients):
        # A first coefficient of 0 makes all products that reach beyond the first step 0.
        self.steps = Coefficients(pad(steps.value, 1, 0), pad(steps.one_minus_abs, 1, 0, value=1))

    def solve(self, x: tf.Tensor, reverse: bool) -> tf.Tensor:
        size = tf.shape(x)[-1]
        positions = tf.range(size)

        def step(shift: tf.Tensor, y: tf.Tensor, *steps: tf.Tensor) -> tuple[tf.Tensor, ...]:
            def shifted(x: tf.Tensor, by: tf.Tensor) -> tf.Tensor:
                return tf.gather(x, tf.clip_by_value(positions + by, 0, size - 1), axis=-1)

            steps = Coefficients(*steps)
            if reverse:
                term = shifted(steps.value * y, shift)
                y += tf.where(positions < size - shift, term, tf.zeros_like(term))
            else:
                y += steps.value * shifted(y, -shift)
            earlier = Coefficients(*(shifted(part, -shift) for part in steps))
            return 2 * shift, y, *steps.times(earlier)

        state = (tf.constant(1), x, *self.steps)
        return tf.while_loop(lambda shift, *_: shift < size, step, state, **_AT_MOST)[1]


class _BlocksOfSteps(ScanScheme):
    """Blocked scan: serial within a block, all blocks at once, then a scan over their carries."""

    def __init__(self, steps: Coefficients, size: int):
        self.size, self.num_blocks = size, math.ceil(size / _BLOCK_SIZE_FOR_STEPS)
        padding = self.num_blocks * _BLOCK_SIZE_FOR_STEPS - size
        # Padding coefficients are 0, also that before the first coordinate.
        value = self._to_blocks(pad(steps.value, 1, padding))
        one_minus_abs = self._to_blocks(pad(steps.one_minus_abs, 1, padding, value=1))
        self.coefficients = tf.unstack(value)
        product = Coefficients(value, one_minus_abs)
        while product.value.shape[0] > 1:
            # By halves, not by neighbours: a strided slice of the first axis is slow.
            half = product.value.shape[0] // 2
            product = product.part(slice(half)).times(product.part(slice(half, None)))
        self.carry_scheme = step_scheme(product.part(0, ..., slice(1, None)), self.num_blocks)

    def solve(self, x: tf.Tensor, reverse: bool) -> tf.Tensor:
        # Zeros at the end reach no other coordinate, in either direction.
        padding = self.num_blocks * _BLOCK_SIZE_FOR_STEPS - self.size
        xs = tf.unstack(self._to_blocks(pad(x, 0, padding) if padding else x))
        # First each block by itself, then again with its carry.
        if reverse:
            first = self._run(xs, None, reverse)[0]
            from_next = pad((self.coefficients[0] * first)[..., 1:], 0, 1)
            carried = self.carry_scheme.solve(from_next, reverse)
        else:
            last = self.carry_scheme.solve(self._run(xs, None, reverse)[-1], reverse)
            carried = pad(last[..., :-1], 1, 0)
        y = tf.stack(self._run(xs, carried, reverse))
        y = tf.transpose(y, [*range(1, tensorshape_util.rank(y.shape)), 0])
        y = tf.reshape(y, ps.concat([ps.shape(y)[:-2], [-1]], axis=0))
        return y[..., : self.size] if padding else y

    def _run(
        self, xs: list[tf.Tensor], carried: tf.Tensor | None, reverse: bool
    ) -> list[tf.Tensor]:
        """Runs the recurrence inside the blocks; entry j holds coordinate j of every block."""
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
        """Converts `[..., d]`, d a multiple of the block size, to `[block size, ..., blocks]`."""
        shape = [self.num_blocks, _BLOCK_SIZE_FOR_STEPS]
        x = tf.reshape(x, ps.concat([ps.shape(x)[:-1], shape], axis=0))
        last = tensorshape_util.rank(x.shape) - 1
        return tf.transpose(x, [last, *range(last)])


class _Blocks(ScanScheme):
    """Blocked scan: a Toeplitz product within each block, then a scan over their carries."""

    def __init__(self, base: _ScalarPowers, size: int):
        is_shared = tensorshape_util.num_elements(base.value.shape) == 1
        is_short = size <= _LARGEST_SIZE_FOR_SMALL_BLOCKS
        self.block_size = _SMALL_BLOCK_SIZE if is_short and not is_shared else _BLOCK_SIZE
        self.size, self.num_blocks = size, math.ceil(size / self.block_size)
        self.rho = base.value
        self.powers = base.powers(range(1, self.block_size + 1))
        self.toeplitz = _toeplitz(self.powers)
        carried = base.power(self.block_size, self.powers[..., -1])
        self.carry_scheme = _scalar_scheme(carried, self.num_blocks)

    def solve(self, x: tf.Tensor, reverse: bool) -> tf.Tensor:
        return self._solve(x, reverse, self.toeplitz, tf.zeros_like(x[..., :1]))

    def unwhiten(self, x: tf.Tensor, first: tf.Tensor, later: tf.Tensor) -> tf.Tensor:
        toeplitz = later[..., tf.newaxis, tf.newaxis] * self.toeplitz
        # Scale all by `later`, and compensate by a coordinate before the first:
        # (first - later) / ρ with later = first √(1-ρ²), rearranged to avoid the difference.
        before = self.rho * first / (1.0 + later / first)
        return self._solve(x, False, toeplitz, before[..., tf.newaxis] * x[..., :1])

    def _solve(
        self, x: tf.Tensor, reverse: bool, toeplitz: tf.Tensor, before: tf.Tensor
    ) -> tf.Tensor:
        """Multiplies each block by `toeplitz`; `before` is the carry into the first."""
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
    """Makes the upper triangular `[..., m, m]`, ρ^(i-j) in row j, column i, from ρ^1, …, ρ^m."""
    m = powers.shape[-1]
    # Repeat a row of 2m numbers and cut it into lines of 2m - 1: each line shifts it by one.
    row = tf.concat([tf.ones_like(powers[..., :1]), powers[..., :-1], tf.zeros_like(powers)], -1)
    batch = ps.shape(row)[:-1]
    lines = tf.tile(row, ps.concat([ps.ones_like(batch), [m]], axis=0))[..., : m * (2 * m - 1)]
    return tf.reshape(lines, ps.concat([batch, [m, 2 * m - 1]], axis=0))[..., :m]


def _matmul(x: tf.Tensor, matrix: tf.Tensor, transpose_b: bool = False) -> tf.Tensor:
    if tensorshape_util.num_elements(matrix.shape[:-2]) != 1:
        return matmul(x, matrix, transpose_b=transpose_b)
    # A single matrix for the whole batch needs one product.
    rows, matrix = tf.reshape(x, [-1, x.shape[-1]]), tf.reshape(matrix, matrix.shape[-2:])
    y = matmul(rows, matrix, transpose_b=transpose_b)
    return tf.reshape(y, ps.concat([ps.shape(x)[:-1], ps.shape(y)[-1:]], axis=0))


def scaled_steps(x: tf.Tensor, first: tf.Tensor, later: tf.Tensor) -> tf.Tensor:
    """Scales x_0 by `first`, `[..., 1]`, and x_t by `later`, `[..., 1]` or `[..., d - 1]`."""
    parts = [x[..., :1] * first, x[..., 1:] * later]
    batch_shape = ps.broadcast_shape(*(ps.shape(part)[:-1] for part in parts))
    return tf.concat([broadcast_to_batch(part, batch_shape) for part in parts], axis=-1)


def pad(x: tf.Tensor, before: Any, after: Any, value: float = 0) -> tf.Tensor:
    """Pads the last axis of `x` with zeros, or another value, at both ends."""
    if value:
        # Not `tf.pad`: under `tf.vectorized_map` it ignores the value and pads with zeros.
        batch_shape = ps.shape(x)[:-1]
        ends = (
            tf.fill(ps.concat([batch_shape, [n]], axis=0), tf.cast(value, x.dtype))
            for n in (before, after)
        )
        return tf.concat([next(ends), x, next(ends)], axis=-1)
    no_padding = ps.zeros([ps.rank(x) - 1, 2], dtype=tf.int32)
    return tf.pad(x, ps.concat([no_padding, [[before, after]]], axis=0))


def broadcast_to_batch(x: tf.Tensor, *batch_shapes: Any) -> tf.Tensor:
    shape = ps.shape(x)
    batch_shape = functools.reduce(ps.broadcast_shape, batch_shapes, shape[:-1])
    full_shape = ps.concat([batch_shape, shape[-1:]], axis=0)
    static = tf.get_static_value(full_shape)
    if (
        static is not None
        and tensorshape_util.is_fully_defined(x.shape)
        and list(static) == list(x.shape)
    ):
        return x
    return tf.broadcast_to(x, full_shape)
