"""Sources of encoded images: image files and TFRecord files."""

import collections
import dataclasses
import glob
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import NoReturn

import numpy as np

from tfp_ar1_cli import backend, startup
from tfp_ar1_cli.data import pixels, tfrecords
from tfp_ar1_cli.data.decoding import Form, decode
from tfp_ar1_cli.data.files import open_raw
from tfp_ar1_cli.data.sources import Faults, Files, Unreadable
from tfp_ar1_cli.errors import UserError

_SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".gif", ".webp", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm"),
)
# Names of folders of training images and of test images, in order of preference.
_TRAIN_FOLDERS = ("train", "training")
_TEST_FOLDERS = ("test", "testing", "val", "valid", "validation")
# No encoded image has more bytes: PIL reads at most 179 million pixels.
_MOST_ENCODED = 2**30
_FEATURES = ("image", "image/encoded")
_MOST_KINDS = 6  # Kinds of left-out files that a note lists, by suffix.


class _Encoded:
    """Images as encoded files or records, see `streams.Source`.

    Attributes:
      converted: The number of images converted so far, by kind of conversion.
    """

    files: Files
    notes: list[str]
    form: Form

    def __init__(self) -> None:
        self.converted: collections.Counter[str] = collections.Counter()

    @property
    def image_shape(self) -> tuple[int, ...]:
        """The shape of each image."""
        return self.form.shape or ()

    def __len__(self) -> int:
        raise NotImplementedError

    def position(self, row: int) -> str:
        """Where an image is stored, for messages."""
        raise NotImplementedError

    def _content(self, row: int) -> bytes:
        """The encoded image; raises `Unreadable`."""
        raise NotImplementedError

    def _with_shape(self, form: Form, faults: Faults) -> Form:
        """`form`, with the shape of the first image that can be decoded if it has none yet."""
        if form.shape is not None:
            return form
        for row in range(len(self)):
            try:
                image, _ = decode(self._content(row), form)
                return dataclasses.replace(form, shape=image.shape)
            except Unreadable as error:
                faults.add(self.position(row), error)
        raise UserError(f"none of {len(self)} images can be decoded; the first: {faults.first()}")

    def read(self, rows: np.ndarray, faults: Faults) -> np.ndarray:
        """The images of these rows, float32, without the corrupt ones."""
        raw = np.empty((len(rows), *self.image_shape), np.uint8)
        done = 0
        for row in rows:
            try:
                raw[done], said = decode(self._content(row), self.form)
                self.converted.update(said)
                done += 1
            except Unreadable as error:
                faults.add(self.position(row), error)
        return pixels.to_float32(raw[:done])


class ImageFiles(_Encoded):
    """Image files in a folder and its subfolders."""

    def __init__(
        self,
        folder: pathlib.Path,
        faults: Faults,
        at_least: int,
        form: Form,
    ) -> None:
        super().__init__()
        if not folder.is_dir():
            what = (
                "is a file; unpack it if it is an archive, and"
                if folder.is_file()
                else "no such folder;"
            )
            raise UserError(f"{folder}: {what} give the folder of the image files.")
        left_out: collections.Counter[str] = collections.Counter()
        self.files = Files(folder, list(list_images(os.fsencode(folder), left_out)))
        shown = sorted(left_out.most_common(_MOST_KINDS))
        others = ", ".join(f"{n} {what}{'s' * (n > 1 and what[0] != '.')}" for what, n in shown)
        if rest := left_out.total() - sum(n for _, n in shown):
            others += f", {rest} others"
        self.notes = [f"Left out of {folder}: {others}."] if others else []
        others = f" (and {others})" * bool(others)
        what = f"{folder}: holds {len(self)} files ending in {', '.join(_SUFFIXES)}{others}"
        pixels.check_count(len(self), what, at_least)
        self.form = self._with_shape(form, faults)

    def labels(self, rows: np.ndarray) -> np.ndarray | None:
        """The names of the images' folders as labels; None unless there are several."""
        folders = [os.path.dirname(self.files.name(row)) for row in rows]
        root = os.path.commonpath(folders) if all(folders) else ""
        names = [os.path.relpath(folder or ".", root or ".").split(os.sep)[0] for folder in folders]
        return None if "." in names or len(set(names)) < 2 else np.array(names)

    def __len__(self) -> int:
        """The number of images."""
        return len(self.files)

    def position(self, row: int) -> str:
        """See `_Encoded`."""
        return self.files.position(row)

    def _content(self, row: int) -> bytes:
        with open_raw(self.files[row]) as file:
            _check_encoded(os.fstat(file.fileno()).st_size)
            return file.readall()


def _check_encoded(size: int) -> None:
    if size > _MOST_ENCODED:
        raise Unreadable(f"has {size} bytes, too many for an encoded image")


def _is_hidden(name: str) -> bool:
    """Whether a file or folder is hidden, or one that macOS leaves beside images."""
    return name.startswith(".") or name == "__MACOSX"


def list_images(folder: bytes, left_out: collections.Counter[str]) -> Iterator[bytes]:
    """Yields the relative paths of the images below a folder; counts everything else by kind.

    Links to folders are not followed. Raises `UserError` if a folder below has both training and
    test images, which would become one set.
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
                f"set; give images:{where}, or a folder with these two at its top."
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


def split_folders(folder: pathlib.Path) -> tuple[str, str] | None:
    """The names of the subfolders of training and test images; None unless there are both."""
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


def beside(folder: pathlib.Path, parts: tuple[str, str]) -> list[str]:
    """A note listing what else is in a folder beside its training and test subfolders."""
    others = [path.name for path in folder.iterdir() if path.name not in parts]
    others = sorted(name for name in others if not _is_hidden(name))
    if not others:
        return []
    more = " and more" * (len(others) > 3)
    return [f"In {folder}, only {' and '.join(parts)} are read, not {', '.join(others[:3])}{more}."]


class TFRecordFiles(_Encoded):
    """The records of TFRecord files."""

    def __init__(self, pattern: pathlib.Path, faults: Faults, at_least: int, form: Form) -> None:
        super().__init__()
        paths = [path for path in glob.glob(str(pattern), recursive=True) if os.path.isfile(path)]
        if not paths:
            raise UserError(
                f"{pattern}: no such file; give a pattern such as tfrecord:'data/*.tfrecord'."
            )
        root = os.path.commonpath(paths)
        names = [os.fsencode(os.path.relpath(path, root)) for path in paths]
        self.files = Files(pathlib.Path(root), names)
        starts, lengths = [], []
        for number in range(len(self.files)):
            offsets, length, damage = tfrecords.index(self.files[number])
            starts.append(offsets)
            lengths.append(length)
            if damage is not None:
                byte = tfrecords.end(offsets, length)
                faults.add(
                    f"{self.files.position(number)}: record {len(offsets)} (byte {byte})",
                    f"{damage}; this record and those after it in the file cannot be read",
                )
        # The number of the first record of each file; at the end, the number of records.
        self._first = np.cumsum([0, *map(len, starts)])
        self._starts, self._lengths = np.concatenate(starts), np.concatenate(lengths)
        what = f"{pattern}: {len(paths)} files hold {len(self)} records"
        pixels.check_count(len(self), what, at_least)
        self.notes = _of_shards(paths)
        # The devices start later, in a way that depends on the strategy.
        if not backend.has_tensorflow():
            raise UserError(
                f"{pattern}: reading TFRecord files needs TensorFlow, which is not installed; run: "
                "pip install tensorflow"
            )
        startup.import_backend(start=lambda: None)
        import tensorflow as tf

        self._parse = tf.train.Example.FromString
        self.form = self._with_shape(form, faults)

    def __len__(self) -> int:
        """The number of images."""
        return len(self._starts)

    def _file(self, row: int) -> int:
        return int(np.searchsorted(self._first, row, side="right")) - 1

    def position(self, row: int) -> str:
        """See `_Encoded`."""
        file = self._file(row)
        record, byte = row - self._first[file], self._starts[row]
        return f"{self.files.position(file)}: record {record} (byte {byte})"

    def _content(self, row: int) -> bytes:
        from google.protobuf.message import DecodeError

        start, length = int(self._starts[row]), int(self._lengths[row])
        _check_encoded(length)
        try:
            record = tfrecords.read(self.files[self._file(row)], start, length)
            features = self._parse(record).features.feature
        except DecodeError as error:
            raise Unreadable(f"is not a tf.train.Example ({error})") from error
        for name in _FEATURES:
            # Indexing a protobuf map with a missing name would add it.
            if name in features and len(features[name].bytes_list.value) == 1:
                return features[name].bytes_list.value[0]
        raise Unreadable(
            f"has no feature {' or '.join(_FEATURES)} with one bytes value; its features: "
            f"{', '.join(sorted(features)) or 'none'}"
        )


def _of_shards(paths: Sequence[str]) -> list[str]:
    """A note if the names of the shards suggest both training and test images."""
    names = [os.path.basename(path).lower() for path in paths]
    others = [name for name in names if name.startswith(_TEST_FOLDERS)]
    if not others or not any(name.startswith(_TRAIN_FOLDERS) for name in names):
        return []
    return [
        f"{len(others)} of {len(names)} files are named {min(others)} or the like, and are read "
        "into one set with the others; give a pattern that leaves them out if they are test images."
    ]
