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
import re
import sys
import zlib
from collections.abc import Callable

import click
import numpy as np

from tfp_ar1.cli import images, startup, streams
from tfp_ar1.cli.errors import UserError

IDX_DATASETS = ("mnist", "fashion_mnist")
CHOICES = f"digits, mnist, fashion_mnist, npz:FILE, npy:FILE, {streams.CHOICES}"
# Of images for the convolutional networks.
_MIN_SIDE = 4
_IDX_FILES = {
    "x_train": "train-images-idx3-ubyte",
    "y_train": "train-labels-idx1-ubyte",
    "x_test": "t10k-images-idx3-ubyte",
    "y_test": "t10k-labels-idx1-ubyte",
}


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Train and test images, float32 `[N, *image_shape]`, and the test labels if known.

    Of a source that stays on disk, `x_train` is a stream; `note` may then say how the test images
    were chosen.
    """

    x_train: np.ndarray | streams.Stream
    x_test: np.ndarray
    y_test: np.ndarray | None = None
    note: str | None = None

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

    def fingerprint(self) -> dict:
        """What identifies the data in a run's config.

        Of images on disk, `sha256` is that of samples, and `range` that of the test images.
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


def short_name(spec: str) -> str:
    """A `--dataset` value as a name for folders and titles: `digits`, or the stem of the file."""
    kind, _, file = spec.partition(":")
    stem = pathlib.Path(file).stem if file else kind
    # What is left of a pattern without its wildcards.
    return re.sub(r"\[.*?\]|[*?]", "", stem).strip("-_.") or kind if kind == "tfrecord" else stem


def is_stream(spec: str) -> bool:
    """Whether the images of a `--dataset` value stay on disk."""
    return spec.partition(":")[0] in streams.KINDS


def load(
    spec: str,
    data_dir: str | None = None,
    likelihood: str = "bernoulli",
    corrupt: str = "stop",
) -> Dataset:
    """Reads a dataset and checks that a model can be trained on it.

    Args:
      spec: A `--dataset` value (see `resolve`).
      data_dir: Folder of IDX files for `mnist` and `fashion_mnist`, or of folders of these names
        (`fashion-mnist` too) that hold them; None downloads them.
      likelihood: With `"bernoulli"` every value must lie within [0, 1].
      corrupt: `"stop"` or `"skip"`: what is done with corrupt images of a stream.

    Returns:
      The `Dataset`. Data that come without a test set are split 80/20, always in the same way; the
      test images of a stream are limited in number, as they are in memory.

    Raises:
      UserError: If something is wrong with the data.
    """
    kind, _, file = spec.partition(":")
    if data_dir is not None and kind not in IDX_DATASETS:
        raise UserError(
            f"--data-dir is for {' and '.join(IDX_DATASETS)}, not for {spec}; leave it out."
        )
    if kind in streams.KINDS:
        train, test, note = streams.load(kind, file, likelihood, corrupt)
        return Dataset(train, test, note=note)
    if kind == "digits":
        arrays, source = _digits(), "digits"
    elif file:
        arrays, source = read_numpy(pathlib.Path(file), kind, _choose_arrays), file
    elif data_dir is not None:
        arrays, source = _read_idx_folder(pathlib.Path(data_dir), kind), data_dir
    else:
        arrays, source = _download(kind), kind

    x = {
        name: _as_images(arrays[name], f"{source}: {name}", likelihood)
        for name in ("x_train", "x_test", "x")
        if name in arrays
    }
    labels = {
        name[1:]: _as_labels(arrays[name], len(x["x" + name[1:]]), f"{source}: {name}")
        for name in ("y_train", "y_test", "y")
        if name in arrays
    }
    if "x" in x:
        return _split(x["x"], labels.get(""))
    train, test = x["x_train"], x["x_test"]
    if train.shape[1:] != test.shape[1:]:
        raise UserError(
            f"{source}: training images have shape {images.shape_text(train.shape[1:])} but test "
            f"images {images.shape_text(test.shape[1:])}; they must be alike."
        )
    return Dataset(train, test, labels.get("_test"))


def check_network(network: str, spec: str, image_shape: tuple[int, ...]) -> None:
    """Checks that a network can be made for images of this shape.

    Raises:
      UserError: If the network is convolutional and the images are vectors, or too small.
    """
    if network != "mlp" and (len(image_shape) == 1 or min(image_shape[:2]) < _MIN_SIDE):
        raise UserError(
            f"--network {network} needs images of at least {_MIN_SIDE}x{_MIN_SIDE} pixels; those "
            f"of {spec} have shape {images.shape_text(image_shape)}; use --network mlp."
        )


def _split(x: np.ndarray, y: np.ndarray | None) -> Dataset:
    train, test = images.split(len(x))
    return Dataset(x[train], x[test], None if y is None else y[test])


def _as_images(array: np.ndarray, what: str, likelihood: str) -> np.ndarray:
    images.check_array(array.shape, array.dtype, what)
    x = images.to_float32(array)
    if problem := images.wrong_values(x, likelihood):
        raise UserError(f"{what}: {problem}.")
    return x


def _as_labels(array: np.ndarray, count: int, what: str) -> np.ndarray:
    if array.shape not in ((count,), (count, 1)):
        raise UserError(
            f"{what} has shape {array.shape}; expected one label for each of the {count} images."
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
    path: pathlib.Path, kind: str, choose: Callable[[list[str], pathlib.Path], dict[str, str]]
) -> dict[str, np.ndarray]:
    """Reads the arrays of a NumPy file.

    Args:
      path: The file.
      kind: `"npz"` or `"npy"`; the one array of the latter is called `x`.
      choose: From the names of the arrays in an .npz file, and its path, what they are: our name ->
        name in the file. Others are not read.

    Returns:
      The arrays, by our names.

    Raises:
      UserError: If the file is of another kind or damaged, or holds pickled objects.
    """
    magic = {"npz": b"PK", "npy": b"\x93NUMPY"}[kind]
    with path.open("rb") as file:
        start = file.read(len(magic))
    if start != magic:
        raise UserError(
            f"{path}: is not an .{kind} file; write one with numpy.save{'z' * (kind == 'npz')}."
        )
    try:
        # Never unpickle: a pickle runs whatever code its author put in.
        loaded = np.load(path, allow_pickle=False)
        if kind == "npy":
            return {"x": loaded}
        with loaded:
            names = choose(loaded.files, path)
            return {ours: np.asarray(loaded[theirs]) for ours, theirs in names.items()}
    except UserError:
        raise
    except Exception as error:  # Foreign bytes: zip, zlib, header and memory errors of many kinds.
        raise UserError(f"{path}: cannot be read as .{kind}: {error}") from error


def _choose_arrays(files: list[str], path: pathlib.Path) -> dict[str, str]:
    """Which arrays of an .npz file are the images and labels: our name -> name in the file."""
    if {"x_train", "x_test"} <= set(files):
        wanted = ("x_train", "x_test", "y_train", "y_test")
        return {name: name for name in wanted if name in files}
    for x, labels in (("x", "y"), ("images", "labels")):
        if x in files:
            return {"x": x} | ({"y": labels} if labels in files else {})
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
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
            content = file.read()
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{path}: truncated or damaged gzip file ({error}); {again}.") from error
    header = 4 + 4 * ndim
    if len(content) < header:
        raise UserError(
            f"{path}: truncated: expected a header of {header} bytes, found {len(content)} bytes; "
            f"{again}."
        )
    magic = int.from_bytes(content[:4], "big")
    expected_magic = 0x0800 + ndim
    if magic != expected_magic:
        raise UserError(
            f"{path}: wrong magic number: expected {expected_magic} (IDX "
            f"{'images' if ndim == 3 else 'labels'}), found {magic}; it is another kind of file."
        )
    shape = tuple(np.frombuffer(content, ">u4", ndim, offset=4).tolist())
    expected, found = math.prod(shape), len(content) - header
    if found != expected:
        problem = "truncated" if found < expected else "too long"
        raise UserError(
            f"{path}: {problem}: expected {expected} bytes for {images.shape_text(shape)} values, "
            f"found {found}; {again}."
        )
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)
