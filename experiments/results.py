"""Results of experiments as a data frame: their fields and comparisons.

`python -m experiments run` writes a one-line `result.json` to each run folder. Committed results
are files with the lines of many runs. This module reads both.
"""

import hashlib
import json
import math
import pathlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import scipy.stats

from tfp_ar1_cli.errors import UserError
from tfp_ar1_cli.progress import counted

CONFIDENCE = 0.95
_TRAINING = ("epochs", "batch_size", "learning_rate", "num_importance_samples", "data_sha256")
# The settings that identify an experiment; every result has all of them. For images:
SETTINGS = (
    *("dataset", "network", "hidden_units", "objective", "beta", "posterior", "latent_dim"),
    *("seed", *_TRAINING),
)
# For series, whose results contain `"model": "sequence"`:
SEQUENCE_SETTINGS = (
    *("model", "dataset", "window", "network", "objective", "beta", "posterior", "prior"),
    *("channels", "hide", "seed", *_TRAINING),
)
# Settings that all results of a data set must share, as the tables have no columns for them.
_ALIKE = ("data_sha256", "batch_size", "learning_rate", "num_importance_samples")
# The types of values that are not numbers.
_TYPES = dict.fromkeys(("history", "versions"), dict) | {"hidden_units": list | None}
_TYPES |= dict.fromkeys(
    ("dataset", "network", "objective", "posterior", "prior", "data_sha256", "model", "code"), str
)


class Measure(NamedTuple):
    """The label of a measure in tables, and its number of decimals."""

    label: str
    digits: int


BOUNDS = {
    "neg_elbo": Measure("−ELBO", 2),
    "nll_iw": Measure("NLL", 2),
    "reconstruction": Measure("reconstruction", 2),
    "kl": Measure("KL", 2),
}
PREDICTIONS = {
    f"{task}_{measure}_{number}": Measure(f"{label}, {number}{condition}", 3)
    for task, numbers, condition in (
        ("imputation", (20, 50), "% missing"),
        ("forecast", (1, 10, 50), " ahead"),
    )
    for number in numbers
    for measure, label in (("rmse", f"{task} RMSE"), ("coverage", "coverage of 90% intervals"))
}
MEASURES = {
    "num_covariance_parameters": Measure("covariance parameters", 0),
    **BOUNDS,
    "active_units": Measure("active units", 1),
    "mmd": Measure("MMD²", 4),
    "rho_mean": Measure("ρ, mean", 3),
    "rho_std": Measure("ρ, spread", 3),
    "scale_mean": Measure("√s, mean", 3),
    "scale_std": Measure("√s, spread", 3),
    "seconds_per_epoch": Measure("s per epoch", 1),
    "prior_correlation": Measure("prior correlation", 3),
    **PREDICTIONS,
}
# Predictors of series that need no model.
BASELINES = ("last_value", "linear_interpolation", "matern_half")


def settings_of(record: dict[str, Any]) -> tuple[str, ...]:
    """The names of the settings that a record has, or must have."""
    return SEQUENCE_SETTINGS if record.get("model") == "sequence" else SETTINGS


def name(record: dict[str, Any]) -> str:
    """The name of an experiment for files and folders, readable and unique."""
    settings = [record[key] for key in settings_of(record)]
    digest = hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:8]
    beta = f"beta{record['beta']:g}-" * (record["beta"] != 1)
    if "prior" in record:
        latents = f"{record['posterior']}-prior-{record['prior']}-c{record['channels']}"
    else:
        latents = f"{record['posterior']}-d{record['latent_dim']}"
    head = f"{record['dataset']}-{record['network']}-{record['objective']}"
    return f"{head}-{beta}{latents}-seed{record['seed']}-{digest}"


def samples_file(path: pathlib.Path, record: dict[str, Any]) -> pathlib.Path:
    """The picture of samples for a record of the results in the folder or file `path`."""
    if path.is_dir():
        return path / name(record) / "samples.png"
    return path.with_suffix(".samples") / f"{name(record)}.png"


class Setting(NamedTuple):
    """The settings that compared variants share: all other settings except the seed."""

    dataset: str
    network: str
    objective: str
    size: int
    epochs: int
    symbol: str

    def cells(self) -> dict[str, str]:
        """The columns of the setting in a table."""
        names = ("dataset", "network", "objective", self.symbol, "epochs")
        return {key: str(value) for key, value in zip(names, self, strict=False)}

    def file_name(self) -> str:
        """The name of the setting's pictures; the data sets share a picture."""
        size = f"{self.symbol[0]}{self.size}-{self.epochs}epochs"
        text = f"{self.network}-{self.objective}-{size}"
        return text.replace("β=", "beta").replace(" ", "-")

    def title(self) -> str:
        """The human-readable form."""
        size = f"{self.symbol} = {self.size}, {counted(self.epochs, 'epoch')}"
        return f"{self.network}, {self.objective}, {size}"


def load(path: pathlib.Path) -> pd.DataFrame:
    """Reads results from a folder of run folders or from a file; a row for each run, sorted.

    Adds the columns `setting` and `variant` (the posterior; for series, posterior and prior).

    Raises:
      UserError: If there are no results, one is damaged or repeated, or they are not comparable.
    """
    if not path.exists():
        raise UserError(f"{path}: does not exist; name what 'python -m experiments run' wrote.")
    records: dict[str, dict[str, Any]] = {}
    for file in sorted(path.glob("*/result.json")) if path.is_dir() else [path]:
        for number, line in enumerate(file.read_text("utf-8").splitlines(), 1):
            record = _parse(f"{file}: line {number}", line)
            if records.setdefault(name(record), record) is not record:
                raise UserError(f"{file}: line {number} repeats the run {name(record)}; remove it.")
    if not records:
        raise UserError(f"{path}: holds no results yet; 'python -m experiments run' adds them.")
    if len({settings_of(record) for record in records.values()}) > 1:
        raise UserError(f"{path}: holds results of images and of series; split it in two.")
    frame = pd.DataFrame(list(records.values()))
    for key in _ALIKE:
        if (frame.groupby("dataset")[key].nunique() > 1).any():
            raise UserError(
                f"{path}: holds results of one data set with different {key}; split it in two."
            )
    frame["setting"] = [_setting(record) for record in records.values()]
    frame["variant"] = frame.posterior + ("/" + frame.prior if "prior" in frame else "")
    order = ["setting", "num_covariance_parameters", "variant", "seed"]
    return frame.sort_values(order, ignore_index=True)


def _parse(place: str, line: str) -> dict[str, Any]:
    """Parses a line; an error unless it is a result whose values have the right types."""
    try:
        record = json.loads(line, parse_constant=lambda text: None)  # NaN and infinity.
        settings = settings_of(record)
    except (ValueError, RecursionError, AttributeError) as error:
        message = f"{place} is not a result of 'python -m experiments run'; remove the line."
        raise UserError(message) from error
    of_series_only = () if "prior" in settings else ("prior_correlation", *PREDICTIONS)
    measures = MEASURES.keys() - set(of_series_only)
    for key in (*settings, *sorted(measures), "history", "versions", "code"):
        value = record.get(key)
        valid = isinstance(value, _TYPES.get(key, int | float))
        if not valid or (key == "history" and "val_neg_elbo" not in value):
            raise UserError(f"{place} has no valid {key!r}; remove the line and run it again.")
    return record


def _setting(record: dict[str, Any]) -> Setting:
    return Setting(
        record["dataset"],
        " ".join([record["network"], *map(str, record.get("hidden_units") or [])]),
        record["objective"] + f" β={record['beta']:g}" * (record["beta"] != 1),
        record["channels" if "channels" in record else "latent_dim"],
        record["epochs"],
        "channels" if "channels" in record else "d",
    )


def baseline_of(frame: pd.DataFrame) -> str:
    """The variant that the others are compared with."""
    return "diag/normal" if "prior" in frame else "diag"


def groups(frame: pd.DataFrame) -> Iterator[tuple[tuple[Setting, str], pd.DataFrame]]:
    """The rows of each setting and variant, one for each seed."""
    return iter(frame.groupby(["setting", "variant"], sort=False))


def pairs(frame: pd.DataFrame, to: str | None = None) -> pd.DataFrame:
    """A row for each run that shares setting and seed with a run of the variant `to`.

    `to` is `baseline_of` by default; its measures are in columns `..._of_baseline`.
    """
    is_baseline = frame.variant == (to or baseline_of(frame))
    keys, suffixes = ["setting", "seed"], ("", "_of_baseline")
    return frame[~is_baseline].merge(frame[is_baseline], on=keys, suffixes=suffixes)


def difference(paired: pd.DataFrame, field: str) -> tuple[float, float, float]:
    """The mean difference of a measure in `pairs`, and its 95% interval by Student's t.

    The interval is NaN if there is only one pair.
    """
    x, y = paired[field].to_numpy(), paired[f"{field}_of_baseline"].to_numpy()
    mean = float(np.mean(x - y))
    if len(x) < 2:
        return mean, math.nan, math.nan
    with np.errstate(divide="ignore", invalid="ignore"):  # If all differences are equal.
        low, high = scipy.stats.ttest_rel(x, y).confidence_interval(CONFIDENCE)
    return mean, float(low), float(high)
