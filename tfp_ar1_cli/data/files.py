"""Opens files, reads parts of them, and checks the available memory."""

import contextlib
import io
import os
import pathlib
import re
import stat
import sys
from collections.abc import Iterator

from tfp_ar1_cli.errors import UserError


def check_regular(path: pathlib.Path) -> os.stat_result:
    """Returns the status of a regular file or folder.

    Raises `UserError` for anything else (opening a named pipe would wait for its writer) and for
    broken links, `OSError` if there is no such file.
    """
    if path.is_symlink() and not path.exists():
        raise UserError(
            f"{path}: is a link to {os.readlink(path)}, which does not exist; remove or correct it."
        )
    status = path.stat()
    if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
        kind = "named pipe" if stat.S_ISFIFO(status.st_mode) else "device or socket"
        raise UserError(
            f"{path}: is a {kind}, not a file; write the data to a file, and keep anything "
            "else out of a folder of data."
        )
    return status


def open_raw(path: pathlib.Path) -> io.FileIO:
    """Opens a file for `read_at`: once per read, so threads share no file position."""
    check_regular(path)
    return path.open("rb", buffering=0)


def read_at(file: io.FileIO, offset: int, size: int) -> bytearray:
    """Reads exactly `size` bytes, starting at byte `offset`.

    With a memory map, a truncated file or a failing disk would kill the process; here both raise
    an `OSError` that names the file and the byte.
    """
    data = bytearray(size)
    view, done = memoryview(data), 0
    try:
        file.seek(offset)
        while done < size:
            # A read may return less than requested; on Linux at most 2 GiB.
            count = file.readinto(view[done:])
            if not count:
                raise OSError(0, f"ends at byte {offset + done}, though it was longer before")
            done += count
    except OSError as error:
        what = f"{error.strerror} (reading {size} bytes from byte {offset} on)"
        raise OSError(error.errno, what, os.fspath(file.name)) from error
    return data


def available_memory() -> int:
    """The bytes available before the system kills processes; `sys.maxsize` if unknown."""
    found = [sys.maxsize]
    with contextlib.suppress(OSError):
        text = pathlib.Path("/proc/meminfo").read_text()
        found += [1024 * int(kib) for kib in re.findall(r"MemAvailable:\s*(\d+)", text)]
    # The container's limit. Its usage is of no help, because it includes reclaimable memory.
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):
            found.append(int(pathlib.Path("/sys/fs/cgroup", name).read_text()))
    return min(found)


def check_memory(path: pathlib.Path | str, needed: int, advice: str) -> None:
    """Raises `UserError` with advice if memory does not suffice: Linux would kill the process."""
    available = available_memory()
    if needed > available:
        raise UserError(
            f"{path}: reading it takes {needed / 2**30:.2f} GiB of memory, but only "
            f"{available / 2**30:.2f} GiB are free; {advice}."
        )


@contextlib.contextmanager
def short_of_memory(path: pathlib.Path | str, advice: str) -> Iterator[None]:
    """Turns a `MemoryError` into a `UserError` that names the file."""
    try:
        yield
    except MemoryError as error:
        reason = f" ({error})" * bool(str(error))
        raise UserError(f"{path}: not enough memory to read it{reason}; {advice}.") from error
