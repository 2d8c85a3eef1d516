"""Atomic writes of files and folders: under a temporary name, then renamed."""

import contextlib
import errno
import glob
import itertools
import json
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator
from typing import Any

from tfp_ar1_cli.errors import UserError

try:
    import fcntl
except ImportError:  # Windows, where a second process in the same folder goes unnoticed.
    fcntl = None  # type: ignore[assignment]

TEMPORARY = ".tmp-"
_LEAST_BYTES = 2**16


def _temporary(path: pathlib.Path) -> pathlib.Path:
    return path.with_name(f"{TEMPORARY}{os.getpid()}-{path.name}")


def check_writable(path: pathlib.Path) -> None:
    """Raises a `UserError` with the reason, before the work, if a path cannot be written.

    Args:
      path: The file, or the folder for `atomic_folder`; its parent folders may be missing.
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
            f"{path}: cannot be written: {error.strerror}; choose another --out."
        ) from error
    finally:
        with contextlib.suppress(OSError):
            probe.unlink()


def free_name(path: pathlib.Path) -> pathlib.Path:
    """Returns the path, or the first of `NAME-2.csv`, `NAME-3.csv`, ... that does not exist."""
    numbered = (path.with_name(f"{path.stem}-{n}{path.suffix}") for n in itertools.count(2))
    return next(each for each in itertools.chain([path], numbered) if not each.exists())


def check_new_file(file: pathlib.Path) -> None:
    """Raises a `UserError` unless `atomic` can write this file, and it is new."""
    if file.exists():
        raise UserError(f"{file}: already exists; choose another --out.")
    if not file.parent.is_dir():
        raise UserError(f"{file.parent}: no such folder; make it or choose another --out.")
    check_writable(file)


def check_new_folder(folder: pathlib.Path) -> None:
    """Raises a `UserError` unless `atomic_folder` can write this folder, and it is new or empty."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: is a file; choose another --out.")
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder}: already exists and is not empty; choose another --out.")
    check_writable(folder)


def check_space(folder: pathlib.Path, needed: int) -> None:
    """Raises an `OSError` unless the folder's disk has room for this many bytes."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        sizes = (
            f"the model and its backups take {needed / 2**20:.1f} MiB, but only "
            f"{free / 2**20:.1f} MiB are free"
        )
        raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)}: {sizes}", str(folder))


@contextlib.contextmanager
def atomic(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields a temporary path in the same folder, which replaces `path` if the block succeeds.

    Args:
      path: The file to write. The temporary name has the same suffixes.
    """
    temporary = _temporary(path)
    try:
        yield temporary
        # Otherwise, after a power failure, the new name may exist without its content.
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        # Errors from writing to an open file name no file; others name the temporary file.
        if error.filename is not None and str(error.filename) != str(temporary):
            raise
        reason = error.strerror or str(error)
        raise OSError(error.errno or errno.EIO, reason, str(path)) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


@contextlib.contextmanager
def atomic_folder(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields an empty folder, which is renamed to `path` if the block succeeds; see `atomic`.

    Args:
      path: The folder to write; its parents are created. It must not exist or must be empty (see
        `check_new_folder`); files put there in the meantime are not overwritten.
    """
    path = path.resolve()  # Nothing can be renamed to ".".
    path.parent.mkdir(parents=True, exist_ok=True)
    for leftover in path.parent.glob(f"{TEMPORARY}*-{glob.escape(path.name)}"):
        if not _is_running(leftover.name.removeprefix(TEMPORARY).partition("-")[0]):
            shutil.rmtree(leftover, ignore_errors=True)
    temporary = _temporary(path)
    temporary.mkdir()
    try:
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                with file.open("rb+") as opened:
                    os.fsync(opened.fileno())
        # Windows cannot rename to an existing folder, even an empty one.
        with contextlib.suppress(FileNotFoundError):
            path.rmdir()
        temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _is_running(pid: str) -> bool:
    """Whether another process on this machine has this id, or may have it."""
    if not pid.isdecimal() or fcntl is None:  # Windows has no signal that only tests a process.
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
    """Writes a JSON file atomically; refuses NaN and infinity, which JSON does not have."""
    with atomic(path) as temporary:
        text = json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False)
        # File names that are not valid text contain lone surrogates, which are escaped here.
        temporary.write_text(text + "\n", encoding="utf-8", errors="backslashreplace")


def read_json(path: pathlib.Path) -> Any:
    """Reads a JSON file."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{path}: is not valid JSON ({error}); correct it or restore it from a copy."
        ) from error


def read_table(path: pathlib.Path, value_is: Callable[[Any], bool]) -> dict[str, Any]:
    """Reads a JSON file that maps names to values."""
    table = read_json(path)
    if not isinstance(table, dict):
        raise UserError(
            f"{path}: is damaged (it is not a JSON object); restore it from a copy or train again."
        )
    for key, value in table.items():
        if not value_is(value):
            raise damaged(path, key)
    return table


def damaged(path: pathlib.Path, what: str) -> UserError:
    """Returns the error for a file of a run in which a value is missing or of the wrong type."""
    return UserError(
        f"{path}: is damaged (it has no valid {what!r}); restore it from a copy or train again."
    )
