"""The results of `compare`: a file with one JSON object a line, to which lines are only added."""

import contextlib
import errno
import hashlib
import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any

import click

from tfp_ar1_cli.errors import UserError
from tfp_ar1_cli.progress import counted
from tfp_ar1_cli.runs import VALID, fcntl, first_invalid, is_text

# What tells one experiment from another; a result holds all of them. Those of images:
SETTINGS = (
    "dataset",
    "network",
    "hidden_units",
    "objective",
    "beta",
    "posterior",
    "latent_dim",
    "seed",
    "epochs",
    "batch_size",
    "learning_rate",
    "num_importance_samples",
    "data_sha256",
)
# Those of series, whose results say `"model": "sequence"`:
SEQUENCE_SETTINGS = (
    "model",
    "dataset",
    "window",
    "network",
    "objective",
    "beta",
    "posterior",
    "prior",
    "channels",
    "hide",
    "seed",
    "epochs",
    "batch_size",
    "learning_rate",
    "num_importance_samples",
    "data_sha256",
)

_VALID = {**{key: VALID[key] for key in (*SETTINGS, *SEQUENCE_SETTINGS)}, "error": is_text}


def settings_of(record: dict[str, Any]) -> tuple[str, ...]:
    """The names of the settings that a record has, or must have."""
    return SEQUENCE_SETTINGS if record.get("model") == "sequence" else SETTINGS


def name(record: dict[str, Any]) -> str:
    """The name of an experiment for files and folders: readable, and different for each."""
    settings = [record[key] for key in settings_of(record)]
    digest = hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:8]
    beta = f"beta{record['beta']:g}-" * (record["beta"] != 1)
    if "prior" in record:
        latents = f"{record['posterior']}-prior-{record['prior']}-c{record['channels']}"
    else:
        latents = f"{record['posterior']}-d{record['latent_dim']}"
    return (
        f"{record['dataset']}-{record['network']}-{record['objective']}-{beta}"
        f"{latents}-seed{record['seed']}-{digest}"
    )


def samples_file(path: pathlib.Path, record: dict[str, Any]) -> pathlib.Path:
    """The picture of samples that belongs to a record of the results in `path`."""
    return path.with_suffix(".samples") / f"{name(record)}.png"


def failures_file(path: pathlib.Path) -> pathlib.Path:
    """Where the failures are that belong to the results in `path`."""
    return path.with_suffix(".failed.jsonl")


def read(path: pathlib.Path) -> list[dict[str, Any]]:
    """The results in a file, in its order; none if there is no such file.

    A last line that is torn is passed over.

    Raises:
      UserError: If another line is not a result.
    """
    if not path.exists():
        return []
    *lines, rest = path.read_bytes().split(b"\n")
    if _parse(rest) is not None:
        lines.append(rest)
    records = []
    for number, line in enumerate(lines, 1):
        record = _parse(line)
        if record is None or not record.keys() >= set(settings_of(record)):
            raise UserError(
                f"{path}: line {number} is not a result of 'tfp-ar1 compare'; remove the line or "
                "choose another file."
            )
        if key := first_invalid(record, _VALID):
            raise UserError(
                f"{path}: line {number} has no valid {key!r}; remove the line or choose another "
                "file."
            )
        records.append(record)
    return records


def append(path: pathlib.Path, record: dict[str, Any]) -> None:
    """Adds a line to a file: whole, on the disk, and after whole lines only.

    Call it in `locked`, so that no other process writes at the same time.
    """
    mend(path)
    line = json.dumps(record, allow_nan=False, ensure_ascii=False)
    line = line.encode(errors="backslashreplace") + b"\n"
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        before = os.fstat(descriptor).st_size
        if os.write(descriptor, line) != len(line):
            os.ftruncate(descriptor, before)
            raise OSError(errno.ENOSPC, "could not be written; is the disk full?", str(path))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def mend(path: pathlib.Path) -> None:
    """Moves a torn last line, which a machine that died has left, out of the way.

    It goes to the end of a file of the same name that ends in `.torn`. Call it in `locked`.
    """
    if not path.exists():
        return
    with path.open("rb+") as file:
        content = file.read()
        start = content.rfind(b"\n") + 1
        rest = content[start:]
        if not rest:
            return
        if _parse(rest) is not None:
            file.write(b"\n")  # It is whole; only the end of the line is missing.
            return
        torn = path.with_suffix(".torn")
        with torn.open("ab") as aside:
            aside.write(rest + b"\n")
        file.truncate(start)
    click.echo(
        f"tfp-ar1: warning: {path}: its last line was torn ({counted(len(rest), 'byte')}); it "
        f"is now in {torn}, and its run is repeated.",
        err=True,
    )


@contextlib.contextmanager
def locked(path: pathlib.Path) -> Iterator[None]:
    """Keeps the other processes that use this file of results waiting; makes the file."""
    with path.open("ab") as file:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _parse(line: bytes) -> dict[str, Any] | None:
    """The object in a line, or None."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
