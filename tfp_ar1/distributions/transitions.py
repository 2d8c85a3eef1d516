"""Chains by the parameters that others have: transitions, precision matrices and their factors.

A path whose centred coordinates are x_0 = s ε_0 and x_t = φ_t x_(t-1) + q_t ε_t, ε_t ~ N(0, 1), has

    σ_0 = s,    σ_t² = φ_t² σ_(t-1)² + q_t²,    atanh ρ_t = asinh(φ_t σ_(t-1) / q_t)

because ρ_t = φ_t σ_(t-1) / σ_t and √(1 - ρ_t²) = q_t / σ_t. The last keeps the accuracy that ρ_t
itself loses near ±1. All is computed in O(log d) passes, each of O(d) or less.
"""

from __future__ import annotations

import tensorflow as tf
import tensorflow_probability as tfp
from tensorflow_probability.python.internal import prefer_static as ps

__all__ = ["from_precision", "from_precision_cholesky", "from_transitions"]

Parameters = dict[str, tf.Tensor]


def from_transitions(
    coefficients: tf.Tensor, innovation_scale: tf.Tensor, initial_scale: tf.Tensor
) -> Parameters:
    """The parameters of an ANTE(1) chain from those of its transitions.

    Args:
      coefficients: φ_1, …, φ_(d-1), `[..., d - 1]`; any real numbers.
      innovation_scale: q_1, …, q_(d-1), `[..., d - 1]`, positive.
      initial_scale: s, `[...]`, positive.

    Returns:
      `scale_diag` `[..., d]` and `fisher_z` `[..., d - 1]`.
    """
    initial = initial_scale[..., tf.newaxis]
    steps = ps.broadcast_shape(ps.shape(coefficients), ps.shape(innovation_scale))
    shape = ps.concat([ps.broadcast_shape(steps[:-1], ps.shape(initial)[:-1]), steps[-1:]], axis=0)
    coefficients = tf.broadcast_to(coefficients, shape)
    # In units of the initial scale, so that no square overflows before the scale itself would.
    innovation_scale = tf.broadcast_to(innovation_scale / initial, shape)
    first = ps.concat([shape[:-1], [1]], axis=0)
    factors = tf.concat([tf.zeros(first, initial.dtype), tf.square(coefficients)], axis=-1)
    terms = tf.concat([tf.ones(first, initial.dtype), tf.square(innovation_scale)], axis=-1)
    _, variance = tfp.math.scan_associative(_then, (factors, terms), axis=-1)
    scale = tf.sqrt(variance)
    return {
        "scale_diag": scale * initial,
        "fisher_z": tf.math.asinh(coefficients * (scale[..., :-1] / innovation_scale)),
    }


def _then(
    earlier: tuple[tf.Tensor, tf.Tensor], later: tuple[tf.Tensor, tf.Tensor]
) -> tuple[tf.Tensor, tf.Tensor]:
    """The map v → a v + b that two of them make, one after the other."""
    return later[0] * earlier[0], later[0] * earlier[1] + later[1]


def from_precision_cholesky(
    diagonal: tf.Tensor, off_diagonal: tf.Tensor, lower: bool = True
) -> Parameters:
    """The parameters of the chain whose precision matrix is R Rᵀ, for a bidiagonal R.

    Rᵀ x = ε is a chain: for an upper R from the first coordinate to the last, x_t = (ε_t - R[t-1, t]
    x_(t-1)) / R[t, t], for a lower one from the last to the first.

    Args:
      diagonal: R[t, t], `[..., d]`, not 0.
      off_diagonal: `[..., d - 1]`; R[t, t - 1], or R[t - 1, t] of an upper R.
      lower: whether R is lower triangular.

    Returns:
      `scale_diag` `[..., d]` and `fisher_z` `[..., d - 1]`.
    """
    if lower:
        diagonal, off_diagonal = diagonal[..., ::-1], off_diagonal[..., ::-1]
    scale = tf.abs(1.0 / diagonal)
    later = diagonal[..., 1:]
    parameters = from_transitions(-off_diagonal / later, scale[..., 1:], scale[..., 0])
    return {name: x[..., ::-1] if lower else x for name, x in parameters.items()}


def from_precision(diagonal: tf.Tensor, off_diagonal: tf.Tensor) -> Parameters:
    """The parameters of the chain with a given precision matrix, which is tridiagonal.

    Args:
      diagonal: P[t, t], `[..., d]`.
      off_diagonal: P[t, t - 1], `[..., d - 1]`. P must be positive definite; else there are NaNs.

    Returns:
      `scale_diag` `[..., d]` and `fisher_z` `[..., d - 1]`.
    """
    # The squares of the diagonal of the Cholesky factor are δ_t = P[t, t] - P[t, t-1]² / δ_(t-1).
    # With z_t = δ_t / P[t, t] and κ_t = P[t, t-1]² / (P[t, t] P[t-1, t-1]), the maps
    # z → (z - κ_t) / z are composed as matrices [[1, -κ_t], [1, 0]], up to a factor.
    root = tf.math.sqrt(diagonal)
    kappa = tf.square(off_diagonal / (root[..., 1:] * root[..., :-1]))
    batch = ps.broadcast_shape(ps.shape(diagonal)[:-1], ps.shape(kappa)[:-1])
    kappa = tf.broadcast_to(kappa, ps.concat([batch, ps.shape(kappa)[-1:]], axis=0))
    # z_0 = 1 from z = 1, by κ_0 = 0.
    kappa = tf.concat([tf.zeros(ps.concat([batch, [1]], axis=0), kappa.dtype), kappa], axis=-1)
    one = tf.ones_like(kappa)
    a, b, c, e = tfp.math.scan_associative(
        _compose, (one, -kappa, one, tf.zeros_like(kappa)), axis=-1
    )
    factor = root * tf.math.sqrt((a + b) / (c + e))
    return from_precision_cholesky(factor, off_diagonal / factor[..., :-1])


def _compose(earlier: tuple[tf.Tensor, ...], later: tuple[tf.Tensor, ...]) -> tuple[tf.Tensor, ...]:
    """The product of two 2 × 2 matrices, rows after each other, up to a factor."""
    (a, b, c, e), (a2, b2, c2, e2) = earlier, later
    product = (a2 * a + b2 * c, a2 * b + b2 * e, c2 * a + e2 * c, c2 * b + e2 * e)
    # The factor changes nothing, and so has no derivative.
    factor = tf.stop_gradient(1.0 / tf.reduce_max(tf.abs(tf.stack(product)), axis=0))
    return tuple(x * factor for x in product)
