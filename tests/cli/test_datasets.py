"""Reading images: IDX files, NumPy files, the digits; what is refused is in `test_cli`, too."""

import dataclasses
import gzip
import os
import pathlib

import click
import numpy as np
import pytest

from tfp_ar1_cli.data import images as datasets
from tfp_ar1_cli.data import loading
from tfp_ar1_cli.data.protocol import DataOptions
from tfp_ar1_cli.errors import UserError

IDX_NAMES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


def idx_bytes(array):
    """An IDX file of unsigned bytes."""
    header = [0x0800 + array.ndim, *array.shape]
    return b"".join(n.to_bytes(4, "big") for n in header) + array.astype(np.uint8).tobytes()


def write_idx_folder(folder, num_train=6, num_test=4, size=(3, 2), compress=True):
    """Writes four IDX files of random images, and returns the arrays in the order of IDX_NAMES."""
    rng = np.random.default_rng(0)
    arrays = []
    for name in IDX_NAMES:
        count = num_train if name.startswith("train") else num_test
        shape = (count, *size) if "images" in name else (count,)
        arrays.append(rng.integers(0, 256, shape))
        content = idx_bytes(arrays[-1])
        if compress:
            (folder / f"{name}.gz").write_bytes(gzip.compress(content))
        else:
            (folder / name).write_bytes(content)
    return arrays


@pytest.mark.parametrize(
    ("dataset", "folder", "compress"),
    [
        ("mnist", ".", True),
        ("fashion_mnist", ".", False),
        ("fashion_mnist", "fashion_mnist", True),
        ("fashion_mnist", "fashion-mnist", True),
    ],
)
def test_idx_folder(tmp_path, dataset, folder, compress):
    (tmp_path / folder).mkdir(exist_ok=True)
    x_train, _, x_test, y_test = write_idx_folder(tmp_path / folder, compress=compress)
    if compress:  # Then those that are not compressed are not read.
        for name in IDX_NAMES:
            (tmp_path / folder / name).write_bytes(b"not read")
    data = datasets.load(dataset, str(tmp_path))
    np.testing.assert_allclose(data.x_train, x_train / 255, rtol=1e-6)
    np.testing.assert_allclose(data.x_test, x_test / 255, rtol=1e-6)
    np.testing.assert_array_equal(data.y_test, y_test)
    assert data.x_train.dtype == np.float32
    assert data.data_shape == (3, 2)
    if folder != ".":
        with pytest.raises(UserError, match="folder of the four IDX files of mnist"):
            datasets.load("mnist", str(tmp_path))


def test_digits():
    data = datasets.load("digits")
    assert data.x_train.shape == (1438, 8, 8)
    assert data.x_test.shape == (359, 8, 8)
    assert data.y_test.shape == (359,)
    assert data.x_train.min() == 0
    assert data.x_train.max() == 1
    np.testing.assert_array_equal(data.x_test, datasets.load("digits").x_test)


def save(path, **arrays):
    np.savez(path, **arrays)
    return f"npz:{path}"


@pytest.mark.parametrize("shape", [(10, 4, 5), (10, 4, 5, 3), (10, 7)])
def test_shapes_of_own_images(tmp_path, shape):
    x = np.random.default_rng(0).random(shape)
    np.save(tmp_path / "x.npy", x)
    data = datasets.load(f"npy:{tmp_path / 'x.npy'}")
    assert data.data_shape == shape[1:]
    assert (len(data.x_train), len(data.x_test), data.y_test) == (8, 2, None)
    # Every image is in one of the two parts.
    both = np.concatenate([data.x_train, data.x_test]).reshape(10, -1)
    np.testing.assert_allclose(np.sort(both, 0), np.sort(x.reshape(10, -1), 0), rtol=1e-6)


@pytest.mark.parametrize(
    ("images", "labels"), [("x", "y"), ("images", "labels"), ("anything", None)]
)
def test_one_array_is_split_with_its_labels(tmp_path, images, labels):
    x = np.arange(10, dtype=np.uint8)[:, None] * np.ones((1, 4), np.uint8)
    arrays = {images: x} | ({labels: np.arange(10)} if labels else {})
    data = datasets.load(save(tmp_path / "x.npz", **arrays))
    if labels:
        np.testing.assert_allclose(data.x_test[:, 0] * 255, data.y_test, rtol=1e-6)
    np.testing.assert_allclose(sorted([*data.x_train[:, 0], *data.x_test[:, 0]]), x[:, 0] / 255)


def test_named_train_and_test_arrays(tmp_path):
    x = np.random.default_rng(0).random((7, 3, 3))
    data = datasets.load(save(tmp_path / "x.npz", x_train=x, x_test=x[:3], y_test=np.arange(3)))
    np.testing.assert_allclose(data.x_train, x, rtol=1e-6)
    np.testing.assert_allclose(data.x_test, x[:3], rtol=1e-6)
    np.testing.assert_array_equal(data.y_test, [0, 1, 2])


def test_only_unsigned_bytes_are_divided(tmp_path):
    x = np.arange(24).reshape(4, 6)
    as_bytes = datasets.load(save(tmp_path / "a.npz", x=x.astype(np.uint8)))
    as_floats = datasets.load(save(tmp_path / "b.npz", x=x), likelihood="gaussian")
    np.testing.assert_allclose(as_bytes.x_train * 255, as_floats.x_train, rtol=1e-6)


def test_fingerprint_tells_datasets_apart(tmp_path):
    x = np.random.default_rng(0).random((6, 2, 3))
    other = x.copy()
    other[5, 1, 2] += 1e-3

    def fingerprint(x):
        return datasets.load(save(tmp_path / "x.npz", x=x), likelihood="gaussian").fingerprint()

    assert fingerprint(x) == fingerprint(x)
    assert fingerprint(x)["image_shape"] == [2, 3]
    assert fingerprint(x)["sha256"] != fingerprint(other)["sha256"]
    assert fingerprint(x)["sha256"] != fingerprint(x.reshape(6, 6))["sha256"]


def test_download(monkeypatch, capsys):
    import keras

    def load_data():
        print("the bar of the download")
        x = np.full((5, 2, 2), 51, np.uint8)
        return (x, np.arange(5)), (x[:3], np.arange(3))

    monkeypatch.setattr(keras.datasets.fashion_mnist, "load_data", load_data)
    data = datasets.load("fashion_mnist")
    np.testing.assert_allclose(data.x_train, np.full((5, 2, 2), 0.2), rtol=1e-6)
    np.testing.assert_array_equal(data.y_test, [0, 1, 2])
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("spec", ["", "cifar", "mnist:x", "npz", "npz:", "csv:x", "npy", ":x"])
def test_unknown_names_are_refused(spec):
    with pytest.raises(click.BadParameter, match="choose digits, mnist, fashion_mnist, npz:FILE"):
        datasets.resolve(spec)


def test_paths_are_made_absolute(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert datasets.resolve("npz:x.npz") == f"npz:{pathlib.Path.cwd() / 'x.npz'}"
    assert datasets.resolve("digits") == "digits"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dataset", "folder"), [("mnist", "mnist"), ("fashion_mnist", "fashion-mnist")]
)
def test_real_files(dataset, folder):
    root = os.environ.get("TFP_AR1_DATA_DIR")
    if root is None:
        pytest.skip("set TFP_AR1_DATA_DIR to a folder with mnist/ and fashion-mnist/ to read them")
    data = datasets.load(dataset, os.path.join(root, folder))
    assert data.x_train.shape == (60000, 28, 28)
    assert data.x_test.shape == (10000, 28, 28)
    np.testing.assert_array_equal(np.unique(data.y_test), np.arange(10))
    assert (data.x_train.min(), data.x_train.max()) == (0, 1)


def test_images_and_series_behind_one_load(tmp_path):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).random((10, 6, 2)))
    options = DataOptions(dataset=f"npy:{tmp_path / 'x.npy'}")
    data = loading.load(options)
    assert data.describe() == "8 training and 2 test images of 6x2"
    assert len(loading.load(options, {"sha256": "of others"}, whole=True).test) == 10
    options = dataclasses.replace(options, model="sequence", likelihood="gaussian", window=3)
    data = loading.load(options)
    assert data.describe() == "16 training and 4 test windows of 3 steps, 2 channels"
    assert data.test.keys() == {"x", "length"}
    again = loading.load(dataclasses.replace(options, window=None), data.fingerprint(), whole=True)
    assert again.is_that_of(data.fingerprint())
    assert loading.resolve("gunpoint", "sequence") == "gunpoint"
