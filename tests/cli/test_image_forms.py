"""Images as people have them: photos, IDX files, arrays. What of each is read, or the one line."""

import gzip
import pathlib

import data_files
import numpy as np
import pytest
from data_files import idx_bytes, npy, npz, refusal
from PIL import Image
from program import options_of

from tfp_ar1_cli.data import images as datasets
from tfp_ar1_cli.data import loading, split
from tfp_ar1_cli.data.decoding import Form

RNG = np.random.default_rng(3)
GRAY = RNG.integers(0, 256, (6, 10), dtype=np.uint8)
COLOUR = RNG.integers(0, 256, (6, 10, 3), dtype=np.uint8)
ALPHA = RNG.integers(0, 256, (6, 10, 1), dtype=np.uint8)
DEEP = RNG.integers(0, 65536, (6, 10), dtype=np.uint16)
RAMP = np.add.outer(np.arange(64), 2 * np.arange(96)).astype(np.uint8)
LUMA = COLOUR @ [0.299, 0.587, 0.114]
TINT = Image.fromarray(COLOUR).quantize(8)
MOST = Image.fromarray(GRAY).convert("P")
HEAVY = COLOUR.astype(float) / 255


def over_white(x):
    x, alpha = np.atleast_3d(x) / 255, ALPHA / 255
    return np.squeeze(x * alpha + 1 - alpha)


def with_alpha(x):
    return Image.fromarray(np.concatenate([np.atleast_3d(x), ALPHA], -1))


def cmyk(x):
    return Image.fromarray(np.concatenate([255 - x, np.full((6, 10, 1), 51, np.uint8)], -1), "CMYK")


def turned(number):
    exif = Image.Exif()
    exif[0x0112] = number
    return {"exif": exif}


# The file, the options, the image that is read, and what is said of it.
READ = {
    "gray.png": (GRAY, {}, {}, GRAY / 255, None),
    "colour.tiff": (COLOUR, {"compression": "tiff_lzw"}, {}, HEAVY, None),
    "colour.webp": (COLOUR, {"lossless": True}, {}, HEAVY, None),
    "colour.bmp": (COLOUR, {}, {"grayscale": True}, LUMA / 255, ": 1 in colour, converted to gray"),
    "rgba.png": (with_alpha(COLOUR), {}, {}, over_white(COLOUR), "an alpha channel, laid over whi"),
    "rgba.webp": (with_alpha(COLOUR), {"lossless": True, "exact": True}, {}, None, "alpha channel"),
    "la.png": (with_alpha(GRAY), {}, {}, over_white(GRAY), "with an alpha channel"),
    "16.png": (DEEP, {}, {}, DEEP / 65535, "with 16 bits per pixel, reduced to 8"),
    "16.tif": (DEEP, {}, {}, DEEP / 65535, "with 16 bits"),
    "cmyk.tiff": (cmyk(COLOUR), {}, {}, HEAVY * 0.8, "in CMYK"),
    "palette.png": (TINT, {}, {}, np.asarray(TINT.convert("RGB")) / 255, "with a palette"),
    "palette.gif": (MOST, {}, {}, GRAY / 255, "with a palette"),
    "clear.png": (TINT, {"transparency": 0}, {}, None, "with a palette; 1 with an alpha"),
    "1.png": (GRAY, turned(1), {}, GRAY / 255, None),
    "2.png": (GRAY, turned(2), {}, GRAY[:, ::-1] / 255, "EXIF orientation"),
    "3.webp": (COLOUR, turned(3) | {"lossless": True}, {}, HEAVY[::-1, ::-1], "EXIF orientation"),
    "6.png": (GRAY, turned(6), {}, np.rot90(GRAY, -1) / 255, "turned upright"),
    "5.tif": (GRAY, turned(5), {}, GRAY.T / 255, "turned upright"),
    "8.jpg": (RAMP, turned(8), {}, np.rot90(RAMP) / 255, "turned upright"),
    # Each pixel is the mean of 8 x 8, or of 16 x 16, where the image is linear.
    "square.png": (RAMP, {}, {"resize": (8, 8)}, RAMP[4::8, 20:80:8] / 255, "resized to 8x8"),
    "wide.jpg": (
        RAMP,
        {},
        {"resize": (2, 6)},
        RAMP[24:56:16, 8::16] / 255,
        "cropped on both sides to that aspect ratio",
    ),
    "both.jpg": (
        RAMP,
        turned(6),
        {"resize": (8, 8)},
        np.rot90(RAMP[4::8, 20:80:8], -1) / 255,
        "up",
    ),
}


@pytest.mark.parametrize("name", READ)
def test_photos(tmp_path, name):
    image, how, form, expected, said = READ[name]
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    for path in (tmp_path / f"a-{name}", tmp_path / f"b-{name}"):
        image.save(path, **({"quality": 98} if path.suffix == ".jpg" else {}), **how)
    data = datasets.load(f"images:{tmp_path}", form=Form(**form))
    if expected is None:  # Then what the alpha channel does is said by pillow alone.
        expected = np.asarray(Image.open(path).convert("RGBA")) / 255
        expected = expected[..., :3] * expected[..., 3:] + 1 - expected[..., 3:]
    inner = (slice(1, -1),) * 2 if form.get("resize", (0,))[0] == 8 else ...
    for read in (data.x_train[:][0], data.x_test[0]):
        assert read.shape == expected.shape
        error = np.abs(read - expected)[inner].max()
        assert error < (0.02 if "resize" in form or name.endswith("jpg") else 1.01 / 255)
    assert (said is None) == (not data.notes)
    assert (said or "") in " ".join(data.notes)


GRAYS = {"a.png": GRAY, "b.png": GRAY}


@pytest.mark.parametrize(
    ("files", "form", "expected"),
    [
        (GRAYS | {"c.png": GRAY[:5]}, {}, "c.png: has shape 5x10, the others 6x10; give --resize"),
        (GRAYS | {"c.jpg": COLOUR}, {}, "has shape 6x10x3, the others 6x10; give --grayscale to"),
        (GRAYS | {"c.png": COLOUR[1:]}, {}, "the others 6x10; give --resize and --grayscale to"),
        (GRAYS | {"c.tif": np.float32(GRAY)}, {}, "c.tif: has the pixel mode F; store it as"),
        (GRAYS | {"c.tif": np.int32(GRAY)}, {"resize": (4, 4)}, "has the pixel mode I; store"),
        (GRAYS | {"c.tif": [GRAY, GRAY]}, {"resize": (4, 4)}, "c.tif: has 2 pages; store each as"),
        (GRAYS | {"c.heic.png": b"heic"}, {"resize": (4, 4)}, "c.heic.png: is not a PNG, JPEG"),
        ({"a.heic": GRAY, "b.png": GRAY}, {}, "holds 1 files ending in .png,"),
    ],
)
def test_photos_that_are_refused(tmp_path, monkeypatch, files, form, expected):
    for name, x in files.items():
        if isinstance(x, bytes):
            (tmp_path / name).write_bytes(x)
        else:
            first, *more = [Image.fromarray(page) for page in (x if isinstance(x, list) else [x])]
            more = {"save_all": True, "append_images": more} if more else {}
            first.save(tmp_path / name, "PNG" if name.endswith("heic") else None, **more)
    monkeypatch.setattr(split, "shuffled", lambda n, **_: (np.arange(1), np.arange(1, n)))
    assert expected in refusal(datasets.load, f"images:{tmp_path}", form=Form(**form))


def test_a_folder_of_all_kinds(tmp_path):
    """Counted by kind; and the names of the folders are the labels, without what is above them."""
    for i in range(40):
        image = [Image.fromarray(COLOUR), Image.fromarray(GRAY), cmyk(COLOUR)][i % 3]
        path = tmp_path / "photos" / "all" / ("cats", "dogs", "dogs/more")[i % 3] / f"{i}.tif"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)
    data = datasets.load(f"images:{tmp_path}", form=Form((5, 5)))
    assert data.data_shape == (5, 5, 3)
    assert len(data.y_test) == 8
    # Those that have no color of their own are the gray ones.
    gray = np.ptp(data.x_test, axis=-1).max((1, 2)) == 0
    assert gray.any()
    assert {*data.y_test[gray]} == {"dogs"}
    assert {*data.y_test[~gray]} <= {"cats", "dogs"}
    (note,) = data.notes
    assert note.startswith("Conversions in 8 test images (and likewise in the training images): ")
    assert f"{gray.sum()} in gray, among images in colour; " in note
    assert "; 8 resized to 5x5 (bicubic; cropped" in note
    # In `train` and `test`, those of the test images.
    (tmp_path / "photos" / "all").rename(tmp_path / "photos" / "train")
    data_files.images(tmp_path / "photos" / "test", [GRAY] * 4)
    data = datasets.load(f"images:{tmp_path / 'photos'}", form=Form((5, 5), grayscale=True))
    assert (data.data_shape, data.y_test.tolist()) == ((5, 5), ["a", "a", "b", "b"])


def test_the_options_of_photos(refused, tmp_path):
    def chosen(*argv):
        found = ("--epochs", 7, "--split", "stable")  # As training notes them.
        return options_of("--dataset", f"images:{tmp_path}", *found, *argv)

    assert (chosen().resize, chosen().grayscale) == (None, False)
    options = chosen("--resize", "48x64", "--grayscale")
    assert (options.data.resize, options.data.grayscale) == ((48, 64), True)
    assert type(options).from_json(options.as_json()) == options
    assert chosen("--resize", "64").resize == (64, 64)
    for wrong in ("0", "4x", "4x4x3", "-3", "4.5"):
        message = refused("train", "--dataset", "images:x", "--resize", wrong)
        assert f"{wrong!r} is not a size in pixels, HEIGHTxWIDTH like 48x64" in message
    for flag in (["--resize", "4"], ["--grayscale"]):
        message = refused("train", "--dataset", "digits", *flag)
        assert f"{flag[0]} is for images:FOLDER or tfrecord:GLOB, not for digits" in message
        assert "is for --model image" in refused("train", "--model", "sequence", *flag)


# IDX files

NAMES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte")
NAMES += ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
X, Y = RNG.integers(0, 256, (9, 4, 3)), np.arange(9)
PARTS = (X[:6], Y[:6], X[6:], Y[6:])


def dotted(name):
    return name.replace("-idx", ".idx")


def emnist(name):
    return f"emnist-digits-{name.replace('t10k', 'test')}.gz"


@pytest.mark.parametrize(
    ("dataset", "spelled", "compress"),
    [
        ("mnist", lambda name: name, True),  # As browsers store what they unpack, or do not.
        ("mnist", lambda name: f"{name}.gz", False),
        ("mnist", dotted, False),
        ("fashion_mnist", lambda name: f"FashionMNIST/raw/{name}", False),
        ("mnist", lambda name: f"MNIST/raw/{name}.gz", True),
        ("mnist", lambda name: f"raw/{name}", False),
        ("mnist", lambda name: f"{name}/{name}", False),
        ("mnist", lambda name: f"{dotted(name)}/{dotted(name)}", False),
        ("idx:", lambda name: name, False),
        ("idx:", lambda name: f"raw/{name.replace('t10k', 'test')}.gz", True),
        ("idx:", emnist, True),
        ("idx:/emnist-digits", emnist, True),
        ("idx:/emnist-digits-train-images-idx3-ubyte.gz", emnist, True),
    ],
)
def test_idx_files_in_every_spelling(tmp_path, dataset, spelled, compress):
    upright = [part.swapaxes(1, 2) if part.ndim == 3 else part for part in PARTS]
    for name, part in zip(NAMES, upright if spelled is emnist else PARTS, strict=True):
        path = tmp_path / spelled(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress(idx_bytes(part)) if compress else idx_bytes(part))
    kind, colon, rest = dataset.partition(":")
    if colon:
        data = datasets.load(f"{kind}:{tmp_path}{rest}")
    else:
        data = datasets.load(dataset, str(tmp_path))
    np.testing.assert_allclose(data.x_train, X[:6] / 255, rtol=1e-6)
    np.testing.assert_allclose(data.x_test, X[6:] / 255, rtol=1e-6)
    np.testing.assert_array_equal(data.y_test, Y[6:])
    said = "The images of EMNIST are stored transposed; they are turned upright."
    assert data.notes == ((said,) if spelled is emnist else ())


def test_idx_files_to_choose_from(tmp_path):
    def write(*names):
        for name in names:
            (tmp_path / name).write_bytes(idx_bytes(X if "images" in name else Y))

    spec = f"idx:{tmp_path}"
    assert f"{tmp_path}: holds no IDX files of images, named like train-images" in refusal(
        datasets.load, spec
    )
    write("kmnist-train-images-idx3-ubyte", "kmnist-train-labels-idx1-ubyte")
    data = datasets.load(spec)  # Without a test part they are split.
    train, test = split.shuffled(9)
    np.testing.assert_allclose(data.x_train, X[train] / 255, rtol=1e-6)
    np.testing.assert_array_equal(data.y_test, test)
    write("emnist-letters-train-images-idx3-ubyte")
    assert f"holds the IDX files of emnist-letters, kmnist; choose one, as in {spec}/k" in refusal(
        datasets.load, spec
    )
    assert datasets.load(f"{spec}/kmnist").data_shape == (4, 3)
    assert datasets.load(f"{spec}/emnist-letters").data_shape == (3, 4)
    assert "there are emnist-letters, kmnist." in refusal(datasets.load, f"{spec}/mnist")
    assert loading.resolve("idx:x", "image") == f"idx:{pathlib.Path.cwd() / 'x'}"


# Arrays

ROWS = RNG.random((10, 4, 5))


@pytest.mark.parametrize(
    ("x", "y", "x_test", "y_test"),
    [
        ("train_images", "train_labels", "test_images", "test_labels"),  # MedMNIST
        ("X_train", "Y_train", "X_test", "Y_test"),
        ("trainX", "trainY", "testX", "testY"),
        ("images_train", "targets_train", "images_test", "targets_test"),
        ("x", "y", "x_test", "y_test"),
        ("X", "y", None, None),
        ("imgs", "label", None, None),
        ("data", "target", None, None),
        ("image", "labels", None, None),
        ("x_train", "y_train", None, None),
    ],
)
def test_names_of_arrays(tmp_path, x, y, x_test, y_test):
    train, test = (np.arange(6), np.arange(6, 10)) if x_test else split.shuffled(10)
    arrays = {x: ROWS, y: np.arange(10)}
    if x_test:
        arrays = {x: ROWS[:6], y: Y[:6], x_test: ROWS[6:], y_test: np.arange(6, 10)[:, None]}
    data = datasets.load(npz(tmp_path, val_something=ROWS, **arrays))
    np.testing.assert_allclose(data.x_train, ROWS[train], rtol=1e-6)
    np.testing.assert_allclose(data.x_test, ROWS[test], rtol=1e-6)
    np.testing.assert_array_equal(data.y_test, test)
    (note,) = data.notes
    assert note.endswith("; not read: val_something.")


def test_several_labels_of_an_image_are_not_used(tmp_path):
    data = datasets.load(npz(tmp_path, ROWS, y=np.zeros((10, 14))))
    assert data.y_test is None
    assert "y has shape (10, 14), not one label for each image; it is not used." in data.notes[0]


@pytest.mark.parametrize(
    ("shape", "moved"),
    [
        ((10, 3, 8, 6), (8, 6, 3)),
        ((10, 1, 5, 5), (5, 5, 1)),
        ((10, 4, 4, 5), (4, 5, 4)),
        ((10, 3, 8, 3), None),  # Channels last, as it stands: three rows.
        ((10, 2, 8, 6), None),
    ],
)
@pytest.mark.parametrize("kind", ["npy", "npz", "stream"])
def test_channels_first(tmp_path, kind, shape, moved):
    x = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    data = datasets.load(npz(tmp_path, x) if kind == "npz" else npy(tmp_path, x, kind))
    expected = (np.moveaxis(x, 1, -1) if moved else x) / 255
    assert data.data_shape == (moved or shape[1:])
    np.testing.assert_allclose(data_files.all_images(data), data_files.in_order(expected), 1e-6)
    assert bool(moved) == any("read as [N, C, H, W]: the channels are" in n for n in data.notes)
