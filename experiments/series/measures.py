"""Measures that tell causes of errors apart: predictions of hidden values, on both sets."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from tfp_ar1_cli import backend

# The levels of the quantiles kept from draws, for central intervals.
LEVELS = np.array([0.05, 0.25, 0.75, 0.95])
HORIZONS = (1, 2, 5, 10, 20, 50)
LAGS = (1, 2, 5, 10, 20, 50)
_SAMPLES = 100


class Draws(NamedTuple):
    """Summaries of draws of hidden values, `[N, steps, features]` except the quantiles."""

    mean: np.ndarray
    stddev: np.ndarray
    quantiles: np.ndarray  # [levels, N, steps, features]


# Predicts some of the steps of series [N, steps, features], NaN where unknown.
Predictor = Callable[[np.ndarray, int, Any], Draws]


def of_model(model: Any) -> Predictor:
    """Predicts by draws of `SequenceVAE.impute`; values past the end of a series are forecasts."""

    def predict(x: np.ndarray, length: int, steps: Any) -> Draws:
        def kept(draws: np.ndarray) -> np.ndarray:
            draws = draws[:, :, steps]
            rows = (draws.mean(axis=0), draws.std(axis=0), *np.quantile(draws, LEVELS, axis=0))
            return np.stack(rows)

        data = {"x": x, "length": np.full(len(x), length)}
        rows = model.impute(data, num_samples=_SAMPLES, seed=0, batch_size=260, summarize=kept)
        return Draws(rows[0], rows[1], rows[2:])

    return predict


def scores(draws: Draws, x: np.ndarray, where: np.ndarray) -> dict[str, Any]:
    """Errors and intervals of the values `where`.

    The root mean square error; the median of the absolute errors, which is not dominated by a few
    windows with artefacts; the coverage of central 50% and 90% intervals; and the root of the mean
    predicted variance.
    """
    if not where.any():
        return {}
    truth, mean = x[where].astype(np.float64), draws.mean[where].astype(np.float64)
    error = np.abs(truth - mean)
    found = {
        "rmse": np.sqrt(np.mean(error**2)),
        "median_error": np.median(error),
    }
    if not np.isnan(draws.stddev[where]).any():
        above = (truth > draws.quantiles[:, where]).sum(axis=0)
        share = np.bincount(above, minlength=len(LEVELS) + 1) / len(truth)
        found |= {
            "coverage": share[1:4].sum(),
            "coverage_50": share[2],
            "spread": np.sqrt(np.mean(draws.stddev[where].astype(np.float64) ** 2)),
        }
        found["ratios"] = error / draws.stddev[where]
    return found


def predictions(predict: Predictor, x: np.ndarray, most: int = 520) -> dict[str, Any]:
    """Scores of imputed single steps and gaps, and of forecasts from the middle, by name.

    The hidden values are a random share of the steps; a gap of 20 steps in the middle of each
    series; or its second half. Steps and gaps use at most `most` series, equally spaced.
    """
    num, steps, _ = x.shape
    found: dict[str, Any] = {}
    some = x[:: -(-num // most)]
    observed = ~np.isnan(some)
    gap = np.abs(np.arange(steps) - (steps - 1) / 2) < 10
    masks = {
        f"single_{share}": backend.library("vae.sequence_evaluation").hidden_steps(
            np.full(len(some), steps), steps, share / 100, 0
        )
        for share in (20, 50)
    }
    for name, where in (masks | {"gap": np.tile(gap, (len(some), 1))}).items():
        draws = predict(_without(some, where), steps, slice(None))
        found |= _named(name, scores(draws, some, observed & where[..., np.newaxis]))
    origin = steps // 2
    horizons = [h for h in HORIZONS if origin + h <= steps]
    ahead = np.array([origin + h - 1 for h in horizons])
    draws = predict(_without(x, np.tile(np.arange(steps) >= origin, (num, 1))), origin, ahead)
    known = np.diff(x[:, :origin], axis=1)
    roughness = np.sqrt(np.nanmean(known**2, axis=(1, 2)))
    quarter = np.searchsorted(np.nanquantile(roughness, (0.25, 0.5, 0.75)), roughness)
    for i, horizon in enumerate(horizons):
        one = Draws(draws.mean[:, i], draws.stddev[:, i], draws.quantiles[:, :, i])
        truth = x[:, ahead[i]]
        there = ~np.isnan(truth)
        found |= _named(f"forecast_{horizon}", scores(one, truth, there))
        found[f"forecast_{horizon}_coverage_by_roughness"] = [
            scores(one, truth, there & (quarter == q)[:, np.newaxis]).get("coverage", np.nan)
            for q in range(4)
        ]
    return found


def calibrated(test: dict[str, Any], train: dict[str, Any]) -> dict[str, Any]:
    """Replaces the ratios of errors to predicted deviations by a factor and its coverage.

    With the factor, in units of the deviation, intervals hold 90% of the values of the training
    series (split conformal prediction; Lei et al., arXiv:1604.04173); the coverage is that of the
    test series.
    """
    found = {}
    for name in [name for name in test if name.endswith("_ratios")]:
        factor, ratios = np.quantile(train.pop(name), 0.9), test.pop(name)
        task = name.removesuffix("_ratios")
        found |= {
            f"{task}_factor": factor,
            f"{task}_calibrated_coverage": np.mean(ratios <= factor),
        }
    return found


def variogram(x: np.ndarray) -> dict[str, list[float]]:
    """Root mean square differences at each lag: over all windows, and of a typical window."""
    squares = [
        (x[:, lag:] - x[:, :-lag]).astype(np.float64) ** 2 for lag in LAGS if lag < x.shape[1]
    ]
    return {
        "differences": [np.sqrt(np.nanmean(square)) for square in squares],
        "median_differences": [
            np.nanmedian(np.sqrt(np.nanmean(square, axis=(1, 2)))) for square in squares
        ],
    }


def _named(name: str, found: dict[str, Any]) -> dict[str, Any]:
    return {f"{name}_{key}": value for key, value in found.items()}


def _without(x: np.ndarray, hidden: np.ndarray) -> np.ndarray:
    return np.where(hidden[..., np.newaxis], np.float32(np.nan), x)
