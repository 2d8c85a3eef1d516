"""Chains from other parametrizations: transitions, precision matrices and their factors.

A path whose centred coordinates are x_0 = s ε_0 and x_t = φ_t x_(t-1) + q_t ε_t, ε_t ~ N(0, 1), has

    σ_0 = s,    σ_t² = φ_t² σ_(t-1)² + q_t²,    atanh ρ_t = asinh(φ_t σ_(t-1) / q_t)

because ρ_t = φ_t σ_(t-1) / σ_t and √(1 - ρ_t²) = q_t / σ_t. atanh ρ_t keeps the accuracy that ρ_t
itself loses near ±1. Everything is computed in O(log d) passes of O(d) or less.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf
import tensorflow_probability as tfp
from tensorflow_probability.python.internal import prefer_static as ps

from tfp_ar1.linear_operators.markov_cholesky import common_float_dtype
from tfp_ar1.messages import compose_linear_fractional

__all__ = ["from_precision", "from_precision_cholesky", "from_transitions", "tensors", "then"]

Parameters = dict[str, tf.Tensor]


def tensors(**arguments: Any) -> dict[str, tf.Tensor]:
    """Returns the arguments that are not `None`, as tensors of a common floating-point type."""
    arguments = {name: x for name, x in arguments.items() if x is not None}
    dtype = common_float_dtype(arguments)
    return {name: tf.convert_to_tensor(x, dtype, name=name) for name, x in arguments.items()}


def from_transitions(
    coefficients: tf.Tensor,
    innovation_scale: tf.Tensor,
    initial_scale: tf.Tensor,
    loc: tf.Tensor | None = None,
) -> Parameters:
    """Computes the parameters of an ANTE(1) chain from those of its transitions.

    Args:
      coefficients: φ_1, …, φ_(d-1), `[..., d - 1]`, or one number for all; any real numbers.
      innovation_scale: q_1, …, q_(d-1), shaped like `coefficients`, positive.
      initial_scale: s, `[...]`, not negative; 0 for a known start.
      loc: sets the number of coordinates if neither of the others does.

    Returns:
      `scale_diag` `[..., d]` and `fisher_z` `[..., d - 1]`.

    Raises:
      ValueError: if the numbers of steps differ, or no argument determines them.
    """
    num_steps = _num_steps(coefficients, innovation_scale, loc)
    coefficients = tf.broadcast_to(
        coefficients, ps.broadcast_shape(ps.shape(coefficients), num_steps)
    )
    initial = initial_scale[..., tf.newaxis]
    steps = ps.broadcast_shape(ps.shape(coefficients), ps.shape(innovation_scale))
    shape = ps.concat([ps.broadcast_shape(steps[:-1], ps.shape(initial)[:-1]), steps[-1:]], axis=0)
    coefficients, innovation_scale = (
        tf.broadcast_to(x, shape) for x in (coefficients, innovation_scale)
    )
    initial = tf.broadcast_to(initial, ps.concat([shape[:-1], [1]], axis=0))
    # In units of the largest scale, so that squares do not overflow before the scale itself.
    scales = tf.concat([initial, innovation_scale], axis=-1)
    unit = tf.stop_gradient(tf.reduce_max(scales, axis=-1, keepdims=True))
    factors = tf.concat([tf.zeros_like(initial), tf.square(coefficients)], axis=-1)
    _, variance = tfp.math.scan_associative(then, (factors, tf.square(scales / unit)), axis=-1)
    # The first scale is used as given: the square root has no derivative at 0, a known start.
    later = unit * tf.sqrt(variance[..., 1:])
    scale = tf.concat([initial, later], axis=-1)
    return {
        "scale_diag": scale,
        "fisher_z": tf.math.asinh(coefficients * (scale[..., :-1] / innovation_scale)),
    }


def _num_steps(coefficients: tf.Tensor, innovation_scale: tf.Tensor, loc: tf.Tensor | None) -> Any:
    """Returns the number of steps, as a shape `[d - 1]`."""
    given = {"coefficients": coefficients, "innovation_scale": innovation_scale, "loc": loc}
    shapes = {name: tf.TensorShape(x.shape) for name, x in given.items() if x is not None}
    counts = {
        name: (ps.shape(given[name])[-1:] - (name == "loc"), shape[-1])
        for name, shape in shapes.items()
        # A single number applies to all steps, or coordinates.
        if shape.rank != 0 and shape[-1:] != [1]
    }
    static = {size - (name == "loc") for name, (_, size) in counts.items() if size is not None}
    if len(static) > 1:
        raise ValueError(
            f"`coefficients` and `innovation_scale` must have one entry less along their last "
            f"axis than `loc`, or one for all steps; got shapes {shapes}."
        )
    if counts:
        return next(iter(counts.values()))[0]
    if all(shapes[name].rank == 0 for name in ("coefficients", "innovation_scale")):
        raise ValueError(
            f"The number of steps is not known: give `coefficients` or `innovation_scale` an entry "
            f"for each step, or `loc` one for each coordinate; got shapes {shapes}."
        )
    return [1]


def then(
    earlier: tuple[tf.Tensor, tf.Tensor], later: tuple[tf.Tensor, tf.Tensor]
) -> tuple[tf.Tensor, tf.Tensor]:
    """Composes two maps v → a v + b."""
    return later[0] * earlier[0], later[0] * earlier[1] + later[1]


def from_precision_cholesky(
    diagonal: tf.Tensor, off_diagonal: tf.Tensor, lower: bool = True
) -> Parameters:
    """Computes the parameters of the chain with precision matrix R Rᵀ, for a bidiagonal R.

    Rᵀ x = ε is a chain: for an upper R from the first coordinate to the last,
    x_t = (ε_t - R[t-1, t] x_(t-1)) / R[t, t], for a lower R from the last to the first.

    Args:
      diagonal: R[t, t], `[..., d]`, not 0.
      off_diagonal: `[..., d - 1]`; R[t, t - 1], or R[t - 1, t] for an upper R.
      lower: whether R is lower triangular.

    Returns:
      `scale_diag` `[..., d]` and `fisher_z` `[..., d - 1]`.
    """
    _check_off_diagonal(diagonal, off_diagonal)
    if lower:
        diagonal, off_diagonal = diagonal[..., ::-1], off_diagonal[..., ::-1]
    scale = tf.abs(1.0 / diagonal)
    later = diagonal[..., 1:]
    parameters = from_transitions(-off_diagonal / later, scale[..., 1:], scale[..., 0])
    return {name: x[..., ::-1] if lower else x for name, x in parameters.items()}


def from_precision(
    diagonal: tf.Tensor, off_diagonal: tf.Tensor, validate_args: bool = False
) -> Parameters:
    """Computes the parameters of the chain with a given tridiagonal precision matrix.

    Args:
      diagonal: P[t, t], `[..., d]`.
      off_diagonal: P[t, t - 1], `[..., d - 1]`. If P is not positive definite, there are NaNs.
      validate_args: whether to check this when the graph runs.

    Returns:
      `scale_diag` `[..., d]` and `fisher_z` `[..., d - 1]`.
    """
    _check_off_diagonal(diagonal, off_diagonal)
    # In float64: here, unlike everywhere else, nearly equal numbers are subtracted.
    dtype = diagonal.dtype
    diagonal, off_diagonal = (tf.cast(x, tf.float64) for x in (diagonal, off_diagonal))
    # The squares of the diagonal of the Cholesky factor are δ_t = P[t, t] - P[t, t-1]² / δ_(t-1).
    # With z_t = δ_t / P[t, t] and κ_t = P[t, t-1]² / (P[t, t] P[t-1, t-1]), the maps
    # z → (z - κ_t) / z are composed as matrices [[1, -κ_t], [1, 0]], up to a factor.
    root = tf.math.sqrt(diagonal)
    kappa = tf.square(off_diagonal / (root[..., 1:] * root[..., :-1]))
    batch = ps.broadcast_shape(ps.shape(diagonal)[:-1], ps.shape(kappa)[:-1])
    kappa = tf.broadcast_to(kappa, ps.concat([batch, ps.shape(kappa)[-1:]], axis=0))
    # κ_0 = 0 maps z = 1 to z_0 = 1.
    kappa = tf.concat([tf.zeros(ps.concat([batch, [1]], axis=0), kappa.dtype), kappa], axis=-1)
    one = tf.ones_like(kappa)
    a, b, c, e = tfp.math.scan_associative(
        compose_linear_fractional, (one, -kappa, one, tf.zeros_like(kappa)), axis=-1
    )
    pivots = (a + b) / (c + e)
    message = "The precision matrix is not positive definite."
    checks = [tf.debugging.assert_positive(pivots, message=message)] if validate_args else []
    with tf.control_dependencies(checks):
        factor = root * tf.math.sqrt(pivots)
    parameters = from_precision_cholesky(factor, off_diagonal / factor[..., :-1])
    return {name: tf.cast(x, dtype) for name, x in parameters.items()}


def _check_off_diagonal(diagonal: tf.Tensor, off_diagonal: tf.Tensor) -> None:
    """Raises `ValueError` if the off-diagonal is known not to have one entry less."""
    shapes = (tf.TensorShape(diagonal.shape), tf.TensorShape(off_diagonal.shape))
    if 0 in (shape.rank for shape in shapes):
        sizes = (0, 0)
    else:
        sizes = tuple(shape[-1] for shape in shapes)
    if None not in sizes and sizes[1] != sizes[0] - 1:
        raise ValueError(
            f"`off_diagonal` must have one entry less along its last axis than `diagonal`; got "
            f"shapes {shapes[1]} and {shapes[0]}."
        )
