"""The folder of a run: its files, and claiming, writing and reading it.

A folder with a `config.json` is a run. It is finished if it has a `metrics.json`, which is written
before the pictures, and no checkpoint, which is deleted after them.
"""

import contextlib
import dataclasses
import importlib.metadata
import itertools
import pathlib
import platform
import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import click

from tfp_ar1_cli import backend
from tfp_ar1_cli.atomic import TEMPORARY, damaged, fcntl, read_json, read_table, write_json
from tfp_ar1_cli.errors import UserError
from tfp_ar1_cli.options import RunOptions, is_count, is_number

FORMAT_VERSION = 1
_PACKAGES = ("tensorflow-probability", "keras", "numpy")
# Options that may change when a run is resumed. A run is defined by the hash of its images in
# `data`, not by their location. A run that stopped at a corrupt image may be resumed without it.
MAY_CHANGE = ("dataset", "data_dir", "corrupt")
# Options that name locations on the user's machine, which stay private.
PLACES = (*MAY_CHANGE, "extend", "warm_start")


class Position(NamedTuple):
    """A position in training: whole epochs, and steps of the next one."""

    epoch: int
    step: int


class Claimed(UserError):
    """Another process is working on the run."""


@dataclasses.dataclass(frozen=True)
class Run:
    """A run folder and the config in it.

    Attributes:
      folder: The folder.
      options: The options that define the run.
      data: The fingerprint of its data.
      versions: The versions of Python and the packages that wrote it, if known.
      worker: Which of several workers this process is; 0 writes the run.
    """

    folder: pathlib.Path
    options: RunOptions
    data: dict[str, Any]
    versions: dict[str, str] = dataclasses.field(default_factory=lambda: versions())
    worker: int = 0

    @property
    def config(self) -> dict[str, Any]:
        """The content of `config.json`."""
        return {
            "format_version": FORMAT_VERSION,
            "options": self.options.as_json(),
            "data": self.data,
            "versions": self.versions,
        }

    @property
    def data_shape(self) -> tuple[int, ...]:
        """The shape of one example."""
        return tuple(self.data.get("image_shape") or self.data["data_shape"])

    @property
    def finished(self) -> bool:
        """Whether training and evaluation are complete, and the pictures were drawn."""
        return self.metrics_file.is_file() and not self.checkpoint_files()

    @property
    def trained(self) -> bool:
        """Whether training is complete and its final state was written."""
        epoch = self.position().epoch
        return self.finished or epoch >= self.options.epochs or self.waited(epoch)

    def waited(self, epoch: int) -> bool:
        """Whether early stopping ends the training after `epoch` epochs."""
        if self.options.patience is None:
            return False
        return has_waited(self.history().get("val_loss", [])[:epoch], self.options.patience)

    @property
    def value_range(self) -> tuple[float, float]:
        """The values that pictures show as black and as white."""
        low, high = self.data["range"]
        return (0.0, 1.0) if low >= 0 and high <= 1 else (low, high)

    @property
    def history_file(self) -> pathlib.Path:
        """The file of the values that `fit` reported for every epoch so far."""
        return self.folder / "history.json"

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
        """The file of images left out, and why; each worker has its own until `collect_skipped`."""
        return self.folder / (f"skipped-{self.worker}.json" if self.worker else "skipped.json")

    @property
    def logs(self) -> pathlib.Path:
        """TensorBoard's folder."""
        return self.folder / "logs"

    @property
    def best_file(self) -> pathlib.Path:
        """The state after the best epoch so far, with early stopping."""
        return self.checkpoints / "best.npz"

    @property
    def resume_command(self) -> str:
        """The command that finishes an unfinished run."""
        folder, config = (shlex.quote(str(x)) for x in (self.folder, self.folder / "config.json"))
        return f"tfp-ar1 train --config {config} --out {folder}"

    @property
    def checkpoints(self) -> pathlib.Path:
        """The folder of checkpoints; only unfinished runs have it."""
        return self.folder / "checkpoint"

    def checkpoint_files(self) -> dict[Position, pathlib.Path]:
        """The existing checkpoints, at most two."""
        if any(self.checkpoints.glob("[0-9]*.weights.h5")):
            raise UserError(
                f"{self.folder}: holds a checkpoint of an earlier version, which cannot be read; "
                "choose another --out."
            )
        files = self.checkpoints.glob("[0-9]*-[0-9]*.npz")
        found = ((re.fullmatch(r"(\d+)-(\d+)", file.stem), file) for file in files)
        return {Position(int(m[1]), int(m[2])): file for m, file in found if m}

    def position(self) -> Position:
        """The position up to which training is saved."""
        return max(self.checkpoint_files(), default=Position(0, 0))

    def history(self) -> dict[str, list[float]]:
        """The content of `history_file`: a list for each name."""
        path = self.history_file
        return read_table(path, _is_list(is_number)) if path.exists() else {}

    def add_skipped(self, skipped: dict[str, str]) -> dict[str, str]:
        """Adds to `skipped_file`, which may exist from before an interruption; returns all."""
        before = self.skipped()
        if not skipped.keys() <= before.keys():
            write_json(self.skipped_file, before | skipped)
        return before | skipped

    def skipped(self) -> dict[str, str]:
        """The images left out so far, and why."""
        return read_table(self.skipped_file, _is_text) if self.skipped_file.exists() else {}

    def collect_skipped(self) -> dict[str, str]:
        """Adds what the other workers left out to `skipped.json`; returns all."""
        others = list(self.folder.glob("skipped-[0-9]*.json"))
        every = self.add_skipped(
            {k: v for file in others for k, v in read_table(file, _is_text).items()}
        )
        for file in others:
            file.unlink()
        return every

    def metrics(self) -> dict[str, Any]:
        """The results of a finished run on the test set."""
        is_list = _is_list(is_number)
        return read_table(self.metrics_file, lambda x: is_number(x) or is_list(x))

    def finish(self) -> None:
        """Marks the run as finished by deleting its checkpoints."""
        shutil.rmtree(self.checkpoints, ignore_errors=True)


def best_epoch(losses: list[float]) -> int:
    """The first epoch, counted from 1, with the lowest loss; 0 if there is none."""
    return losses.index(min(losses)) + 1 if losses else 0


def has_waited(losses: list[float], patience: int | None) -> bool:
    """Whether `patience` epochs have passed since the best one."""
    return patience is not None and len(losses) - best_epoch(losses) >= patience


def versions() -> dict[str, str]:
    """The versions of Python and the packages that affect a model, by name."""
    found = {"python": platform.python_version()}
    for package in ("tfp_ar1", backend.name(), *_PACKAGES):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


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
    return read_config(path)


def read_config(path: pathlib.Path) -> Run:
    """Reads the config of a run from any path; see `read`."""
    config = read_json(path)
    if not isinstance(config, dict) or "format_version" not in config:
        raise UserError(f"{path}: was not written by 'tfp-ar1 train'; name the folder of a run.")
    wrote = config.get("versions") or {}
    found = config["format_version"]
    if type(found) is not int or found < 1:
        raise damaged(path, "format_version")
    if found > FORMAT_VERSION:
        writer = wrote.get("tfp_ar1") if isinstance(wrote, dict) else None
        needed = f"version {writer} of tfp_ar1, which wrote it," if writer else "a later tfp_ar1"
        raise UserError(
            f"{path}: has format {found}, but this version of tfp_ar1 "
            f"({versions().get('tfp_ar1', 'unknown')}) reads formats up to {FORMAT_VERSION}; "
            f"install {needed} to use the run."
        )
    for part in ("options", "data"):
        if not isinstance(config.get(part), dict):
            raise damaged(path, part)
    try:
        options = RunOptions.from_json(config["options"])
    except KeyError as error:
        raise damaged(path, f"options.{error.args[0]}") from error
    except click.UsageError as error:
        raise UserError(f"{path}: {error.message}") from error
    data = config["data"]
    for key, is_valid in _VALID_DATA[options.model].items():
        if not is_valid(data.get(key)):
            raise damaged(path, f"data.{key}")
    if not _is_text(data.get("sha256", "")):
        raise damaged(path, "data.sha256")
    if options.model == "sequence" and len(data["units"]["mean"]) != data["data_shape"][1]:
        raise damaged(path, "data.units")
    if not isinstance(wrote, dict) or not all(map(_is_text, wrote.values())):
        raise damaged(path, "versions")
    return Run(path.parent, options, data, wrote)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_list(item: Callable[[Any], bool], *lengths: int) -> Callable[[Any], bool]:
    """Returns a check for lists of valid items, of any length or of one of `lengths`."""
    return lambda x: (
        isinstance(x, list) and (not lengths or len(x) in lengths) and all(map(item, x))
    )


def _is_units(units: Any) -> bool:
    """Whether `units` is the JSON form of `series.Units`."""
    if not isinstance(units, dict) or units.keys() != {"names", "step", "mean", "scale"}:
        return False
    names, mean, scale = units["names"], units["mean"], units["scale"]
    return (
        _is_text(units["step"])
        and all(map(_is_list(is_number), (mean, scale)))
        and _is_list(_is_text)(names)
        and len(mean) == len(scale)
        and len(names) in (0, len(mean))
    )


_COUNTS = {"num_train": is_count, "num_test": is_count}
# Checks of the config's entries on data, for each model.
_VALID_DATA = {
    "image": {"image_shape": _is_list(is_count, 1, 2, 3), "range": _is_list(is_number, 2)}
    | _COUNTS,
    "sequence": {"data_shape": _is_list(is_count, 2), "units": _is_units} | _COUNTS,
}


def read_finished(folder: pathlib.Path) -> Run:
    """Like `read`, but the run must be finished and have its model."""
    run = read(folder)
    if not run.finished:
        raise UserError(f"{folder}: the run is unfinished; finish it with: {run.resume_command}")
    if not run.model_file.is_file():
        raise UserError(
            f"{run.model_file}: is missing, though the run is finished; restore it from a copy or "
            "train again."
        )
    return run


def check_out(folder: pathlib.Path) -> None:
    """Raises `UserError` unless the `--out` folder is new, empty, or holds an unfinished run."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UserError(f"{folder}: is a file; choose another --out.")
    if all(path.name.startswith(TEMPORARY) for path in folder.iterdir()):
        return
    if not (folder / "config.json").exists():
        raise UserError(f"{folder}: holds other files; choose another --out.")
    if read(folder).finished:
        raise UserError(f"{folder}: already holds a finished run; choose another --out.")


@contextlib.contextmanager
def claim(
    out: pathlib.Path | None, default_name: str, options: RunOptions, data: dict[str, Any]
) -> Iterator[Run]:
    """Creates or reopens the folder of a run, and locks it against other processes.

    Args:
      out: The folder, or None for the first free one of `runs/<default_name>-001`, `-002`, ...
      default_name: See `out`.
      options: The options that define the run.
      data: The fingerprint of its data.

    Yields:
      The `Run`: the unfinished run in `out` if it has the same options and data, else a new one.

    Raises:
      UserError: If the folder is taken, holds an unfinished run with other options, or one that
        another process is working on (`Claimed`).
    """
    if out is None:
        out = _first_free(pathlib.Path("runs"), default_name)
    else:
        check_out(out)
        out.mkdir(parents=True, exist_ok=True)
    path = out / "config.json"
    run = Run(out, options, data)
    if path.exists():
        run = read(out)
        _check_same(run, options, data)
        _check_backend(run)
    else:
        write_json(path, run.config)
    with path.open() as lock:
        if fcntl is not None:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise Claimed(
                    f"{out}: another process is working on this run; choose another --out."
                ) from error
        for folder in (out, run.checkpoints):
            for leftover in folder.glob(f"{TEMPORARY}*"):  # From a killed process.
                if leftover.is_file():
                    leftover.unlink()
        yield run


def _first_free(parent: pathlib.Path, name: str) -> pathlib.Path:
    parent.mkdir(parents=True, exist_ok=True)
    for number in itertools.count(1):
        folder = parent / f"{name}-{number:03d}"
        # mkdir is atomic: only one of two processes gets the folder.
        with contextlib.suppress(FileExistsError):
            folder.mkdir()
            return folder
    raise AssertionError  # Unreachable: `count` never ends.


def visit(folder: pathlib.Path, options: RunOptions, data: dict[str, Any], worker: int) -> Run:
    """The run that worker 0 writes into a folder, for another worker.

    Raises `UserError` if the folder holds a finished run with other options.
    """
    run = Run(folder, options, data, worker=worker)
    if run.finished:
        _check_same(read(folder), options, data)
    return run


def check_data(run: Run, data: dict[str, Any]) -> None:
    """Raises `UserError` unless the data of a run still have their fingerprint.

    If the data have changed, the test set is no longer the one that training left out.
    """
    dataset, before = run.options.dataset, run.data
    if any(before.get(key, value) != value for key, value in data.items()):
        was, now = (f"{x['num_train']} training and {x['num_test']} test" for x in (before, data))
        kind = "windows" if run.options.model == "sequence" else "images"
        raise UserError(
            f"{dataset}: has changed since {run.folder} was trained on it ({was} {kind} then, "
            f"{now} now), so its test {kind} are not those that the training left out; "
            f"restore it, or give --dataset {dataset} to score all of it as it is now."
        )


def _check_backend(run: Run) -> None:
    """Raises `UserError` if a run began on the other backend, which draws different noise."""
    began = "jax" if "jax" in run.versions else "tensorflow"
    if began != backend.name():
        raise UserError(
            f"{run.folder}: holds an unfinished run that began on {began}; set KERAS_BACKEND="
            f"{began} to finish it, or choose another --out."
        )


def _check_same(run: Run, now: RunOptions, data: dict[str, Any]) -> None:
    before = run.options
    a_run = "a finished run" if run.finished else "an unfinished run"
    other_data = run.data != data
    if other_data and before.dataset != now.dataset:
        what = "series" if before.model == "sequence" else "images"
        raise UserError(
            f"{run.folder}: holds {a_run} on other {what} ({before.dataset}) than "
            f"those of --dataset {now.dataset}; choose another --out."
        )
    for key in now.as_json():
        if key not in MAY_CHANGE and getattr(before, key) != getattr(now, key):
            values = (getattr(before, key), getattr(now, key))
            was, given = (",".join(map(str, x)) if isinstance(x, tuple) else x for x in values)
            raise UserError(
                f"{run.folder}: holds {a_run} with --{key.replace('_', '-')} {was}, not {given}; "
                "give the same options or choose another --out."
            )
    if other_data:
        raise UserError(
            f"{run.folder}: holds {a_run} on {now.dataset}, which has changed since; restore it "
            "or choose another --out."
        )
