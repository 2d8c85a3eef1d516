"""Images that cannot be used are refused in one line that names the file."""

import gzip
import os
import pathlib

import numpy as np
import pytest
from test_datasets import IDX_NAMES, idx_bytes, write_idx_folder


def test_images_that_convolutions_cannot_take(refused):
    for shape in ((4, 12), (4, 3, 9), (4, 9, 3, 3)):
        np.save("x.npy", np.zeros(shape))
        message = refused("train", "--dataset", "npy:x.npy", "--network", "dcgan")
        assert "--network dcgan needs images of at least 4x4 pixels; those of" in message
        assert f"have shape {'x'.join(map(str, shape[1:]))}; use --network mlp" in message


def x_and(**arrays):
    return {"x": np.zeros((4, 2, 2), np.uint8)} | arrays


def nan_in(x, count):
    x.flat[:count] = np.nan
    return x


@pytest.mark.parametrize(
    ("arrays", "expected"),
    [
        ({"x": nan_in(np.zeros((4, 2, 2)), 3)}, "x: 3 of 16 values are NaN or infinite"),
        ({"x": np.full((4, 2, 2), 1e300)}, "16 of 16 values are NaN or infinite (in float32)"),
        (
            {"x": np.linspace(-0.5, 1.5, 16).reshape(4, 4)},
            "8 of 16 values lie outside [0, 1] (they range from -0.5 to 1.5); rescale them, store "
            "0 to 255 as uint8, or use --likelihood gaussian",
        ),
        ({"x": np.full((4, 4), 255)}, "16 of 16 values lie outside [0, 1]"),
        ({"x": np.zeros(4)}, "shape (4,); expected [N, H, W], [N, H, W, C] or [N, D]"),
        ({"x": np.zeros(())}, "shape (); expected"),
        ({"x": np.zeros((4, 2, 2, 3, 1))}, "shape (4, 2, 2, 3, 1); expected"),
        ({"x": np.zeros((1, 2, 2))}, "shape (1, 2, 2); at least 2 images are needed"),
        ({"x": np.zeros((4, 0, 2))}, "shape (4, 0, 2); images must have at least 1 pixel"),
        ({"x": np.zeros((4, 2), complex)}, "dtype complex128; images must be uint8"),
        ({"x": np.full((4, 2), "a")}, "dtype <U1; images must be uint8"),
        ({"x": np.full((4, 2), None)}, "cannot be read as .npz: Object arrays cannot be loaded"),
        (x_and(y=np.zeros(3)), "y has shape (3,); expected one label for each of the 4 images"),
        ({"a": np.zeros((4, 2)), "b": np.zeros(1)}, "holds the arrays a, b; expected x_train and"),
        ({}, "holds the arrays (none); expected x_train and x_test"),
        (
            {"x_train": np.zeros((4, 2, 2)), "x_test": np.zeros((3, 2, 3))},
            "training images have shape 2x2 but test images 2x3",
        ),
        (
            {"x_train": np.zeros((4, 2)), "x_test": np.ones((3, 2)) * 2},
            "x_test: 6 of 6 values lie outside [0, 1]",
        ),
    ],
)
def test_mistakes_in_arrays(refused, arrays, expected):
    np.savez("images.npz", **arrays)
    message = refused("train", "--dataset", "npz:images.npz")
    assert expected in message
    assert "images.npz" in message


@pytest.mark.parametrize(
    ("kind", "content", "expected"),
    [
        ("npz", b"", "is not an .npz file; write one with numpy.savez"),
        ("npy", b"\x80\x04K\x01.", "is not an .npy file; write one with numpy.save."),
        ("npz", b"PK\x03\x04 and no more", "cannot be read as .npz"),
        ("npy", b"\x93NUMPY\x01\x00 and no more", "cannot be read as .npy"),
    ],
)
def test_files_that_are_something_else(refused, kind, content, expected):
    pathlib.Path("images").write_bytes(content)
    assert expected in refused("train", "--dataset", f"{kind}:images")


def test_truncated_numpy_files(refused):
    np.save("x.npy", np.zeros((4, 2, 2)))
    np.savez("x.npz", x=np.zeros((4, 2, 2)))
    for kind in ("npy", "npz"):
        path = pathlib.Path(f"x.{kind}")
        path.write_bytes(path.read_bytes()[:-30])
        assert f"cannot be read as .{kind}" in refused("train", "--dataset", f"{kind}:{path}")


def test_pickled_images_are_not_unpickled(refused):
    class Payload:
        def __reduce__(self):
            return (pathlib.Path.touch, (pathlib.Path("unpickled"),))

    np.save("x.npy", np.array([Payload()] * 4), allow_pickle=True)
    assert "Object arrays cannot be loaded" in refused("train", "--dataset", "npy:x.npy")


def test_missing_and_unreadable_files(refused):
    pathlib.Path("folder").mkdir()
    assert "nowhere.npz: No such file or directory" in refused(
        "train", "--dataset", "npz:nowhere.npz"
    )
    assert "folder: Is a directory" in refused("train", "--dataset", "npy:folder")


def break_idx(name, change, compress=True):
    """Rewrites one of the IDX files with `change` applied to its bytes."""
    path = pathlib.Path("data") / (name + ".gz" if compress else name)
    content = path.read_bytes()
    path.write_bytes(
        gzip.compress(change(gzip.decompress(content))) if compress else change(content)
    )


@pytest.mark.parametrize("compress", [True, False])
@pytest.mark.parametrize(
    ("name", "change", "expected"),
    [
        (0, lambda b: b[:-5], "truncated: expected 36 bytes for 6x3x2 values, found 31"),
        (1, lambda b: b[:-1], "truncated: expected 6 bytes for 6 values, found 5"),
        (2, lambda b: b + b"12", "too long: expected 24 bytes for 4x3x2 values, found 26"),
        (2, lambda b: b[:7], "truncated: expected a header of 16 bytes, found 7 bytes"),
        (3, lambda b: b"", "truncated: expected a header of 8 bytes, found 0 bytes"),
        (
            0,
            lambda b: idx_bytes(np.zeros(36)),
            "wrong magic number: expected 2051 (IDX images), found 2049",
        ),
        (3, lambda b: b"GIF89a" + b, "wrong magic number: expected 2049 (IDX labels), found 1195"),
        (3, lambda b: idx_bytes(np.zeros(3)), "holds 3 labels for 4 images"),
    ],
)
def test_damaged_idx_files(refused, name, change, expected, compress):
    pathlib.Path("data").mkdir()
    write_idx_folder(pathlib.Path("data"), compress=compress)
    break_idx(IDX_NAMES[name], change, compress)
    message = refused("train", "--dataset", "mnist", "--data-dir", "data")
    assert expected in message
    assert IDX_NAMES[name] in message


def test_idx_files_of_other_sizes_or_damaged_gzip_or_missing(refused):
    train = ("train", "--dataset", "fashion_mnist", "--data-dir", "data")
    folder = pathlib.Path("data")
    folder.mkdir()
    assert f"{IDX_NAMES[0]}.gz: no such file (nor {IDX_NAMES[0]} without .gz)" in refused(*train)

    write_idx_folder(folder)
    break_idx(IDX_NAMES[2], lambda b: idx_bytes(np.zeros((4, 2, 3))))
    assert "training images have shape 3x2 but test images 2x3" in refused(*train)

    break_idx(IDX_NAMES[0], lambda b: idx_bytes(np.zeros((0, 3, 2))))
    break_idx(IDX_NAMES[1], lambda b: idx_bytes(np.zeros(0)))
    assert "shape (0, 3, 2); at least 2 images are needed" in refused(*train)

    path = folder / f"{IDX_NAMES[0]}.gz"
    path.write_bytes(path.read_bytes()[:-9])
    assert f"{path.name}: truncated or damaged gzip file" in refused(*train)
    path.write_bytes(b"no gzip")
    assert f"{path.name}: truncated or damaged gzip file" in refused(*train)
    path.unlink()
    assert f"{path.name}: no such file" in refused(*train)


def test_failed_download(cli, monkeypatch):
    import keras

    def load_data():
        raise Exception("URL fetch failure on https://example.org:\nno route to host")

    monkeypatch.setattr(keras.datasets.mnist, "load_data", load_data)
    code, out, err = cli("train", "--dataset", "mnist")
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert "the download of mnist failed (URL fetch failure" in err
    assert "--data-dir" in err
    assert not os.listdir(".")
