"""Laplace's approximation of the posterior of a path, and of its evidence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from tensorflow_probability.python.internal import dtype_util
from tensorflow_probability.python.internal import prefer_static as ps

from tfp_ar1._checks import checked_count
from tfp_ar1.distributions.noise import posterior_of_path
from tfp_ar1.inference.likelihood import Likelihood
from tfp_ar1.inference.newton import Mode, find_mode
from tfp_ar1.linear_operators.chain import Chain, widened
from tfp_ar1.messages import Messages, largest_precision

__all__ = ["LaplaceApproximation", "laplace_approximation"]


class LaplaceApproximation(NamedTuple):
    """The result of `laplace_approximation`; `[...]` is the batch of path and likelihood.

    Attributes:
      posterior: the normal distribution at the mode, a `posterior_class` of the path, to be
        sampled, sliced, or used in KLs. Its KL to the same `path` is as accurate as the posterior.
      log_evidence: `[...]`, the approximate `log p(y)`, in nats; differentiable.
      converged: boolean `[...]`, whether Newton's method came within the tolerance of the mode and
        the Hessian there is that of a maximum. Where it is `False`, the results belong to the last
        iterate instead of the mode.
      positive_definite: boolean `[...]`, whether minus the Hessian is positive definite there.
        Where it is `False`, negative curvatures were replaced by 0, so posterior and evidence are
        finite.
      num_iterations: int32 `[...]`, the number of Newton steps.
      newton_decrement: `[...]`, the distance from the start of the last of these steps to the mode,
        in posterior standard deviations: `(gᵀ H⁻¹ g / d)^½`, with the gradient g and minus the
        Hessian H of the log joint. (Two more steps follow, each of which at least squares it.)
    """

    posterior: Any
    log_evidence: tf.Tensor
    converged: tf.Tensor
    positive_definite: tf.Tensor
    num_iterations: tf.Tensor
    newton_decrement: tf.Tensor


def laplace_approximation(
    path: Any,
    log_likelihood_fn: Callable[[tf.Tensor], tf.Tensor],
    observed: Any = None,
    initial: Any = None,
    max_iterations: int = 50,
    tolerance: float | None = None,
    name: str = "laplace_approximation",
) -> LaplaceApproximation:
    """Returns the normal approximation of a path at its mode, given non-normal data, in O(d).

    ```python
    path = tfp_ar1.MultivariateNormalAR1(tf.zeros(100), marginal_scale=1.0, correlation=0.9)
    laplace = tfp_ar1.inference.laplace_approximation(
        path, lambda x: tfd.Poisson(log_rate=x).log_prob(counts))
    laplace.posterior.mean()      # the log-rates, smoothed
    laplace.log_evidence          # maximize it over the parameters of path and likelihood
    ```

    The evidence is `log p(y | x̂) + log p(x̂) + d/2 log 2π - ½ log det(K⁻¹ + W)`, with the mode x̂,
    the covariance K of the path, and minus the second derivatives W of the log-likelihood
    (Rasmussen and Williams, Gaussian Processes for Machine Learning, 2006, equation 3.32). It and
    the posterior have first and second derivatives with respect to the parameters of the path and
    everything that `log_likelihood_fn` captures. These take into account that the mode moves, but
    do not pass through the iterations. Third derivatives are not right.

    Newton's method halves its steps until the log joint grows. Where the log-likelihood is not
    concave (Student t), it uses `max(W, 0)` for W until it is near the mode; evidence and posterior
    use the true W.

    Args:
      path: a `GaussianMarkovChain` of event shape `[d]`.
      log_likelihood_fn: maps x, `[..., d]`, to the log-probability of the observation at each
        coordinate, in the same dtype; entry t may only depend on x at t. Its batch shape broadcasts
        with that of `path`. It must be differentiable three times.
      observed: boolean tensor `[..., d]`, `True` where there is an observation. Default:
        everywhere. Elsewhere the log-likelihood may be NaN. (Not if it is differentiated with
        respect to captured values; use `tf.where(observed, y, 1.0)` then.)
      initial: the path at which to start, `[..., d]`; its batch shape broadcasts with the others.
        Default: the mean of `path`. If there are several modes, it decides which one is found.
      max_iterations: the largest number of Newton steps.
      tolerance: `newton_decrement` at which a member of the batch has converged. Default: the cube
        root of the machine epsilon of the dtype, because two more steps follow.
      name: name prefixed to operations created by this function.

    Returns:
      A `LaplaceApproximation`. Check its `converged`.

    Raises:
      ValueError: if the last dimension of the log-likelihoods is not d, `max_iterations` is not a
        positive integer, or `tolerance` is not positive.
      TypeError: if the log-likelihoods do not have the dtype of `path`, or `observed` is not
        boolean.
    """
    max_iterations = checked_count("max_iterations", max_iterations, 1)
    with tf.name_scope(name):
        likelihood = Likelihood(path, log_likelihood_fn, observed)
        mode = mode_of(path, likelihood, initial, max_iterations, tolerance)
        chain, loc = path.scale.chain().widened(), widened(path._loc_or_zero())
        w, innovations, force = _with_derivatives(likelihood, chain, loc, mode)
        value, _, tau = _evaluate(likelihood, chain, loc, w)
        messages = Messages(chain, tau, signed=True)
        h = force + messages.tau * w
        _, stddev, fisher_z = messages.posterior(h)
        log_joint = tf.reduce_sum(value - 0.5 * tf.square(innovations), axis=-1)
        log_evidence = log_joint - 0.5 * messages.log_det()
        return LaplaceApproximation(
            posterior_of_path(path, w, stddev, fisher_z, lambda: messages.kl_terms(h)),
            log_evidence=tf.cast(log_evidence, path.dtype),
            converged=mode.converged & messages.positive_definite,
            positive_definite=messages.positive_definite,
            num_iterations=mode.num_iterations,
            newton_decrement=tf.cast(mode.decrement, path.dtype),
        )


def mode_of(
    path: Any, likelihood: Likelihood, initial: Any, max_iterations: int, tolerance: float | None
) -> Mode:
    """Calls `find_mode` with the arguments of `laplace_approximation`."""
    if tolerance is None:
        tolerance = float(np.spacing(dtype_util.as_numpy_dtype(path.dtype)(1))) ** (1.0 / 3.0)
    elif not tolerance > 0.0:
        raise ValueError(f"`tolerance` must be positive; got {tolerance}.")
    chain = path.scale.chain().widened().stop_gradient()
    loc = tf.stop_gradient(widened(path._loc_or_zero()))
    w = tf.zeros([], chain.dtype)
    if initial is not None:
        initial = tf.stop_gradient(tf.convert_to_tensor(initial, path.dtype, name="initial"))
        w = (widened(initial) - loc) / chain.scale
    w = tf.broadcast_to(w, ps.broadcast_shape(ps.shape(w), likelihood.shape))
    return find_mode(likelihood, chain, loc, w, max_iterations, tolerance)


def _with_derivatives(
    likelihood: Likelihood, chain: Chain, loc: tf.Tensor, mode: Mode
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Returns the mode w, its innovations L⁻¹ w, and C⁻¹ w, with first and second derivatives.

    By two Newton steps from the mode: let F(w, θ) be the step from w with parameters θ. Because
    ∂F/∂w is 0 at the mode, w' = F(w, θ) has the right first derivative, ∂F/∂θ, and w'' = F(w', θ)
    also the right second one. Both steps may use the curvatures at the mode, so they share the
    messages; but these must be the true curvatures, even where they are negative.
    """
    w, force, converged = mode.w, mode.force, mode.converged[..., tf.newaxis]
    _, slope, tau = _evaluate(likelihood, chain, loc, w)
    messages = Messages(chain, tf.stop_gradient(tau), signed=True)
    right = messages.right()
    # Members that have not converged stay where they are: there, use the force of the prior.
    first_slope = tf.where(converged, slope, force)
    first, _ = messages.whitened_mean(first_slope + messages.tau * w, right)
    _, slope, _ = _evaluate(likelihood, chain, loc, first)
    slope = tf.where(converged, slope, force)
    second, innovations = messages.whitened_mean(slope + messages.tau * first, right)
    return second, innovations, slope + messages.tau * (first - second)


def _evaluate(
    likelihood: Likelihood, chain: Chain, loc: tf.Tensor, w: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Returns the log-likelihoods, and their slopes and curvatures in w."""
    value, slope, curvature = likelihood.derivatives(loc + chain.scale * w)
    tau = tf.minimum(tf.square(chain.scale) * curvature, largest_precision(chain.dtype))
    return value, chain.scale * slope, tau
