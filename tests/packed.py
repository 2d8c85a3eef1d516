"""Packed parameters as the README describes them: random ones, and their Gaussians."""

import numpy as np
import oracles
import tensorflow as tf

FAMILIES = ("ar1", "arh1", "ante1")


def sizes(family, d):
    """The numbers of scales and of correlations."""
    return {"ar1": (1, 1), "arh1": (d, 1), "ante1": (d, d - 1)}[family]


def random(family, d, *batch, seed=5, dtype="float32"):
    """Parameters of random distributions over vectors of size d."""
    shape = (*batch, d + sum(sizes(family, d)))
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def dense(params, family, d):
    """The distributions as mean and covariance, for all families of `vae.posteriors`."""
    params = np.asarray(params, np.float64)
    if family == "full":
        a, b, c, x, y, z = (params[..., 3 + i] for i in range(6))
        zero = np.zeros_like(a)
        # The order of `tfp.math.fill_triangular`: a spiral from the lower right corner.
        rows = [[np.exp(x / 2), zero, zero], [z, np.exp(y / 2), zero], [c, b, np.exp(a / 2)]]
        factor = np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)
        return oracles.Dense(params[..., :3], factor @ np.swapaxes(factor, -1, -2))
    if family not in FAMILIES:
        return oracles.Dense(params[..., :d], np.exp(params[..., d:])[..., None] * np.eye(d))
    loc, log_s, fisher_z = np.split(params, [d, d + sizes(family, d)[0]], axis=-1)
    scale = np.broadcast_to(np.exp(log_s / 2), loc.shape)
    rho = np.broadcast_to(np.tanh(fisher_z), (*loc.shape[:-1], d - 1))
    correlations = np.asarray(oracles.tf_antedependent_correlations(tf.constant(rho)))
    return oracles.Dense(loc, scale[..., :, None] * correlations * scale[..., None, :])


def correlation(gaussians):
    """The mean correlation of neighbours."""
    deviations = np.sqrt(np.diagonal(gaussians.covariance, axis1=-2, axis2=-1))
    neighbours = np.diagonal(gaussians.covariance, offset=1, axis1=-2, axis2=-1)
    return np.mean(neighbours / (deviations[..., 1:] * deviations[..., :-1]), axis=-1)
