"""The compared methods: the posterior and the prior of each over its latent paths.

Written for TensorFlow Probability on either backend, passed as a `Library`: the experiment runs on
JAX; the tests, which compare GP-VAE's posterior with ours, run on TensorFlow.
"""

from typing import Any, NamedTuple

import numpy as np

LATENTS = 256
LENGTH_SCALE = 2.0  # of the kernels, in frames; their variance is 1
_JITTER = 1e-3  # on the diagonal of the Cauchy kernel, as in GP-VAE


class Library(NamedTuple):
    """`tf` (or TFP's counterpart on JAX), `tfp.distributions`, and `tfp_ar1` (or `tfp_ar1_jax`)."""

    tf: Any
    tfd: Any
    chains: Any


class Method(NamedTuple):
    """A method to compare, with the networks of GP-VAE.

    Attributes:
      posterior: a name in `POSTERIORS`.
      prior: `normal`, `cauchy`, `matern`, `ar1` with a learned correlation for each latent, or
        `ar1_fixed` with the correlation of `matern`.
      over_time: whether the encoder sees the neighbouring frames, by a convolution over time.
      masked: whether only the likelihood of observed pixels counts.
      rectified: whether the single output channel of the convolutions over a frame passes a ReLU.
    """

    posterior: str
    prior: str
    over_time: bool = True
    masked: bool = True
    rectified: bool = True


METHODS = {
    # As published.
    "vae": Method("softplus", "normal", over_time=False, masked=False),
    "hi_vae": Method("softplus", "normal", over_time=False),
    "gp_vae_cauchy": Method("banded", "cauchy"),
    "gp_vae_matern": Method("banded", "matern"),
    # With the distributions and the KL divergences of this library.
    "ante1_ar1": Method("ante1", "ar1"),
    "ante1_ar1_fixed": Method("ante1", "ar1_fixed"),
    "diag_ar1": Method("diag", "ar1"),
    "sites_ar1": Method("sites", "ar1"),
    # Without the final ReLU of the convolutions, which dies for some seeds.
    "gp_vae_cauchy_linear": Method("banded", "cauchy", rectified=False),
    "gp_vae_matern_linear": Method("banded", "matern", rectified=False),
    "ante1_ar1_linear": Method("ante1", "ar1", rectified=False),
    "sites_ar1_linear": Method("sites", "ar1", rectified=False),
}
# In between those above, to separate the effects of encoder, posterior and prior.
IN_BETWEEN = {
    "hi_vae_over_time_linear": Method("softplus", "normal", rectified=False),
    "softplus_cauchy_linear": Method("softplus", "cauchy", rectified=False),
    "ante1_cauchy_linear": Method("ante1", "cauchy", rectified=False),
    "signed_matern_linear": Method("banded_signed", "matern", rectified=False),
    "banded_ar1_linear": Method("banded", "ar1", rectified=False),
    "sites_ar1_fixed_linear": Method("sites", "ar1_fixed", rectified=False),
}
METHODS |= IN_BETWEEN
# Encoder outputs per frame and latent.
POSTERIORS = {"softplus": 2, "diag": 2, "sites": 2, "banded": 3, "banded_signed": 3, "ante1": 3}
POSTERIORS |= {"ar1": 3}


def kernel(name: str, frames: int) -> np.ndarray:
    """The covariance matrix of the prior over one latent path.

    `matern` is the Matérn kernel with ν = 1/2: AR(1) with the correlation exp(-1 / length scale).
    """
    distance = np.abs(np.subtract.outer(np.arange(frames), np.arange(frames))) / LENGTH_SCALE
    if name == "matern":
        return np.exp(-distance)
    return 1 / (1 + distance**2) + _JITTER * np.eye(frames)


def least_kl(name: str, frames: int) -> float:
    """The least KL divergence of an uncorrelated posterior to the prior over one path.

    It is reached when the posterior's precisions are the diagonal of the prior's precision matrix.
    The `banded` posterior of GP-VAE, whose correlations cannot be positive, does not get lower for
    a prior with positively correlated neighbours.
    """
    precision = np.linalg.inv(kernel(name, frames))
    log_diagonal = np.sum(np.log(np.diag(precision)))
    return float(0.5 * (log_diagonal - np.linalg.slogdet(precision)[1]))


def posterior_and_kl(
    library: Library, method: Method, outputs: Any, fisher_z: Any
) -> tuple[Any, Any]:
    """The posterior over the latent paths, and its KL divergence to the prior.

    Args:
      library: the backend.
      method: the method.
      outputs: the encoder's outputs, `[batch, frames, k * latents]`, k as in `POSTERIORS`.
      fisher_z: `atanh` of the prior's correlations, `[latents]`; for the prior `ar1`.

    Returns:
      A distribution of batch shape `[batch, latents]` over the paths `[frames]`, and the KL
      divergence in nats, summed over the latents, `[batch]`.
    """
    tf, tfd, chains = library
    frames, dtype = outputs.shape[-2], outputs.dtype
    if method.posterior == "sites":
        packed = chains.params.from_time_major(outputs, "sites")
        sites = chains.params.sites(packed, prior_of(library, method, frames, dtype, fisher_z))
        return sites.posterior(), tf.reduce_sum(sites.kl_divergence(), axis=-1)
    posterior = _posterior(library, method.posterior, outputs, frames)
    if method.posterior.startswith("banded") and method.prior in ("cauchy", "matern"):
        kl = dense_kl(library, posterior, kernel(method.prior, frames))
    else:
        kl = tfd.kl_divergence(posterior, prior_of(library, method, frames, dtype, fisher_z))
    return posterior, tf.reduce_sum(kl, axis=-1)


def _posterior(library: Library, name: str, outputs: Any, frames: int) -> Any:
    tf, tfd, chains = library
    if name in ("ar1", "ante1"):
        packed = chains.params.from_time_major(outputs, name)
        return chains.params.new(packed, frames, family=name)
    loc, *rest = (
        tf.linalg.matrix_transpose(part) for part in tf.split(outputs, POSTERIORS[name], axis=-1)
    )
    if name == "softplus":
        return tfd.MultivariateNormalDiag(loc, tf.math.softplus(rest[0]))
    if name == "diag":
        return tfd.MultivariateNormalDiag(loc, chains.params.scale_of(rest[0]))
    diagonal, off_diagonal = rest
    if name == "banded":
        off_diagonal = tf.math.softplus(off_diagonal)
    return banded(library, loc, 1.0 + tf.math.softplus(diagonal), off_diagonal[..., :-1])


def banded(library: Library, loc: Any, diagonal: Any, above: Any) -> Any:
    """The posterior of GP-VAE with precision U Uᵀ, U upper bidiagonal, by dense matrices.

    The covariance has the lower triangular factor U⁻ᵀ, which GP-VAE computes by solving a system.
    In GP-VAE, `diagonal` is `1 + softplus(...)` and `above` is `softplus(...)`: neighbours have
    negative correlations, and no frame given the previous one has a standard deviation above 1.

    Args:
      library: the backend.
      loc: the mean, `[..., d]`.
      diagonal: the diagonal of U, `[..., d]`.
      above: the superdiagonal of U, `[..., d - 1]`.
    """
    tf, tfd, _ = library
    size = diagonal.shape[-1]
    eye = tf.eye(size, dtype=diagonal.dtype)
    padded = tf.concat([above, tf.zeros_like(above[..., :1])], axis=-1)
    next_to_it = tf.constant(np.eye(size, k=1), dtype=diagonal.dtype)
    upper = diagonal[..., tf.newaxis] * eye + padded[..., tf.newaxis] * next_to_it
    inverse = tf.linalg.triangular_solve(upper, tf.broadcast_to(eye, upper.shape), lower=False)
    return tfd.MultivariateNormalTriL(loc, tf.linalg.matrix_transpose(inverse))


def dense_kl(library: Library, posterior: Any, covariance: np.ndarray) -> Any:
    """KL divergence of a `MultivariateNormalTriL` to N(0, covariance), by dense matrices.

    The inverse of the prior's factor is computed once, as in GP-VAE.
    """
    tf = library.tf
    scale, loc = posterior.scale.to_dense(), posterior.loc
    factor = np.linalg.cholesky(covariance)
    inverse = tf.constant(np.linalg.inv(factor), dtype=scale.dtype)
    log_ratio = np.sum(np.log(np.diag(factor))) - posterior.scale.log_abs_determinant()
    trace = tf.reduce_sum(tf.square(tf.linalg.matmul(inverse, scale)), axis=[-2, -1])
    of_loc = tf.reduce_sum(tf.square(tf.linalg.matvec(inverse, loc)), axis=-1)
    return log_ratio + 0.5 * (trace + of_loc - len(covariance))


def prior_of(library: Library, method: Method, frames: int, dtype: Any, fisher_z: Any) -> Any:
    """The prior over one path, or over the path of each latent; see `posterior_and_kl`."""
    tf, tfd, chains = library
    zeros = tf.zeros([frames], dtype)
    if method.prior == "normal":
        return tfd.MultivariateNormalDiag(zeros, tf.ones_like(zeros))
    if method.prior == "ar1":
        return chains.MultivariateNormalAR1(zeros, fisher_z=fisher_z)
    if method.prior == "ar1_fixed":
        correlation = tf.constant(np.exp(-1 / LENGTH_SCALE), dtype=dtype)
        return chains.MultivariateNormalAR1(zeros, correlation=correlation)
    factor = np.linalg.cholesky(kernel(method.prior, frames))
    return tfd.MultivariateNormalTriL(zeros, tf.constant(factor, dtype=dtype))
