"""The recurrence on JAX: as in `tfp_ar1`, except for a derivative that is cheaper under XLA."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from tfp_ar1_jax._shared import recurrence as _shared
from tfp_ar1_jax._shared.recurrence import *  # noqa: F403
from tfp_ar1_jax._shared.recurrence import broadcast_to_batch, pad
from tfp_ar1_jax.correlation import LagOneCorrelation

__all__ = _shared.__all__


def squared_norm_of_whitened(x: jax.Array, rho: LagOneCorrelation, scale: jax.Array) -> jax.Array:
    """Returns the sum of the squares of `whiten(x, rho, scale)`, of the broadcast shape `[...]`."""
    if rho.per_step or x.shape[-1] < 2:
        return _shared.squared_norm_of_whitened(x, rho, scale)
    x = broadcast_to_batch(x, rho.batch_shape(), scale.shape)
    a, b = _shared._over_scale(rho.inverse_unit_innovation_scale, rho.signed_exp_neg_abs_z, scale)
    a, b, sign = (jnp.broadcast_to(t, x.shape[:-1])[..., jnp.newaxis] for t in (a, b, rho.sign))
    return jnp.square(x[..., 0] / scale) + _squared_norm(x, a, b, sign)


@jax.custom_jvp
def _squared_norm(x: jax.Array, a: jax.Array, b: jax.Array, sign: jax.Array) -> jax.Array:
    """`Σ y_t²` of `y_t = a (x_t - sign x_{t-1}) + b x_{t-1}`, for parameters `[..., 1]`."""
    return jnp.sum(jnp.square(_stencil(x, a, b, sign)), axis=-1)


@_squared_norm.defjvp
def _(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    # With autodiff, the gradient with respect to x has three shifted arrays, for each of which XLA
    # recomputes y; and on a CPU the factors of the sums Σ y_t (x_t - sign x_{t-1}) and
    # Σ y_t x_{t-1} are written to memory. Here the first sum follows from the second and the value.
    (x, a, b, sign), (dx, da, db, _) = primals, tangents
    y = _stencil(x, a, b, sign)
    value = jnp.sum(jnp.square(y), axis=-1)
    of_b = jnp.sum(y * x[..., :-1], axis=-1)
    of_a = (value - b[..., 0] * of_b) / a[..., 0]
    of_x = pad(a * y, 1, 0) + pad((b - sign * a) * y, 0, 1)
    return value, 2.0 * (of_a * da[..., 0] + of_b * db[..., 0] + jnp.sum(of_x * dx, axis=-1))


def _stencil(x: jax.Array, a: jax.Array, b: jax.Array, sign: jax.Array) -> jax.Array:
    return a * (x[..., 1:] - sign * x[..., :-1]) + b * x[..., :-1]
