"""Scores of imputations and forecasts, from a model or from a baseline.

Everything is measured on observed values that were hidden from the predictor. A predictor is a
function: `predict(x, length)` takes series `[N, steps, features]`, with NaN for unknown values, and
the number of steps of each, `[N]`, and returns a `Prediction` for all `steps`, including those past
the end of a series. `of_model` makes a predictor from a `SequenceVAE`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tfp_ar1 import _keras_backend
from tfp_ar1.vae import batching, data_checks

if TYPE_CHECKING:
    from tfp_ar1.vae.sequence_vae import SequenceVAE

__all__ = ["Prediction", "evaluate", "hidden_steps", "neg_elbo_by_step", "of_model"]

# How many numbers the draws held at a time may have: 32 MiB of float32.
_MAX_DRAWS = 2**23


class Prediction(NamedTuple):
    """A point and a central 90% interval for each value, all `[N, steps, features]`."""

    mean: np.ndarray
    low: np.ndarray | None = None  # None for predictors without intervals
    high: np.ndarray | None = None


Predictor = Callable[[np.ndarray, np.ndarray], Prediction]


def of_model(model: SequenceVAE, num_samples: int = 200, seed: int = 0) -> Predictor:
    """Makes a predictor from a model: mean and quantiles of draws of `SequenceVAE.impute`.

    Past the end of a series these are forecasts.

    Args:
      model: the model.
      num_samples: draws per series.
      seed: integer; the same seed gives the same predictions.
    """

    def predict(x: np.ndarray, length: np.ndarray) -> Prediction:
        parts = []
        rows = max(1, _MAX_DRAWS // (num_samples * x[0].size))
        for start in range(0, len(x), rows):
            part = slice(start, start + rows)
            data = {"x": x[part], "length": length[part]}
            draws = model.impute(data, num_samples=num_samples, seed=seed + start)
            parts.append((draws.mean(axis=0), *np.quantile(draws, (0.05, 0.95), axis=0)))
        return Prediction(*(np.concatenate(column) for column in zip(*parts, strict=True)))

    return predict


def neg_elbo_by_step(
    model: SequenceVAE,
    x: Any,
    num_samples: int = 50,
    batch_size: int = 128,
    seed: int = 0,
) -> np.ndarray:
    """Returns each step's part of the negative ELBO: high where the values surprise the model.

    `-E_q[log p(x_t | z_t)] + KL(q(z_t | z_{t-1}) ‖ p(z_t | z_{t-1}))`, with the KL averaged over
    `z_{t-1}` and summed over the channels. The sum over the steps is the negative ELBO.

    Args:
      model: the model.
      x: series as the model takes them.
      num_samples: draws from the posterior per series, at least 1.
      batch_size: series at a time, at least 1.
      seed: integer; the same seed gives the same values.

    Returns:
      Array `[N, steps]` in nats. Steps past the end of a series are 0; a step where nothing was
      observed has only the KL.

    Raises:
      ValueError: if a number is less than 1, or the data do not fit the model.
    """
    x = data_checks.checked_arrays(model, x)
    num_samples = batching.checked_count("num_samples", num_samples, at_least=1)
    parts = []
    for index, batch in enumerate(batching.batches(x, batch_size)):
        log_ps = []
        for start, n in batching.portions(num_samples, batch_size, math.prod(model.data_shape)):
            seeds = _keras_backend.seed_of(seed, index * num_samples + start)
            log_p, kl = model.step_terms(batch, seeds, n)
            log_ps.append(np.asarray(log_p))
        parts.append(np.asarray(kl) - np.mean(np.concatenate(log_ps), axis=0, dtype=np.float64))
    return np.concatenate(parts)


def hidden_steps(length: np.ndarray, steps: int, share: float, seed: int) -> np.ndarray:
    """Draws steps to hide at random: bool `[N, steps]`, a share of the steps of each series.

    Args:
      length: number of steps of each series, `[N]`.
      steps: number of steps of the longest series.
      share: in (0, 1); rounded to whole steps, at least one and not all.
      seed: integer.
    """
    if not 0 < share < 1:
        raise ValueError(f"`share` must be in (0, 1); got {share}.")
    order = np.random.default_rng(seed).random((len(length), steps))
    order[np.arange(steps) >= length[:, np.newaxis]] = np.inf
    number = np.clip(np.round(share * length), 1, length - 1)
    return order.argsort(axis=1).argsort(axis=1) < number[:, np.newaxis]


def evaluate(
    predict: Predictor,
    x: np.ndarray,
    length: np.ndarray | None = None,
    shares: Sequence[float] = (0.2, 0.5),
    horizons: Sequence[int] = (1, 10, 50),
    seed: int = 0,
) -> dict[str, float]:
    """Scores predictions; the same seed hides the same values from every predictor.

    Args:
      predict: the predictor; see the module's docstring.
      x: series `[N, steps, features]`; NaN, or masked, where nothing was observed.
      length: number of steps of each series, `[N]`, at least 2; `None` if all have full length.
      shares: shares of the steps of each series to hide at random and impute.
      horizons: numbers of steps to forecast. Forecasts start from the first half of each series;
        those that reach past its end are not counted.
      seed: integer; decides which values are hidden.

    Returns:
      In the units of x: `imputation_rmse_20`, the root mean square error with 20% of the steps
      hidden; `forecast_rmse_10`, that of the tenth step ahead; and so on for each share and each
      horizon that some series reaches. For predictors with intervals also `coverage` in place of
      `rmse`, the share of values in the 90% interval, and `width`, the interval's mean width.
    """
    x = data_checks.nan_where_masked(data_checks.as_array("x", x))
    if x.ndim != 3:
        raise ValueError(f"Expected series of shape [N, steps, features]; got {tuple(x.shape)}.")
    x, steps = np.asarray(x), x.shape[1]
    length = np.full(len(x), steps) if length is None else np.asarray(length)
    if length.min() < 2:
        raise ValueError(f"Each series needs at least 2 steps; the shortest has {length.min()}.")
    if length.max() > steps:
        raise ValueError(f"No series can have more than {steps} steps; one has {length.max()}.")
    step = np.arange(steps)
    inside = step < length[:, np.newaxis]
    observed = inside[..., np.newaxis] & ~np.isnan(x)
    results: dict[str, float] = {}
    for share in shares:
        hidden = hidden_steps(length, steps, share, seed)
        prediction = predict(_without(x, hidden | ~inside), length)
        scores = _scores(prediction, x, observed & hidden[..., np.newaxis])
        results |= {f"imputation_{k}_{round(100 * share)}": v for k, v in scores.items()}
    origin = length // 2
    prediction = predict(_without(x, step >= origin[:, np.newaxis]), origin)
    for horizon in horizons:
        ahead = step == origin[:, np.newaxis] + horizon - 1
        scores = _scores(prediction, x, observed & ahead[..., np.newaxis])
        results |= {f"forecast_{k}_{horizon}": v for k, v in scores.items()}
    return results


def _without(x: np.ndarray, hidden: np.ndarray) -> np.ndarray:
    return np.where(hidden[..., np.newaxis], np.nan, x).astype(x.dtype)


def _scores(prediction: Prediction, x: np.ndarray, where: np.ndarray) -> dict[str, float]:
    if not where.any():
        return {}
    pick = functools.partial(np.extract, where)
    truth = pick(x).astype(np.float64)
    scores = {"rmse": float(np.sqrt(np.mean((pick(prediction.mean) - truth) ** 2)))}
    if prediction.low is not None:
        low, high = pick(prediction.low), pick(prediction.high)
        scores["coverage"] = float(np.mean((low <= truth) & (truth <= high)))
        scores["width"] = float(np.mean(high - low, dtype=np.float64))
    return scores
