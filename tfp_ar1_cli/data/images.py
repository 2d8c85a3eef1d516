"""The images that the command line trains on: where they come from, and what is asked of them.

Everything here is NumPy; Keras is imported only to download. What is wrong with a file or an array
is a `UserError` whose message names the file, what was found, and what to do. Images that are to
stay on disk are read by `streams`, all others are in memory.
"""

import contextlib
import dataclasses
import gzip
import hashlib
import math
import pathlib
import sys
import zlib
from collections.abc import Callable
from typing import BinaryIO

import click
import numpy as np

from tfp_ar1_cli import startup
from tfp_ar1_cli.data import pixels, streams
from tfp_ar1_cli.data.files import check_memory, check_regular, short_of_memory
from tfp_ar1_cli.errors import UserError
from tfp_ar1_cli.progress import counted

IDX_DATASETS = ("mnist", "fashion_mnist")
CHOICES = f"digits, mnist, fashion_mnist, npz:FILE, npy:FILE, {streams.CHOICES}"
# Of images for the convolutional networks.
_MIN_SIDE = 4
_ON_DISK = "keep the images on disk, with --dataset stream:FILE.npy"
# Compressed data cannot become more than 1032 times as much (deflate, RFC 1951).
_MOST_INFLATED = 1032
# How far beyond its end a file is read, to say by how much it is too long.
_BEYOND = 2**16
_IDX_FILES = {
    "x_train": "train-images-idx3-ubyte",
    "y_train": "train-labels-idx1-ubyte",
    "x_test": "t10k-images-idx3-ubyte",
    "y_test": "t10k-labels-idx1-ubyte",
}


@dataclasses.dataclass(frozen=True)
class ImageData:
    """Train and test images, float32 `[N, *image_shape]`, and the test labels if known.

    Of a source that stays on disk, `x_train` is a stream. `notes` are what the user should know
    about how the data were understood, and what of them was left out.
    """

    x_train: np.ndarray | streams.Stream
    x_test: np.ndarray
    y_test: np.ndarray | None = None
    notes: tuple[str, ...] = ()

    @property
    def image_shape(self) -> tuple[int, ...]:
        """The shape of one image: `(H, W)`, `(H, W, C)` or `(D,)`."""
        return self.x_train.shape[1:]

    @property
    def train(self) -> np.ndarray | streams.Stream:
        """The training images as the model takes them."""
        return self.x_train

    @property
    def test(self) -> np.ndarray:
        """The test images as the model takes them."""
        return self.x_test

    @property
    def skipped(self) -> dict[str, str]:
        """What was wrong with the images that were left out so far, by their position on disk."""
        return self.x_train.skipped if isinstance(self.x_train, streams.Stream) else {}

    @property
    def data_shape(self) -> tuple[int, ...]:
        """See `Data`."""
        return self.image_shape

    def describe(self) -> str:
        """See `Data`."""
        tests = counted(len(self.x_test), "test image")
        return f"{len(self.x_train)} training and {tests} of {pixels.shape_text(self.image_shape)}"

    def is_that_of(self, trained: dict) -> bool:
        """Whether these are the data of a fingerprint; of few images there is none."""
        return len(self.x_train) > 0 and self.fingerprint()["sha256"] == trained.get("sha256")

    def fingerprint(self) -> dict:
        """What identifies the data in a run's config.

        Of images on disk, `sha256` is that of samples, and `range` that of the test pixels.
        """
        if isinstance(self.x_train, streams.Stream):
            sha256, seen = self.x_train.sha256, self.x_test
        else:
            digest, seen = hashlib.sha256(), self.x_train
            for x in (self.x_train, self.x_test):
                digest.update(repr(x.shape).encode())
                digest.update(np.ascontiguousarray(x).data)
            sha256 = digest.hexdigest()
        return {
            "image_shape": list(self.image_shape),
            "num_train": len(self.x_train),
            "num_test": len(self.x_test),
            "range": [float(seen.min()), float(seen.max())],
            "sha256": sha256,
        }


def resolve(spec: str) -> str:
    """Checks the form of a `--dataset` value and makes its path absolute.

    Args:
      spec: `digits`, `mnist`, `fashion_mnist`, `npz:FILE`, `npy:FILE`, `stream:FILE.npy`,
        `images:FOLDER` or `tfrecord:GLOB`.

    Returns:
      The value, with an absolute path if it has one.

    Raises:
      click.BadParameter: If it is none of these.
    """
    kind, colon, file = spec.partition(":")
    if kind in ("npz", "npy", *streams.KINDS) and file:
        return f"{kind}:{pathlib.Path(file).expanduser().absolute()}"
    if kind in ("digits", *IDX_DATASETS) and not colon:
        return spec
    raise click.BadParameter(f"there is no dataset {spec!r}; choose {CHOICES}.")


def load(
    spec: str,
    data_dir: str | None = None,
    likelihood: str = "bernoulli",
    corrupt: str = "stop",
    trained: dict | None = None,
) -> ImageData:
    """Reads a dataset and checks that a model can be trained on it.

    Args:
      spec: A `--dataset` value (see `resolve`).
      data_dir: Folder of IDX files for `mnist` and `fashion_mnist`, or of folders of these names
        (`fashion-mnist` too) that hold them; None downloads them.
      likelihood: With `"bernoulli"` every value must lie within [0, 1].
      corrupt: `"stop"` or `"skip"`: what is done with corrupt images of a stream.
      trained: Of data that a trained model is to be tested on, the fingerprint of those that it was
        trained on. All of them are test images then, unless they come with a test set, or are the
        data of the training.

    Returns:
      The `ImageData`. Data that come without a test set are split 80/20, always in the same way;
      the test images of a stream are limited in number, as they are in memory.

    Raises:
      UserError: If something is wrong with the data.
    """
    kind, _, file = spec.partition(":")
    if data_dir is not None and kind not in IDX_DATASETS:
        raise UserError(
            f"--data-dir is for {' and '.join(IDX_DATASETS)}, not for {spec}; leave it out."
        )
    with short_of_memory(file or spec, _ON_DISK):
        if kind in streams.KINDS:
            data = ImageData(*streams.load(kind, file, likelihood, corrupt, trained))
        else:
            data = _load_in_memory(kind, file, data_dir, likelihood, trained)
        low, high = float(data.x_test.min()), float(data.x_test.max())
        if low < 0 or high > 1:
            note = f"Values are taken as they are; those of the test images go from {low:.6g} to "
            data = dataclasses.replace(data, notes=(*data.notes, f"{note}{high:.6g}."))
        return data if trained is None else _to_be_scored(data, spec, trained)


def _load_in_memory(
    kind: str, file: str, data_dir: str | None, likelihood: str, trained: dict | None
) -> ImageData:
    notes: list[str] = []
    if kind == "digits":
        arrays, source = _digits(), "digits"
    elif file:
        arrays = read_numpy(pathlib.Path(file), kind, _choose_arrays, notes, _ON_DISK)
        source = file
    elif data_dir is not None:
        arrays, source = _read_idx_folder(pathlib.Path(data_dir), kind), data_dir
    else:
        arrays, source = _download(kind), kind

    found = {name: arrays[name] for name in ("x_train", "x_test", "x") if name in arrays}
    at_least = 2 if trained is None else 1
    for name, array in found.items():
        pixels.check_array(array.shape, array.dtype, f"{source}: {name}", at_least)
    white = 1 if pixels.is_binary(list(found.values())) else 255
    of_bytes = [array.max() for array in found.values() if array.dtype == np.uint8]
    notes += pixels.of_bytes(white, max(of_bytes, default=0))
    x = {
        name: _as_images(array, white, f"{source}: {name}", likelihood)
        for name, array in found.items()
    }
    labels = {
        name[1:]: _as_labels(arrays[name], len(x["x" + name[1:]]), f"{source}: {name}")
        for name in ("y_train", "y_test", "y")
        if name in arrays
    }
    if "x_train" in x:
        train, test, y_test = x["x_train"], x["x_test"], labels.get("_test")
    elif trained is None:
        train, test, y_test = _split(x["x"], labels.get(""))
    else:
        train, test, y_test = x["x"][:0], x["x"], labels.get("")
    if train.shape[1:] != test.shape[1:]:
        raise UserError(
            f"{source}: training images have shape {pixels.shape_text(train.shape[1:])} but test "
            f"images {pixels.shape_text(test.shape[1:])}; they must be alike."
        )
    if file and (shared := pixels.num_shared(train, test)):
        notes.append(f"{shared} of {len(test)} test images are among the training images too.")
    return ImageData(train, test, y_test, tuple(notes))


def _to_be_scored(data: ImageData, spec: str, trained: dict) -> ImageData:
    """Data for a trained model, with a note of what of them is scored."""
    if not len(data.x_train) and len(data.x_test) > 1:
        split = ImageData(*_split(data.x_test, data.y_test), data.notes)
        data = split if split.is_that_of(trained) else data
    number, apart = len(data.x_test), len(data.x_train)
    if not apart:
        every = f"All {number} images of {spec} are" if number > 1 else f"The image of {spec} is"
        note = f"{every} scored."
    elif data.is_that_of(trained):
        note = (
            f"{spec} holds the data that the model was trained on: its {number} test images are "
            "scored."
        )
    else:
        note = f"The {number} test images of {spec} are scored, its {apart} training images not."
    return dataclasses.replace(data, notes=(*data.notes, note))


def check_network(network: str, spec: str, image_shape: tuple[int, ...]) -> None:
    """Checks that a network can be made for images of this shape.

    Raises:
      UserError: If the network is convolutional and the images are vectors, or too small.
    """
    if network != "mlp" and (len(image_shape) == 1 or min(image_shape[:2]) < _MIN_SIDE):
        raise UserError(
            f"--network {network} needs images of at least {_MIN_SIDE}x{_MIN_SIDE} pixels; those "
            f"of {spec} have shape {pixels.shape_text(image_shape)}; use --network mlp."
        )


def _split(x: np.ndarray, y: np.ndarray | None) -> tuple[np.ndarray, ...]:
    train, test = pixels.split(len(x))
    return x[train], x[test], None if y is None else y[test]


def _as_images(array: np.ndarray, white: int, what: str, likelihood: str) -> np.ndarray:
    x = pixels.to_float32(array, white)
    if problem := pixels.wrong_values(x, likelihood):
        raise UserError(f"{what}: {problem}.")
    return x


def _as_labels(array: np.ndarray, count: int, what: str) -> np.ndarray:
    if array.shape not in ((count,), (count, 1)):
        raise UserError(
            f"{what} has shape {array.shape}; expected one label for each of the {count} pixels."
        )
    return array.reshape(count)


def _digits() -> dict[str, np.ndarray]:
    from sklearn.datasets import load_digits

    digits = load_digits()
    return {"x": (digits.images / 16).astype(np.float32), "y": digits.target}


def _download(name: str) -> dict[str, np.ndarray]:
    # The devices start later: how, depends on the strategy.
    startup.import_tensorflow(start=lambda: None)
    import keras

    try:
        # Keras draws its download bar on stdout, which belongs to the results.
        with contextlib.redirect_stdout(sys.stderr):
            train, test = getattr(keras.datasets, name).load_data()
    except Exception as error:
        raise UserError(
            f"the download of {name} failed ({error}); give the folder of its four IDX files with "
            "--data-dir."
        ) from error
    return dict(zip(("x_train", "y_train", "x_test", "y_test"), (*train, *test), strict=True))


def read_numpy(
    path: pathlib.Path,
    kind: str,
    choose: Callable[[list[str], pathlib.Path], dict[str, str]],
    notes: list[str],
    advice: str,
) -> dict[str, np.ndarray]:
    """Reads the arrays of a NumPy file.

    Args:
      path: The file.
      kind: `"npz"` or `"npy"`; the one array of the latter is called `x`.
      choose: From the names of the arrays in an .npz file, and its path, what they are: our name ->
        name in the file. Others are not read.
      notes: Where it is noted which arrays are not read.
      advice: What to do where the memory is not enough.

    Returns:
      The arrays, by our names.

    Raises:
      UserError: If the file is of another kind or damaged, holds pickled objects, or needs more
        memory than there is.
    """
    check_regular(path)
    with path.open("rb") as file:
        if kind == "npy":
            _check_size(path, file, advice)
        elif file.read(2) != b"PK":
            raise UserError(f"{path}: is not an .npz file; write one with numpy.savez.")
    try:
        # Never unpickle: a pickle runs whatever code its author put in.
        loaded = np.load(path, allow_pickle=False)
        if kind == "npy":
            return {"x": loaded}
        with loaded:
            members = loaded.zip.namelist()
            arrays = [name.removesuffix(".npy") for name in members if name.endswith(".npy")]
            if members and not arrays:
                raise UserError(
                    f"{path}: is a zip archive of {members[0]} and the like, not of arrays; unpack "
                    "it, or write an .npz file with numpy.savez."
                )
            names = choose(arrays, path)
            if unread := sorted(set(loaded.files) - set(names.values())):
                notes.append(
                    f"Of {path} are read: {', '.join(sorted(names.values()))}; not read: "
                    f"{', '.join(unread)}."
                )
            for theirs in names.values():
                with loaded.zip.open(f"{theirs}.npy") as member:
                    _check_size(path / f"{theirs}.npy", member, advice)
            return {ours: np.asarray(loaded[theirs]) for ours, theirs in names.items()}
    except UserError:
        raise
    except Exception as error:  # Foreign bytes: zip, zlib, header and memory errors of many kinds.
        if isinstance(error, MemoryError):
            hint = f"; {advice}."
        else:
            hint = "; store numbers, not objects." * ("allow_pickle" in str(error))
        raise UserError(f"{path}: cannot be read as .{kind}: {error}{hint}") from error


def _check_size(path: pathlib.Path, file: BinaryIO, advice: str) -> None:
    """Checks that there is memory for an array, by its header, and for its copies as float32."""
    shape, _, dtype = streams.read_npy_header(file, path)
    check_memory(path, math.prod(shape) * (dtype.itemsize + 8), advice)


def _choose_arrays(files: list[str], path: pathlib.Path) -> dict[str, str]:
    """Which arrays of an .npz file are the images and labels: our name -> name in the file."""
    for x, y in (("x_train", "y_train"), ("x", "y"), ("images", "labels")):
        x_test, y_test = (f"{name.removesuffix('_train')}_test" for name in (x, y))
        if {x, x_test} <= set(files):
            wanted = {"x_train": x, "x_test": x_test, "y_train": y, "y_test": y_test}
        elif x in files and x != "x_train":
            wanted = {"x": x, "y": y}
        else:
            continue
        return {ours: theirs for ours, theirs in wanted.items() if theirs in files}
    if len(files) == 1:
        return {"x": files[0]}
    raise UserError(
        f"{path}: holds the arrays {', '.join(sorted(files)) or '(none)'}; expected x_train and "
        "x_test, or one array x (or images)."
    )


def _read_idx_folder(folder: pathlib.Path, dataset: str) -> dict[str, np.ndarray]:
    folders = (folder / name for name in (dataset, dataset.replace("_", "-")))
    folder = next((path for path in folders if path.is_dir()), folder)
    arrays, paths = {}, {}
    for name, file in _IDX_FILES.items():
        candidates = (folder / f"{file}.gz", folder / file)
        paths[name] = next((path for path in candidates if path.is_file()), None)
        if paths[name] is None:
            raise UserError(
                f"{candidates[0]}: no such file (nor {file} without .gz); --data-dir must name the "
                f"folder of the four IDX files of {dataset}."
            )
        arrays[name] = read_idx(paths[name], ndim=3 if name.startswith("x") else 1)
    for part in ("train", "test"):
        count, labels = len(arrays[f"x_{part}"]), len(arrays[f"y_{part}"])
        if count != labels:
            raise UserError(
                f"{paths[f'y_{part}']}: holds {labels} labels for {count} images; the files do "
                "not belong together."
            )
    return arrays


def read_idx(path: pathlib.Path, ndim: int) -> np.ndarray:
    """Reads one IDX file of unsigned bytes, gzipped if its name ends in `.gz`.

    Args:
      path: The file.
      ndim: How many dimensions it must have: 3 for images, 1 for labels.

    Returns:
      A uint8 array.

    Raises:
      UserError: If the magic number, the header or the length is not what it must be.
    """
    again = "download it again"
    header = 4 + 4 * ndim
    size, compressed = check_regular(path).st_size, path.suffix == ".gz"
    try:
        with (gzip.open if compressed else open)(path, "rb") as file:
            start = file.read(header)
            if len(start) < header:
                raise UserError(
                    f"{path}: truncated: expected a header of {header} bytes, found {len(start)} "
                    f"bytes; {again}."
                )
            magic = int.from_bytes(start[:4], "big")
            expected_magic = 0x0800 + ndim
            if magic != expected_magic:
                raise UserError(
                    f"{path}: wrong magic number: expected {expected_magic} (IDX "
                    f"{'images' if ndim == 3 else 'labels'}), found {magic}; it is another kind of "
                    "file."
                )
            shape = tuple(np.frombuffer(start, ">u4", ndim, offset=4).tolist())
            expected = math.prod(shape)
            # No more than what the header announces is read, and only if that can be in the file.
            most = min(expected, size * (_MOST_INFLATED if compressed else 1))
            check_memory(path, 9 * most, "it is not a data set for reading into memory")
            content = file.read(most + _BEYOND)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{path}: truncated or damaged gzip file ({error}); {again}.") from error
    if len(content) != expected:
        problem = "truncated" if len(content) < expected else "too long"
        more = "more than " * (len(content) == most + _BEYOND)
        raise UserError(
            f"{path}: {problem}: expected {expected} bytes for {pixels.shape_text(shape)} values, "
            f"found {more}{len(content)}; {again}."
        )
    return np.frombuffer(content, np.uint8).reshape(shape)
