"""Packed parameters as the README describes them: random ones, and the Gaussians that they mean."""

import numpy as np
import oracles
import tensorflow as tf

FAMILIES = ("ar1", "arh1", "ante1")


def sizes(family, d):
    """The number of scales, and of correlations."""
    return {"ar1": (1, 1), "arh1": (d, 1), "ante1": (d, d - 1)}[family]


def random(family, d, *batch, seed=5, dtype="float32"):
    """Parameters of random distributions over vectors of size d."""
    shape = (*batch, d + sum(sizes(family, d)))
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def dense(params, family, d):
    """The distributions, as mean and covariance."""
    params = np.asarray(params, np.float64)
    loc, log_s, fisher_z = np.split(params, [d, d + sizes(family, d)[0]], axis=-1)
    scale = np.broadcast_to(np.exp(log_s / 2), loc.shape)
    rho = np.broadcast_to(np.tanh(fisher_z), (*loc.shape[:-1], d - 1))
    correlations = oracles.tf_antedependent_correlations(tf.constant(rho)).numpy()
    return oracles.Dense(loc, scale[..., :, None] * correlations * scale[..., None, :])
