"""The folder of a run: what lies in it, how it is claimed, written and read.

Every file is written under a temporary name and then renamed, so that a file that exists is whole.
A folder with a `config.json` is a run; it is finished when it has a `metrics.json`, which is there
before the pictures are, and no state to resume from any more, which goes after them.
"""

import contextlib
import dataclasses
import errno
import glob
import importlib.metadata
import itertools
import json
import math
import os
import pathlib
import platform
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from tfp_ar1_cli.errors import UserError

try:
    import fcntl
except ImportError:  # Windows: two processes in one folder are then not noticed.
    fcntl = None

FORMAT_VERSION = 1
_PACKAGES = ("tfp_ar1", "tensorflow", "tensorflow-probability", "keras", "numpy")
# Options that may change when a run is resumed. Where the same images lie is no part of what a run
# is; their hash in `data` is. A run that stopped at a corrupt image may go on without it.
MAY_CHANGE = ("dataset", "data_dir", "corrupt")
_TEMPORARY = ".tmp-"
_LEAST_BYTES = 2**16
# Options of `train` that runs of earlier versions do not have, with what these versions did. An
# option that is new belongs here, with its default; a new FORMAT_VERSION is for what has none.
_LATER_OPTIONS = {
    "model": "image",
    "network": "mlp",
    "objective": "elbo",
    "strategy": "none",
    "replicas": 1,
}
# What every run has in the config's `options` and `data`: of both models, and of each.
_OPTIONS = (
    *("dataset", "posterior", "likelihood", "beta", "epochs", "batch_size", "learning_rate"),
    *("seed", "num_importance_samples"),
)
_OPTIONS_OF = {
    "image": ("latent_dim", "hidden_units"),
    "sequence": ("prior", "channels", "window", "hide"),
}
_DATA = ("num_train", "num_test")
_DATA_OF = {"image": ("image_shape", "range"), "sequence": ("data_shape", "units")}


def is_text(value: Any) -> bool:
    """Whether a value read from a file is text."""
    return isinstance(value, str)


def is_number(value: Any) -> bool:
    """Whether it is a finite number."""
    return type(value) in (int, float) and math.isfinite(value)


def is_count(value: Any) -> bool:
    """Whether it is a whole number that TensorFlow can count to, from 1 on."""
    return type(value) is int and 1 <= value < 2**63


def is_list(*items: Callable[[Any], bool], of: Callable[[Any], bool] = is_number) -> Callable:
    """Whether it is a list: of these items, or of any number of such as `of` takes."""

    def check(value: Any) -> bool:
        if not isinstance(value, list):
            return False
        if not items:
            return all(map(of, value))
        return len(value) == len(items) and all(f(x) for f, x in zip(items, value, strict=True))

    return check


def is_table(value_is: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """Whether it is a dictionary whose values are such as `value_is` takes."""
    return lambda value: isinstance(value, dict) and all(map(value_is, value.values()))


# What settings must be, in a config and in a result of `compare`.
VALID: dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys(("dataset", "posterior", "likelihood", "network", "objective"), is_text),
    **dict.fromkeys(("prior", "model", "strategy", "corrupt", "data_sha256"), is_text),
    **dict.fromkeys(("epochs", "batch_size", "num_importance_samples", "latent_dim"), is_count),
    **dict.fromkeys(("channels", "window", "replicas"), is_count),
    **dict.fromkeys(("beta", "learning_rate", "hide"), is_number),
    "seed": lambda value: value == 0 or is_count(value),
    "hidden_units": lambda value: value is None or is_list(of=is_count)(value),
    "data_dir": lambda value: value is None or is_text(value),
}
_VALID_DATA = {
    **dict.fromkeys(("num_train", "num_test"), is_count),
    "image_shape": lambda value: is_list(of=is_count)(value) and len(value) in (1, 2, 3),
    "data_shape": is_list(is_count, is_count),
    "range": is_list(is_number, is_number),
    "sha256": is_text,
    "units": lambda value: isinstance(value, dict),
}
_VALID_UNITS = {
    "names": is_list(of=is_text),
    "step": is_text,
    "mean": is_list(),
    "scale": is_list(),
}


def first_invalid(values: Mapping[str, Any], valid: Mapping[str, Callable]) -> str | None:
    """The first key whose value is not what it must be."""
    return next(
        (k for k, is_valid in valid.items() if k in values and not is_valid(values[k])), None
    )


class Position(NamedTuple):
    """A place in a training: whole epochs, and steps of the one after them."""

    epoch: int
    step: int


class Claimed(UserError):
    """Another process is at work on the run."""


def _temporary(path: pathlib.Path) -> pathlib.Path:
    return path.with_name(f"{_TEMPORARY}{os.getpid()}-{path.name}")


def check_writable(path: pathlib.Path) -> None:
    """Checks, before the work, that a file or folder can be written.

    Args:
      path: The file, or the folder for `atomic_folder`; what is above it may be missing.

    Raises:
      UserError: If it cannot, with the reason.
    """
    target = path = path if path.name else path.resolve()
    while not path.parent.exists() and not path.parent.is_symlink():
        path = path.parent
    probe = _temporary(path if path == target else path.with_name("probe"))
    try:
        with probe.open("xb", buffering=0) as file:
            file.write(bytes(_LEAST_BYTES))
            os.fsync(file.fileno())
    except OSError as error:
        raise UserError(
            f"{path}: {error.strerror}: it cannot be written; choose another --out."
        ) from error
    finally:
        with contextlib.suppress(OSError):
            probe.unlink()


def check_space(folder: pathlib.Path, needed: int) -> None:
    """Checks that so many bytes can be written to a folder.

    Raises:
      OSError: If not.
    """
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(
            errno.ENOSPC,
            f"{os.strerror(errno.ENOSPC)}: model and backups take {needed / 2**20:.1f} MiB, "
            f"{free / 2**20:.1f} MiB are free",
            str(folder),
        )


@contextlib.contextmanager
def atomic(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Gives a temporary path to write to, which takes the place of `path` if all went well.

    Args:
      path: The file to write. The temporary name ends in the same suffixes.

    Yields:
      The temporary path, in the same folder.
    """
    temporary = _temporary(path)
    try:
        yield temporary
        # Else a machine that loses its power may keep the new name, but not what was written.
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        # Errors of writing to an open file do not name it, others name one that is gone.
        if error.filename is not None and str(error.filename) != str(temporary):
            raise
        reason = error.strerror or str(error)
        raise OSError(error.errno or errno.EIO, reason, str(path)) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


@contextlib.contextmanager
def atomic_folder(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Like `atomic`, for a folder: gives an empty one, which takes its name if all went well.

    Args:
      path: The folder to write; what is above it is made. It must not exist, or be empty (see
        `check_new_folder`).

    Yields:
      The temporary folder, beside `path`.

    Raises:
      OSError: If something was put there in the meantime; nothing is overwritten.
    """
    path = path.resolve()  # "." has no name that could be changed.
    path.parent.mkdir(parents=True, exist_ok=True)
    for leftover in path.parent.glob(f"{_TEMPORARY}*-{glob.escape(path.name)}"):
        if not _is_running(leftover.name.removeprefix(_TEMPORARY).partition("-")[0]):
            shutil.rmtree(leftover, ignore_errors=True)
    temporary = _temporary(path)
    temporary.mkdir()
    try:
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                with file.open("rb+") as opened:
                    os.fsync(opened.fileno())
        # Windows does not rename to a folder that exists, even an empty one.
        with contextlib.suppress(FileNotFoundError):
            path.rmdir()
        temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _is_running(pid: str) -> bool:
    """Whether another process of this machine has that number, or may have it."""
    if not pid.isdecimal() or fcntl is None:  # Windows knows no signal that only asks.
        return True
    if int(pid) == os.getpid():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def write_json(path: pathlib.Path, value: Any) -> None:
    """Writes a JSON file atomically; NaN and infinity, which JSON does not know, are refused."""
    with atomic(path) as temporary:
        text = json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False)
        # Names of files that are no text have half a surrogate; this writes it as JSON does.
        temporary.write_text(text + "\n", encoding="utf-8", errors="backslashreplace")


def _read_json(path: pathlib.Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: is not valid JSON ({error}).") from error


def _read_table(path: pathlib.Path, value_is: Callable[[Any], bool]) -> dict[str, Any]:
    """Reads a JSON file of values by name."""
    table = _read_json(path)
    if not isinstance(table, dict):
        raise UserError(
            f"{path}: is damaged, it holds no results by name; restore it from a copy or train "
            "again."
        )
    for key, value in table.items():
        if not value_is(value):
            raise _damaged(path, key)
    return table


@dataclasses.dataclass(frozen=True)
class Run:
    """A run folder and the config in it.

    Attributes:
      folder: The folder.
      config: The config.
      worker: Which of several workers this process is; 0 writes the run.
    """

    folder: pathlib.Path
    config: dict
    worker: int = 0

    @property
    def options(self) -> dict:
        """The options of `train` that made this run."""
        return self.config["options"]

    @property
    def of_sequences(self) -> bool:
        """Whether the model is of series, not of images."""
        return self.options.get("model") == "sequence"

    @property
    def finished(self) -> bool:
        """Whether training and evaluation came to their end, and the pictures were drawn."""
        return self.metrics_file.is_file() and not self.checkpoint_files()

    @property
    def trained(self) -> bool:
        """Whether the training came to its end, and the state at its end is written."""
        return self.finished or self.position().epoch >= self.options["epochs"]

    @property
    def value_range(self) -> tuple[float, float]:
        """The values that pictures show as black and as white."""
        low, high = self.config["data"]["range"]
        return (0.0, 1.0) if low >= 0 and high <= 1 else (low, high)

    @property
    def metrics_file(self) -> pathlib.Path:
        """Results on the test set."""
        return self.folder / "metrics.json"

    @property
    def model_file(self) -> pathlib.Path:
        """The trained model."""
        return self.folder / "model.keras"

    @property
    def skipped_file(self) -> pathlib.Path:
        """The images that were left out, and why; only runs that left some out have it."""
        return self.folder / (f"skipped-{self.worker}.json" if self.worker else "skipped.json")

    @property
    def logs(self) -> pathlib.Path:
        """TensorBoard's folder."""
        return self.folder / "logs"

    @property
    def checkpoints(self) -> pathlib.Path:
        """The folder of the state to resume from; only unfinished runs have it."""
        return self.folder / "checkpoint"

    def checkpoint_file(self, position: Position) -> pathlib.Path:
        """The file of the state at a position."""
        return self.checkpoints / f"{position.epoch}-{position.step}.npz"

    def checkpoint_files(self) -> dict[Position, pathlib.Path]:
        """The checkpoints that are there; at most two."""
        if any(self.checkpoints.glob("[0-9]*.weights.h5")):
            raise UserError(
                f"{self.folder}: holds a checkpoint of an earlier version, which cannot be read; "
                "choose another --out."
            )
        files = self.checkpoints.glob("[0-9]*-[0-9]*.npz")
        found = ((re.fullmatch(r"(\d+)-(\d+)", file.stem), file) for file in files)
        return {Position(int(m[1]), int(m[2])): file for m, file in found if m}

    def position(self) -> Position:
        """How far the training is done and need not be done again."""
        return max(self.checkpoint_files(), default=Position(0, 0))

    def history(self) -> dict[str, list[float]]:
        """What `fit` reported for every epoch so far, by name."""
        path = self.folder / "history.json"
        return _read_table(path, is_list()) if path.exists() else {}

    def write_history(self, history: dict[str, list[float]]) -> None:
        """Writes `history.json`."""
        write_json(self.folder / "history.json", history)

    def add_skipped(self, skipped: dict[str, str]) -> dict[str, str]:
        """Adds to `skipped.json`, which may be there from before an interruption; returns all.

        Other workers than 0 have a file of their own, until `collect_skipped`.
        """
        before = self.skipped()
        if not skipped.keys() <= before.keys():
            write_json(self.skipped_file, before | skipped)
        return before | skipped

    def skipped(self) -> dict[str, str]:
        """The images that were left out so far, and why; nothing if there are none."""
        return _read_table(self.skipped_file, is_text) if self.skipped_file.exists() else {}

    def collect_skipped(self) -> dict[str, str]:
        """Adds what the other workers left out to `skipped.json`; returns all."""
        others = list(self.folder.glob("skipped-[0-9]*.json"))
        every = self.add_skipped(
            {k: v for file in others for k, v in _read_table(file, is_text).items()}
        )
        for file in others:
            file.unlink()
        return every

    def metrics(self) -> dict[str, Any]:
        """The results on the test set, of a run that is finished."""
        return _read_table(self.metrics_file, lambda x: is_number(x) or is_list()(x))

    def write_metrics(self, metrics: dict) -> None:
        """Writes `metrics.json`."""
        write_json(self.metrics_file, metrics)

    def finish(self) -> None:
        """Marks the run as finished: there is nothing to resume any more."""
        shutil.rmtree(self.checkpoints, ignore_errors=True)


def versions() -> dict[str, str]:
    """The versions of Python and of the packages that matter to a model, by name."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def new_config(options: dict, data: dict) -> dict:
    """The content of `config.json` for the options of `train` and the fingerprint of its data."""
    return {
        "format_version": FORMAT_VERSION,
        "options": options,
        "data": data,
        "versions": versions(),
    }


def read(folder: pathlib.Path) -> Run:
    """Reads the run in a folder, finished or not.

    Raises:
      UserError: If there is none, its config is damaged, or a later version wrote it.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise UserError(
            f"{folder}: is not a run folder (it has no config.json); name the folder that "
            "'tfp-ar1 train' wrote."
        )
    config = _read_json(path)
    if not isinstance(config, dict) or "format_version" not in config:
        raise UserError(f"{path}: was not written by 'tfp-ar1 train'; name the folder of a run.")
    _check_format(path, config)
    for part in ("options", "data"):
        if not isinstance(config.get(part), dict):
            raise _damaged(path, part)
    config["options"] = _LATER_OPTIONS | config["options"]
    model = config["options"]["model"]
    if not isinstance(model, str) or model not in _OPTIONS_OF:
        raise _damaged(path, "options.model")
    for part, keys in (
        ("options", (*_OPTIONS, *_OPTIONS_OF[model])),
        ("data", (*_DATA, *_DATA_OF[model])),
    ):
        for key in keys:
            if key not in config[part]:
                raise _damaged(path, f"{part}.{key}")
    others = [key for other in _OPTIONS_OF if other != model for key in _OPTIONS_OF[other]]
    options = {key: value for key, value in config["options"].items() if key not in others}
    units = config["data"].get("units", {})
    for part, values, valid in (
        ("options", options, VALID),
        ("data", config["data"], _VALID_DATA),
        ("data.units", units, _VALID_UNITS),
    ):
        if key := first_invalid(values, valid):
            raise _damaged(path, f"{part}.{key}")
    if model == "sequence":
        channels = config["data"]["data_shape"][1]
        if units.keys() != _VALID_UNITS.keys() or any(
            len(units[key]) != channels
            for key in ("mean", "scale", "names" if units["names"] else "mean")
        ):
            raise _damaged(path, "data.units")
    if not is_table(is_text)(config.get("versions") or {}):
        raise _damaged(path, "versions")
    return Run(folder, config)


def _check_format(path: pathlib.Path, config: dict) -> None:
    """Checks that this version can read what `config.json` says its format is."""
    found = config["format_version"]
    if type(found) is not int or found < 1:
        raise _damaged(path, "format_version")
    if found > FORMAT_VERSION:
        now, wrote = versions().get("tfp_ar1", "unknown"), written_with(config).get("tfp_ar1")
        needed = f"version {wrote} of tfp_ar1, which wrote it," if wrote else "a later tfp_ar1"
        raise UserError(
            f"{path}: has format {found}, but this version of tfp_ar1 ({now}) reads formats up to "
            f"{FORMAT_VERSION}; install {needed} to use the run."
        )


def _damaged(path: pathlib.Path, what: str) -> UserError:
    return UserError(
        f"{path}: is damaged, it has no valid {what!r}; restore it from a copy or train again."
    )


def written_with(config: dict) -> dict[str, str]:
    """The versions of Python and of packages that wrote a run, as far as its config has them."""
    found = config.get("versions")
    return found if isinstance(found, dict) else {}


def read_finished(folder: pathlib.Path) -> Run:
    """Like `read`, for runs that must have come to their end, and have their model."""
    run = read(folder)
    if not run.finished:
        raise UserError(
            f"{folder}: the run is unfinished; finish it with the same 'tfp-ar1 train' options and "
            f"--out {folder}."
        )
    if not run.model_file.is_file():
        raise UserError(
            f"{run.model_file}: is missing, though the run is finished; restore it from a copy or "
            "train again."
        )
    return run


def check_out(folder: pathlib.Path) -> None:
    """Checks that a folder given by `--out` is new, empty, or holds an unfinished run.

    Raises:
      UserError: If a run would overwrite something.
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UserError(f"{folder}: is a file; choose another --out.")
    if all(path.name.startswith(_TEMPORARY) for path in folder.iterdir()):
        return
    if not (folder / "config.json").exists():
        raise UserError(f"{folder}: holds other files; choose another --out.")
    if read(folder).finished:
        raise UserError(f"{folder}: already holds a finished run; choose another --out.")


def check_new_folder(folder: pathlib.Path) -> None:
    """Checks that a folder to be written by `atomic_folder` does not exist, or is empty.

    Raises:
      UserError: If something would be overwritten.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: is a file; choose another --out.")
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder}: exists already and is not empty; choose another --out.")


@contextlib.contextmanager
def claim(out: pathlib.Path | None, default_name: str, config: dict) -> Iterator[Run]:
    """Makes or reopens the folder of a run, and keeps other processes out of it.

    Args:
      out: The folder, or None for the first free one of `runs/<default_name>-001`, `-002`, ...
      default_name: See `out`.
      config: The config of the run, from `new_config`.

    Yields:
      The `Run`. If `out` holds an unfinished run of the same config, it is that one.

    Raises:
      Claimed: If another process is at work on it.
      UserError: If the folder is taken, or holds an unfinished run with another config.
    """
    if out is None:
        out = _first_free(pathlib.Path("runs"), default_name)
    else:
        check_out(out)
        out.mkdir(parents=True, exist_ok=True)
    path = out / "config.json"
    if path.exists():
        run = read(out)
        _check_same(run, config)
    else:
        write_json(path, config)
        run = Run(out, config)
    with path.open() as lock:
        if fcntl is not None:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise Claimed(
                    f"{out}: another process is at work on this run; choose another --out."
                ) from error
        for folder in (out, run.checkpoints):
            for leftover in folder.glob(f"{_TEMPORARY}*"):  # Of a process that was killed.
                if leftover.is_file():
                    leftover.unlink()
        yield run


def _first_free(parent: pathlib.Path, name: str) -> pathlib.Path:
    parent.mkdir(parents=True, exist_ok=True)
    for number in itertools.count(1):
        folder = parent / f"{name}-{number:03d}"
        # mkdir is atomic: of two processes only one gets the folder.
        with contextlib.suppress(FileExistsError):
            folder.mkdir()
            return folder


def visit(folder: pathlib.Path, config: dict, worker: int) -> Run:
    """The run that worker 0 writes into a folder, for another worker.

    Raises:
      UserError: If there is a finished run of another config.
    """
    run = Run(folder, config, worker)
    if run.finished:
        _check_same(read(folder), config)
    return run


def check_data(run: Run, data: dict) -> None:
    """Checks that the data of a run are still those that it was trained on.

    Args:
      run: The run.
      data: The fingerprint of the data as they are now.

    Raises:
      UserError: If they have changed: then what is set apart for testing is not what was.
    """
    dataset, before = run.options["dataset"], run.config["data"]
    if any(before.get(key, value) != value for key, value in data.items()):
        was, now = (f"{x['num_train']} training and {x['num_test']} test" for x in (before, data))
        kind = "windows" if run.of_sequences else "images"
        raise UserError(
            f"{dataset}: has changed since {run.folder} was trained on it ({was} {kind} then, "
            f"{now} now), so that its test {kind} are not those that the training left out; "
            f"restore it, or give --dataset {dataset} to have all of it scored as it is now."
        )


def _check_same(run: Run, config: dict) -> None:
    before, now = run.options, config["options"]
    a_run = "a finished run" if run.finished else "an unfinished run"
    other_data = run.config["data"] != config["data"]
    if other_data and before["dataset"] != now["dataset"]:
        data = "series" if run.of_sequences else "images"
        raise UserError(
            f"{run.folder}: holds {a_run} on other {data} ({before['dataset']}) than "
            f"those of --dataset {now['dataset']}; choose another --out."
        )
    for key in now:
        if key not in MAY_CHANGE and before.get(key) != now[key]:
            raise UserError(
                f"{run.folder}: holds {a_run} with --{key.replace('_', '-')} "
                f"{before.get(key)}, not {now[key]}; resume it with the same options or choose "
                "another --out."
            )
    if other_data:
        raise UserError(
            f"{run.folder}: holds {a_run} on {now['dataset']}, which has changed since; restore it "
            "or choose another --out."
        )
