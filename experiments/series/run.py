"""Trains variants, measures them, and writes a line as each one ends."""

import json
import math
import pathlib
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np

from experiments.grid import code_version
from experiments.series import data as series_data
from experiments.series import measures
from experiments.series.results import key_of, read
from experiments.series.variants import RATE, VARIANTS, Variant, build
from tfp_ar1_cli import run_folder
from tfp_ar1_cli.training import strategies
from tfp_ar1_cli.training.batches import Batches

_BATCH = 32
# The most training series used for calibration, and the most series at a time.
_MOST_TRAIN = 520


def run(out: pathlib.Path, dataset: str, names: list[str], seeds: list[int], epochs: int) -> None:
    """Runs whatever has no line in the file of results yet, seed by seed."""
    _write_missing(out, dataset, names, seeds, epochs, _trained)


def run_baselines(out: pathlib.Path, dataset: str) -> None:
    """Measures the baselines without a network; needs TensorFlow."""
    from experiments.series import baselines

    def predictor(name: str, data: series_data.Series, seed: int, epochs: int) -> Any:
        return baselines.fit(name, data)

    _write_missing(out, dataset, list(baselines.NAMES), [0], 0, predictor)


def _write_missing(
    out: pathlib.Path,
    dataset: str,
    names: list[str],
    seeds: list[int],
    epochs: int,
    train: Callable[..., tuple[measures.Predictor, dict[str, Any]]],
) -> None:
    data, done = series_data.load(dataset), {key_of(record) for record in read(out)}
    made = {
        "versions": run_folder.versions() | {"keras_backend": keras.backend.backend()},
        "code": code_version(),
        "command": " ".join(["python -m experiments.series", *sys.argv[1:]]),
    }
    for seed in seeds:
        for name in names:
            settings = {"dataset": dataset, "variant": name, "seed": seed, "epochs": epochs}
            if key_of(settings) in done:
                continue
            predict, found = train(name, data, seed, epochs)
            found |= _measured(predict, data)
            line = json.dumps(_plain(settings | found | made), allow_nan=False)
            with out.open("a", encoding="utf-8") as file:
                file.write(f"{line}\n")
            print(f"{dataset} {name} seed {seed}: done", flush=True)
            keras.utils.clear_session()


def _trained(
    name: str, data: series_data.Series, seed: int, epochs: int
) -> tuple[measures.Predictor, dict[str, Any]]:
    """Trains a variant like `tfp-ar1 train`; returns its predictor and measures of the model."""
    variant = VARIANTS[name]
    keras.utils.set_random_seed(seed)
    model = build(variant, data.train.shape[1:], seed)
    seconds = _fit(model, variant, data.train, seed, epochs)
    found: dict[str, Any] = {"seconds_per_epoch": seconds}
    if model.prior_metrics:
        rho = np.asarray(model.prior.correlation_parameter(), np.float64)
        found["prior_correlations"] = np.sort(rho.ravel())
    if hasattr(model.likelihood, "scale"):
        found["noise_scale"] = float(model.likelihood.scale())
    for part, x in (("test", data.test), ("train", data.train)):
        losses = model.evaluate(x, batch_size=_MOST_TRAIN, verbose=0, return_dict=True)
        found |= {f"{part}_neg_elbo": losses["reconstruction"] + losses["kl"]}
        found |= {f"{part}_kl": losses["kl"]}
        seen = np.concatenate([np.asarray(model.reconstruct(rows)) for rows in _batches(x)])
        error = np.abs(seen - x)
        found |= {f"{part}_seen_rmse": np.sqrt(np.nanmean(error**2))}
        found |= {f"{part}_seen_median_error": np.nanmedian(error)}
    drawn = np.asarray(model.generate(1000, seed=0, noise=True))
    found["generated"] = measures.variogram(drawn) | {"stddev": drawn.std()}
    return measures.of_model(model), found


def _fit(model: Any, variant: Variant, x: np.ndarray, seed: int, epochs: int) -> float:
    """Trains with the data order of `tfp-ar1 train`; returns the seconds per epoch."""
    length = np.full(len(x), x.shape[1], np.int32)
    batches = Batches({"x": x, "length": length}, _BATCH, seed, variant.hide)
    decay = keras.callbacks.LearningRateScheduler(
        lambda epoch: RATE * (1 + math.cos(math.pi * epoch / epochs)) / 2
    )
    start: list[float] = []
    clock = keras.callbacks.LambdaCallback(
        on_epoch_begin=lambda epoch, logs: start.append(time.monotonic())
    )
    model.fit(
        batches.dataset(0, strategies.none()),
        epochs=epochs,
        steps_per_epoch=batches.steps_per_epoch,
        shuffle=False,
        verbose=0,
        callbacks=[decay, clock],
    )
    return statistics.median(np.diff([*start, time.monotonic()]))


def _measured(predict: measures.Predictor, data: series_data.Series) -> dict[str, Any]:
    """Scores of both sets, and of test intervals calibrated on the training set."""
    some = data.train[:: -(-len(data.train) // _MOST_TRAIN)]
    parts = {"test": data.test, "train": some}
    scores = {name: measures.predictions(predict, x) for name, x in parts.items()}
    found = measures.calibrated(**scores)
    found["data"] = measures.variogram(data.train) | {"stddev": np.nanstd(data.train)}
    return found | {f"{name}_{k}": v for name, part in scores.items() for k, v in part.items()}


def _batches(x: np.ndarray) -> Iterator[np.ndarray]:
    return (x[i : i + _MOST_TRAIN] for i in range(0, len(x), _MOST_TRAIN))


def _plain(x: Any) -> Any:
    """Converts to JSON types, with numbers to six digits, and null for NaN and infinity."""
    if isinstance(x, dict):
        return {key: _plain(value) for key, value in x.items()}
    if isinstance(x, list | tuple | np.ndarray):
        return [_plain(value) for value in x]
    if not isinstance(x, float | np.floating):
        return x
    return float(f"{float(x):.6g}") if np.isfinite(x) else None
