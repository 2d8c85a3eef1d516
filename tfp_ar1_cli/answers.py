"""The answers of a trained model of series, in the units and the layout of the data."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tfp_ar1_cli import backend
from tfp_ar1_cli.atomic import atomic
from tfp_ar1_cli.data import tables
from tfp_ar1_cli.data.series import Units
from tfp_ar1_cli.data.series_table import SeriesTable

_BATCH = 128


@dataclasses.dataclass(frozen=True)
class Answer:
    """The answer of a command, as a table and as arrays.

    Attributes:
      frame: Makes the table.
      arrays: The arrays of an .npz file.
    """

    frame: Callable[[], Any]
    arrays: dict[str, np.ndarray]

    def write(self, path: pathlib.Path, dialect: tables.Dialect | None = None) -> None:
        """Writes the file, in the format that its suffix names."""
        if path.suffix == ".npz":
            with atomic(path) as temporary, temporary.open("wb") as file:
                np.savez(file, **dict[str, Any](self.arrays))
        else:
            tables.write(path, self.frame(), dialect)


@dataclasses.dataclass(frozen=True)
class _Windows:
    """Windows of series as a model takes them, and how to put them together again.

    Attributes:
      x: float32 `[N, steps, features]`, standardised.
      length: int32 `[N]`.
      series: The series that each window is from, `[N]`.
      start: The first step of each window in its series, `[N]`.
      owner: int `[series, steps of the longest]`: the window that each step is read from.
    """

    x: np.ndarray
    length: np.ndarray
    series: np.ndarray
    start: np.ndarray
    owner: np.ndarray

    @property
    def data(self) -> dict[str, np.ndarray]:
        """Returns the windows as the model takes them."""
        return {"x": self.x, "length": self.length}

    def whole(self, values: np.ndarray) -> np.ndarray:
        """Puts values of windows, `[..., N, steps, width]`, together to values of series."""
        step = np.arange(self.owner.shape[1])
        inside = np.clip(step - self.start[self.owner], 0, values.shape[-2] - 1)
        return values[..., self.owner, inside, :]


def _cut(table: SeriesTable, units: Units, steps: int, starts: Callable[[int], Any]) -> _Windows:
    """Cuts windows that begin at `starts(length)`; each step is read where it is most central."""
    x = units.standardise(table.x).astype(np.float32)
    owner = np.zeros(x.shape[:2], int)
    pieces: list[np.ndarray] = []
    series: list[int] = []
    start: list[int] = []
    length: list[int] = []
    for index, count in enumerate(table.length.tolist()):
        begins = np.asarray(starts(count))
        ends = np.minimum(begins + steps, count)
        step = np.arange(count)[:, None]
        outside = (step < begins) | (step >= ends)
        distance = np.abs(step - (begins + (steps - 1) / 2)) + outside * 2.0 * count
        owner[index, :count] = len(start) + distance.argmin(axis=1)
        owner[index, count:] = owner[index, count - 1]
        for begin, end in zip(begins, ends, strict=True):
            piece = np.full((steps, x.shape[2]), np.nan, np.float32)
            piece[: end - begin] = x[index, begin:end]
            pieces.append(piece)
            start.append(begin)
            length.append(end - begin)
            series.append(index)
    lengths = np.array(length, np.int32)
    return _Windows(np.stack(pieces), lengths, np.array(series), np.array(start), owner)


def overlapping(steps: int) -> Callable[[int], list[int]]:
    """Starts of windows that overlap by half, so that no gap is at the edge of all its windows."""
    return lambda count: [
        *range(0, max(count - steps, 0), max(1, steps // 2)),
        max(count - steps, 0),
    ]


def side_by_side(steps: int) -> Callable[[int], list[int]]:
    """Starts of windows that follow each other, as in training; the last may be shorter."""
    return lambda count: list(range(0, count, steps))


def _last(steps: int) -> Callable[[int], list[int]]:
    return lambda count: [max(count - steps, 0)]


def _statistics(quantiles: Sequence[float]) -> Callable[[np.ndarray], np.ndarray]:
    """Returns what stacks mean, standard deviation and quantiles over axis 0 of draws."""

    def of(draws: np.ndarray) -> np.ndarray:
        draws = draws.astype(np.float64)
        parts = [draws.mean(axis=0)[None], draws.std(axis=0)[None]]
        return np.concatenate([*parts, np.quantile(draws, quantiles, axis=0)])

    return of


def _in_units(units: Units, stacked: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Converts mean, standard deviation and quantiles to the units of the data."""
    return (
        units.restore(stacked[0]),
        stacked[1] * np.abs(units.scale),
        units.restore(stacked[2:]),
    )


def _arrays(
    table: SeriesTable,
    x: np.ndarray,
    sd: np.ndarray,
    quantiles: np.ndarray,
    levels: Sequence[float],
    **more: np.ndarray,
) -> dict[str, np.ndarray]:
    return {
        "x": x,
        "sd": sd,
        "quantiles": quantiles,
        "levels": np.array(levels),
        "ids": np.array(table.ids),
        "names": np.array(table.names),
        **more,
    }


def _named(quantiles: np.ndarray, levels: Sequence[float]) -> dict[str, np.ndarray]:
    return {f"q{level:g}": x for level, x in zip(levels, quantiles, strict=True)}


def impute(
    model: Any, units: Units, table: SeriesTable, levels: Sequence[float], num: int, seed: int
) -> Answer:
    """Fills the gaps of series with means, standard deviations and quantiles of draws.

    Observed values do not change, and have a standard deviation of 0.
    """
    windows = _cut(table, units, model.steps, overlapping(model.steps))
    stacked = model.impute(
        windows.data, num_samples=num, seed=seed, batch_size=_BATCH, summarize=_statistics(levels)
    )
    mean, sd, quantiles = _in_units(units, windows.whole(stacked))
    observed = ~np.isnan(table.x)
    x = np.where(observed, table.x, mean)
    sd = np.where(observed, 0.0, sd)
    quantiles = np.where(observed, table.x, quantiles)
    values = {"": x, "sd": sd, **_named(quantiles, levels)}
    arrays = _arrays(table, x, sd, quantiles, levels, length=table.length)
    return Answer(lambda: table.rows(values), arrays)


def forecast(
    model: Any,
    units: Units,
    table: SeriesTable,
    steps: int,
    levels: Sequence[float],
    num: int,
    seed: int,
) -> Answer:
    """Forecasts each series: means, standard deviations and quantiles of draws."""
    windows = _cut(table, units, model.steps, _last(model.steps))
    stacked = model.forecast(
        windows.data,
        steps,
        num_samples=num,
        seed=seed,
        batch_size=_BATCH,
        summarize=_statistics(levels),
    )
    mean, sd, quantiles = _in_units(units, stacked)
    values = {"": mean, "sd": sd, **_named(quantiles, levels)}
    arrays = _arrays(table, mean, sd, quantiles, levels)
    return Answer(lambda: table.layout.following(table, values), arrays)


def reconstruct(
    model: Any, units: Units, table: SeriesTable, levels: Sequence[float], num: int, seed: int
) -> Answer:
    """Predicts new observations of the same latent paths at every step, next to the data."""
    batching = backend.library("vae.batching")
    from tfp_ar1_cli.training.model import replicate

    windows = _cut(table, units, model.steps, overlapping(model.steps))
    parts = [
        _statistics(levels)(replicate(model, some, num, seed + number))
        for number, some in enumerate(batching.batches(windows.data, _BATCH))
    ]
    mean, sd, quantiles = _in_units(units, windows.whole(np.concatenate(parts, axis=1)))
    values = {"": table.x, "reconstruction": mean, "sd": sd, **_named(quantiles, levels)}
    arrays = _arrays(table, mean, sd, quantiles, levels, length=table.length)
    return Answer(lambda: table.rows(values), arrays)


def encode(model: Any, units: Units, table: SeriesTable) -> Answer:
    """Returns means and standard deviations of the posterior, per latent path and step."""
    windows = _cut(table, units, model.steps, overlapping(model.steps))
    moments = (np.swapaxes(x.astype(np.float64), 1, 2) for x in posterior_of(model, windows.data))
    mean, stddev = map(windows.whole, moments)
    values = {"z{}": mean, "z{}_sd": stddev}
    arrays = {"mean": mean, "stddev": stddev, "length": table.length, "ids": np.array(table.ids)}
    return Answer(lambda: table.rows(values, width=mean.shape[-1]), arrays)


def posterior_of(model: Any, data: Any) -> tuple[np.ndarray, ...]:
    """Returns means and standard deviations of the posteriors of preprocessed examples."""
    batching = backend.library("vae.batching")

    posteriors = map(model.encode, batching.batches(data, _BATCH))
    return batching.concatenated((np.asarray(p.mean()), np.asarray(p.stddev())) for p in posteriors)


def score(
    model: Any, units: Units, table: SeriesTable, num_importance_samples: int, per_step: bool
) -> Answer:
    """Scores how unexpected each window, or each step, is to the model, in nats.

    A window has the negative ELBO, its two terms, and the importance-weighted negative
    log-likelihood; a step has its part of the negative ELBO.
    """
    import pandas as pd

    sequence_evaluation = backend.library("vae.sequence_evaluation")

    windows = _cut(table, units, model.steps, side_by_side(model.steps))
    if per_step:
        terms = sequence_evaluation.neg_elbo_by_step(
            model, windows.data, num_importance_samples, _BATCH
        )
        by_step = windows.whole(terms[..., None])
        past = np.arange(by_step.shape[1]) >= table.length[:, None]
        arrays = {"neg_elbo": np.where(past, np.nan, by_step[..., 0]), "length": table.length}
        values = {"neg_elbo": by_step}
        return Answer(lambda: table.rows(values, width=1), arrays | {"ids": np.array(table.ids)})
    labels = [table.layout.labels(index, n) for index, n in enumerate(table.length.tolist())]
    columns = {
        "series": np.array(table.ids)[windows.series],
        "start": np.array(
            [labels[s][t] for s, t in zip(windows.series, windows.start, strict=True)]
        ),
        "steps": windows.length,
        "observed": np.count_nonzero(~np.isnan(windows.x), axis=(1, 2)),
        **scores_of(model, windows.data, num_importance_samples),
    }
    return Answer(lambda: pd.DataFrame(columns), columns)


def scores_of(model: Any, data: Any, num_importance_samples: int) -> dict[str, np.ndarray]:
    """Returns negative ELBO, its terms, and importance-weighted NLL of each example, in nats."""
    batching = backend.library("vae.batching")

    reconstruction, kl, log_likelihood = batching.concatenated(
        batching.importance_estimates(model.importance_terms, data, num_importance_samples, _BATCH)
    )
    return {
        "neg_elbo": reconstruction + kl,
        "reconstruction": reconstruction,
        "kl": kl,
        "nll_iw": -log_likelihood,
    }
