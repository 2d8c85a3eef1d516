"""How the recurrence is evaluated on JAX: in place of the schemes that TensorFlow's graphs need.

With a coefficient for each step, groups of eight neighbours are joined, and then groups of groups:
a few passes over memory, all parallel, of which XLA fuses each into one. Measured on a CPU, jitted,
in medians, from 128 × 64 to 1 × 10⁶: 0.4 to 0.65 of the time of doubling or blocks, and with
gradients 0.12 to 0.22. (A `lax.scan` over the coordinates is faster still on a CPU, but is a launch
for each on a GPU, and loses what 1 - |ρ| keeps where ρ rounds to ±1.) With one ρ for all steps it
is the same up to 256 coordinates: with gradients 0.45 to 1 of the time of doubling. Beyond, blocks.
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
    """Chooses how the recurrence is evaluated, by the size of its axis."""
    if rho.per_step:
        return step_scheme(Coefficients.of(rho), size)
    if size > _LARGEST_SIZE_FOR_GROUPS:
        # Products of matrices, whose own derivatives are faster than the rule.
        return _Blocks(_ScalarPowers.of(rho), size)
    shape = (*rho.value.shape, max(size - 1, 0))
    steps = (jnp.broadcast_to(x[..., jnp.newaxis], shape) for x in Coefficients.of(rho))
    return _WithRule(_Groups(Coefficients(*steps), size), rho.value[..., jnp.newaxis])


def step_scheme(steps: Coefficients, size: int) -> ScanScheme:
    """Chooses how a recurrence with a coefficient for each step is evaluated."""
    return _WithRule(_Groups(steps, size), steps.value)


class _WithRule(ScanScheme):
    """A scheme with the derivatives of the solution of a linear system, to any order.

    Those of `(I - ρ S) y = x` are `dy = (I - ρ S)⁻¹ (dx + dρ S y)`: the recurrence once more, or
    its transpose, instead of derivatives of all that the scheme computes.
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
    """Serial within groups of a few neighbours, all groups at once, whose carries are one too."""

    def __init__(self, steps: Coefficients, size: int):
        size = max(size, 1)  # A path without coordinates has no recurrence.
        self.size, self.num_groups = size, -(-size // _RADIX)
        self.padding = self.num_groups * _RADIX - size
        # Coefficients of 0, before the first coordinate too.
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
        # What each group makes of its own coordinates, and then with what is carried into it.
        ys = self._run(xs, None, reverse)
        if self.num_groups > 1:
            if reverse:
                from_next = pad((self.coefficients[0] * ys[0])[..., 1:], 0, 1)
                carried = self.carry_scheme.solve(from_next, reverse)
            else:
                carried = pad(self.carry_scheme.solve(ys[-1], reverse)[..., :-1], 1, 0)
            ys = self._run(xs, carried, reverse)
        y = jnp.stack(ys, axis=-1)
        # Not -1, which JAX refuses where an axis is empty.
        return y.reshape(*y.shape[:-2], self.num_groups * _RADIX)[..., : self.size]

    def _run(
        self, xs: list[jax.Array], carried: jax.Array | None, reverse: bool
    ) -> list[jax.Array]:
        """The recurrence inside the groups; entry j holds coordinate j of each of them."""
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
