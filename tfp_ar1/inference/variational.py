"""Variational inference by natural gradients, with Gaussian sites in place of a likelihood."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from tensorflow_probability.python.internal import dtype_util
from tensorflow_probability.python.internal import prefer_static as ps

from tfp_ar1._backend import while_loop
from tfp_ar1._checks import checked_count
from tfp_ar1.distributions.noise import posterior_of_path
from tfp_ar1.inference.laplace import mode_of
from tfp_ar1.inference.likelihood import Likelihood
from tfp_ar1.linear_operators.chain import widened
from tfp_ar1.messages import Messages, largest_precision

__all__ = ["VariationalApproximation", "natural_gradient_vi"]


class VariationalApproximation(NamedTuple):
    """The result of `natural_gradient_vi`; `[...]` is the batch of path and likelihood.

    Attributes:
      posterior: the path times the sites, a `posterior_class` of the path.
      elbo: `[...]`, the evidence lower bound, at most `log p(y)`, in nats; differentiable.
      converged: boolean `[...]`, whether a whole step changes the marginals by less than the
        tolerance.
      num_iterations: int32 `[...]`, the number of steps tried.
      information: `[..., d]`, η of the sites, as for `GaussianMarkovChain.with_sites`.
      precision: `[..., d]`, λ of the sites; some may be negative if the log-likelihood is not
        concave (Student t). Pass η and λ as `initial_sites` to continue a run.
    """

    posterior: Any
    elbo: tf.Tensor
    converged: tf.Tensor
    num_iterations: tf.Tensor
    information: tf.Tensor
    precision: tf.Tensor


class _State(NamedTuple):
    """Sites in standardized coordinates, `[..., d]`, the ELBO there, and the sites to step to."""

    tau: tf.Tensor
    h: tf.Tensor
    elbo: tf.Tensor
    mean: tf.Tensor
    stddev: tf.Tensor
    next_tau: tf.Tensor
    next_h: tf.Tensor


def natural_gradient_vi(
    path: Any,
    log_likelihood_fn: Callable[[tf.Tensor], tf.Tensor],
    observed: Any = None,
    initial_sites: tuple[Any, Any] | None = None,
    num_steps: int = 100,
    learning_rate: float = 1.0,
    num_quadrature_points: int = 20,
    tolerance: float | None = None,
    name: str = "natural_gradient_vi",
) -> VariationalApproximation:
    """Finds the normal approximation of a path's posterior with the largest ELBO, O(d) per step.

    Conjugate-computation variational inference (CVI; Khan and Lin 2017, arXiv:1703.04265): the
    approximation is the path with a Gaussian site at each coordinate, and a natural-gradient step
    moves the sites a share `learning_rate` of the way to those of a likelihood with the expected
    derivatives. Members of the batch whose ELBO would decrease try half the step. For a normal
    likelihood, one whole step gives the exact posterior and `log p(y)`.

    ```python
    vi = tfp_ar1.inference.natural_gradient_vi(
        path, lambda x: tfd.Poisson(log_rate=x).log_prob(counts))
    vi.posterior.mean(), vi.elbo
    ```

    Where it has converged, the ELBO has the right first derivatives with respect to the parameters
    of the path and everything that `log_likelihood_fn` captures. They are taken with the sites held
    fixed, because these maximize it.

    Args:
      path: a `GaussianMarkovChain` of event shape `[d]`.
      log_likelihood_fn: as for `laplace_approximation`, except that x has one more axis on the left
        and one derivative is taken (two for gradients of the ELBO).
      observed: boolean tensor `[..., d]`, `True` where there is an observation. Default:
        everywhere.
      initial_sites: `(information, precision)`, each broadcast against `[..., d]`, at which to
        start. Default: those of Laplace's approximation.
      num_steps: the largest number of steps.
      learning_rate: the largest share of a step to take, in (0, 1].
      num_quadrature_points: number of Gauss–Hermite quadrature points at each coordinate.
      tolerance: a member has converged when a whole step changes its marginals by at most this, in
        their standard deviations, as a root mean square. Default: 4 times the square root of the
        machine epsilon.
      name: name prefixed to operations created by this function.

    Returns:
      A `VariationalApproximation`. Check its `converged`.

    Raises:
      ValueError: if the last dimension of the log-likelihoods is not d, or an argument is out of
        range.
      TypeError: if the log-likelihoods do not have the dtype of `path`, or `observed` is not
        boolean.
    """
    num_steps = checked_count("num_steps", num_steps, 0)
    num_points = checked_count("num_quadrature_points", num_quadrature_points, 1)
    if not 0.0 < learning_rate <= 1.0:
        raise ValueError(f"`learning_rate` must be in (0, 1]; got {learning_rate}.")
    epsilon = float(np.spacing(dtype_util.as_numpy_dtype(path.dtype)(1)))
    tolerance = 4.0 * epsilon**0.5 if tolerance is None else tolerance
    if not tolerance > 0.0:
        raise ValueError(f"`tolerance` must be positive; got {tolerance}.")
    nodes, weights = np.polynomial.hermite_e.hermegauss(num_points)
    weights /= np.sum(weights)
    with tf.name_scope(name):
        likelihood = Likelihood(path, log_likelihood_fn, observed)
        chain, loc = path.scale.chain().widened(), widened(path._loc_or_zero())
        stopped = chain.stop_gradient(), tf.stop_gradient(loc)

        def expected(mean: tf.Tensor, stddev: tf.Tensor) -> tuple[tf.Tensor, ...]:
            return likelihood.expectations(mean, stddev, nodes, weights)

        def evaluate(tau: tf.Tensor, h: tf.Tensor) -> _State:
            chain, loc = stopped
            scale = chain.scale
            messages = Messages(chain, tau, signed=True, with_derivatives=False)
            mean, stddev, _ = messages.posterior(h)
            value, by_mean, by_stddev = expected(loc + scale * mean, scale * stddev)
            elbo = tf.reduce_sum(value - messages.kl_terms(h), axis=-1)
            # Without a distribution there is no bound: the step is too long.
            elbo = tf.where(messages.positive_definite, elbo, -dtype_util.max(elbo.dtype))
            # E[∂²log p/∂x²] is the derivative with respect to the stddev, over the stddev.
            precision = tf.minimum(-scale * by_stddev / stddev, largest_precision(tau.dtype))
            next_h = scale * by_mean + precision * mean
            state = _State(tau, h, elbo, mean, stddev, precision, next_h)
            return _State(*map(tf.stop_gradient, state))  # as in `find_mode`

        def step(
            active: tf.Tensor,
            converged: tf.Tensor,
            num_iterations: tf.Tensor,
            rate: tf.Tensor,
            state: _State,
        ) -> tuple[tf.Tensor, ...]:
            share = rate[..., tf.newaxis]
            trial = evaluate(
                state.tau + share * (state.next_tau - state.tau),
                state.h + share * (state.next_h - state.h),
            )
            shift = (trial.mean - state.mean) / state.stddev
            ratio = trial.stddev / state.stddev - 1.0
            squares = tf.reduce_mean(tf.square(shift) + tf.square(ratio), axis=-1)
            near = tf.sqrt(squares) <= tolerance * rate
            finite = tf.math.is_finite(trial.elbo) & tf.reduce_all(
                tf.math.is_finite(trial.next_h), axis=-1
            )
            # Near the maximum, the rounding of the ELBO may exceed the remaining gain.
            moves = active & finite & ((trial.elbo >= state.elbo) | near)
            state = _State(
                *(
                    tf.where(moves if x is trial.elbo else moves[..., tf.newaxis], x, y)
                    for x, y in zip(trial, state, strict=True)
                )
            )
            rate = tf.where(moves, tf.minimum(2.0 * rate, learning_rate), 0.5 * rate)
            converged |= active & near
            num_iterations += tf.cast(active, tf.int32)
            return active & tf.logical_not(near), converged, num_iterations, rate, state

        tau, h = map(tf.stop_gradient, _initial_sites(path, likelihood, initial_sites))
        batch, zero = ps.shape(tau)[:-1], tf.zeros_like(tau)
        # The first step leads from nowhere to the initial sites and does not count.
        lowest = zero[..., 0] - dtype_util.max(tau.dtype)
        nowhere = _State(tau, h, lowest, zero - np.inf, zero + 1.0, tau, h)
        _, converged, num_iterations, _, state = while_loop(
            lambda active, *_: tf.reduce_any(active),
            step,
            (
                tf.ones(batch, tf.bool),
                tf.zeros(batch, tf.bool),
                tf.fill(batch, -1),
                tf.ones(batch, chain.dtype),
                nowhere,
            ),
            maximum_iterations=1 + num_steps,
        )
        precision = state.tau / tf.square(chain.scale)
        information = state.h / chain.scale + precision * loc
        information, precision = (
            tf.stop_gradient(tf.cast(x, path.dtype)) for x in (information, precision)
        )
        tau, h = _standardized(path, information, precision)
        messages = Messages(chain, tau, signed=True)
        mean, stddev, fisher_z = messages.posterior(h)
        value, _, _ = expected(loc + chain.scale * mean, chain.scale * stddev)
        elbo = tf.reduce_sum(value - messages.kl_terms(h), axis=-1)
        return VariationalApproximation(
            posterior_of_path(path, mean, stddev, fisher_z, lambda: messages.kl_terms(h)),
            elbo=tf.cast(elbo, path.dtype),
            converged=converged,
            num_iterations=num_iterations,
            information=information,
            precision=precision,
        )


def _standardized(
    path: Any, information: tf.Tensor, precision: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns τ and h of the sites, as in `MarkovSites`."""
    chain, loc = path.scale.chain().widened(), widened(path._loc_or_zero())
    information, precision = widened(information), widened(precision)
    return precision * tf.square(chain.scale), (information - precision * loc) * chain.scale


def _initial_sites(
    path: Any, likelihood: Likelihood, given: tuple[Any, Any] | None
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns τ and h for the whole batch."""
    if given is None:
        chain, loc = path.scale.chain().widened(), widened(path._loc_or_zero())
        mode = mode_of(path, likelihood, None, 50, None)
        _, _, curvature = likelihood.derivatives(loc + chain.scale * mode.w)
        tau = tf.square(chain.scale) * curvature
        messages = Messages(chain, tau, signed=True, with_derivatives=False)
        tau = messages.tau  # negative only where there is a distribution
        return tau, mode.force + tau * mode.w
    information, precision = (
        tf.convert_to_tensor(x, path.dtype, name=name)
        for name, x in zip(("information", "precision"), given, strict=True)
    )
    tau, h = _standardized(path, information, precision)
    shape = ps.broadcast_shape(ps.broadcast_shape(ps.shape(tau), ps.shape(h)), likelihood.shape)
    return tf.broadcast_to(tau, shape), tf.broadcast_to(h, shape)
