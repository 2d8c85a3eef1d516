"""Parameters of chains from `tfd.MarkovChain` or `tfd.LinearGaussianStateSpaceModel`.

Both have transitions x_t = φ_t x_(t-1) + b_t + q_t ε_t, the input of
`transitions.from_transitions`; the mean follows from m_t = φ_t m_(t-1) + b_t.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp
from tensorflow_probability import distributions as tfd
from tensorflow_probability.python.distributions.independent import _Independent
from tensorflow_probability.python.distributions.sample import _Sample
from tensorflow_probability.python.internal import (
    distribution_util,
    dtype_util,
    samplers,
    tensorshape_util,
)
from tensorflow_probability.python.internal import prefer_static as ps

from tfp_ar1._backend import do_not_convert, gradients_of_first
from tfp_ar1.distributions.transitions import from_transitions, then
from tfp_ar1.linear_operators.chain import widened
from tfp_ar1.recurrence import pad

__all__ = ["of_markov_chain", "of_state_space_model"]

Parameters = dict[str, tf.Tensor]

# Distances from the mean, in units of the path's scale, at which to test whether a transition
# function is affine: near and far enough to detect any nonlinearity.
_DISTANCES = (-997.3, -2.9, 0.83, 31.6)


def of_markov_chain(chain: tfd.MarkovChain, validate_args: bool = False) -> Parameters:
    """Returns the parameters of an ANTE(1) chain from a `tfd.MarkovChain` of scalar normals.

    The transition function may be any function: φ_t is the derivative of its mean. Evaluations at
    distant points check that this derivative and the standard deviation are constant.

    Args:
      chain: a chain of event shape `[d]` or `[d, 1]`.
      validate_args: whether to assert this where values are not known at trace time.

    Returns:
      `loc` and `scale_diag` `[..., d]` and `fisher_z` `[..., d - 1]`, in the chain's dtype.

    Raises:
      TypeError: if `chain` is not a `tfd.MarkovChain`.
      ValueError: if the chain does not consist of scalar normals whose means are affine in the
        previous state and whose scales do not depend on it.
    """
    if not isinstance(chain, tfd.MarkovChain):
        raise TypeError(f"Expected a `tfd.MarkovChain`; got {chain!r}.")
    prior = chain.initial_state_prior
    mean, scale = _mean_and_stddev(prior, "The `initial_state_prior`")
    batch = prior.batch_shape_tensor()
    mean, scale = (tf.broadcast_to(x, batch) for x in (mean, scale))
    num_steps = ps.maximum(chain.num_steps - 1, 0)
    steps = ps.concat([[num_steps], ps.shape(mean)], axis=0)
    # Start from the initial mean: if the chain is stationary around it, all means equal it exactly.
    start = tf.broadcast_to(mean, steps)
    is_vector = tensorshape_util.rank(prior.event_shape) == 1

    def transition(state: tf.Tensor) -> tuple[tf.Tensor, ...]:
        """Calls the transition function like the chain, with all steps along the first axis."""
        distribution = chain.transition_fn(
            tf.range(num_steps), state[..., tf.newaxis] if is_vector else state
        )
        moments = _mean_and_stddev(distribution, "The result of the `transition_fn`")
        return tuple(tf.broadcast_to(x, ps.broadcast_shape(ps.shape(x), steps)) for x in moments)

    (next_mean, innovation_scale), (coefficients,) = gradients_of_first(transition, start)
    checks: list[Any] = []
    if validate_args or tf.get_static_value(coefficients) is not None:
        unit = scale + innovation_scale
        for distance in _DISTANCES:
            # Different for each entry: coefficients are derivatives of the sum of all entries.
            share = samplers.uniform(ps.shape(unit), 0.5, 1.0, unit.dtype, samplers.zeros_seed())
            move = distance * share * unit
            moved_mean, moved_scale = transition(start + move)
            checks += _check_equal(moved_mean, next_mean + coefficients * move, _NOT_AFFINE)
            checks += _check_equal(moved_scale, innovation_scale, _SCALE_DEPENDS_ON_STATE)
    with tf.control_dependencies(checks):
        moved = widened(next_mean) - widened(start)
    along = (_to_last_axis(x) for x in (coefficients, moved, innovation_scale))
    return _parameters(prior.dtype, mean, scale, *along)


def of_state_space_model(
    model: tfd.LinearGaussianStateSpaceModel,
) -> tuple[Parameters, tf.Tensor]:
    """Returns the parameters of a model's noise-free observations `H_t z_t + c_t`, and the noise.

    Args:
      model: a model of latent size 1 and event shape `[d, 1]`.

    Returns:
      `loc` and `scale_diag` `[..., d]` and `fisher_z` `[..., d - 1]`, and the standard deviation of
      the observation noise, `[..., d]`; in the model's dtype.

    Raises:
      TypeError: if `model` is not a `tfd.LinearGaussianStateSpaceModel`.
      ValueError: if its states or observations are not scalar, or an `observation_matrix` or the
        scale of a transition is known to be 0.
    """
    _check_scalar(model)
    prior = model.initial_state_prior
    mean, scale = widened(prior.mean()[..., 0]), prior.stddev()[..., 0]
    *transition, factor, offset, noise_scale = _along_steps(model)
    # Drop the transition after the last step, which TFP's filters evaluate too.
    coefficients, shift, innovation_scale = (x[..., :-1] for x in transition)
    moved = (widened(coefficients) - 1.0) * mean[..., tf.newaxis] + widened(shift)
    path = _parameters(model.dtype, mean, scale, coefficients, moved, innovation_scale)
    _check_not_zero("An `observation_matrix`", factor)
    sign = tf.sign(factor)
    parameters = {
        "loc": factor * path["loc"] + offset,
        "scale_diag": tf.abs(factor) * path["scale_diag"],
        "fisher_z": sign[..., 1:] * sign[..., :-1] * path["fisher_z"],
    }
    return parameters, noise_scale


def _parameters(
    dtype: tf.DType,
    mean: tf.Tensor,
    scale: tf.Tensor,
    coefficients: tf.Tensor,
    moved: tf.Tensor,
    innovation_scale: tf.Tensor,
) -> Parameters:
    """Computes parameters from the first state's moments `[...]` and the steps `[..., d - 1]`.

    `moved` is how far each step moves the initial mean.
    """
    _check_not_zero("The scale of a transition", innovation_scale)
    mean, scale, coefficients, moved, innovation_scale = (
        widened(x) for x in (mean, scale, coefficients, moved, innovation_scale)
    )
    steps = ps.broadcast_shape(ps.shape(coefficients), ps.shape(moved))
    maps = tuple(pad(tf.broadcast_to(x, steps), 1, 0) for x in (coefficients, moved))
    _, distance = tfp.math.scan_associative(then, maps, axis=-1)
    parameters = from_transitions(coefficients, innovation_scale, scale)
    parameters["loc"] = mean[..., tf.newaxis] + distance
    return {name: tf.cast(x, dtype) for name, x in parameters.items()}


def _mean_and_stddev(distribution: Any, what: str) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns mean and stddev, `[...]`, of a normal over scalars or vectors of size 1."""
    if isinstance(distribution, tfd.Normal):
        return tf.convert_to_tensor(distribution.loc), tf.convert_to_tensor(distribution.scale)
    is_normal = isinstance(distribution, tfd.MultivariateNormalLinearOperator) or (
        isinstance(distribution, _Independent | _Sample)
        and isinstance(distribution.distribution, tfd.Normal)
    )
    if is_normal and distribution.event_shape == [1]:
        return distribution.mean()[..., 0], distribution.stddev()[..., 0]
    raise ValueError(
        f"{what} must be a `tfd.Normal`, or a normal over vectors of size 1, for the chain to be "
        f"Gaussian; got {distribution!r}."
    )


_NOT_AFFINE = (
    "The mean of the `transition_fn`'s result must be an affine function of the state, "
    "`a_t state + b_t`, for the chain to be Gaussian"
)
_SCALE_DEPENDS_ON_STATE = (
    "The scale of the `transition_fn`'s result must not depend on the state, for the chain to be "
    "Gaussian"
)


def _check_equal(actual: tf.Tensor, expected: tf.Tensor, message: str) -> list[Any]:
    """Rejects values that differ by more than rounding, or returns an assertion."""
    size = tf.abs(actual) + tf.abs(expected)
    tolerance = dtype_util.eps(actual.dtype) ** 0.5 * size
    # NaN comes from the parameters, not from the form of the function.
    is_equal = (tf.abs(actual - expected) <= tolerance) | tf.math.is_nan(expected)
    static = tf.get_static_value(is_equal)
    if static is None:
        return [tf.debugging.assert_equal(is_equal, True, message=f"{message}.")]
    if not np.all(static):
        where = tuple(np.argwhere(~static)[0])
        raise ValueError(
            f"{message}; got {actual[where]} for {expected[where]} at step {where[0]}."
        )
    return []


def _check_not_zero(name: str, x: tf.Tensor) -> None:
    value = tf.get_static_value(x)
    if value is not None and np.any(value == 0):
        where = tuple(np.argwhere(value == 0)[0])
        raise ValueError(
            f"{name} must not be 0, or the path has no density; got 0 at step {where[-1]}."
        )


def _check_scalar(model: Any) -> None:
    if not isinstance(model, tfd.LinearGaussianStateSpaceModel):
        raise TypeError(f"Expected a `tfd.LinearGaussianStateSpaceModel`; got {model!r}.")
    sizes = [shape[-1] for shape in (model.initial_state_prior.event_shape, model.event_shape)]
    if any(size not in (1, None) for size in sizes):
        raise ValueError(
            f"The states and the observations of a state space model must be scalar for it to be a "
            f"chain; got sizes {sizes[0]} and {sizes[1]} of {model!r}."
        )


def _along_steps(model: Any) -> tuple[tf.Tensor, ...]:
    """Returns matrices, means and scales of transitions and observations, `[..., d]`."""

    # Also exempts what it calls: autograph warns about user functions whose source it cannot read.
    @do_not_convert
    def at_time(t: tf.Tensor) -> tuple[tf.Tensor, ...]:
        kinds = (
            (model.get_transition_matrix_for_timestep, model.get_transition_noise_for_timestep),
            (model.get_observation_matrix_for_timestep, model.get_observation_noise_for_timestep),
        )
        result: list[tf.Tensor] = []
        for matrix, noise in kinds:
            normal = noise(t)
            result += [matrix(t).to_dense()[..., 0, 0], normal.mean()[..., 0]]
            result.append(normal.stddev()[..., 0])
        return tuple(result)

    kinds = ("transition_matrix", "transition_noise", "observation_matrix", "observation_noise")
    if any(callable(getattr(model, kind)) for kind in kinds):
        values = tf.vectorized_map(at_time, model.initial_step + tf.range(model.num_timesteps))
        return tuple(_to_last_axis(x) for x in values)
    values = (x[..., tf.newaxis] for x in at_time(model.initial_step))
    return tuple(
        tf.broadcast_to(x, ps.concat([ps.shape(x)[:-1], [model.num_timesteps]], axis=0))
        for x in values
    )


def _to_last_axis(x: tf.Tensor) -> tf.Tensor:
    return distribution_util.move_dimension(x, 0, -1)
