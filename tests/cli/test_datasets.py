"""Images in arrays and IDX files: read right, or refused in one line that says what to do."""

import gzip
import io
import os
import pathlib
import re
import socket
import zipfile

import click
import data_files
import numpy as np
import pytest
from data_files import GRAY, IDX_NAMES, all_images, idx_bytes, in_order, npy, npz, refusal

from tfp_ar1_cli.data import files, loading, pixels, series, series_files, tables
from tfp_ar1_cli.data import images as datasets

BYTES = GRAY[:20]
NAN = np.nan
HERE = pathlib.Path()

# What is read


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
    x_train, _, x_test, y_test = data_files.idx_folder(tmp_path / folder, compress)
    if compress:  # Then those that are not compressed are not read.
        for name in IDX_NAMES:
            (tmp_path / folder / name).write_bytes(b"not read")
    data = datasets.load(dataset, str(tmp_path))
    np.testing.assert_allclose(data.x_train, x_train / 255, rtol=1e-6)
    np.testing.assert_allclose(data.x_test, x_test / 255, rtol=1e-6)
    np.testing.assert_array_equal(data.y_test, y_test)
    assert (data.x_train.dtype, data.data_shape) == (np.float32, (3, 2))
    if folder != ".":
        assert "folder of the four IDX files of mnist" in refusal(
            datasets.load, "mnist", str(tmp_path)
        )


def test_digits():
    data = datasets.load("digits")
    assert (data.x_train.shape, data.x_test.shape) == ((1438, 8, 8), (359, 8, 8))
    assert data.y_test.shape == (359,)
    assert (data.x_train.min(), data.x_train.max()) == (0, 1)
    np.testing.assert_array_equal(data.x_test, datasets.load("digits").x_test)


@pytest.mark.parametrize("names", [("x", "y"), ("images", "labels"), ("anything", None)])
@pytest.mark.parametrize("shape", [(10, 4, 5), (10, 4, 5, 3), (10, 7)])
def test_one_array_is_split_with_its_labels(tmp_path, names, shape):
    x = np.random.default_rng(0).random(shape)
    first = x.reshape(10, -1)[:, 0] = np.arange(10) / 10
    arrays = {names[0]: x} | ({names[1]: np.arange(10)} if names[1] else {})
    data = datasets.load(npz(tmp_path, **arrays))
    assert (len(data.x_train), len(data.x_test), data.data_shape) == (8, 2, shape[1:])
    # Every image is in one of the two parts.
    np.testing.assert_allclose(all_images(data), in_order(x), rtol=1e-6)
    if names[1]:
        np.testing.assert_allclose(data.x_test.reshape(2, -1)[:, 0], first[data.y_test])
    else:
        assert data.y_test is None


@pytest.mark.parametrize(
    "names",
    [("x_train", "x_test", "y_test"), ("x", "x_test", "y_test"), ("images", "images_test", None)],
)
def test_the_test_part_of_an_npz_file(tmp_path, names):
    x, x_test, y_test = names
    labels = {y_test or "labels_test": np.arange(4)}
    data = datasets.load(npz(tmp_path, **{x: BYTES[:16], x_test: BYTES[16:]}, **labels))
    np.testing.assert_allclose(data.x_train, BYTES[:16] / 255, rtol=1e-6)
    np.testing.assert_allclose(data.x_test, BYTES[16:] / 255, rtol=1e-6)
    np.testing.assert_array_equal(data.y_test, np.arange(4))
    assert not data.notes


def test_notes_of_an_npz_file(tmp_path):
    """Arrays that are not read, and images that are in both sets."""
    of = f"Read from {tmp_path / 'own.npz'}: "
    data = datasets.load(npz(tmp_path, x=BYTES, y=np.arange(20), x_val=BYTES, mask=BYTES))
    assert f"{of}x, y; not read: mask, x_val." in data.notes
    walks = np.random.default_rng(0).normal(size=(12, 7))
    data = series.load(npz(tmp_path, x=walks, y=np.arange(12), mask_test=walks > 0))
    assert f"{of}x; not read: mask_test, y." in data.notes
    data = datasets.load(npz(tmp_path, x_train=BYTES[:16], x_test=BYTES[14:]))
    assert "2 of 6 test images are also among the training images." in data.notes


@pytest.mark.parametrize(
    ("x", "expected", "note"),
    [
        (BYTES % 2, BYTES % 2, "All bytes of the images are 0 or 1, so they are not scaled"),
        (BYTES, BYTES / 255, None),
        (BYTES % 17, BYTES % 17 / 255, "at most 16, which are divided by 255; if 16 is white"),
        (BYTES % 2 == 1, BYTES % 2, None),
        ((BYTES / 255).astype(">f4"), BYTES / 255, None),
        (BYTES.astype(">u2") / 1000, BYTES / 1000, None),
        ((BYTES % 2).astype(np.int64), BYTES % 2, None),
        (np.asfortranarray(BYTES), BYTES / 255, None),
    ],
)
def test_what_is_white(tmp_path, x, expected, note):
    for kind in ("npy", "stream") if x.flags.c_contiguous else ("npy",):
        data = datasets.load(npy(tmp_path, x, kind))
        np.testing.assert_allclose(all_images(data), in_order(expected), rtol=1e-6)
        assert (note is None) == (not data.notes)
        assert (note or "") in " ".join(data.notes)


def test_white_is_that_of_training_and_test_images_together(tmp_path):
    dark = BYTES[:4] % 2
    data = datasets.load(npz(tmp_path, x_train=BYTES, x_test=dark))
    np.testing.assert_allclose(data.x_test, dark / 255, rtol=1e-6)
    data = datasets.load(npz(tmp_path, x_train=BYTES[4:] % 2, x_test=dark))
    np.testing.assert_array_equal(data.x_test, dark)


def test_the_fingerprint_tells_data_apart(tmp_path):
    def sha256(load, x, **more):
        return load(npz(tmp_path, x=x, **more), likelihood="gaussian").fingerprint()["sha256"]

    x = np.random.default_rng(0).random((6, 2, 3))
    other = x.copy()
    other[5, 1, 2] += 1e-3
    for load in (datasets.load, series.load):
        found = [sha256(load, array) for array in (x, other, x.reshape(6, 3, 2), x)]
        assert found[0] == found[3]
        assert len(set(found)) == 3
    assert sha256(series.load, x, x_test=other) != sha256(series.load, x, x_test=x)
    x = x.reshape(6, 6)
    assert sha256(series.load, x, length=[6] * 6) != sha256(series.load, x, length=[6] * 5 + [5])


@pytest.mark.parametrize(
    ("model", "expected", "wrong"),
    [
        ("image", "choose digits, mnist, fashion_mnist, npz:FILE", ["cifar", "mnist:x", "csv:x"]),
        ("sequence", "choose pig_cvp, basic_motions, gunpoint, or a FILE", ["mnist", "pig_cvp:x"]),
    ],
)
def test_names_and_paths(monkeypatch, tmp_path, model, expected, wrong):
    for spec in (*wrong, "", "npz", "npz:", "npy", ":x", "txt:x"):
        with pytest.raises(click.BadParameter, match=expected):
            loading.resolve(spec, model)
    monkeypatch.chdir(tmp_path)
    assert loading.resolve("npz:x.npz", model) == f"npz:{pathlib.Path.cwd() / 'x.npz'}"
    for spec in ("digits",) if model == "image" else ("gunpoint", "pig_cvp"):
        assert loading.resolve(spec, model) == spec


@pytest.mark.slow
@pytest.mark.parametrize("dataset", ["mnist", "fashion_mnist"])
def test_real_files(dataset):
    root = os.environ.get("TFP_AR1_DATA_DIR")
    if root is None:
        pytest.skip("set TFP_AR1_DATA_DIR to a folder with mnist/ and fashion-mnist/ to read them")
    data = datasets.load(dataset, os.path.join(root, dataset.replace("_", "-")))
    assert (data.x_train.shape, data.x_test.shape) == ((60000, 28, 28), (10000, 28, 28))
    np.testing.assert_array_equal(np.unique(data.y_test), np.arange(10))
    assert (data.x_train.min(), data.x_train.max()) == (0, 1)


def test_download(cli, monkeypatch, capfd):
    import keras

    def load_data():
        print("the bar of the download")
        x = np.full((5, 2, 2), 51, np.uint8)
        return (x, np.arange(5)), (x[:3], np.arange(3))

    def fail():
        raise Exception("URL fetch failure on https://example.org:\nno route to host")

    monkeypatch.setattr(keras.datasets.fashion_mnist, "load_data", load_data)
    data = datasets.load("fashion_mnist")
    np.testing.assert_allclose(data.x_train, np.full((5, 2, 2), 0.2), rtol=1e-6)
    np.testing.assert_array_equal(data.y_test, [0, 1, 2])
    assert capfd.readouterr().out == ""
    monkeypatch.setattr(keras.datasets.mnist, "load_data", fail)
    code, out, err = cli("train", "--dataset", "mnist")
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert "the download of mnist failed (URL fetch failure" in err
    assert "--data-dir" in err
    assert not os.listdir(".")


# What is refused


def nan_in(x, count):
    x.flat[:count] = NAN
    return x


@pytest.mark.parametrize(
    ("x", "expected"),
    [
        (np.zeros(4), "shape (4,); expected [N, H, W], [N, H, W, C] or [N, D]"),
        (np.zeros(()), "shape (); expected"),
        (np.zeros((4, 2, 2, 3, 1)), "shape (4, 2, 2, 3, 1); expected"),
        (np.zeros((1, 2, 2)), "shape (1, 2, 2); at least 2 images are needed"),
        (np.zeros((4, 0, 2)), "shape (4, 0, 2); images must have at least 1 pixel"),
        (np.zeros((4, 2), complex), "dtype complex128; images must be uint8"),
        (np.full((4, 2), "a"), "dtype <U1; images must be uint8"),
        (np.zeros((4, 2), [("a", "f4")]), "images must be uint8"),
    ],
)
@pytest.mark.parametrize("kind", ["npy", "npz", "stream"])
def test_arrays_that_are_no_images(refused, kind, x, expected):
    spec = data_files.WRITERS[kind](HERE, x)
    message = refused("train", "--dataset", spec)
    assert expected in message
    assert spec.partition(":")[2] in message


@pytest.mark.parametrize(
    ("arrays", "expected"),
    [
        ({"x": nan_in(np.zeros((4, 2, 2)), 3)}, "x: 3 of 16 values are NaN or infinite"),
        ({"x": np.full((4, 2, 2), 1e300)}, "16 of 16 values are NaN or infinite (in float32)"),
        (
            {"x": np.linspace(-0.5, 1.5, 16).reshape(4, 4)},
            "8 of 16 values lie outside [0, 1] (they range from -0.5 to 1.5); rescale them, store "
            "0 to 255 as uint8, or train with --likelihood gaussian",
        ),
        ({"x": BYTES.astype(float)}, "they range from 0 to 255); rescale them, store 0 to 255 as"),
        ({"x": np.full((4, 4), 255)}, "16 of 16 values lie outside [0, 1]"),
        ({"x": np.full((4, 2), None)}, "cannot be read as .npz: Object arrays cannot be loaded"),
        ({"x": BYTES, "y": np.zeros(3)}, "y has shape (3,); expected one label for each of the 20"),
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
def test_mistakes_in_npz_files(refused, arrays, expected):
    message = refused("train", "--dataset", npz(HERE, **arrays))
    assert expected in message
    assert "own.npz" in message


def content_of(save, x):
    buffer = io.BytesIO()
    save(buffer, x)
    return buffer.getvalue()


NPY, NPZ = content_of(np.save, GRAY), content_of(np.savez, GRAY)


@pytest.mark.parametrize(
    ("kind", "content", "expected"),
    [
        ("npz", b"", "is not an .npz file; write one with numpy.savez"),
        ("npy", b"\x80\x04K\x01.", "is not an .npy file; write one with numpy.save."),
        ("stream", b"\x80\x04K\x01.", "is not an .npy file; write one with numpy.save."),
        ("npz", b"PK\x03\x04 and no more", "cannot be read as .npz"),
        ("npy", b"\x93NUMPY\x01\x00 and no more", "cannot be read as .npy"),
        ("npy", NPY[:-30], "cannot be read as .npy"),
        ("npz", NPZ[:-30], "cannot be read as .npz"),
        ("stream", NPY[:50], "cannot be read as .npy: "),
        (
            "stream",
            NPY[:-1],
            "truncated: expected 1328 bytes for 40x6x5 values of uint8, found 132",
        ),
        ("stream", content_of(np.save, np.asfortranarray(GRAY)), "in Fortran order, so no image"),
        ("stream", content_of(np.save, np.zeros(4, [("ρ", "f4")])), "an .npy file of version 3.0"),
        ("npz", None, "images: No such file or directory"),
        ("stream", None, "images: No such file or directory"),
    ],
)
def test_files_that_are_something_else(refused, kind, content, expected):
    if content is not None:
        pathlib.Path("images").write_bytes(content)
    assert expected in refused("train", "--dataset", f"{kind}:images")


def test_pickled_images_are_not_unpickled(refused):
    class Payload:
        def __reduce__(self):
            return (pathlib.Path.touch, (pathlib.Path("unpickled"),))

    message = refused("train", "--dataset", npy(HERE, np.array([Payload()] * 4)))
    assert "Object arrays cannot be loaded when allow_pickle=False; store numbers" in message
    spec = npy(HERE, np.full((4, 2), None), "stream")
    assert "has dtype object; images must be uint8" in refused("train", "--dataset", spec)
    pathlib.Path("folder").mkdir()
    assert "folder: Is a directory" in refused("train", "--dataset", "npy:folder")


def test_images_that_convolutions_cannot_take(refused):
    for shape in ((4, 12), (4, 3, 9), (4, 9, 3, 3)):
        message = refused("train", "--dataset", npy(HERE, np.zeros(shape)), "--network", "dcgan")
        assert "--network dcgan needs images of at least 4x4 pixels; those of" in message
        assert f"have shape {'x'.join(map(str, shape[1:]))}; use --network mlp" in message


def test_archives_of_something_else(tmp_path):
    path = tmp_path / "own.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.png", b"nothing")
    for load in (datasets.load, series.load):
        message = refusal(load, f"npz:{path}")
        assert "is a zip archive of a.png and the like, not of arrays; unpack it" in message
    message = refusal(datasets.load, f"images:{path}")
    assert "is a file; unpack it if it is an archive, and give the folder of" in message
    assert "cannot be read as text" in refusal(series.load, f"csv:{path}")


@pytest.mark.parametrize("compress", [True, False])
@pytest.mark.parametrize(
    ("name", "change", "expected"),
    [
        (0, lambda b: b[:-5], "truncated: expected 36 bytes for 6x3x2 values, found 31"),
        (1, lambda b: b[:-1], "truncated: expected 6 bytes for 6 values, found 5"),
        (2, lambda b: b + b"12", "too long: expected 24 bytes for 4x3x2 values, found 26"),
        (2, lambda b: b[:7], "truncated: expected a header of 16 bytes, found 7 bytes"),
        (3, lambda b: b"", "truncated: expected a header of 8 bytes, found 0 bytes"),
        (0, lambda b: idx_bytes(np.zeros(36)), "number: expected 2051 (IDX images), found 2049"),
        (3, lambda b: b"GIF89a" + b, "wrong magic number: expected 2049 (IDX labels), found 1195"),
        (3, lambda b: idx_bytes(np.zeros(3)), "holds 3 labels for 4 images"),
        (2, lambda b: idx_bytes(np.zeros((4, 2, 3))), "training images have shape 3x2 but test im"),
        (0, lambda b: None, f"{IDX_NAMES[0]}.gz: no such file (nor {IDX_NAMES[0]} without .gz)"),
    ],
)
def test_damaged_idx_files(refused, name, change, expected, compress):
    pathlib.Path("data").mkdir()
    data_files.idx_folder(pathlib.Path("data"), compress)
    path = pathlib.Path("data", IDX_NAMES[name] + ".gz" * compress)
    content = change(gzip.decompress(path.read_bytes()) if compress else path.read_bytes())
    if content is None:
        path.unlink()
    else:
        path.write_bytes(gzip.compress(content) if compress else content)
    message = refused("train", "--dataset", "mnist", "--data-dir", "data")
    assert expected in message
    assert IDX_NAMES[name] in message or "training images have shape" in message


def test_idx_files_without_images_and_damaged_gzip(refused):
    folder, train = pathlib.Path("data"), ("train", "--dataset", "fashion_mnist", "--data-dir")
    folder.mkdir()
    data_files.idx_folder(folder)
    for name, shape in ((IDX_NAMES[0], (0, 3, 2)), (IDX_NAMES[1], 0)):
        (folder / f"{name}.gz").write_bytes(gzip.compress(idx_bytes(np.zeros(shape))))
    assert "shape (0, 3, 2); at least 2 images are needed" in refused(*train, "data")
    path = folder / f"{IDX_NAMES[0]}.gz"
    for content in (path.read_bytes()[:-9], b"\x1f\x8b no gzip"):
        path.write_bytes(content)
        assert f"{path.name}: truncated or damaged gzip file" in refused(*train, "data")


def make_socket(path):
    here = os.getcwd()
    os.chdir(path.parent)  # Names of sockets are short.
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(path.name)
    os.chdir(here)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes on this system")
@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda path: os.mkfifo(path), "is a named pipe, not a file"),
        (make_socket, "is a device or socket, not a file"),
        (lambda path: path.symlink_to("nowhere"), "is a link to nowhere, which does not exist"),
    ],
)
def test_what_is_no_file_is_refused_before_it_is_opened(tmp_path, make, expected):
    path = tmp_path / "own"
    make(path)
    for kind in ("npy", "npz", "stream"):
        assert expected in refusal(datasets.load, f"{kind}:{path}")
    for kind in ("npy", "npz", "csv"):
        assert expected in refusal(series.load, f"{kind}:{path}")
    path.unlink()
    for name in ("a/000.png", "b/019.png"):  # The first, which gives the shape, and another.
        folder = tmp_path / name[0] / "images"
        spec = data_files.images(folder, BYTES)
        (folder / name).unlink()
        make(folder / name)
        assert expected in refusal(datasets.load, spec)
    data_files.idx_folder(tmp_path, compress=False)
    (tmp_path / IDX_NAMES[0]).unlink()
    make(tmp_path / IDX_NAMES[0])
    assert expected in refusal(datasets.load, "mnist", str(tmp_path))


# Memory


@pytest.fixture
def little_memory(monkeypatch):
    """A machine with a megabyte left."""
    for module in (files, tables):
        monkeypatch.setattr(module, "available_memory", lambda: 2**20)


@pytest.mark.usefixtures("little_memory")
def test_arrays_that_do_not_fit_into_memory(tmp_path):
    x = np.zeros((2**10, 2**10), np.uint8)
    np.savez_compressed(tmp_path / "own.npz", x=x)
    for spec in (f"npz:{tmp_path / 'own.npz'}", npy(tmp_path, x)):
        message = refusal(datasets.load, spec)
        assert "reading it takes 0.01 GiB of memory, but only 0.00 GiB are free; " in message
        assert "--dataset stream:FILE.npy" in message
        assert "give fewer series, or shorter ones" in refusal(series.load, spec)
    datasets.load(npy(tmp_path, x, "stream"))


STEPS = "series,step,x\ne,0,1\ne,9001,2\n" + "".join(f"{i % 5},{i // 5},2\n" for i in range(70))


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("1," * 30_000 + "2\n", "holds more than 26214 bytes of text, too many for the memory"),
        ("1,2\n" * 99 + "1," * 9_000 + "2\n", "the longest of 100 rows has 9001 cells"),
        (STEPS, "give fewer series, or shorter ones"),
    ],
)
def test_one_long_row_among_short_ones(tmp_path, content, expected):
    assert expected in refusal(series.load, data_files.csv(tmp_path, content))


def test_memory_that_is_refused(tmp_path, monkeypatch):
    def refuse(*_):
        raise MemoryError("Unable to allocate 3.00 GiB")

    monkeypatch.setattr(pixels, "to_float32", refuse)
    monkeypatch.setattr(series_files, "check_length", refuse)
    expected = "not enough memory to read it (Unable to allocate 3.00 GiB); "
    message = refusal(datasets.load, npy(tmp_path, BYTES))
    assert f"{expected}keep the images on disk" in message
    message = refusal(series.load, data_files.csv(tmp_path, "1,2\n3,4\n"))
    assert f"{expected}give fewer series" in message


def test_gzip_files_are_not_unpacked_beyond_what_they_announce(tmp_path, monkeypatch):
    data_files.idx_folder(tmp_path)
    path = tmp_path / f"{IDX_NAMES[0]}.gz"
    path.write_bytes(gzip.compress(idx_bytes(np.zeros((6, 3, 2))) + bytes(2**24)))
    read, plain = [], gzip.GzipFile.read

    def counting(self, size=-1):
        content = plain(self, size)
        read.append(len(content))
        return content

    monkeypatch.setattr(gzip.GzipFile, "read", counting)
    message = refusal(datasets.load, "mnist", str(tmp_path))
    assert re.search("too long: expected 36 bytes for 6x3x2.*found more", message)
    assert sum(read) < 2**18
    # A header that announces more than the file can hold asks for no memory.
    header = b"".join(n.to_bytes(4, "big") for n in (0x803, 2**31, 2**15, 2**15))
    path.write_bytes(gzip.compress(header + bytes(100)))
    message = refusal(datasets.load, "mnist", str(tmp_path))
    assert "truncated: expected 2305843009213693952 bytes" in message


def test_the_memory_that_is_free():
    free, info = files.available_memory(), pathlib.Path("/proc/meminfo")
    assert free > 2**20
    if info.exists():
        assert free <= 1024 * int(re.search(r"MemTotal: +(\d+)", info.read_text())[1])
