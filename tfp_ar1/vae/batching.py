"""Estimates by batches of examples and portions of draws, to bound memory."""

from __future__ import annotations

import numbers
import operator
import reprlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfp_ar1 import _keras_backend
from tfp_ar1._checks import checked_count

# How many numbers of decoder outputs are held at a time: 16 MiB of float32 for each such array.
MAX_OUTPUTS = 2**22

# An array of examples along the first axis, or a dictionary of such arrays.
Data = np.ndarray | Mapping[str, np.ndarray]


def num_examples(x: Data) -> int:
    """Returns the number of examples N."""
    return len(keras.tree.flatten(x)[0])


def batches(x: Data, batch_size: int) -> Iterator[Any]:
    """Yields the examples of an array, or of a dictionary of arrays, `batch_size` at a time."""
    batch_size = checked_count("batch_size", batch_size, at_least=1)
    for start in range(0, num_examples(x), batch_size):
        batch = operator.itemgetter(slice(start, start + batch_size))
        yield keras.tree.map_structure(batch, x)


def portions(num_samples: int, batch_size: int, example_size: int) -> Iterator[tuple[int, int]]:
    """Yields the first draw and the number of draws of each portion, for a batch of this size."""
    most = max(1, MAX_OUTPUTS // (batch_size * example_size))
    for start in range(0, num_samples, most):
        yield start, min(most, num_samples - start)


def concatenated(parts: Iterable[tuple[np.ndarray, ...]]) -> tuple[np.ndarray, ...]:
    """Joins the entries of each batch's tuple along the first axis."""
    return tuple(np.concatenate(column) for column in zip(*parts, strict=True))


def importance_estimates(
    importance_terms: Callable[..., Any],
    x: Data,
    num_samples: int,
    batch_size: int,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yields reconstruction, KL and importance-weighted log-likelihood for each batch.

    `importance_terms` is that method of a model; other arguments are as in `evaluation.evaluate`.
    """
    num_samples = checked_count("num_samples", num_samples, at_least=1)
    batch_size = checked_count("batch_size", batch_size, at_least=1)
    size = max(part[0].size for part in keras.tree.flatten(x))
    done = 0
    for index, batch in enumerate(batches(x, batch_size)):
        log_ps, log_weights = [], []
        for start, n in portions(num_samples, batch_size, size):
            seeds = _keras_backend.seed_of(seed, index * num_samples + start)
            log_p, log_weight, kl = importance_terms(batch, seeds, n)
            log_ps.append(np.asarray(log_p))
            log_weights.append(np.asarray(log_weight))
        weights = np.concatenate(log_weights).astype(np.float64)
        yield (
            np.negative(np.mean(np.concatenate(log_ps), axis=0, dtype=np.float64)),
            np.asarray(kl),
            np.logaddexp.reduce(weights, axis=0) - np.log(num_samples),
        )
        done += num_examples(batch)
        if progress is not None:
            progress(done, num_examples(x))


def log_likelihood(importance_terms: Callable[..., Any], x: Data, *args: Any) -> np.ndarray:
    """Returns importance-weighted log-likelihoods `[N]`; arguments: see `importance_estimates`."""
    return concatenated(importance_estimates(importance_terms, x, *args))[2]


def checked_seed(seed: Any) -> tf.Tensor:
    """Returns the seed for TFP, `[2]`; raises `ValueError` unless it is a 32-bit integer."""
    bits = np.iinfo(np.int32)
    if not isinstance(seed, numbers.Integral) or not bits.min <= int(seed) <= bits.max:
        given = reprlib.repr(seed)
        raise ValueError(f"`seed` must be a 32-bit integer, or None; got {given}.")
    return _keras_backend.seed_of(int(seed), 0)
