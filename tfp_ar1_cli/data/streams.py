"""Images that stay on disk, with the part of an array's interface that the training uses.

A `Stream` reads the images that it is indexed with, from one of three sources:

* `stream:FILE.npy`: an array as in `npy:FILE`, read row by row.
* `images:FOLDER`: PNG, JPEG, BMP, GIF, WebP, TIFF and PPM files (the first frame of an animation)
  of one shape, or converted to one (`decoding.Form`), also in subfolders, sorted by path. If there
  are both FOLDER/train and FOLDER/test, they hold the training and the test images.
* `tfrecord:GLOB`: Uncompressed TFRecord files of `tf.train.Example`, each with an encoded image as
  the bytes feature `image` or `image/encoded`.

Memory holds, whatever the size of the data, the images asked for; 8 to 24 bytes for each image of
the data, and the names of the files of a folder; and the test images, at most 10 000 and 64 MiB.
Rows, records and bytes are counted from 0.
"""

import dataclasses
import hashlib
import math
import os
import pathlib
from typing import Any, NamedTuple, NoReturn

import numpy as np

from tfp_ar1_cli.data import image_files, pixels, split
from tfp_ar1_cli.data.decoding import AS_STORED, Form
from tfp_ar1_cli.data.files import check_memory
from tfp_ar1_cli.data.sources import Corrupt as Corrupt  # Raised by `Stream`.
from tfp_ar1_cli.data.sources import Faults, NpyFile
from tfp_ar1_cli.errors import UserError
from tfp_ar1_cli.progress import counted

KINDS = ("stream", "images", "tfrecord")
ENCODED, ENCODED_CHOICES = KINDS[1:], "images:FOLDER or tfrecord:GLOB"
CHOICES = "stream:FILE.npy, images:FOLDER or tfrecord:GLOB"
MAX_TEST_IMAGES = 10_000
MAX_TEST_BYTES = 64 * 2**20
# Images of one shape in files; reading is thread-safe.
Source = NpyFile | image_files.ImageFiles | image_files.TFRecordFiles


class Stream:
    """Images on disk, `[N, *image_shape]`, float32; indexing reads only the images asked for.

    It has the part of an array's interface that the training needs, and is thread-safe. If corrupt
    images are skipped, they are missing from the result.

    Attributes:
      shape: `(N, *image_shape)`.
      sha256: A hash of the names, sizes and samples of the contents of the files.
    """

    dtype = np.dtype(np.float32)

    def __init__(self, source: Source, rows: np.ndarray, faults: Faults, sha256: str) -> None:
        self._source, self._rows, self._faults = source, rows, faults
        self.shape = (len(rows), *source.image_shape)
        self.sha256 = sha256

    @property
    def skipped(self) -> dict[str, str]:
        """The problems of the images skipped so far, by position."""
        return dict(self._faults.found)

    def __len__(self) -> int:
        """The number of images."""
        return len(self._rows)

    def __getitem__(self, index: slice | np.ndarray) -> np.ndarray:
        """Reads images, float32 `[n, *image_shape]`.

        Raises `Corrupt` at a corrupt image, unless they are skipped, and `OSError` if a file cannot
        be read. That is never skipped: a lost disk must not mean training without its images.
        """
        rows = self._rows[index]
        if np.ndim(rows) != 1:
            raise TypeError(
                f"images on disk are indexed by a slice or an array [n], not by {index!r}."
            )
        return self._source.read(rows, self._faults)

    def hold_out(self, kept: np.ndarray, apart: np.ndarray) -> tuple["Stream", np.ndarray]:
        """The images of `kept`, still on disk, and those of `apart`, read into memory.

        At most `MAX_TEST_IMAGES` and `MAX_TEST_BYTES` are read into memory.
        """
        rows, held = self._rows[kept], self._rows[apart[: _most(self._source)]]
        left, read = (Stream(self._source, r, self._faults, self.sha256) for r in (rows, held))
        return left, _read_all(read)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NoReturn:
        """Refuses conversion: `numpy.asarray` would silently read everything into memory."""
        raise TypeError(
            f"these {len(self)} images stay on disk and cannot be converted to one array; index "
            "them with a slice or an array of integers."
        )


class Opened(NamedTuple):
    """The result of `load`.

    Attributes:
      train: The training images.
      test: The test images, float32; at most `MAX_TEST_IMAGES` and `MAX_TEST_BYTES`, unless
        `trained` is the hash of other data.
      labels: The names of the folders of the test images, if they lie in several.
      names: The paths of the test images relative to the given folder, if they are files.
      notes: Notes for the user.
    """

    train: Stream
    test: np.ndarray
    labels: np.ndarray | None
    names: list[str] | None
    notes: list[str]


def load(
    kind: str,
    place: str,
    likelihood: str,
    corrupt: str = "stop",
    trained: str | None = None,
    form: Form = AS_STORED,
    split_by: str | None = None,
) -> Opened:
    """Opens a source and reads its test images.

    Args:
      kind: One of `KINDS`.
      place: The file, the folder, or the pattern of the shards.
      likelihood: See `DataOptions`.
      corrupt: See `DataOptions`.
      trained: To test a trained model: the hash of its training data. All images of other data are
        test images, unless they come with a test set.
      form: The form that images in files and records are converted to.
      split_by: See `DataOptions.split`.

    Raises:
      UserError: If something is wrong with the data.
    """
    faults, path = Faults(corrupt == "skip"), pathlib.Path(place)
    at_least = 2 if trained is None else 1
    parts = image_files.split_folders(path) if kind == "images" else None
    source: Source
    if kind == "stream":
        source = NpyFile(path, likelihood, at_least)
    elif kind == "tfrecord":
        source = image_files.TFRecordFiles(path, faults, at_least, form)
    else:
        folder = path / parts[0] if parts else path
        source = image_files.ImageFiles(folder, faults, at_least, form)
    test_source, sha256, notes = source, source.files.sha256(), source.notes
    image_bytes = 4 * math.prod(source.image_shape)
    max_test = _most(source)
    if parts:
        form = dataclasses.replace(form, shape=source.image_shape)
        test_source = image_files.ImageFiles(path / parts[1], faults, 1, form)
        notes = [*notes, *test_source.notes, *image_files.beside(path, parts)]
        sha256 = hashlib.sha256((sha256 + test_source.files.sha256()).encode()).hexdigest()
        train, test = np.arange(len(source)), np.arange(len(test_source))
    elif split_by == "stable":
        train, test = split.stable(len(source))
    else:
        train, test = split.shuffled(len(source), most=max_test)
    if trained is not None and sha256 != trained:
        if not parts:
            train, test = np.arange(0), np.arange(len(source))
        check_memory(place, image_bytes * len(test), "give it in parts")
    elif len(test) > max_test:
        notes.append(
            f"Of {len(test)} test images, {max_test} are used, chosen at random, the same in "
            f"every run: at most {MAX_TEST_IMAGES}, and {MAX_TEST_BYTES // 2**20} MiB."
            + " --split shuffled trains on the others."
            * (not parts and split_by == "stable")
        )
        test = np.sort(np.random.default_rng(0).permutation(test)[:max_test])
    x_test = _read_all(Stream(test_source, test, faults, sha256))
    if not len(x_test):
        raise UserError(
            f"{place}: none of the {len(test)} test images can be used; the first: {faults.first()}"
        )
    labels, names = None, None
    if not isinstance(test_source, NpyFile):  # The test images stand for all images.
        notes += pixels.of_bytes(255, round(255 * float(x_test.max())))
        if done := "; ".join(f"{n} {what}" for what, n in sorted(test_source.converted.items())):
            likewise = " (and likewise in the training images)" * bool(len(train))
            tests = counted(len(x_test), "test image")
            notes.append(f"Conversions in {tests}{likewise}: {done}.")
    if isinstance(test_source, image_files.ImageFiles):
        read = [row for row in test.tolist() if test_source.position(row) not in faults.found]
        labels = test_source.labels(np.array(read))
        names = [os.path.relpath(test_source.position(row), path) for row in read]
    return Opened(Stream(source, train, faults, sha256), x_test, labels, names, notes)


def _most(source: Source) -> int:
    """The greatest number of images to read into memory."""
    return max(1, min(MAX_TEST_IMAGES, MAX_TEST_BYTES // (4 * math.prod(source.image_shape))))


def _read_all(x: Stream, at_a_time: int = 64) -> np.ndarray:
    """Reads a stream into memory, in parts: reading takes more memory than the images do."""
    array = np.empty(x.shape, x.dtype)
    done = 0
    for start in range(0, len(x), at_a_time):
        part = x[start : start + at_a_time]
        array[done : done + len(part)] = part
        done += len(part)
    return array[:done]
