"""Reads series from files: text, parquet, UCR's `.ts`, .npz and .npy."""

from __future__ import annotations

import dataclasses
import pathlib
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from tfp_ar1_cli.data import table_forms, tables
from tfp_ar1_cli.data.arrays import read_numpy
from tfp_ar1_cli.data.series_table import SeriesTable, of_arrays
from tfp_ar1_cli.errors import UserError

MIN_STEPS = 2
# The kinds of files, and their suffixes.
SUFFIXES = {
    "csv": tables.TEXT_SUFFIXES,
    "parquet": tables.PARQUET_SUFFIXES,
    "ts": (".ts",),
    "npz": (".npz",),
    "npy": (".npy",),
}
_EXPECTED = "x, or a single array, and optionally length, mask, x_test, length_test and mask_test"


def kind_of(path: pathlib.Path) -> str | None:
    """The kind of a file by its suffix; None if it is none of these."""
    suffix = pathlib.Path(path.name.lower().removesuffix(".gz")).suffix
    return next((kind for kind, known in SUFFIXES.items() if suffix in known), None)


def read(
    path: pathlib.Path, kind: str, columns: str = "features"
) -> tuple[SeriesTable, SeriesTable | None]:
    """Reads a file of series, and its test series if there are any.

    Test series are `x_test` in an .npz file, or, in UCR's naming, the file NAME_TEST beside
    NAME_TRAIN.

    Args:
      path: The file.
      kind: One of `SUFFIXES`.
      columns: See `table_forms.of_cells`.

    Raises:
      UserError: If something is wrong with the file.
    """
    if kind in ("npz", "npy"):
        return _read_arrays(path, kind)
    stem, middle, suffix = path.name.rpartition("_TRAIN")
    other = path.with_name(f"{stem}_TEST{suffix}")
    table = _read_table(path, kind, columns)
    if not middle or not other.is_file():
        return table, None
    return table, _read_table(other, kind, columns)


def _read_table(path: pathlib.Path, kind: str, columns: str) -> SeriesTable:
    if kind == "parquet":
        return table_forms.of_frame(path, tables.read_parquet(path), columns)
    if kind == "ts":
        return _read_ts(path)
    labelled = pathlib.Path(path.name.removesuffix(".gz")).suffix == ".tsv"
    cells = tables.read_text(path, table_forms.EXPECTED)
    table = table_forms.of_cells(path, cells, columns, labelled)
    return dataclasses.replace(table, dialect=cells.dialect)


def _read_ts(path: pathlib.Path) -> SeriesTable:
    """Reads the format of sktime and aeon (https://www.aeon-toolkit.org): one series per line.

    Colons separate features, commas separate values; `?` is a missing value, and class labels
    come last.
    """
    lines = tables.read_lines(path)
    start = next((i for i, (_, line) in enumerate(lines, 1) if line.lower() == "@data"), None)
    if start is None:
        raise UserError(f"{path}: is not a .ts file: it has no line @data.")
    tags = {}
    for _, line in lines[:start]:
        name, _, value = line.partition(" ")
        tags[name.lower()] = value.strip().lower()
    if tags.get("@timestamps") == "true":
        raise UserError(
            f"{path}: has time stamps of its own for each series, which are not read; write it "
            "as .csv with a row for each step, under the header series,time,NAME,..."
        )
    labelled = any(tags.get(x, "").startswith("true") for x in ("@classlabel", "@targetlabel"))
    series: list[list[list[float]]] = []
    for at, line in lines[start:]:
        if not line or line.startswith("#"):
            continue
        parts = line.split(":")
        parts = parts[:-1] if labelled else parts
        where = f"{path}: row {at}"
        series.append([table_forms.numbers_of(part.split(","), where) for part in parts])
        lengths, features = set(map(len, series[-1])), len(series[0])
        if len(lengths) != 1 or len(series[-1]) != features:
            raise UserError(
                f"{where}: has {len(parts)} features of {sorted(lengths)} steps; each series needs "
                f"{features} features, all of one length."
            )
    if not series:
        raise UserError(f"{path}: has a header and no series.")
    length = np.array([len(features[0]) for features in series])
    x = np.full((len(series), int(length.max()), len(series[0])), np.nan)
    for index, one in enumerate(series):
        x[index, : length[index]] = np.transpose(one)
    return of_arrays(x, length, default_names(x.shape[2]), None)


def _read_arrays(path: pathlib.Path, kind: str) -> tuple[SeriesTable, SeriesTable | None]:
    notes: list[str] = []
    arrays = read_numpy(path, kind, _choose_arrays, _EXPECTED, notes, tables.ADVICE)
    table = from_arrays(arrays, "", str(path))
    table.notes.extend(notes)
    return table, from_arrays(arrays, "_test", str(path)) if "x_test" in arrays else None


def _choose_arrays(names: list[str]) -> dict[str, str]:
    parts = [part for part in ("", "_test") if f"x{part}" in names and "x" in names]
    known = (f"{name}{part}" for part in parts for name in ("x", "length", "mask", "ids"))
    return {name: name for name in (*known, "names") if name in names and parts}


def default_names(count: int) -> list[str]:
    """Names for features that have none."""
    return ["value"] if count == 1 else [f"channel {i + 1}" for i in range(count)]


def from_arrays(arrays: dict[str, np.ndarray], part: str, source: str) -> SeriesTable:
    """The series of one part, NaN past their length and where their mask is false, if given."""
    what, array = f"{source}: x{part}", arrays[f"x{part}"]
    if array.dtype.kind not in "buif":
        raise UserError(f"{what} has dtype {array.dtype}; series must be numbers.")
    if array.ndim not in (2, 3):
        raise UserError(
            f"{what} has shape {array.shape}; expected [series, steps, channels] or [series, "
            "steps]."
        )
    x = array.astype(np.float64)
    x = x[..., None] if x.ndim == 2 else x
    if not x.size or x.shape[1] < MIN_STEPS:
        raise UserError(
            f"{what} has shape {array.shape}; at least 1 series of {MIN_STEPS} steps is needed, "
            "and series come before steps."
        )
    if (mask := arrays.get(f"mask{part}")) is not None:
        x = np.where(_as_mask(mask, x, f"{source}: mask{part}"), x, np.nan)
    num_series, steps, features = x.shape
    length = arrays.get(f"length{part}", np.full(num_series, steps))
    check_length(length, num_series, steps, f"{source}: length{part}")
    x = np.where(np.arange(steps)[:, None] < length[:, None, None], x, np.nan)
    names = _as_names(arrays.get("names"), features, f"{source}: names", "channel")
    ids = _as_names(arrays.get(f"ids{part}"), num_series, f"{source}: ids{part}", "series")
    return of_arrays(x, length, names or default_names(features), ids)


def _as_names(names: Any, count: int, what: str, noun: str) -> list[str] | None:
    if names is None:
        return None
    found = [str(name) for name in np.ravel(names)]
    if np.shape(names) != (count,) or len(set(found)) < count:
        raise UserError(
            f"{what} has shape {np.shape(names)} and {len(set(found))} different values; expected "
            f"one for each of {count} {noun if noun == 'series' else noun + 's'}, all different."
        )
    return found


def _as_mask(mask: np.ndarray, x: np.ndarray, what: str) -> np.ndarray:
    """Checks a mask of the shape of x or of its steps, and makes it broadcast to x."""
    shapes, numbers = (x.shape[:2], x.shape), mask.dtype.kind in "buif"
    if mask.shape not in shapes or not numbers or not ((mask == 0) | (mask == 1)).all():
        raise UserError(
            f"{what} has shape {mask.shape} and dtype {mask.dtype}; expected booleans, true where "
            f"x was observed, of shape {shapes[0]} or {shapes[1]}."
        )
    return mask if mask.ndim == 3 else mask[..., None]


def check_length(length: np.ndarray, num_series: int, steps: int, what: str) -> None:
    """Raises `UserError` unless `length` holds a length for each series, at least `MIN_STEPS`."""
    if length.shape != (num_series,) or length.dtype.kind not in "ui":
        raise UserError(
            f"{what} has shape {length.shape} and dtype {length.dtype}; expected a whole number "
            f"for each of the {num_series} series."
        )
    if wrong := np.count_nonzero((length < MIN_STEPS) | (length > steps)):
        raise UserError(
            f"{what}: {wrong} of {num_series} lengths lie outside {MIN_STEPS} to {steps} (they "
            f"range from {length.min()} to {length.max()}); correct them or leave the series out."
        )


def check_values(table: SeriesTable, what: str, likelihood: str, empty: bool = False) -> None:
    """Raises `UserError` if a model rejects the values, or if a series has none, unless `empty`."""
    x = table.x
    with np.errstate(over="ignore"):
        infinite = np.count_nonzero(np.isinf(x.astype(np.float32)))
    if infinite:
        raise UserError(
            f"{what}: {infinite} of {x.size} values are infinite (in float32); mark missing "
            "values with NaN."
        )
    if likelihood == "bernoulli" and (outside := np.count_nonzero((x < 0) | (x > 1))):
        raise UserError(
            f"{what}: {outside} of {x.size} values lie outside [0, 1] (they range from "
            f"{np.nanmin(x):.6g} to {np.nanmax(x):.6g}); train with --likelihood gaussian."
        )
    check_length(table.length, len(x), x.shape[1], f"{what}: length")
    if not empty and (number := np.count_nonzero(np.isnan(x).all(axis=(1, 2)))):
        raise UserError(
            f"{what}: {number} of {len(x)} series have only missing values; leave them out."
        )


def same_spacing(names: str, table: SeriesTable, source: str) -> None:
    """Raises `UserError` if the spacing of steps differs from that in the training data."""
    found = re.search(r"\((.*)\)", names)
    if found and table.spacing and table.spacing != found[1]:
        raise UserError(
            f"{source}: has a step every {table.spacing}, but the model was trained on steps every "
            f"{found[1]}; resample the series to that grid, in pandas with "
            "frame.resample(...).mean()."
        )


def step_name(spacing: str | None) -> str:
    """The name of a step, for pictures."""
    return f"step ({spacing})" if spacing else "step"


def chosen(table: SeriesTable, names: Sequence[str], step: str, source: str) -> SeriesTable:
    """The table as taken by a model that was trained on these features and steps."""
    same_spacing(step, table, source)
    return table.select(names, source)
