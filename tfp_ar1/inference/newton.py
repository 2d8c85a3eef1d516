"""The mode of a Gaussian Markov chain under a likelihood, by Newton's method with line search.

In standardized coordinates w = (x - loc) / σ, with the correlation matrix C of the chain, its
Cholesky factor L, and slopes g and curvatures W = -∂²log p(y_t | x_t) of the likelihood, a step
goes to the mean of the chain with Gaussian sites of precisions τ = σ² W (or max(τ, 0), far from the
mode or where minus the Hessian C⁻¹ + τ is not positive definite),

    w' = (C⁻¹ + τ)⁻¹ h,    h = σ g + τ w.

The messages give w' in O(d), together with its innovations L⁻¹ w'. The prior's part of the log
joint is computed from the innovations, which are linear along the step: where ρ is nearly ±1, those
of w rounded to float32 would be far less accurate.
"""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf
from tensorflow_probability.python.internal import dtype_util, tensorshape_util
from tensorflow_probability.python.internal import prefer_static as ps

from tfp_ar1._backend import while_loop
from tfp_ar1.inference.likelihood import Likelihood
from tfp_ar1.linear_operators.chain import Chain
from tfp_ar1.messages import Messages, largest_precision

__all__ = ["Mode", "find_mode"]

_MAX_HALVINGS = 40


class _Point(NamedTuple):
    """A path w, its innovations and `C⁻¹ w`, and the log joint and derivatives there."""

    w: tf.Tensor
    innovations: tf.Tensor
    force: tf.Tensor
    log_joint: tf.Tensor  # [...], up to terms that do not depend on w
    slope: tf.Tensor  # [..., d], of the log-likelihood in w
    curvature: tf.Tensor  # [..., d], minus its second derivative


class Mode(NamedTuple):
    """Result of `find_mode`: w and `force` = C⁻¹ w, `[..., d]`; the others are `[...]`."""

    w: tf.Tensor
    force: tf.Tensor
    decrement: tf.Tensor
    converged: tf.Tensor
    num_iterations: tf.Tensor


def find_mode(
    likelihood: Likelihood,
    chain: Chain,
    loc: tf.Tensor,
    initial: tf.Tensor,
    max_iterations: int,
    tolerance: float,
) -> Mode:
    """Runs Newton's method, for each member of a batch until it has converged.

    Args:
      likelihood: the likelihood of the path.
      chain: the path's chain.
      loc: the path's mean, broadcast against `[..., d]`.
      initial: w at which to start, `[..., d]`, for the whole batch.
      max_iterations: the largest number of steps.
      tolerance: the decrement per √d at which a member has converged; it still takes that step.

    Returns:
      The mode, without derivatives. Its decrement, divided by √d, is the one at the start of the
      last step: the distance to the mode in posterior standard deviations, as a root mean square.
    """
    size = tf.cast(ps.shape(initial)[-1], initial.dtype)
    scale, batch = chain.scale, ps.shape(initial)[:-1]

    def evaluate(w: tf.Tensor, innovations: tf.Tensor, force: tf.Tensor) -> _Point:
        value, slope, curvature = likelihood.derivatives(loc + scale * w)
        slope, curvature = scale * slope, tf.square(scale) * curvature
        squares = 0.5 * tf.reduce_sum(tf.square(innovations), axis=-1)
        log_joint = tf.reduce_sum(value, axis=-1) - squares
        return _Point(w, innovations, force, log_joint, slope, curvature)

    def newton_direction(
        point: _Point, decrement: tf.Tensor
    ) -> tuple[tuple[tf.Tensor, ...], tf.Tensor]:
        """Returns the steps in w, innovations and force, and the squared decrement."""
        slope, curvature = (
            tf.where(tf.math.is_finite(x), x, tf.zeros_like(x))
            for x in (point.slope, point.curvature)
        )
        # Far from the mode, a barely positive curvature would lead to another mode.
        is_near = decrement[..., tf.newaxis] <= 0.1
        curvature = tf.where(is_near, curvature, tf.maximum(curvature, 0.0))
        tau = tf.minimum(curvature, largest_precision(curvature.dtype))
        messages = Messages(chain, tau, signed=True, with_derivatives=False)
        tau = messages.tau
        w, innovations = messages.whitened_mean(slope + tau * point.w)
        by = w - point.w, innovations - point.innovations, slope - tau * (w - point.w) - point.force
        squares = tf.square(by[1]) + tau * tf.square(by[0])
        return tuple(map(tf.stop_gradient, by)), tf.reduce_sum(squares, axis=-1)

    def line_search(
        point: _Point, by: tuple[tf.Tensor, ...], square: tf.Tensor, active: tf.Tensor
    ) -> tuple[_Point, tf.Tensor]:
        """Returns the first acceptable step of 1, ½, ¼, …, and whether there is one."""
        value = point.log_joint
        before = tf.where(tf.math.is_finite(value), value, -dtype_util.max(value.dtype))

        def halve(
            step: tf.Tensor, accepted: tf.Tensor, trial: _Point
        ) -> tuple[tf.Tensor, tf.Tensor, _Point]:
            step = tf.where(accepted, step, 0.5 * step)
            trial = evaluate(
                *(x + step[..., tf.newaxis] * d for x, d in zip(point[:3], by, strict=True))
            )
            finite = tf.reduce_all(
                tf.math.is_finite(trial.slope) & tf.math.is_finite(trial.curvature), axis=-1
            )
            enough = trial.log_joint >= before + 1e-4 * step * square
            # Near the mode, the rounding of the log joint may exceed the remaining gain; use its
            # derivative along the step there.
            along = tf.reduce_sum(trial.slope * by[0] - trial.innovations * by[1], axis=-1)
            near = (square <= size) & (tf.math.abs(along) <= 0.5 * square)
            good = finite & tf.math.is_finite(trial.log_joint) & (enough | near)
            return step, good | tf.logical_not(active), _Point(*map(tf.stop_gradient, trial))

        # Twice the first step, because `halve` halves before it tries.
        start = (2.0 * tf.cast(active, square.dtype), tf.logical_not(active), point)
        _, accepted, trial = while_loop(
            lambda step, accepted, trial: tf.logical_not(tf.reduce_all(accepted)),
            halve,
            start,
            maximum_iterations=_MAX_HALVINGS,
        )
        return trial, accepted

    def step(
        active: tf.Tensor,
        converged: tf.Tensor,
        num_iterations: tf.Tensor,
        decrement: tf.Tensor,
        point: _Point,
    ) -> tuple[tf.Tensor, ...]:
        by, square = newton_direction(point, decrement)
        trial, accepted = line_search(point, by, square, active)
        moves = active & accepted
        point = _Point(*(_where(moves, new, old) for new, old in zip(trial, point, strict=True)))
        # No derivative passes through an iteration. With nested tapes TensorFlow would build them
        # anyway, unless nothing is differentiable.
        point = _Point(*map(tf.stop_gradient, point))
        decrement = tf.where(active, tf.stop_gradient(tf.sqrt(square / size)), decrement)
        converged = tf.where(active, decrement <= tolerance, converged)
        num_iterations += tf.cast(active, tf.int32)
        # Members that no step improves stay where they are.
        return moves & tf.logical_not(converged), converged, num_iterations, decrement, point

    whitened = chain.solvevec(scale * initial)
    start = evaluate(initial, whitened, scale * chain.solvevec(whitened, adjoint=True))
    state = (
        tf.ones(batch, tf.bool),
        tf.zeros(batch, tf.bool),
        tf.zeros(batch, tf.int32),
        tf.fill(batch, tf.constant(float("inf"), initial.dtype)),
        _Point(*map(tf.stop_gradient, start)),
    )
    _, converged, num_iterations, decrement, point = while_loop(
        lambda active, *_: tf.reduce_any(active), step, state, maximum_iterations=max_iterations
    )
    return Mode(point.w, point.force, decrement, converged, num_iterations)


def _where(condition: tf.Tensor, x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
    """`tf.where` for a batch-shaped condition; x and y may also have the axis of coordinates."""
    if tensorshape_util.rank(x.shape) != tensorshape_util.rank(condition.shape):
        condition = condition[..., tf.newaxis]
    return tf.where(condition, x, y)
