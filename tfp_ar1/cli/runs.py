"""The folder of a run: what lies in it, how it is claimed, written and read.

Every file is written under a temporary name and then renamed, so that a file that exists is whole.
A folder with a `config.json` is a run; `metrics.json` is written last and marks it as finished.
"""

import contextlib
import dataclasses
import importlib.metadata
import itertools
import json
import os
import pathlib
import platform
import shutil
from collections.abc import Iterator
from typing import Any, NamedTuple

from tfp_ar1.cli.errors import UserError

try:
    import fcntl
except ImportError:  # Windows: two processes in one folder are then not noticed.
    fcntl = None

FORMAT_VERSION = 1
_PACKAGES = ("tfp_ar1", "tensorflow", "tensorflow-probability", "keras", "numpy")
# Where the same images lie is no part of what a run is; their hash in `data` is.
_LOCATIONS = ("dataset", "data_dir")
# A run that stopped at a corrupt image may be resumed without it.
_MAY_CHANGE = (*_LOCATIONS, "corrupt")
_TEMPORARY = ".tmp-"
# Options of `train` that runs of earlier versions do not have, with what these versions did.
_LATER_OPTIONS = {
    "model": "image",
    "network": "mlp",
    "objective": "elbo",
    "strategy": "none",
    "replicas": 1,
    "corrupt": "stop",
}


class Position(NamedTuple):
    """A place in a training: whole epochs, and steps of the one after them."""

    epoch: int
    step: int


class Claimed(UserError):
    """Another process is at work on the run."""


@contextlib.contextmanager
def atomic(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Gives a temporary path to write to, which takes the place of `path` if all went well.

    Args:
      path: The file to write. The temporary name ends in the same suffixes.

    Yields:
      The temporary path, in the same folder.
    """
    temporary = path.with_name(f"{_TEMPORARY}{os.getpid()}-{path.name}")
    try:
        yield temporary
        # Else a machine that loses its power may keep the new name, but not what was written.
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: pathlib.Path, value: Any) -> None:
    """Writes a JSON file atomically; NaN and infinity, which JSON does not know, are refused."""
    with atomic(path) as temporary:
        text = json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False)
        temporary.write_text(text + "\n", encoding="utf-8")


def _read_json(path: pathlib.Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: is not valid JSON ({error}).") from error


@dataclasses.dataclass(frozen=True)
class Run:
    """A run folder and the config in it."""

    folder: pathlib.Path
    config: dict

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
        """Whether training and evaluation came to their end."""
        return self.metrics_file.exists()

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
        return self.folder / "skipped.json"

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
        return {Position(*map(int, file.stem.split("-"))): file for file in files}

    def position(self) -> Position:
        """How far the training is done and need not be done again."""
        return max(self.checkpoint_files(), default=Position(0, 0))

    def history(self) -> dict[str, list[float]]:
        """What `fit` reported for every epoch so far, by name."""
        path = self.folder / "history.json"
        return _read_json(path) if path.exists() else {}

    def write_history(self, history: dict[str, list[float]]) -> None:
        """Writes `history.json`."""
        write_json(self.folder / "history.json", history)

    def add_skipped(self, skipped: dict[str, str]) -> dict[str, str]:
        """Adds to `skipped.json`, which may be there from before an interruption; returns all."""
        before = _read_json(self.skipped_file) if self.skipped_file.exists() else {}
        if not skipped.keys() <= before.keys():
            write_json(self.skipped_file, before | skipped)
        return before | skipped

    def finish(self, metrics: dict) -> None:
        """Marks the run as finished by writing its metrics; there is nothing to resume any more."""
        write_json(self.metrics_file, metrics)
        shutil.rmtree(self.checkpoints, ignore_errors=True)


def new_config(options: dict, data: dict) -> dict:
    """The content of `config.json` for the options of `train` and the fingerprint of its data."""
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return {
        "format_version": FORMAT_VERSION,
        "options": options,
        "data": data,
        "versions": versions,
    }


def read(folder: pathlib.Path) -> Run:
    """Reads the run in a folder, finished or not.

    Raises:
      UserError: If there is none.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise UserError(
            f"{folder}: is not a run folder (it has no config.json); name the folder that "
            "'tfp-ar1 train' wrote."
        )
    config = _read_json(path)
    if not isinstance(config, dict) or not {"format_version", "options", "data"} <= config.keys():
        raise UserError(f"{path}: was not written by 'tfp-ar1 train'; name the folder of a run.")
    if config["format_version"] != FORMAT_VERSION:
        raise UserError(
            f"{path}: has format {config['format_version']}; this version of tfp-ar1 reads format "
            f"{FORMAT_VERSION}."
        )
    config["options"] = _LATER_OPTIONS | config["options"]
    return Run(folder, config)


def read_finished(folder: pathlib.Path) -> Run:
    """Like `read`, for runs that must have come to their end."""
    run = read(folder)
    if not run.finished:
        raise UserError(
            f"{folder}: the run is unfinished; finish it with the same 'tfp-ar1 train' options and "
            f"--out {folder}."
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
        for leftover in out.glob(f"{_TEMPORARY}*"):  # Of a process that was killed.
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


def _check_same(run: Run, config: dict) -> None:
    before, now = run.options, config["options"]
    if run.config["data"] != config["data"]:
        data = "series" if run.of_sequences else "images"
        raise UserError(
            f"{run.folder}: holds an unfinished run on other {data} ({before['dataset']}) than "
            f"those of --dataset {now['dataset']}; choose another --out."
        )
    for key in now:
        if key not in _MAY_CHANGE and before.get(key) != now[key]:
            raise UserError(
                f"{run.folder}: holds an unfinished run with --{key.replace('_', '-')} "
                f"{before.get(key)}, not {now[key]}; resume it with the same options or choose "
                "another --out."
            )
