"""Estimates for a trained `RhoVAE` on data, in portions, so that memory stays bounded."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import tensorflow as tf

from tfp_ar1.vae import data_checks, objectives

if TYPE_CHECKING:
    from tfp_ar1.vae.rho_vae import RhoVAE

__all__ = ["correlation", "evaluate", "log_likelihood"]

# Burda et al. (arXiv:1509.00519) call a latent coordinate active if the variance over the data of
# its posterior mean is above this.
_ACTIVE_VARIANCE = 0.01
# Decoder outputs held at a time, in numbers: 16 MiB of float32 for each array of that size.
_MAX_OUTPUTS = 2**22

# An array of examples along the first axis, or a dictionary of such arrays.
Data = np.ndarray | Mapping[str, np.ndarray]


def evaluate(
    model: RhoVAE,
    x: Any,
    num_importance_samples: int = 50,
    batch_size: int = 128,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, float | int]:
    """Evaluates the model on test data: the same figures each time, for the same seed.

    Args:
      model: a `RhoVAE`.
      x: data `[N, *data_shape]`, or a dictionary of arrays where the model takes one.
      num_importance_samples: K, draws of the posterior for each example, at least 1.
      batch_size: examples at a time, at least 1.
      seed: integer seed of the draws.
      progress: called with the number of examples done and N after each batch.

    Returns:
      Means over the N examples, in nats per example:

      * `neg_elbo`: `reconstruction + kl`.
      * `reconstruction`: -E_q[log p(x | z)], estimated with K draws.
      * `kl`: KL(q ‖ prior), exact.
      * `nll_iw`: importance-weighted estimate of -log p(x), with K draws.

      and, about the latent vectors:

      * `active_units`: the number of coordinates whose posterior mean varies with the data, with a
        variance above 0.01 (Burda et al., arXiv:1509.00519).
      * `mmd`: squared maximum mean discrepancy between one draw of each posterior and as many of
        the prior; see `objectives.maximum_mean_discrepancy`. It takes time O(N²).
      * `rho_mean` and `rho_std`: mean and standard deviation over the examples of the posterior's
        mean lag-one correlation.
      * `scale_mean` and `scale_std`: the same of the posterior's scale √s, the root mean square of
        its standard deviations.

      and `num_importance_samples` and `num_examples`.

    Raises:
      ValueError: if a number is less than 1, there are no data, or the likelihood does not allow
        their values.
    """
    x = checked_data(model, x)
    reconstruction, kl, log_likelihoods = _concatenate(
        _posterior_terms(model, x, num_importance_samples, batch_size, seed, progress)
    )
    mean, z, scale, rho = _concatenate(_posterior_summaries(model, x, batch_size, seed))
    return {
        "neg_elbo": float(np.mean(reconstruction + kl)),
        "reconstruction": float(np.mean(reconstruction)),
        "kl": float(np.mean(kl)),
        "nll_iw": float(-np.mean(log_likelihoods)),
        "num_importance_samples": num_importance_samples,
        "active_units": int(np.sum(np.var(mean, axis=0) > _ACTIVE_VARIANCE)),
        "mmd": _mmd_to_prior(model, z, seed),
        "rho_mean": float(np.mean(rho)),
        "rho_std": float(np.std(rho)),
        "scale_mean": float(np.mean(scale)),
        "scale_std": float(np.std(scale)),
        "num_examples": _num_examples(x),
    }


def log_likelihood(
    model: RhoVAE, x: Any, num_samples: int, batch_size: int = 128, seed: int = 0
) -> np.ndarray:
    """Importance-weighted estimate of log p(x) for each example; see `RhoVAE.log_likelihood`."""
    x = checked_data(model, x)
    return _concatenate(_posterior_terms(model, x, num_samples, batch_size, seed))[2]


def correlation(model: RhoVAE, x: Any, batch_size: int = 128) -> np.ndarray:
    """The mean lag-one correlation of each example's posterior, an array `[N]`."""
    x = checked_data(model, x)
    return np.concatenate(
        [model.mean_correlation(batch).numpy() for batch in batches(x, batch_size)]
    )


def _posterior_terms(
    model: RhoVAE,
    x: Data,
    num_samples: int,
    batch_size: int,
    seed: int,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[tuple[np.ndarray, ...]]:
    """Yields reconstruction, KL and importance-weighted log-likelihood for each batch."""
    if num_samples < 1:
        raise ValueError(f"The number of samples must be at least 1; got {num_samples}.")
    _check_batch_size(batch_size)
    size = max(part[0].size for part in keras.tree.flatten(x))
    portion = portion_of_samples(num_samples, batch_size, size)
    done, total = 0, _num_examples(x)
    for index, batch in enumerate(batches(x, batch_size)):
        log_ps, log_weights = [], []
        for start in range(0, num_samples, portion):
            n = min(portion, num_samples - start)
            seeds = tf.constant([seed, index * num_samples + start], tf.int32)
            log_p, log_weight, kl = model.importance_terms(batch, seeds, n)
            log_ps.append(log_p.numpy())
            log_weights.append(log_weight.numpy())
        log_weights = np.concatenate(log_weights)
        yield (
            -np.mean(np.concatenate(log_ps), axis=0, dtype=np.float64),
            kl.numpy(),
            np.logaddexp.reduce(log_weights.astype(np.float64), axis=0) - np.log(num_samples),
        )
        done += _num_examples(batch)
        if progress is not None:
            progress(done, total)


def _posterior_summaries(
    model: RhoVAE, x: Data, batch_size: int, seed: int
) -> Iterator[tuple[np.ndarray, ...]]:
    """Yields mean, a draw, scale and ρ of the posteriors of each batch, in float64."""
    for index, batch in enumerate(batches(x, batch_size)):
        # Negative numbers are left over by `_posterior_terms`.
        seeds = tf.constant([seed, -2 - index], tf.int32)
        yield tuple(np.float64(part) for part in model.posterior_summary(batch, seeds))


def _mmd_to_prior(model: RhoVAE, z: np.ndarray, seed: int) -> float:
    """The squared MMD between latent vectors and as many draws of the prior."""
    from_prior = np.float64(model.prior.sample(len(z), seed=tf.constant([seed, -1], tf.int32)))
    rows = max(1, _MAX_OUTPUTS // len(z))

    def mean_witness(points: np.ndarray) -> float:
        parts = [objectives.witness(part, z, from_prior) for part in batches(points, rows)]
        return np.mean(np.concatenate(parts))

    return float(mean_witness(z) - mean_witness(from_prior))


def checked_data(model: RhoVAE, x: Any) -> Data:
    """The data as NumPy arrays, or an error if they are not what the model is for."""
    x = data_checks.checked_examples(model, x)
    return keras.tree.map_structure(keras.ops.convert_to_numpy, x)


def _num_examples(x: Data) -> int:
    return len(next(iter(x.values())) if isinstance(x, Mapping) else x)


def portion_of_samples(num_samples: int, batch_size: int, example_size: int) -> int:
    """How many draws to take at a time, so that memory stays bounded.

    Args:
      num_samples: how many there are to be in all.
      batch_size: examples at a time.
      example_size: numbers in the data of one example.
    """
    return max(1, min(num_samples, _MAX_OUTPUTS // (batch_size * example_size)))


def _check_batch_size(batch_size: int) -> None:
    if batch_size < 1:
        raise ValueError(f"`batch_size` must be at least 1; got {batch_size}.")


def batches(x: Data, batch_size: int) -> Iterator[Data]:
    """Yields the examples of an array, or of a dictionary of arrays, `batch_size` at a time."""
    _check_batch_size(batch_size)
    for start in range(0, _num_examples(x), batch_size):
        batch = slice(start, start + batch_size)
        yield {k: a[batch] for k, a in x.items()} if isinstance(x, Mapping) else x[batch]


def _concatenate(parts: Iterator[tuple[np.ndarray, ...]]) -> tuple[np.ndarray, ...]:
    return tuple(np.concatenate(column) for column in zip(*parts, strict=True))
