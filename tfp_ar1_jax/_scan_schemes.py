"""Evaluation of the recurrence on JAX, in place of the schemes that TensorFlow's graphs need.

With a coefficient for each step, groups of eight neighbours are joined, then groups of groups: a
few parallel passes over memory, each of which XLA fuses into one. On a CPU, jitted, from 128 × 64
to 1 × 10⁶, the median time is 0.4 to 0.65 of that of doubling or blocks, and 0.12 to 0.22 with
gradients. (A `lax.scan` over the coordinates is even faster on a CPU, but needs a launch for each
coordinate on a GPU, and loses the digits that 1 - |ρ| keeps where ρ rounds to ±1.) With one ρ for
all steps the same scheme is used up to 256 coordinates, where it takes 0.45 to 1 of the time of
doubling with gradients; beyond that, blocks.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from tfp_ar1_jax._shared._scan_schemes import (
    Coefficients,
    ScanScheme,
    _Blocks,
    _ScalarPowers,
    broadcast_to_batch,
    matmul,
    pad,
    scaled_steps,
    shifts_below,
)
from tfp_ar1_jax.correlation import LagOneCorrelation

__all__ = [
    "Coefficients",
    "ScanScheme",
    "broadcast_to_batch",
    "matmul",
    "pad",
    "scaled_steps",
    "scheme_of",
    "shifts_below",
    "step_scheme",
]

_RADIX = 8
_LARGEST_SIZE_FOR_GROUPS = 256


def scheme_of(rho: LagOneCorrelation, size: int) -> ScanScheme:
    """Chooses how to evaluate the recurrence, by the size of its axis."""
    if rho.per_step:
        return step_scheme(Coefficients.of(rho), size)
    if size > _LARGEST_SIZE_FOR_GROUPS:
        # Matrix products, whose own derivatives are faster than those of `_WithRule`.
        return _Blocks(_ScalarPowers.of(rho), size)
    shape = (*rho.value.shape, max(size - 1, 0))
    steps = (jnp.broadcast_to(x[..., jnp.newaxis], shape) for x in Coefficients.of(rho))
    return _WithRule(_Groups(Coefficients(*steps), size), rho.value[..., jnp.newaxis])


def step_scheme(steps: Coefficients, size: int) -> ScanScheme:
    """Chooses how to evaluate a recurrence with a coefficient for each step."""
    return _WithRule(_Groups(steps, size), steps.value)


class _WithRule(ScanScheme):
    """A scheme with the derivatives of the solution of a linear system, to any order.

    For `(I - ρ S) y = x` they are `dy = (I - ρ S)⁻¹ (dx + dρ S y)`: the recurrence once more, or
    its transpose, instead of derivatives of every operation of the scheme.
    """

    def __init__(self, scheme: ScanScheme, coefficient: jax.Array):
        self._scheme, self._coefficient = scheme, coefficient

    def solve(self, x: jax.Array, reverse: bool) -> jax.Array:
        if x.shape[-1] < 2:
            return x

        def matvec(y: jax.Array) -> jax.Array:
            if reverse:
                return y - pad(self._coefficient * y[..., 1:], 0, 1)
            return y - pad(self._coefficient * y[..., :-1], 1, 0)

        return jax.lax.custom_linear_solve(
            matvec,
            x,
            lambda _, x: self._scheme.solve(x, reverse),
            lambda _, x: self._scheme.solve(x, not reverse),
        )


class _Groups(ScanScheme):
    """Serial within groups of a few neighbours, parallel over groups; recursive over carries."""

    def __init__(self, steps: Coefficients, size: int):
        size = max(size, 1)  # A path without coordinates has no recurrence.
        self.size, self.num_groups = size, -(-size // _RADIX)
        self.padding = self.num_groups * _RADIX - size
        # Padding coefficients are 0, also that before the first coordinate.
        value = self._members(pad(steps.value, 1, self.padding))
        distance = self._members(pad(steps.one_minus_abs, 1, self.padding, value=1))
        self.coefficients = value
        if self.num_groups > 1:
            product, *others = map(Coefficients, value, distance)
            for other in others:
                product = product.times(other)
            self.carry_scheme = _Groups(product.part(..., slice(1, None)), self.num_groups)

    def solve(self, x: jax.Array, reverse: bool) -> jax.Array:
        xs = self._members(pad(x, 0, self.padding) if self.padding else x)
        # First each group by itself, then again with its carry.
        ys = self._run(xs, None, reverse)
        if self.num_groups > 1:
            if reverse:
                from_next = pad((self.coefficients[0] * ys[0])[..., 1:], 0, 1)
                carried = self.carry_scheme.solve(from_next, reverse)
            else:
                carried = pad(self.carry_scheme.solve(ys[-1], reverse)[..., :-1], 1, 0)
            ys = self._run(xs, carried, reverse)
        y = jnp.stack(ys, axis=-1)
        # Not -1, which JAX rejects if an axis is empty.
        return y.reshape(*y.shape[:-2], self.num_groups * _RADIX)[..., : self.size]

    def _run(
        self, xs: list[jax.Array], carried: jax.Array | None, reverse: bool
    ) -> list[jax.Array]:
        """Runs the recurrence inside the groups; entry j holds coordinate j of every group."""
        ys, a = list(xs), self.coefficients
        if reverse:
            if carried is not None:
                ys[-1] += carried
            for j in reversed(range(_RADIX - 1)):
                ys[j] += a[j + 1] * ys[j + 1]
        else:
            if carried is not None:
                ys[0] += a[0] * carried
            for j in range(1, _RADIX):
                ys[j] += a[j] * ys[j - 1]
        return ys

    def _members(self, x: jax.Array) -> list[jax.Array]:
        groups = x.reshape(*x.shape[:-1], self.num_groups, _RADIX)
        return [groups[..., j] for j in range(_RADIX)]
