"""Images that stay on disk, behind the part of an array that the training uses.

A `Stream` reads the images that it is indexed with, from one of three sources:

* `stream:FILE.npy`: an array as in `npy:FILE`, read row by row.
* `images:FOLDER`: PNG, JPEG, BMP, GIF, WebP, TIFF and PPM files (of an animation the first frame)
  of one shape, also in folders below, sorted by path. Those in FOLDER/train and FOLDER/test, where
  there are both, are the training and the test images.
* `tfrecord:GLOB`: TFRecord files of `tf.train.Example`, not compressed, each with an encoded image
  as the bytes feature `image` or `image/encoded`.

What is in memory, whatever the size of the data: the images that were asked for; 8 to 24 bytes for
each of all images, and for a folder their names; and the test images, of which there are at most
10 000 and 64 MiB.

Rows and records are counted from 0, as are bytes.
"""

import collections
import dataclasses
import glob
import hashlib
import io
import math
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn, Protocol

import numpy as np

from tfp_ar1_cli import startup
from tfp_ar1_cli.data import pixels, tfrecords
from tfp_ar1_cli.data.files import check_memory, check_regular, open_raw, read_at
from tfp_ar1_cli.errors import UserError

KINDS = ("stream", "images", "tfrecord")
CHOICES = "stream:FILE.npy, images:FOLDER or tfrecord:GLOB"
MAX_TEST_IMAGES = 10_000
MAX_TEST_BYTES = 64 * 2**20
_SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".gif", ".webp", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm"),
)
_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
# Names of folders of training images, and of test images, the better ones first.
_TRAIN_FOLDERS = ("train", "training")
_TEST_FOLDERS = ("test", "testing", "val", "valid", "validation")
# More bytes than this are no encoded image, of which PIL reads at most 179 million pixels.
_MOST_ENCODED = 2**30
# The EXIF tag that says how an image is to be shown, and its values for "not as it is stored".
_ORIENTATION, _TURNED = 0x0112, range(2, 9)
_METADATA = {"exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif"}
_FEATURES = ("image", "image/encoded")
# Of the contents, for the fingerprint.
_SAMPLES, _SAMPLE_BYTES = 64, 64 * 1024
_SCANNED_BYTES = 2**22
_MOST_KINDS = 6  # Of files that are left out, each named with its ending.


class Corrupt(UserError):
    """An image that cannot be read, or not be used."""


class _Unreadable(Exception):
    """What is wrong with one image."""


@dataclasses.dataclass(frozen=True)
class Faults:
    """What is done with corrupt images: the first is an error, or all are left out and counted.

    Attributes:
      skip: Whether they are left out.
      found: What is wrong with those that were, by position: file, and row or record and byte.
    """

    skip: bool
    found: dict[str, str] = dataclasses.field(default_factory=dict)

    def add(self, position: str, problem: str) -> None:
        """Takes note of a corrupt image.

        Raises:
          Corrupt: If they are not to be skipped.
        """
        if not self.skip:
            raise Corrupt(
                f"{position}: {problem}. Repair or remove it, or train with --corrupt skip, which "
                "leaves out what is corrupt."
            )
        self.found[position] = problem


class _Files:
    """Files in the order of their paths, which are held as bytes: there may be millions.

    Attributes:
      root: What their names are relative to.
    """

    def __init__(self, root: pathlib.Path, names: Sequence[bytes]) -> None:
        self.root = root
        self._names = np.sort(np.array(names, np.bytes_))

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> pathlib.Path:
        return self.root / os.fsdecode(self._names[index].item())

    def position(self, index: int) -> str:
        """The path for messages, where it must be valid Unicode."""
        return os.fsencode(self[index]).decode(errors="replace")

    def sha256(self) -> str:
        """A hash of the names, of the sizes, and of samples of the contents put end to end."""
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


class _Source(Protocol):
    """Where the images of a stream come from."""

    files: _Files
    image_shape: tuple[int, ...]
    notes: list[str]

    def __len__(self) -> int: ...

    def read(self, rows: np.ndarray, faults: Faults) -> np.ndarray:
        """The images of these rows, float32, without the corrupt ones. Must be thread-safe."""


class Stream:
    """Images on disk: `[N, *image_shape]`, float32, of which only what is asked for is read.

    It has what the training needs of an array, for any number of threads, and no more: an index is
    a slice or a one-dimensional array of integers. Corrupt images are missing from the answer, if
    they are to be skipped.

    Attributes:
      shape: `(N, *image_shape)`.
      sha256: What identifies the data: names, sizes and samples of the contents of the files.
    """

    dtype = np.dtype(np.float32)

    def __init__(self, source: _Source, rows: np.ndarray, faults: Faults, sha256: str) -> None:
        self._source, self._rows, self._faults = source, rows, faults
        self.shape = (len(rows), *source.image_shape)
        self.sha256 = sha256

    @property
    def ndim(self) -> int:
        """The number of dimensions."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """The number of values."""
        return math.prod(self.shape)

    @property
    def skipped(self) -> dict[str, str]:
        """What was wrong with the images that were left out so far, by position; each once."""
        return dict(self._faults.found)

    def __len__(self) -> int:
        """The number of images."""
        return len(self._rows)

    def __getitem__(self, index: slice | np.ndarray) -> np.ndarray:
        """Reads images.

        Args:
          index: Which ones.

        Returns:
          float32 `[n, *image_shape]`; fewer than asked for where corrupt ones are skipped.

        Raises:
          Corrupt: At a corrupt image, unless they are skipped.
          OSError: If a file cannot be read. That is never skipped: a disk that is gone is no reason
            to train without its images.
        """
        rows = self._rows[index]
        if np.ndim(rows) != 1:
            raise TypeError(
                f"images on disk are indexed by a slice or an array [n], not by {index!r}."
            )
        return self._source.read(rows, self._faults)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NoReturn:
        """Refuses what `numpy.asarray` would do, unnoticed: read everything into memory."""
        raise TypeError(
            f"these {len(self)} images stay on disk and do not become an array as a whole; index "
            "them with a slice or an array of integers."
        )


def load(
    kind: str, place: str, likelihood: str, corrupt: str = "stop", trained: dict | None = None
) -> tuple[Stream | np.ndarray, np.ndarray, None, tuple[str, ...]]:
    """Opens a source, and reads its test images.

    Args:
      kind: One of `KINDS`.
      place: The file, the folder, or the pattern of the shards.
      likelihood: With `"bernoulli"` every value must lie within [0, 1].
      corrupt: `"stop"` or `"skip"`: what is done with corrupt images.
      trained: See `datasets.load`. All images are then read, if they are no others' test images.

    Returns:
      The training images; the test images, float32 `[N, *image_shape]`, at most `MAX_TEST_IMAGES`
      and `MAX_TEST_BYTES`; no labels; and what the user should know about these.

    Raises:
      UserError: If something is wrong with the data.
    """
    faults, notes = Faults(corrupt == "skip"), []
    path = pathlib.Path(place)
    at_least = 2 if trained is None else 1
    parts = _parts(path) if kind == "images" else None
    source: _Source
    if kind == "stream":
        source = _NpyFile(path, likelihood, faults, at_least)
    elif kind == "tfrecord":
        source = _TFRecordFiles(path, faults, at_least)
    else:
        source = _ImageFiles(path / parts[0] if parts else path, faults, at_least)
    sha256 = source.files.sha256()
    max_test = max(1, min(MAX_TEST_IMAGES, MAX_TEST_BYTES // (4 * math.prod(source.image_shape))))
    notes += source.notes
    if parts:
        train = np.arange(len(source))
        test_source = _ImageFiles(path / parts[1], faults, 1, source.image_shape)
        notes += [*test_source.notes, *_beside(path, parts)]
        sha256 = hashlib.sha256((sha256 + test_source.files.sha256()).encode()).hexdigest()
        test = np.arange(len(test_source))
    else:
        test_source = source
        train, test = pixels.split(len(source), max_test)
    if trained is not None and sha256 != trained.get("sha256"):
        if not parts:
            train, test = np.arange(0), np.arange(len(source))
        needed = 4 * len(test) * math.prod(source.image_shape)
        check_memory(place, needed, "hand it over in parts")
    elif len(test) > max_test:
        notes.append(
            f"Of {len(test)} test images {max_test} are used, chosen at random, the same in "
            f"every run: at most {MAX_TEST_IMAGES}, and {MAX_TEST_BYTES // 2**20} MiB."
        )
        test = np.sort(np.random.default_rng(0).permutation(test)[:max_test])
    x_test = _read_all(Stream(test_source, test, faults, sha256))
    if not len(x_test):
        raise UserError(
            f"{place}: none of the {len(test)} test images can be used; the first: "
            + ": ".join(next(iter(faults.found.items())))
        )
    if kind != "stream":  # Of encoded images the test images stand for all.
        notes += pixels.of_bytes(255, round(255 * float(x_test.max())))
    return Stream(source, train, faults, sha256), x_test, None, tuple(notes)


def _parts(folder: pathlib.Path) -> tuple[str, str] | None:
    """The names of the folders of training and of test images in a folder that has both."""
    if not folder.is_dir():
        return None
    return _split_of([path.name for path in folder.iterdir() if path.is_dir()])


def _split_of(names: Sequence[str]) -> tuple[str, str] | None:
    found = {name.lower(): name for name in sorted(names)}
    train, test = (
        next((found[name] for name in known if name in found), None)
        for known in (_TRAIN_FOLDERS, _TEST_FOLDERS)
    )
    return (train, test) if train and test else None


def _beside(folder: pathlib.Path, parts: tuple[str, str]) -> list[str]:
    """A note of what lies in a folder beside those of the training and the test images."""
    others = [path.name for path in folder.iterdir() if path.name not in parts]
    others = sorted(name for name in others if not _is_hidden(name))
    if not others:
        return []
    more = " and more" * (len(others) > 3)
    return [f"Of {folder} only {' and '.join(parts)} are read, not {', '.join(others[:3])}{more}."]


def _read_all(x: Stream, at_a_time: int = 64) -> np.ndarray:
    """The images of a stream in memory, read in parts: what is read needs more room than they."""
    array = np.empty(x.shape, x.dtype)
    done = 0
    for start in range(0, len(x), at_a_time):
        part = x[start : start + at_a_time]
        array[done : done + len(part)] = part
        done += len(part)
    return array[:done]


class _NpyFile:
    """The rows of an array in an .npy file."""

    def __init__(self, path: pathlib.Path, likelihood: str, faults: Faults, at_least: int) -> None:
        self.files = _Files(path, [b"."])
        self._path, self._likelihood = path, likelihood
        check_regular(path)
        with path.open("rb") as file:
            shape, fortran_order, self._dtype = read_npy_header(file, path)
            self._start = file.tell()
        pixels.check_array(shape, self._dtype, str(path), at_least)
        if fortran_order:
            raise UserError(
                f"{path}: is in Fortran order, so that no image lies in one piece; write it in C "
                "order, with numpy.save(file, numpy.ascontiguousarray(x))."
            )
        self.image_shape, self._count = shape[1:], shape[0]
        self._row_bytes = self._dtype.itemsize * math.prod(self.image_shape)
        expected, found = self._offset(self._count), path.stat().st_size
        if found < expected:
            raise UserError(
                f"{path}: truncated: expected {expected} bytes for {pixels.shape_text(shape)} "
                f"values of {self._dtype}, found {found}; write or copy it again."
            )
        greatest = self._greatest_byte() if self._dtype == np.uint8 else 0
        self._white = 1 if greatest == 1 else 255
        self.notes = pixels.of_bytes(self._white, greatest)

    def __len__(self) -> int:
        return self._count

    def _greatest_byte(self) -> int:
        """The greatest byte, or one that is too great for what `pixels.of_bytes` has to say."""
        greatest, rows = 0, max(1, _SCANNED_BYTES // self._row_bytes)
        with open_raw(self._path) as file:
            for row in range(0, self._count, rows):
                size = min(rows, self._count - row) * self._row_bytes
                block = np.frombuffer(read_at(file, self._offset(row), size), np.uint8)
                greatest = max(greatest, int(block.max()))
                if greatest > pixels.DARK:
                    break
        return greatest

    def _offset(self, row: int) -> int:
        return self._start + int(row) * self._row_bytes

    def read(self, rows: np.ndarray, faults: Faults) -> np.ndarray:
        """See `_Source`."""
        raw = np.empty((len(rows), *self.image_shape), self._dtype)
        order = np.argsort(rows, kind="stable")
        with open_raw(self._path) as file:
            # Neighbours in the file are read in one go.
            for run in np.split(order, np.flatnonzero(np.diff(rows[order]) != 1) + 1):
                if len(run):
                    block = read_at(file, self._offset(rows[run[0]]), len(run) * self._row_bytes)
                    raw[run] = np.frombuffer(block, self._dtype).reshape(-1, *self.image_shape)
        x = pixels.to_float32(raw, self._white)
        if raw.dtype == np.uint8 or pixels.wrong_values(x, self._likelihood) is None:
            return x
        problems = [pixels.wrong_values(image, self._likelihood) for image in x]
        for row, problem in zip(rows, problems, strict=True):
            if problem is not None:
                faults.add(f"{self._path}: row {row} (byte {self._offset(row)})", problem)
        return x[[problem is None for problem in problems]]


def read_npy_header(
    file: io.BufferedReader, path: pathlib.Path
) -> tuple[tuple[int, ...], bool, np.dtype]:
    """The header of an .npy file.

    Args:
      file: The file, at its start; afterwards it stands at the first value.
      path: Where it is, for messages.

    Returns:
      The shape of the array, whether it is in Fortran order, and its dtype.

    Raises:
      UserError: If there is no such header.
    """
    if file.read(6) != b"\x93NUMPY":
        raise UserError(f"{path}: is not an .npy file; write one with numpy.save.")
    file.seek(0)
    try:
        version = np.lib.format.read_magic(file)
        if version == (1, 0):
            return np.lib.format.read_array_header_1_0(file)
        if version == (2, 0):
            return np.lib.format.read_array_header_2_0(file)
    except ValueError as error:
        raise UserError(f"{path}: cannot be read as .npy: {error}") from error
    raise UserError(
        f"{path}: is an .npy file of version {version[0]}.{version[1]}, which is for structured "
        "arrays; store plain numbers."
    )


class _Encoded:
    """Images as encoded files or records. A subclass has `_position`, `_content` and `__len__`."""

    image_shape: tuple[int, ...]

    def _position(self, row: int) -> str:
        """Where an image lies, for messages."""
        raise NotImplementedError

    def _content(self, row: int) -> bytes:
        """The encoded image. Raises `_Unreadable`."""
        raise NotImplementedError

    def _check(self, what: str, at_least: int) -> None:
        if len(self) < at_least:
            number = f"{at_least} image{'s are' if at_least > 1 else ' is'}"
            raise UserError(f"{what}; at least {number} needed.")

    def _find_shape(self, faults: Faults) -> tuple[int, ...]:
        """The shape of the first image that can be decoded."""
        for row in range(len(self)):
            try:
                return _decode(self._content(row)).shape
            except _Unreadable as error:
                faults.add(self._position(row), str(error))
        raise UserError(
            f"none of {len(self)} images can be decoded; the first: "
            + ": ".join(next(iter(faults.found.items())))
        )

    def read(self, rows: np.ndarray, faults: Faults) -> np.ndarray:
        """See `_Source`."""
        raw = np.empty((len(rows), *self.image_shape), np.uint8)
        done = 0
        for row in rows:
            try:
                raw[done] = _decode(self._content(row), self.image_shape)
                done += 1
            except _Unreadable as error:
                faults.add(self._position(row), str(error))
        return pixels.to_float32(raw[:done])


class _ImageFiles(_Encoded):
    """Image files in a folder and those below."""

    def __init__(
        self,
        folder: pathlib.Path,
        faults: Faults,
        at_least: int,
        image_shape: tuple[int, ...] | None = None,
    ) -> None:
        if not folder.is_dir():
            what = "is a file; unpack an archive, and" if folder.is_file() else "no such folder;"
            raise UserError(f"{folder}: {what} give that of the image files.")
        left_out: collections.Counter[str] = collections.Counter()
        self.files = _Files(folder, list(_list_images(os.fsencode(folder), left_out)))
        shown = sorted(left_out.most_common(_MOST_KINDS))
        others = ", ".join(f"{n} {what}{'s' * (n > 1 and what[0] != '.')}" for what, n in shown)
        if rest := left_out.total() - sum(n for _, n in shown):
            others += f", {rest} others"
        self.notes = [f"Left out of {folder}: {others}."] if others else []
        others = f" (and {others})" * bool(others)
        self._check(
            f"{folder}: holds {len(self.files)} files {', '.join(_SUFFIXES)}{others}", at_least
        )
        self.image_shape = image_shape or self._find_shape(faults)

    def __len__(self) -> int:
        return len(self.files)

    def _position(self, row: int) -> str:
        return self.files.position(row)

    def _content(self, row: int) -> bytes:
        with open_raw(self.files[row]) as file:
            _check_encoded(os.fstat(file.fileno()).st_size)
            return file.readall()


def _check_encoded(size: int) -> None:
    """Checks that this may be the size of an encoded image. Raises `_Unreadable`."""
    if size > _MOST_ENCODED:
        raise _Unreadable(f"has {size} bytes, more than an encoded image has")


def _is_hidden(name: str) -> bool:
    """Whether a file or folder is not the user's; macOS leaves some beside images."""
    return name.startswith(".") or name == "__MACOSX"


def _list_images(folder: bytes, left_out: collections.Counter[str]) -> Iterator[bytes]:
    """The paths of the images below a folder, relative to it; counts what else there is by kind.

    Links to folders are not followed.

    Raises:
      UserError: If training and test images, below, would become one.
    """
    for below, folders, names in os.walk(folder, onerror=_raise):
        links = [name for name in folders if os.path.islink(os.path.join(below, name))]
        hidden = [name for name in folders if _is_hidden(os.fsdecode(name))]
        left_out.update(["linked folder"] * len(links) + ["hidden folder"] * len(hidden))
        folders[:] = sorted(set(folders) - {*links, *hidden})
        if parts := _split_of([os.fsdecode(name) for name in folders]):
            where = os.fsencode(below).decode(errors="replace")
            raise UserError(
                f"{where}: holds the folders {' and '.join(parts)}, whose images would become one "
                f"set; give images:{where}, or a folder that has these two."
            )
        for name in names:
            suffix = os.path.splitext(name)[1].lower().decode(errors="replace")
            if suffix not in _SUFFIXES:
                if not _is_hidden(os.fsdecode(name)):
                    left_out[suffix or "other file"] += 1
            elif _is_hidden(os.fsdecode(name)):
                left_out["hidden file"] += 1
            else:
                yield os.path.relpath(os.path.join(below, name), folder)


def _raise(error: OSError) -> NoReturn:
    raise error


class _TFRecordFiles(_Encoded):
    """The records of TFRecord files."""

    def __init__(self, pattern: pathlib.Path, faults: Faults, at_least: int) -> None:
        paths = [path for path in glob.glob(str(pattern), recursive=True) if os.path.isfile(path)]
        if not paths:
            raise UserError(
                f"{pattern}: no such file; give a pattern such as tfrecord:'data/*.tfrecord'."
            )
        root = os.path.commonpath(paths)
        self.files = _Files(
            pathlib.Path(root), [os.fsencode(os.path.relpath(path, root)) for path in paths]
        )
        starts, lengths = [], []
        for number in range(len(self.files)):
            offsets, length, damage = tfrecords.index(self.files[number])
            starts.append(offsets)
            lengths.append(length)
            if damage is not None:
                faults.add(
                    f"{self.files.position(number)}: record {len(offsets)} (byte {damage.offset})",
                    f"{damage}; it and what follows in this file cannot be read",
                )
        # The number of the first record of each file, and of all records.
        self._first = np.cumsum([0, *map(len, starts)])
        self._starts, self._lengths = np.concatenate(starts), np.concatenate(lengths)
        self._check(f"{pattern}: {len(paths)} files hold {len(self)} records", at_least)
        self.notes = _of_shards(paths)
        # The devices start later: how, depends on the strategy.
        startup.import_tensorflow(start=lambda: None)
        import tensorflow as tf

        self._parse = tf.train.Example.FromString
        self.image_shape = self._find_shape(faults)

    def __len__(self) -> int:
        return len(self._starts)

    def _file(self, row: int) -> int:
        return int(np.searchsorted(self._first, row, side="right")) - 1

    def _position(self, row: int) -> str:
        file = self._file(row)
        record, byte = row - self._first[file], self._starts[row]
        return f"{self.files.position(file)}: record {record} (byte {byte})"

    def _content(self, row: int) -> bytes:
        from google.protobuf.message import DecodeError

        path = self.files[self._file(row)]
        _check_encoded(int(self._lengths[row]))
        try:
            record = tfrecords.read(path, int(self._starts[row]), int(self._lengths[row]))
            features = self._parse(record).features.feature
        except tfrecords.Damaged as error:
            raise _Unreadable(str(error)) from error
        except DecodeError as error:
            raise _Unreadable(f"is not a tf.train.Example ({error})") from error
        for name in _FEATURES:
            # To ask for a name that a map lacks would add it.
            if name in features and len(features[name].bytes_list.value) == 1:
                return features[name].bytes_list.value[0]
        raise _Unreadable(
            f"has no feature {' or '.join(_FEATURES)} of one bytes value, but "
            f"{', '.join(sorted(features)) or 'none'}"
        )


def _of_shards(paths: Sequence[str]) -> list[str]:
    """A note where the names of shards say that they are of training and of test images."""
    names = [os.path.basename(path).lower() for path in paths]
    others = [name for name in names if name.startswith(_TEST_FOLDERS)]
    if not others or not any(name.startswith(_TRAIN_FOLDERS) for name in names):
        return []
    return [
        f"{len(others)} of {len(names)} files are named {min(others)} or the like, and become one "
        "set with the others; give a pattern that leaves them out if they are test images."
    ]


def _decode(content: bytes, image_shape: tuple[int, ...] | None = None) -> np.ndarray:
    """Decodes an image file.

    Args:
      content: The bytes of the file.
      image_shape: The shape that it must have, which is looked at before the pixels are decoded.

    Returns:
      uint8 `[H, W]` or `[H, W, 3]`.

    Raises:
      _Unreadable: If it is no such image.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(content), formats=_FORMATS) as image:
            if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
                raise _Unreadable("has an alpha channel (transparency); store it without")
            if image.mode not in ("1", "L", "P", "RGB"):
                raise _Unreadable(
                    f"has pixels of the kind {image.mode}; store it as grayscale or RGB of 8 bits"
                )
            shape = (image.height, image.width)
            # A palette of grays is grayscale, unless the other images have colours.
            gray_allowed = image_shape is None or len(image_shape) == 2
            gray = image.mode in ("1", "L") or (
                image.mode == "P" and gray_allowed and _is_gray(image.palette)
            )
            if not gray:
                shape += (3,)
            if image_shape not in (None, shape):
                raise _Unreadable(
                    f"has shape {pixels.shape_text(shape)}, the others "
                    f"{pixels.shape_text(image_shape)}"
                )
            if image.format == "TIFF" and image.n_frames > 1:
                raise _Unreadable(f"has {image.n_frames} pages; store each as a file")
            array = np.asarray(image.convert("L" if gray else "RGB"))
            # Asked only where there is something to find, as it takes as long as to decode.
            turned = image.getexif().get(_ORIENTATION) if _METADATA & image.info.keys() else None
            if turned in _TURNED:
                raise _Unreadable(
                    f"is stored turned or mirrored (EXIF orientation {turned}); store it upright, "
                    "with PIL.ImageOps.exif_transpose"
                )
            return array
    except (_Unreadable, MemoryError):
        raise
    except UnidentifiedImageError as error:
        raise _Unreadable(f"is no {', '.join(_FORMATS)} image ({len(content)} bytes)") from error
    except Exception as error:  # Foreign bytes fail in many ways.
        raise _Unreadable(f"cannot be decoded ({error})") from error


def _is_gray(palette: Any) -> bool:
    colours = np.frombuffer(palette.tobytes(), np.uint8).reshape(-1, len(palette.mode))
    return bool((colours[:, :3] == colours[:, :1]).all())
