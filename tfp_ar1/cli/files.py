"""Reading parts of files."""

import io
import os
import pathlib


def open_raw(path: pathlib.Path) -> io.FileIO:
    """Opens a file for `read_at`.

    Whoever reads opens the file anew: then threads share no position, and a thousand shards need no
    thousand descriptors.
    """
    return path.open("rb", buffering=0)


def read_at(file: io.FileIO, offset: int, size: int) -> bytearray:
    """Reads exactly `size` bytes from byte `offset` on.

    Not by a memory map: of a map, a file that was cut off or a disk that fails kills the process by
    a SIGBUS, without a word; and a map counts in full where the address space is limited.

    Raises:
      OSError: If the file cannot be read or ends too early. It names the file and the byte.
    """
    data = bytearray(size)
    view, done = memoryview(data), 0
    try:
        file.seek(offset)
        while done < size:
            # A read may give less than was asked for, on Linux never more than 2 GiB.
            count = file.readinto(view[done:])
            if not count:
                raise OSError(0, f"ends at byte {offset + done}, though it was longer before")
            done += count
    except OSError as error:
        what = f"{error.strerror} (reading {size} bytes from byte {offset} on)"
        raise OSError(error.errno, what, os.fspath(file.name)) from error
    return data
