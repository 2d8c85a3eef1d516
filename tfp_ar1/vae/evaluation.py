"""Estimates for a trained `RhoVAE` on data, in portions, so that memory stays bounded."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import tensorflow as tf

if TYPE_CHECKING:
    from tfp_ar1.vae.model import RhoVAE

__all__ = ["correlation", "evaluate", "log_likelihood"]

# Decoder outputs held at a time, in numbers: 16 MiB of float32 for each array of that size.
_MAX_OUTPUTS = 2**22


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
      x: data `[N, *data_shape]`.
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

      and `num_importance_samples`, `rho_mean` (mean lag-one correlation of the posteriors) and
      `num_examples`.

    Raises:
      ValueError: if a number is less than 1, there are no data, or the likelihood does not allow
        their values.
    """
    x = _checked_data(model, x)
    reconstruction, kl, log_likelihoods, rho = _concatenate(
        _posterior_terms(model, x, num_importance_samples, batch_size, seed, progress)
    )
    return {
        "neg_elbo": float(np.mean(reconstruction + kl)),
        "reconstruction": float(np.mean(reconstruction)),
        "kl": float(np.mean(kl)),
        "nll_iw": float(-np.mean(log_likelihoods)),
        "num_importance_samples": num_importance_samples,
        "rho_mean": float(np.mean(rho)),
        "num_examples": len(x),
    }


def log_likelihood(
    model: RhoVAE, x: Any, num_samples: int, batch_size: int = 128, seed: int = 0
) -> np.ndarray:
    """Importance-weighted estimate of log p(x) for each example; see `RhoVAE.log_likelihood`."""
    x = _checked_data(model, x)
    return _concatenate(_posterior_terms(model, x, num_samples, batch_size, seed))[2]


def correlation(model: RhoVAE, x: Any, batch_size: int = 128) -> np.ndarray:
    """The mean lag-one correlation of each example's posterior, an array `[N]`."""
    x = _checked_data(model, x)
    return np.concatenate(
        [model.mean_correlation(batch).numpy() for batch in _batches(x, batch_size)]
    )


def _posterior_terms(
    model: RhoVAE,
    x: np.ndarray,
    num_samples: int,
    batch_size: int,
    seed: int,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[tuple[np.ndarray, ...]]:
    """Yields reconstruction, KL, importance-weighted log-likelihood and ρ for each batch."""
    if num_samples < 1:
        raise ValueError(f"The number of samples must be at least 1; got {num_samples}.")
    _check_batch_size(batch_size)
    portion = max(1, min(num_samples, _MAX_OUTPUTS // (batch_size * x[0].size)))
    done = 0
    for index, batch in enumerate(_batches(x, batch_size)):
        log_ps, log_weights = [], []
        for start in range(0, num_samples, portion):
            n = min(portion, num_samples - start)
            seeds = tf.constant([seed, index * num_samples + start], tf.int32)
            log_p, log_weight, kl, rho = model.importance_terms(batch, seeds, n)
            log_ps.append(log_p.numpy())
            log_weights.append(log_weight.numpy())
        log_weights = np.concatenate(log_weights)
        yield (
            -np.mean(np.concatenate(log_ps), axis=0, dtype=np.float64),
            kl.numpy(),
            np.logaddexp.reduce(log_weights.astype(np.float64), axis=0) - np.log(num_samples),
            rho.numpy(),
        )
        done += len(batch)
        if progress is not None:
            progress(done, len(x))


def _checked_data(model: RhoVAE, x: Any) -> np.ndarray:
    x = keras.ops.convert_to_numpy(x)
    if x.ndim < 2 or not x.size:
        raise ValueError(f"Expected data of shape [N, *data_shape], N at least 1; got {x.shape}.")
    model.likelihood.check(x)
    return x


def _check_batch_size(batch_size: int) -> None:
    if batch_size < 1:
        raise ValueError(f"`batch_size` must be at least 1; got {batch_size}.")


def _batches(x: np.ndarray, batch_size: int) -> Iterator[np.ndarray]:
    _check_batch_size(batch_size)
    for start in range(0, len(x), batch_size):
        yield x[start : start + batch_size]


def _concatenate(parts: Iterator[tuple[np.ndarray, ...]]) -> tuple[np.ndarray, ...]:
    return tuple(np.concatenate(column) for column in zip(*parts, strict=True))
