"""Evaluation of a trained model on test data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tfp_ar1 import _keras_backend
from tfp_ar1.vae import batching, data_checks, mmd
from tfp_ar1.vae.base import VAE

__all__ = ["correlation", "evaluate", "log_likelihood"]


def evaluate(
    model: VAE,
    x: Any,
    num_importance_samples: int = 50,
    batch_size: int = 128,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, float | int]:
    """Evaluates the model on test data; the same seed gives the same figures.

    Args:
      model: a `RhoVAE` or a `SequenceVAE`.
      x: data `[N, *data_shape]`, or a dictionary of arrays if the model takes one.
      num_importance_samples: K, draws from the posterior per example, at least 1.
      batch_size: examples at a time, at least 1.
      seed: integer seed of the draws.
      progress: called with the number of examples done and N after each batch.

    Returns:
      Means over the N examples, in nats per example:

      * `neg_elbo`: `reconstruction + kl`.
      * `reconstruction`: -E_q[log p(x | z)], estimated with K draws.
      * `kl`: KL(q ‖ prior), exact.
      * `nll_iw`: importance-weighted estimate of -log p(x), with K draws.

      About the latent vectors:

      * `active_units`: the number of coordinates whose posterior mean has a variance above 0.01
        over the data (Burda et al., arXiv:1509.00519).
      * `mmd`: squared maximum mean discrepancy between one draw from each posterior and as many
        from the prior; see `objectives.maximum_mean_discrepancy`. It takes time O(N²).
      * `rho_mean`, `rho_std`: mean and standard deviation over the examples of the posterior's mean
        lag-one correlation; `scale_mean`, `scale_std`: the same of the root mean square of the
        posterior's standard deviations.

      Also `num_importance_samples` and `num_examples`.

    Raises:
      ValueError: if a number is less than 1, or the data do not fit the model.
    """
    x = data_checks.checked_arrays(model, x)
    estimates = batching.importance_estimates(
        model.importance_terms, x, num_importance_samples, batch_size, seed, progress
    )
    reconstruction, kl, log_likelihoods = batching.concatenated(estimates)
    summaries = (
        # Negative numbers do not occur in the seeds of `importance_estimates`.
        model.posterior_summary(batch, _keras_backend.seed_of(seed, -2 - index))
        for index, batch in enumerate(batching.batches(x, batch_size))
    )
    mean, z, scale, rho = (
        np.asarray(part, np.float64) for part in batching.concatenated(summaries)
    )
    return {
        "neg_elbo": float(np.mean(reconstruction + kl)),
        "reconstruction": float(np.mean(reconstruction)),
        "kl": float(np.mean(kl)),
        "nll_iw": float(-np.mean(log_likelihoods)),
        "num_importance_samples": num_importance_samples,
        "active_units": int(np.sum(np.var(mean, axis=0) > 0.01)),
        "mmd": _mmd_to_prior(model, z, seed),
        "rho_mean": float(np.mean(rho)),
        "rho_std": float(np.std(rho)),
        "scale_mean": float(np.mean(scale)),
        "scale_std": float(np.std(scale)),
        "num_examples": batching.num_examples(x),
    }


def log_likelihood(
    model: VAE, x: Any, num_samples: int, batch_size: int = 128, seed: int = 0
) -> np.ndarray:
    """Importance-weighted estimate of log p(x) for each example; see `RhoVAE.log_likelihood`."""
    x = data_checks.checked_arrays(model, x)
    return batching.log_likelihood(model.importance_terms, x, num_samples, batch_size, seed)


def correlation(model: VAE, x: Any, batch_size: int = 128) -> np.ndarray:
    """Returns the mean lag-one correlation of each example's posterior, an array `[N]`."""
    return model.correlation(x, batch_size)


def _mmd_to_prior(model: VAE, z: np.ndarray, seed: int) -> float:
    """Returns the squared MMD between latent vectors and as many draws from the prior."""
    draws = model.prior.sample(len(z), seed=_keras_backend.seed_of(seed, -1))
    z, from_prior = (np.asarray(x, _keras_backend.widest()) for x in (z, draws))
    # The Gram matrix is float64, and is made of several matrices of its size.
    rows = max(1, batching.MAX_OUTPUTS // (4 * len(z)))

    def mean_witness(points: np.ndarray) -> float:
        parts = [mmd.witness(part, z, from_prior) for part in batching.batches(points, rows)]
        return float(np.mean(np.concatenate(parts)))

    return mean_witness(z) - mean_witness(from_prior)
