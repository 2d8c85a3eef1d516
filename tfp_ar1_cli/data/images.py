"""Images for the command line; all except those of `streams` are read into memory."""

import contextlib
import dataclasses
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from tfp_ar1_cli import startup
from tfp_ar1_cli.data import idx, pixels, split, streams
from tfp_ar1_cli.data.arrays import read_numpy
from tfp_ar1_cli.data.decoding import AS_STORED, Form
from tfp_ar1_cli.data.files import short_of_memory
from tfp_ar1_cli.data.protocol import Data, sha256_of
from tfp_ar1_cli.errors import UserError

IDX_DATASETS = ("mnist", "fashion_mnist")
CHOICES = f"digits, mnist, fashion_mnist, npz:FILE, npy:FILE, idx:FOLDER, {streams.CHOICES}"
# The smallest side of images for the convolutional networks.
_MIN_SIDE = 4
_ON_DISK = "keep the images on disk, with --dataset stream:FILE.npy"
_EXPECTED = "x_train and x_test, or one array x (or images, imgs, data)"
# Names of images and labels in .npz files, in order of preference.
_IMAGES = ("x", "images", "imgs", "image", "img", "data", "samples", "features")
_LABELS = ("y", "labels", "label", "targets", "target")


@dataclasses.dataclass(frozen=True)
class ImageData(Data):
    """Images `[N, H, W]`, `[N, H, W, C]` or `[N, D]`; test labels and file names, if known."""

    y_test: np.ndarray | None = None
    names: list[str] | None = None

    noun, shape_key = "image", "image_shape"

    def hold_out(self, share: float) -> "ImageData":
        """See `Data`: drawn at random, with a fixed seed."""
        train, apart = split.shuffled(len(self.x_train), share, len(self.x_train) - 1)
        if isinstance(self.x_train, streams.Stream):
            left, held = self.x_train.hold_out(train, apart)
        else:
            left, held = self.x_train[train], self.x_train[apart]
        return dataclasses.replace(self, x_train=left, validation=held)

    def shape_text(self) -> str:
        """See `Data`."""
        return pixels.shape_text(self.data_shape)

    def _sha256(self) -> str:
        if isinstance(self.x_train, streams.Stream):
            return self.x_train.sha256
        return sha256_of((self.x_train, self.x_test))

    def _described(self) -> dict[str, Any]:
        on_disk = isinstance(self.x_train, streams.Stream)
        seen = self.x_test if on_disk else self.x_train
        return {"range": [float(seen.min()), float(seen.max())]}

    def is_that_of(self, trained: dict[str, Any]) -> bool:
        """See `Data`; False if all images are test images."""
        return len(self.x_train) > 0 and super().is_that_of(trained)


def load(
    spec: str,
    data_dir: str | None = None,
    likelihood: str = "bernoulli",
    corrupt: str = "stop",
    trained: dict[str, Any] | None = None,
    form: Form = AS_STORED,
    split_by: str | None = None,
) -> ImageData:
    """Reads images and checks that a model can be trained on them.

    Data without a test set are split 80/20, see `split_by`.

    Args:
      spec: A `--dataset` value, as `loading.resolve` returns it.
      data_dir: The folder of the IDX files of `mnist` and `fashion_mnist`, or one with subfolders
        of these names (also `fashion-mnist`); None downloads them.
      likelihood: See `DataOptions`.
      corrupt: See `DataOptions`.
      trained: To test a trained model: the fingerprint of its training data. All images are then
        test images, unless they come with a test set or are the training data.
      form: The form that images in files and records are converted to.
      split_by: See `DataOptions.split`.

    Raises:
      UserError: If something is wrong with the data; the message names the file and a remedy.
    """
    kind, _, file = spec.partition(":")
    if data_dir is not None and kind not in IDX_DATASETS:
        raise UserError(
            f"--data-dir is for {' and '.join(IDX_DATASETS)}, not for {spec}; leave it out."
        )
    with short_of_memory(file or spec, _ON_DISK):
        if kind in streams.KINDS:
            sha256 = None if trained is None else str(trained.get("sha256"))
            train, test, labels, names, noted = streams.load(
                kind, file, likelihood, corrupt, sha256, form, split_by
            )
            data = ImageData(train, test, labels, names, notes=tuple(noted))
        else:
            data = _load_in_memory(kind, file, data_dir, likelihood, trained, split_by)
        low, high = float(data.x_test.min()), float(data.x_test.max())
        if low < 0 or high > 1:
            note = f"Values are taken as they are; those of the test images go from {low:.6g} to "
            data = dataclasses.replace(data, notes=(*data.notes, f"{note}{high:.6g}."))
        return data if trained is None else _to_be_scored(data, spec, trained, split_by)


def _load_in_memory(
    kind: str,
    file: str,
    data_dir: str | None,
    likelihood: str,
    trained: dict | None,
    split_by: str | None,
) -> ImageData:
    notes: list[str] = []
    source = file or data_dir or kind
    if kind == "digits":
        arrays = _digits()
    elif kind == "idx":
        arrays = idx.read_folder(pathlib.Path(file), notes)
    elif file:
        path = pathlib.Path(file)
        arrays = read_numpy(path, kind, _choose_arrays, _EXPECTED, notes, _ON_DISK)
    elif data_dir is not None:
        arrays = idx.read_named(pathlib.Path(data_dir), kind)
    else:
        arrays = _download(kind)

    x = {name: arrays[name] for name in ("x_train", "x_test", "x") if name in arrays}
    for name, array in x.items():
        at_least = 2 if trained is None else 1
        pixels.check_array(array.shape, array.dtype, f"{source}: {name}", at_least)
        if pixels.channels_first(array.shape):
            notes.append(pixels.moved(name, array.shape))
            x[name] = np.moveaxis(array, 1, -1)
    greatest = max((array.max() for array in x.values() if array.dtype == np.uint8), default=0)
    white = pixels.white_of(greatest)
    notes += pixels.of_bytes(white, greatest)
    for name, array in x.items():
        x[name] = pixels.to_float32(array, white)
        if problem := pixels.wrong_values(x[name], likelihood):
            raise UserError(f"{source}: {name}: {problem}.")
    labels: dict[str, np.ndarray | None] = {}
    for name, array in x.items():
        if (y := f"y{name[1:]}") in arrays:
            labels[name] = _as_labels(arrays[y], len(array), f"{source}: {y}", notes)
    if "x_train" in x:
        train, test, y_test = x["x_train"], x["x_test"], labels.get("x_test")
    elif trained is None:
        train, test, y_test = _split(x["x"], labels.get("x"), split_by)
    else:
        train, test, y_test = x["x"][:0], x["x"], labels.get("x")
    if train.shape[1:] != test.shape[1:]:
        raise UserError(
            f"{source}: training images have shape {pixels.shape_text(train.shape[1:])} but test "
            f"images {pixels.shape_text(test.shape[1:])}; they must match."
        )
    if file and (shared := pixels.num_shared(train, test)):
        notes.append(f"{shared} of {len(test)} test images are also among the training images.")
    return ImageData(train, test, y_test, notes=tuple(notes))


def _to_be_scored(data: ImageData, spec: str, trained: dict, split_by: str | None) -> ImageData:
    """Data for a trained model, with a note that says which images are scored."""
    if not len(data.x_train) and len(data.x_test) > 1:
        parts = ImageData(*_split(data.x_test, data.y_test, split_by), notes=data.notes)
        data = parts if parts.is_that_of(trained) else data
    number, apart = len(data.x_test), len(data.x_train)
    if not apart:
        every = f"All {number} images of {spec} are" if number > 1 else f"The image of {spec} is"
        note = f"{every} scored."
    elif data.is_that_of(trained):
        note = f"{spec} holds the data that the model was trained on: its {number} test images "
        note += "are scored."
    else:
        note = f"The {number} test images of {spec} are scored, not its {apart} training images."
    return dataclasses.replace(data, notes=(*data.notes, note))


def check_network(network: str, spec: str, image_shape: tuple[int, ...]) -> None:
    """Raises a `UserError` if the network is convolutional and the images are vectors or small."""
    if network != "mlp" and (len(image_shape) == 1 or min(image_shape[:2]) < _MIN_SIDE):
        raise UserError(
            f"--network {network} needs images of at least {_MIN_SIDE}x{_MIN_SIDE} pixels; those "
            f"of {spec} have shape {pixels.shape_text(image_shape)}; use --network mlp."
        )


def _split(
    x: np.ndarray, y: np.ndarray | None, split_by: str | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    train, test = split.stable(len(x)) if split_by == "stable" else split.shuffled(len(x))
    return x[train], x[test], None if y is None else y[test]


def _as_labels(array: np.ndarray, count: int, what: str, notes: list[str]) -> np.ndarray | None:
    if array.shape[:1] != (count,):
        raise UserError(
            f"{what} has shape {array.shape}; expected one label for each of the {count} images; "
            "give it another name if it is something else."
        )
    if array.size != count:
        notes.append(
            f"{what} has shape {array.shape}, not one label for each image; it is not used."
        )
        return None
    return array.reshape(count)


def _choose_arrays(names: list[str]) -> dict[str, str]:
    """Finds the images and labels of an .npz file: our name -> name in the file."""
    # Exact names come first, then names in any case.
    found = {name.lower(): name for name in names} | {name: name for name in names}

    def find(stems: Sequence[str], part: str = "") -> str | None:
        forms = ("{0}_{1}", "{1}_{0}", "{0}{1}", "{1}{0}") if part else ("{0}",)
        wanted = (form.format(stem, part) for stem in stems for form in forms)
        return next((found[name] for name in wanted if name in found), None)

    for stem in _IMAGES:
        labels = _LABELS if stem == "x" else (*_LABELS[1:], "y")
        whole, train, test = find([stem]), find([stem], "train"), find([stem], "test")
        if (train or whole) and test:
            wanted = {"x_train": train or whole, "x_test": test}
            wanted |= {"y_train": find(labels, "train" if train else "")}
            wanted |= {"y_test": find(labels, "test")}
        elif whole or train:
            wanted = {"x": whole or train, "y": find(labels, "" if whole else "train")}
        else:
            continue
        return {ours: theirs for ours, theirs in wanted.items() if theirs}
    return {}


def _digits() -> dict[str, np.ndarray]:
    from sklearn.datasets import load_digits

    x, y = map(np.asarray, load_digits(return_X_y=True))
    return {"x": (x.reshape(-1, 8, 8) / 16).astype(np.float32), "y": y}


def _download(name: str) -> dict[str, np.ndarray]:
    # The devices start later, in a way that depends on the strategy.
    startup.import_backend(start=lambda: None)
    import keras

    try:
        # Keras draws its progress bar on stdout, which is reserved for results.
        with contextlib.redirect_stdout(sys.stderr):
            train, test = getattr(keras.datasets, name).load_data()
    except Exception as error:
        raise UserError(
            f"the download of {name} failed ({error}); give the folder of its four IDX files with "
            "--data-dir."
        ) from error
    return dict(zip(("x_train", "y_train", "x_test", "y_test"), (*train, *test), strict=True))
