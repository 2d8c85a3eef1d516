"""The likelihood of a noisy AR(1) path, by this package and its alternatives.

All compute the same distribution. Packages that are not installed are left out:
`pip install celerite2 tinygp statsmodels` (tinygp installs JAX).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_ar1

tfd = tfp.distributions

_RHO, _SIGMA, _NOISE = 0.7, 1.3, 0.5
# The largest sizes at which matrices and step-by-step filters are not too slow.
_LARGEST = {"GaussianProcess": 256, "LGSSM": 4096, "LGSSM, parallel": 4096, "while_loop": 4096}
_NEEDS = {
    "celerite2": ["celerite2"],
    "celerite2.jax": ["celerite2", "jax"],
    "tinygp": ["tinygp"],
    "statsmodels": ["statsmodels"],
}


def _path(scale: tf.Tensor, fisher_z: tf.Tensor, d: int) -> Any:
    return tfp_ar1.MultivariateNormalAR1(tf.zeros([d]), scale, fisher_z=fisher_z)


def _ours(scale: tf.Tensor, fisher_z: tf.Tensor, noise: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
    path = _path(scale, fisher_z, y.shape[-1])
    return path.with_observation_noise(noise[..., tf.newaxis]).log_prob(y)


def _posterior(scale: tf.Tensor, fisher_z: tf.Tensor, noise: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
    posterior = _path(scale, fisher_z, y.shape[-1]).posterior(y, noise[..., tf.newaxis])
    return tf.reduce_sum(posterior.mean() + posterior.stddev() + posterior.loc, axis=-1)


def _without_noise(
    scale: tf.Tensor, fisher_z: tf.Tensor, noise: tf.Tensor, y: tf.Tensor
) -> tf.Tensor:
    return _path(scale, fisher_z, y.shape[-1]).log_prob(y)


def _state_space(parallel: bool) -> Callable[..., tf.Tensor]:
    def log_prob(
        scale: tf.Tensor, fisher_z: tf.Tensor, noise: tf.Tensor, y: tf.Tensor
    ) -> tf.Tensor:
        rho = tf.tanh(fisher_z)
        model = tfd.LinearGaussianStateSpaceModel(
            num_timesteps=y.shape[-1],
            transition_matrix=tf.linalg.LinearOperatorFullMatrix(rho[..., None, None]),
            transition_noise=tfd.MultivariateNormalDiag(
                tf.zeros([1]), (scale * tf.sqrt(1.0 - tf.square(rho)))[..., None]
            ),
            observation_matrix=tf.linalg.LinearOperatorIdentity(1),
            observation_noise=tfd.MultivariateNormalDiag(tf.zeros([1]), noise[..., None]),
            initial_state_prior=tfd.MultivariateNormalDiag(tf.zeros([1]), scale[..., None]),
            experimental_parallelize=parallel,
        )
        return model.log_prob(y[..., None])

    return log_prob


def _gaussian_process(
    scale: tf.Tensor, fisher_z: tf.Tensor, noise: tf.Tensor, y: tf.Tensor
) -> tf.Tensor:
    kernel = tfp.math.psd_kernels.MaternOneHalf(scale, -1.0 / tf.math.log(tf.tanh(fisher_z)))
    points = tf.range(y.shape[-1], dtype=y.dtype)[:, tf.newaxis]
    return tfd.GaussianProcess(
        kernel, points, observation_noise_variance=tf.square(noise)
    ).log_prob(y)


def _while_loop(scale: tf.Tensor, fisher_z: tf.Tensor, noise: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
    """The textbook Kalman filter, step by step."""
    rho, noise_variance, steps = tf.tanh(fisher_z), tf.square(noise), tf.transpose(y)
    innovation_variance = tf.square(scale) * (1.0 - tf.square(rho))

    def step(t: tf.Tensor, mean: tf.Tensor, variance: tf.Tensor, total: tf.Tensor) -> Any:
        of_y, error = variance + noise_variance, steps[t] - mean
        gain = variance / of_y
        total -= 0.5 * (tf.square(error) / of_y + tf.math.log(2.0 * np.pi * of_y))
        mean, variance = rho * (mean + gain * error), variance * (1.0 - gain)
        return t + 1, mean, tf.square(rho) * variance + innovation_variance, total

    zero = tf.zeros_like(scale)
    start = (tf.constant(0), zero, tf.square(scale), zero)
    return tf.while_loop(
        lambda t, *_: t < y.shape[-1], step, start, maximum_iterations=y.shape[-1]
    )[3]


TENSORFLOW = {
    "tfp_ar1": _ours,
    "tfp_ar1, posterior": _posterior,
    "tfp_ar1, path without noise": _without_noise,
    "while_loop": _while_loop,
    "LGSSM": _state_space(parallel=False),
    "LGSSM, parallel": _state_space(parallel=True),
    "GaussianProcess": _gaussian_process,
}


def _graph(log_prob: Callable[..., tf.Tensor], gradients: bool) -> Callable[..., Any]:
    def with_gradients(*arguments: tf.Tensor) -> Any:
        return tfp.math.value_and_gradient(lambda *a: tf.reduce_sum(log_prob(*a)), list(arguments))

    return tf.function(with_gradients if gradients else log_prob, autograph=False)


def _tinygp(gradients: bool) -> Callable[..., Any]:
    import jax
    import jax.numpy as jnp
    from tinygp import GaussianProcess
    from tinygp.kernels import quasisep

    def log_prob(scale: Any, fisher_z: Any, noise: Any, y: Any) -> Any:
        kernel = quasisep.Exp(scale=-1.0 / jnp.log(jnp.tanh(fisher_z)), sigma=scale)
        times = jnp.arange(y.shape[-1], dtype=y.dtype)
        return GaussianProcess(kernel, times, diag=noise**2).log_probability(y)

    batch = jax.vmap(log_prob)
    if gradients:
        batch = jax.value_and_grad(lambda *a: jnp.sum(jax.vmap(log_prob)(*a)), (0, 1, 2, 3))
    compiled = jax.jit(batch)

    def call(*arrays: np.ndarray) -> Any:
        with jax.enable_x64(False):  # celerite2.jax turns it on
            return jax.block_until_ready(compiled(*arrays))

    return call


def _celerite2(scale: Any, fisher_z: Any, noise: Any, y: Any) -> Any:
    """One path at a time in float64, as celerite2 requires."""
    import celerite2

    process = celerite2.GaussianProcess(
        celerite2.terms.RealTerm(a=scale**2, c=-np.log(np.tanh(fisher_z)))
    )
    process.compute(np.arange(len(y), dtype=np.float64), diag=np.full(len(y), noise**2))
    return process.log_likelihood(y)


def _celerite2_jax() -> Callable[..., Any]:
    import celerite2.jax
    import jax
    import jax.numpy as jnp

    def log_prob(scale: Any, fisher_z: Any, noise: Any, y: Any) -> Any:
        term = celerite2.jax.terms.RealTerm(a=scale**2, c=-jnp.log(jnp.tanh(fisher_z)))
        process = celerite2.jax.GaussianProcess(term)
        process.compute(jnp.arange(y.shape[-1], dtype=y.dtype), diag=jnp.full(y.shape, noise**2))
        return process.log_likelihood(y)

    jax.config.update("jax_enable_x64", True)
    compiled = jax.jit(jax.value_and_grad(log_prob, (0, 1, 2, 3)))
    return lambda *a: jax.block_until_ready(compiled(*a))


def _statsmodels(scale: Any, fisher_z: Any, noise: Any, y: Any) -> Any:
    from statsmodels.tsa.statespace.sarimax import SARIMAX

    rho = np.tanh(fisher_z)
    model = SARIMAX(y, order=(1, 0, 0), measurement_error=True)
    # ρ, the variance of the noise and the variance of the innovations.
    return model.loglike([rho, noise**2, scale**2 * (1.0 - rho**2)])


def arguments(b: int, d: int, dtype: str = "float32") -> list[np.ndarray]:
    """Scale, `fisher_z` and noise `[b]`, and observations `[b, d]`."""
    parameters = [np.full(b, x, dtype) for x in (_SIGMA, np.arctanh(_RHO), _NOISE)]
    return [*parameters, np.random.default_rng(0).normal(size=(b, d)).astype(dtype)]


def function(name: str, gradients: bool, b: int, d: int) -> Callable[[], Any]:
    """One of `TENSORFLOW`, as a function of no arguments."""
    tensors, log_prob = (
        [tf.constant(x) for x in arguments(b, d)],
        _graph(TENSORFLOW[name], gradients),
    )
    return lambda: log_prob(*tensors)


def of_tensorflow(b: int, d: int, gradients: bool) -> dict[str, Callable[[], Any]]:
    """Functions that compute the log-likelihoods `[b]`, or their sum and its gradients, by name."""
    return {
        name: function(name, gradients, b, d) for name in TENSORFLOW if d <= _LARGEST.get(name, d)
    }


def of_others(b: int, d: int, gradients: bool) -> dict[str, Callable[[], Any]]:
    """The same for the installed alternatives, after ours.

    tinygp takes the whole batch in float32, the others one path at a time in float64; statsmodels
    and the NumPy interface of celerite2 have no gradients.
    """
    found = {"tfp_ar1": function("tfp_ar1", gradients, b, d)}
    installed = [n for n, needs in _NEEDS.items() if all(map(importlib.util.find_spec, needs))]
    if "tinygp" in installed:
        arrays, likelihood = arguments(b, d), _tinygp(gradients)
        found["tinygp"] = lambda: likelihood(*arrays)
    rows = list(zip(*arguments(b, d, "float64"), strict=True))

    def one_by_one(f: Callable[..., Any]) -> Callable[[], Any]:
        return lambda: [f(*row) for row in rows]

    if gradients and "celerite2.jax" in installed:
        found["celerite2.jax"] = one_by_one(_celerite2_jax())
    if not gradients:
        others = {"celerite2": _celerite2, "statsmodels": _statsmodels}
        found |= {name: one_by_one(others[name]) for name in others if name in installed}
    return found
