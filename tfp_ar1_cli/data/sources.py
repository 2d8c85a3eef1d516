"""Sources of images that stay on disk, read by row, and the handling of corrupt images."""

import dataclasses
import hashlib
import math
import os
import pathlib
from collections.abc import Sequence

import numpy as np

from tfp_ar1_cli.data import pixels
from tfp_ar1_cli.data.arrays import read_npy_header
from tfp_ar1_cli.data.files import check_regular, open_raw, read_at
from tfp_ar1_cli.errors import UserError

# Samples of the contents that the fingerprint hashes.
_SAMPLES, _SAMPLE_BYTES = 64, 64 * 1024
_SCANNED_BYTES = 2**22


class Corrupt(UserError):
    """An image cannot be read or used."""


class Unreadable(Exception):
    """An image or record cannot be read; the message is the end of a sentence."""


@dataclasses.dataclass(frozen=True)
class Faults:
    """Handling of corrupt images: either the first is an error, or all are skipped and recorded.

    Attributes:
      skip: Whether corrupt images are skipped.
      found: The problems of the skipped images, by position: file, and row or record and byte.
    """

    skip: bool
    found: dict[str, str] = dataclasses.field(default_factory=dict)

    def add(self, position: str, problem: object) -> None:
        """Records a corrupt image; raises `Corrupt` unless `skip`."""
        if not self.skip:
            raise Corrupt(
                f"{position}: {problem}. Repair or remove it, or train with --corrupt skip, which "
                "leaves out corrupt images."
            )
        self.found[position] = str(problem)

    def first(self) -> str:
        """The first corrupt image, as the end of a message."""
        return ": ".join(next(iter(self.found.items())))


class Files:
    """Files below `root`, sorted by name; names are kept as bytes, as there may be millions."""

    def __init__(self, root: pathlib.Path, names: Sequence[bytes] = (b".",)) -> None:
        self.root = root
        self._names = np.sort(np.array(names, np.bytes_))

    def __len__(self) -> int:
        """The number of files."""
        return len(self._names)

    def __getitem__(self, index: int) -> pathlib.Path:
        """The path of a file."""
        return self.root / self.name(index)

    def name(self, index: int) -> str:
        """The path of a file relative to `root`."""
        return os.fsdecode(self._names[index].item())

    def position(self, index: int) -> str:
        """The path for messages, as valid Unicode."""
        return os.fsencode(self[index]).decode(errors="replace")

    def sha256(self) -> str:
        """A hash of the names, the sizes, and samples of the concatenated contents."""
        sizes = np.fromiter((check_regular(self[i]).st_size for i in range(len(self))), np.int64)
        digest = hashlib.sha256(self._names.tobytes() + sizes.astype("<i8").tobytes())
        ends = np.cumsum(sizes)
        total = int(ends[-1])
        last = max(0, total - _SAMPLE_BYTES)
        for start in sorted({last * sample // (_SAMPLES - 1) for sample in range(_SAMPLES)}):
            stop = min(total, start + _SAMPLE_BYTES)
            index = int(np.searchsorted(ends, start, side="right"))
            while start < stop:
                offset = start - int(ends[index] - sizes[index])
                size = min(stop - start, int(sizes[index]) - offset)
                with open_raw(self[index]) as file:
                    digest.update(read_at(file, offset, size))
                start, index = start + size, index + 1
        return digest.hexdigest()


class NpyFile:
    """The rows of an array in an .npy file."""

    def __init__(self, path: pathlib.Path, likelihood: str, at_least: int) -> None:
        self.files = Files(path)
        self._path, self._likelihood = path, likelihood
        check_regular(path)
        with path.open("rb") as file:
            shape, fortran_order, self._dtype = read_npy_header(file, path)
            self._start = file.tell()
        pixels.check_array(shape, self._dtype, str(path), at_least)
        if fortran_order:
            raise UserError(
                f"{path}: is in Fortran order, so no image lies in one piece; write it in C order, "
                "with numpy.save(file, numpy.ascontiguousarray(x))."
            )
        self._row_shape, self._count = shape[1:], shape[0]
        self._channels_first = pixels.channels_first(shape)
        self.image_shape = (*shape[2:], shape[1]) if self._channels_first else shape[1:]
        self._row_bytes = self._dtype.itemsize * math.prod(self._row_shape)
        expected, found = self._offset(self._count), path.stat().st_size
        if found < expected:
            raise UserError(
                f"{path}: truncated: expected {expected} bytes for {pixels.shape_text(shape)} "
                f"values of {self._dtype}, found {found}; write or copy it again."
            )
        greatest = self._greatest_byte() if self._dtype == np.uint8 else 0
        self._white = pixels.white_of(greatest)
        self.notes = pixels.of_bytes(self._white, greatest)
        if self._channels_first:
            self.notes.append(pixels.moved(f"{path}", shape))

    def __len__(self) -> int:
        """The number of images."""
        return self._count

    def _greatest_byte(self) -> int:
        """The greatest byte, or the first found above `pixels.DARK`."""
        greatest, at_a_time = 0, max(1, _SCANNED_BYTES // self._row_bytes)
        for start in range(0, self._count, at_a_time):
            rows = np.arange(start, min(start + at_a_time, self._count))
            greatest = max(greatest, int(self._read_raw(rows).max()))
            if greatest > pixels.DARK:
                break
        return greatest

    def _offset(self, row: int) -> int:
        return self._start + row * self._row_bytes

    def _read_raw(self, rows: np.ndarray) -> np.ndarray:
        raw = np.empty((len(rows), *self._row_shape), self._dtype)
        order = np.argsort(rows, kind="stable")
        with open_raw(self._path) as file:
            # Adjacent rows are read at once.
            for run in np.split(order, np.flatnonzero(np.diff(rows[order]) != 1) + 1):
                if len(run):
                    start, size = self._offset(int(rows[run[0]])), len(run) * self._row_bytes
                    block = read_at(file, start, size)
                    raw[run] = np.frombuffer(block, self._dtype).reshape(-1, *self._row_shape)
        return np.ascontiguousarray(np.moveaxis(raw, 1, -1)) if self._channels_first else raw

    def read(self, rows: np.ndarray, faults: Faults) -> np.ndarray:
        """The images in these rows, float32, without corrupt ones; see `streams.Source`."""
        raw = self._read_raw(rows)
        x = pixels.to_float32(raw, self._white)
        if raw.dtype == np.uint8 or pixels.wrong_values(x, self._likelihood) is None:
            return x
        problems = [pixels.wrong_values(image, self._likelihood) for image in x]
        for row, problem in zip(rows, problems, strict=True):
            if problem is not None:
                faults.add(f"{self._path}: row {row} (byte {self._offset(int(row))})", problem)
        return x[[problem is None for problem in problems]]
