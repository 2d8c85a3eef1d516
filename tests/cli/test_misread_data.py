"""Data that are easily read as something else: read right, or refused; and what is said of them.

A good case gives what was written, a bad one a message that names the file and what to do, and what
was left out is in the notes.
"""

import dataclasses
import gzip
import io
import json
import os
import pathlib
import re
import socket
import struct
import zipfile
import zlib

import numpy as np
import pytest
from PIL import Image
from program import options_of
from test_datasets import IDX_NAMES, idx_bytes, write_idx_folder
from test_streams import write_shards

from tfp_ar1_cli import evaluate, run_folder, train
from tfp_ar1_cli.atomic import write_json
from tfp_ar1_cli.data import files, pixels, series, series_csv, streams
from tfp_ar1_cli.data import images as datasets
from tfp_ar1_cli.errors import UserError

RNG = np.random.default_rng(3)
BYTES = RNG.integers(0, 256, (20, 6, 5), dtype=np.uint8)
WALKS = RNG.normal(size=(12, 7)).cumsum(axis=1)
NAN = np.nan


def all_images(data):
    """Train and test images, in an order that depends on their values alone."""
    return in_order(np.concatenate([data.x_train[:], data.x_test]))


def in_order(x):
    flat = x.reshape(len(x), -1)
    return x[np.lexsort(flat.T)]


def all_series(data):
    """The series, in the units of the file and ordered by their first value."""
    x = data.units.restore(np.concatenate([data.x_train, data.x_test]))[..., 0]
    return x[np.argsort(x[:, 0])]


def npz(folder, **arrays):
    np.savez(folder / "own.npz", **arrays)
    return f"npz:{folder / 'own.npz'}"


def npy(folder, x, kind="npy"):
    np.save(folder / "own.npy", x, allow_pickle=True)
    return f"{kind}:{folder / 'own.npy'}"


def csv(folder, content):
    path = folder / "own.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return f"csv:{path}"


def refusal(load, spec, **options):
    """The message with which data are refused, which must name the file."""
    with pytest.raises(UserError) as caught:
        load(spec, **options)
    assert spec.partition(":")[2] in caught.value.message
    return caught.value.message


# Images in arrays


@pytest.mark.parametrize("kind", ["npy", "stream"])
@pytest.mark.parametrize(
    ("x", "expected", "note"),
    [
        (BYTES % 2, BYTES % 2, "bytes of 0 and 1 alone, which are taken as they are"),
        (BYTES, BYTES / 255, None),
        (BYTES % 17, BYTES % 17 / 255, "at most 16, which are divided by 255; if 16 is white"),
        (BYTES % 2 == 1, BYTES % 2, None),
        ((BYTES / 255).astype(">f4"), BYTES / 255, None),
        ((BYTES % 2).astype(np.int64), BYTES % 2, None),
    ],
)
def test_what_is_white(tmp_path, kind, x, expected, note):
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


@pytest.mark.parametrize(
    ("x", "expected"),
    [
        (np.zeros((9, 3, 8, 8)), "looks like [N, C, H, W]; channels come last"),
        (np.full((9, 2, 2), None), "cannot be loaded when allow_pickle=False; store numbers"),
        (np.zeros((9, 2), [("a", "f4")]), "images must be uint8"),
        (BYTES.astype(float), "they range from 0 to 255); rescale them, store 0 to 255 as uint8"),
        (BYTES / 127.5 - 1, "they range from -1 to 1"),
        (np.full((9, 2), NAN), "18 of 18 values are NaN"),
    ],
)
@pytest.mark.parametrize("kind", ["npy", "npz"])
def test_arrays_that_are_no_images(tmp_path, x, expected, kind):
    spec = npz(tmp_path, x=x) if kind == "npz" else npy(tmp_path, x)
    assert expected in refusal(datasets.load, spec)


@pytest.mark.parametrize("x", [np.asfortranarray(BYTES), BYTES.astype(">u2") / 1000])
def test_orders_of_values_and_bytes(tmp_path, x):
    expected = BYTES / 255 if x.dtype == np.uint8 else BYTES / 1000
    data = datasets.load(npy(tmp_path, x))
    np.testing.assert_allclose(all_images(data), in_order(expected), rtol=1e-6)


@pytest.mark.parametrize("names", [("x", "x_test"), ("images", "images_test")])
def test_the_test_part_of_an_npz_file(tmp_path, names):
    x, x_test = names
    labels = {"y_test" if x == "x" else "labels_test": np.arange(4)}
    data = datasets.load(npz(tmp_path, **{x: BYTES[:16], x_test: BYTES[16:]}, **labels))
    np.testing.assert_allclose(data.x_train, BYTES[:16] / 255, rtol=1e-6)
    np.testing.assert_allclose(data.x_test, BYTES[16:] / 255, rtol=1e-6)
    np.testing.assert_array_equal(data.y_test, np.arange(4))
    assert not data.notes


def test_arrays_that_are_not_read_are_named(tmp_path):
    data = datasets.load(npz(tmp_path, x=BYTES, y=np.arange(20), x_val=BYTES, mask=BYTES))
    assert f"Of {tmp_path / 'own.npz'} are read: x, y; not read: mask, x_val." in data.notes
    data = series.load(npz(tmp_path, x=WALKS, y=np.arange(12), mask_test=WALKS > 0))
    assert f"Of {tmp_path / 'own.npz'} are read: x; not read: mask_test, y." in data.notes


def test_images_that_are_in_both_sets(tmp_path):
    data = datasets.load(npz(tmp_path, x_train=BYTES[:16], x_test=BYTES[14:]))
    assert "2 of 6 test images are among the training images too." in data.notes


def test_archives_of_something_else(tmp_path):
    path = tmp_path / "own.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.png", b"nothing")
    for load in (datasets.load, series.load):
        message = refusal(load, f"npz:{path}")
        assert "is a zip archive of a.png and the like, not of arrays; unpack it" in message
    assert "is a file; unpack an archive, and give that of" in refusal(
        datasets.load, f"images:{path}"
    )
    assert "cannot be read as .csv" in refusal(series.load, f"csv:{path}")


# Series in arrays


@pytest.mark.parametrize("shape", ["of x", "of steps"])
@pytest.mark.parametrize("dtype", [bool, np.uint8, float])
def test_masks_of_series(tmp_path, shape, dtype):
    x = np.stack([WALKS, WALKS + 1], -1)
    mask = RNG.random(x.shape if shape == "of x" else x.shape[:2]) < 0.8
    mask[:, 0] = True
    # What stands where nothing was observed counts for nothing.
    full = mask if mask.ndim == 3 else np.repeat(mask[..., None], 2, -1)
    expected = np.where(full, x, NAN)
    written = np.where(full, x, np.inf)
    spec = npz(tmp_path, x=written, mask=mask.astype(dtype), x_test=x, mask_test=full)
    data = series.load(spec)
    np.testing.assert_allclose(data.units.restore(data.x_train), expected, atol=1e-5)
    np.testing.assert_allclose(data.units.restore(data.x_test), expected, atol=1e-5)
    np.testing.assert_allclose(data.units.mean, np.nanmean(expected, axis=(0, 1)))
    assert not data.notes


@pytest.mark.parametrize(
    "mask", [np.ones((7, 12)), np.full(WALKS.shape, 0.5), np.ones(12), np.full(WALKS.shape, "a")]
)
def test_masks_that_are_none(tmp_path, mask):
    message = refusal(series.load, npz(tmp_path, x=WALKS, mask=mask))
    assert "expected booleans, true where x was observed, of shape (12, 7)" in message


def test_missing_values_are_counted(tmp_path):
    x = np.where(np.arange(7) < 2, WALKS, NAN)
    assert f"71% of the values of {tmp_path / 'own.npz'} are missing." in (
        series.load(npz(tmp_path, x=x)).notes
    )


def test_series_with_channels_first_are_named(tmp_path):
    (note,) = series.load(npy(tmp_path, RNG.normal(size=(9, 2, 30)))).notes
    assert "series of 2 steps and 30 channels; if these stand the other way round" in note


# Series as text

ROWS = "1.5,2,3\n4,5,6\n7,8,9\n"
READ = [[1.5, 2, 3], [4, 5, 6], [7, 8, 9]]
LONG = "series,step,x\na,0,1.5\na,1,2\na,2,3\nb,0,4\nb,1,5\nb,2,6\nc,0,7\nc,1,8\nc,2,9\n"


@pytest.mark.parametrize(
    ("content", "note"),
    [
        (ROWS, None),
        (LONG, None),
        ("\ufeff" + ROWS, None),
        (ROWS.encode("utf-16"), None),
        (ROWS.replace("\n", "\r\n") + "\r\n", None),
        (ROWS.replace("\n", "\r"), None),
        ("\n   \n" + ROWS + "\n\n  \n", None),
        (ROWS.replace("1.5", '"1.5"').replace(",", " , "), None),
        (ROWS.replace("\n", ",\n"), "ends in 1 empty cells, which are not read"),
        (ROWS.replace("\n", ",,\n"), "ends in 2 empty cells, which are not read"),
        (LONG.replace("\n", ",\n"), None),
        (LONG.replace("\n", ",\n").replace("x,", "x"), None),
        (LONG.replace("\n", "\r\n").replace("series,step", '"Series", Step'), None),
    ],
)
def test_text_that_is_read(tmp_path, content, note):
    data = series.load(csv(tmp_path, content))
    np.testing.assert_allclose(all_series(data), READ, atol=1e-5)
    assert (note is None) == (not data.notes)
    assert (note or "") in " ".join(data.notes)


@pytest.mark.parametrize(
    "missing", ["", " ", "NA", "n/a", "N/A", "nan", "NaN", "null", "NULL", "None", "<NA>", "#N/A"]
)
def test_how_missing_values_are_written(tmp_path, missing):
    data = series.load(csv(tmp_path, ROWS.replace("5,6", f"{missing},6")))
    expected = [[1.5, 2, 3], [4, NAN, 6], [7, 8, 9]]
    np.testing.assert_allclose(all_series(data), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        # What pandas' to_csv writes of a table, and R's write.csv.
        (",0,1,2\n0,1.5,2.0,3.0\n1,4.0,5.0,6.0\n", "row 1 and column 1 count"),
        (",0,1,2\n0,1,2,3\n1,4,5,6\n", "to_csv(header=False, index=False)"),
        ("0,1,2\n1.5,2.0,3.0\n4.0,5.0,6.0\n", "row 1 counts the columns"),
        ("0,1.5,2.0\n1,4.0,5.0\n2,7.0,8.0\n", "column 1 counts the columns or rows"),
        (",a,b\n0,1.5,2.0\n", "row 1, column 2: 'a' is not a number"),
        ('"","V1","V2"\n"1",2,3\n', "row 1, column 2: 'V1' is not a number"),
        (",series,step,x\n0,a,0,1\n", "row 1, column 2: 'series' is not a number"),
        ("date,value\n2020-01-01,1\n", "'date' is not a number; dates and times are not read"),
        ("2020-01-01,1\n2020-01-02,2\n", "row 1, column 1: '2020-01-01' is not a number; dates"),
        ("a,b,c\n", "row 1, column 1: 'a' is not a number"),
        ("1;2;3\n4;5;6\n", "cells must be separated by commas, and decimals by points"),
        ("1,5;2,5\n2,5;3,5\n", "cells must be separated by commas, and decimals by points"),
        ("1\t2\n3\t4\n", "cells must be separated by commas"),
        ('"1,5","2,5"\n', "decimals by points"),
        ("1,2\n3,1_000\n", "row 2, column 2: '1_000' is not a number"),
        ("1,2\n3,-\n", "row 2, column 2: '-' is not a number"),
        ("\n1,2\n\n\n3,four\n", "row 5, column 2: 'four' is not a number"),
        (LONG + "series,step,x\n", "row 11: step 'step' is not a whole number"),
        (LONG + "d,1_0,3\n", "row 11: step '1_0' is not a whole number"),
        (LONG + "d,2020-01-01,3\n", "is not a whole number; dates and times are not read"),
        (LONG + "d,0,3,4\n", "row 11: has 4 cells, but the header has 3"),
        ("series,step,x\na,0,1\na,60,2\nb,0,3\nb,120,4\n", "the steps of each series lie 60 apart"),
        (
            "series,step,x\n" + "".join(f"a,{10 * i},{i}\n" for i in range(55)),
            "so that 90% of them would be missing; divide their numbers by 10",
        ),
        (b"1,2\n3,\xe9\n", "cannot be read as .csv"),
        (gzip.compress(ROWS.encode()), "unpack it if it is compressed"),
        (b"1,2\n3,\x004\n", "own.csv"),
    ],
)
def test_text_that_is_refused(tmp_path, content, expected):
    message = refusal(series.load, csv(tmp_path, content))
    assert expected in message
    assert "\n" not in message


def test_whole_numbers_that_count_are_read_and_named(tmp_path):
    # Written from an array of whole numbers, with which a table of pandas cannot be told apart.
    data = series.load(csv(tmp_path, "0,1,2,3\n4,5,6,7\n8,9,10,11\n"))
    np.testing.assert_allclose(all_series(data), np.arange(12).reshape(3, 4), atol=1e-5)
    assert "row 1 counts from 0 on, which is read as values" in data.notes[0]


def test_a_gap_in_each_series_is_no_common_factor(tmp_path):
    text = LONG + "d,0,1\nd,2,3\n"
    data = series.load(csv(tmp_path, text))
    np.testing.assert_allclose(all_series(data)[0], [1, NAN, 3], atol=1e-5)
    # A row with empty cells says that the steps between are missing indeed.
    text = "series,step,x\na,0,1\na,1,\na,2,2\nb,0,3\nb,4,4\n"
    np.testing.assert_allclose(
        all_series(series.load(csv(tmp_path, text))),
        [[1, NAN, 2, NAN, NAN], [3, NAN, NAN, NAN, 4]],
        atol=1e-5,
    )


# Folders of images


def write_images(folder, x, suffix=".png"):
    folder.mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(x):
        Image.fromarray(image).save(folder / f"{i:02}{suffix}")
    return f"images:{folder}"


def image_folder(folder, x=BYTES):
    return write_images(folder, x)


def test_hidden_and_other_files_are_left_out_and_counted(tmp_path):
    spec = image_folder(tmp_path / "x", BYTES[:10])
    expected = all_images(datasets.load(spec))
    folder = tmp_path / "x"
    for name in (".ipynb_checkpoints", "__MACOSX", "a/.cache"):
        write_images(folder / name, BYTES[10:12])
    (folder / "._00.png").write_bytes(b"of macOS")
    (folder / ".DS_Store").write_bytes(b"of macOS")
    for name in ("a.heic", "b.HEIC", "labels.csv", "README"):
        (folder / name).write_bytes(b"no image")
    (folder / "loop").symlink_to(folder)
    data = datasets.load(spec)
    np.testing.assert_array_equal(all_images(data), expected)
    (note,) = data.notes
    assert note == (
        f"Left out of {folder}: 1 .csv, 2 .heic, 1 hidden file, 3 hidden folders, 1 linked "
        "folder, 1 other file."
    )


@pytest.mark.parametrize("suffix", [".webp", ".TIF", ".pgm", ".jfif", ".BMP", ".gif"])
def test_other_endings_are_read(tmp_path, suffix):
    flat = np.full((2, 6, 5), 204, np.uint8)
    write_images(tmp_path / "x", flat[:1])
    Image.fromarray(flat[1]).convert("RGB" if suffix == ".webp" else "L").save(
        tmp_path / "x" / f"y{suffix}", {".webp": "WEBP", ".TIF": "TIFF"}.get(suffix)
    )
    if suffix == ".webp":  # Which knows no grayscale.
        Image.fromarray(flat[0]).convert("RGB").save(tmp_path / "x" / "00.png")
    data = datasets.load(f"images:{tmp_path / 'x'}")
    assert len(data.x_train) + len(data.x_test) == 2
    np.testing.assert_allclose(all_images(data), 0.8, atol=0.01)
    assert not data.notes


@pytest.mark.parametrize(
    ("train", "test"), [("train", "test"), ("Train", "TEST"), ("training", "val")]
)
def test_folders_that_are_the_split(tmp_path, train, test):
    write_images(tmp_path / train, BYTES[:12])
    write_images(tmp_path / test, BYTES[12:13])
    (tmp_path / "README").write_text("beside them")
    data = datasets.load(f"images:{tmp_path}")
    np.testing.assert_allclose(data.x_train[:], BYTES[:12] / 255, rtol=1e-6)
    np.testing.assert_allclose(data.x_test, BYTES[12:13] / 255, rtol=1e-6)
    assert f"Of {tmp_path} only {train} and {test} are read, not README." in data.notes


def test_dark_image_files_are_named(tmp_path):
    data = datasets.load(write_images(tmp_path, BYTES % 2))
    assert (
        "The images are bytes of at most 1, which are divided by 255; if 1 is white"
        in (data.notes[0])
    )


def test_splits_further_below_are_not_pooled(tmp_path):
    for part in ("train", "test"):
        write_images(tmp_path / "own" / "data" / part, BYTES[:3])
    message = refusal(datasets.load, f"images:{tmp_path / 'own'}")
    assert "holds the folders train and test, whose images would become one set" in message
    assert f"give images:{tmp_path / 'own' / 'data'}" in message
    # A folder of that name alone may be a class: there are images of trains.
    (tmp_path / "own" / "data" / "test").rename(tmp_path / "own" / "data" / "bus")
    assert len(datasets.load(f"images:{tmp_path / 'own'}").x_train) == 5


def test_shards_of_training_and_test_images_in_one_pattern(tmp_path):
    for name in ("train", "test"):
        spec = write_shards(tmp_path, BYTES, name=name)
    assert not datasets.load(spec).notes
    (note,) = datasets.load(f"tfrecord:{tmp_path}/*").notes
    assert "3 of 6 files are named test-0-of-3.tfrecord or the like, and become one set" in note


def turned(image):
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", exif=exif)
    return buffer.getvalue()


def pages(images):
    buffer = io.BytesIO()
    first, *others = map(Image.fromarray, images)
    first.save(buffer, "TIFF", save_all=True, append_images=others)
    return buffer.getvalue()


def bomb():
    """A PNG of 20,000 x 20,000 pixels, as its header says."""
    content = io.BytesIO()
    Image.fromarray(BYTES[0]).save(content, "PNG")
    content = bytearray(content.getvalue())
    content[16:24] = struct.pack(">II", 20_000, 20_000)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    return bytes(content)


def picture(image, mode=None, form="PNG"):
    buffer = io.BytesIO()
    image = Image.fromarray(image)
    (image.convert(mode) if mode else image).save(buffer, form)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (turned(BYTES[0]), "is stored turned or mirrored (EXIF orientation 6); store it upright"),
        (pages(BYTES[:3]), "has 3 pages; store each as a file"),
        (bomb(), "cannot be decoded"),
        (picture(BYTES[0], "RGBA"), "alpha channel"),
        (picture(BYTES[0], "CMYK", "TIFF"), "pixels of the kind CMYK"),
        (picture(BYTES[0].astype(np.uint16) * 200), "pixels of the kind I;16"),
        (b"", "image (0 bytes)"),
    ],
)
def test_images_that_are_refused(tmp_path, content, expected):
    spec = image_folder(tmp_path / "x")
    (tmp_path / "x" / "00.png").write_bytes(content)
    assert expected in refusal(datasets.load, spec)
    # Others are trained on, if that is asked for.
    assert expected in " ".join(datasets.load(spec, corrupt="skip").skipped.values())


def make_pipe(path):
    os.mkfifo(path)


def make_socket(path):
    here = os.getcwd()
    os.chdir(path.parent)  # Names of sockets are short.
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(path.name)
    os.chdir(here)


def make_broken_link(path):
    path.symlink_to("nowhere.png")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes on this system")
@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (make_pipe, "is a named pipe, not a file"),
        (make_socket, "is a device or socket, not a file"),
        (make_broken_link, "is a link to nowhere.png, which does not exist"),
    ],
)
def test_what_is_no_file_is_refused_before_it_is_opened(tmp_path, make, expected):
    path = tmp_path / "own"
    make(path)
    for load, kinds in (
        (datasets.load, ("npy", "npz", "stream")),
        (series.load, ("npy", "npz", "csv")),
    ):
        for kind in kinds:
            assert expected in refusal(load, f"{kind}:{path}")
    path.unlink()
    for name in ("00.png", "99.png"):  # The first, which gives the shape, and another.
        spec = image_folder(tmp_path / name)
        (tmp_path / name / name).unlink(missing_ok=True)
        make(tmp_path / name / name)
        assert expected in refusal(datasets.load, spec)
    path = tmp_path / "idx"
    path.mkdir()
    write_idx_folder(path, compress=False)
    (path / IDX_NAMES[0]).unlink()
    make(path / IDX_NAMES[0])
    with pytest.raises(UserError, match=r"not a file|no such file"):
        datasets.load("mnist", str(path))


def test_a_folder_that_is_named_like_an_image(tmp_path):
    spec = image_folder(tmp_path / "x")
    write_images(tmp_path / "x" / "more.png", BYTES[:2])
    data = datasets.load(spec)
    assert len(data.x_train) + len(data.x_test) == 22


# Memory


@pytest.fixture
def little_memory(monkeypatch):
    """A machine with a megabyte left."""
    monkeypatch.setattr(files, "available_memory", lambda: 2**20)
    monkeypatch.setattr(series_csv, "available_memory", lambda: 2**20)


@pytest.mark.usefixtures("little_memory")
def test_arrays_that_do_not_fit_into_memory(tmp_path):
    x = np.zeros((2**10, 2**10), np.uint8)
    np.savez_compressed(tmp_path / "own.npz", x=x)
    for spec in (f"npz:{tmp_path / 'own.npz'}", npy(tmp_path, x)):
        message = refusal(datasets.load, spec)
        assert "reading it takes 0.01 GiB of memory, and 0.00 GiB are free; " in message
        assert "--dataset stream:FILE.npy" in message
        assert "give fewer series, or shorter ones" in refusal(series.load, spec)
    datasets.load(npy(tmp_path, x, "stream"))


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("1," * 30_000 + "2\n", "a row of more than 26214 characters is too long"),
        ("1,2\n" * 99 + "1," * 9_000 + "2\n", "the longest of 100 rows has 9001 cells"),
        (
            LONG + "e,0,1\ne,9001,2\n" + "".join(f"f,{i},2\n" for i in range(50)),
            "give fewer series, or shorter ones",
        ),
    ],
)
def test_one_long_row_among_short_ones(tmp_path, content, expected):
    assert expected in refusal(series.load, csv(tmp_path, content))


def test_memory_that_is_refused(tmp_path, monkeypatch):
    def refuse(*_):
        raise MemoryError("Unable to allocate 3.00 GiB")

    spec, text = npy(tmp_path, BYTES), csv(tmp_path, ROWS)
    monkeypatch.setattr(pixels, "to_float32", refuse)
    monkeypatch.setattr(series, "_check_length", refuse)
    expected = "not enough memory to read it (Unable to allocate 3.00 GiB); "
    assert f"{expected}keep the images on disk" in refusal(datasets.load, spec)
    assert f"{expected}give fewer series" in refusal(series.load, text)


def test_gzip_files_are_not_unpacked_beyond_what_they_announce(tmp_path, monkeypatch):
    write_idx_folder(tmp_path)
    path = tmp_path / f"{IDX_NAMES[0]}.gz"
    path.write_bytes(gzip.compress(idx_bytes(np.zeros((6, 3, 2))) + bytes(2**24)))
    read = []
    plain = gzip.GzipFile.read

    def counting(self, size=-1):
        content = plain(self, size)
        read.append(len(content))
        return content

    monkeypatch.setattr(gzip.GzipFile, "read", counting)
    with pytest.raises(UserError, match=r"too long: expected 36 bytes for 6x3x2.*found more"):
        datasets.load("mnist", str(tmp_path))
    assert sum(read) < 2**18
    # A header that announces more than the file can hold asks for no memory.
    header = b"".join(n.to_bytes(4, "big") for n in (0x803, 2**31, 2**15, 2**15))
    path.write_bytes(gzip.compress(header + bytes(100)))
    with pytest.raises(UserError, match="truncated: expected 2305843009213693952 bytes"):
        datasets.load("mnist", str(tmp_path))


def test_the_memory_that_is_free():
    free = files.available_memory()
    assert free > 2**20
    if pathlib.Path("/proc/meminfo").exists():
        total = 1024 * int(
            re.search(r"MemTotal: +(\d+)", pathlib.Path("/proc/meminfo").read_text())[1]
        )
        assert free <= total


def test_files_that_no_image_is_as_large_as(tmp_path):
    spec = image_folder(tmp_path / "x")
    path = tmp_path / "x" / "00.png"
    with path.open("r+b") as file:
        file.truncate(2**40)
    assert f"has {2**40} bytes, more than an encoded image has" in refusal(datasets.load, spec)


# What `evaluate` scores


def finished_run(folder, *argv):
    """A run folder as `train` leaves it, but for its model."""
    options, data = train.prepare(dataclasses.replace(options_of(*argv), epochs=3))
    folder.mkdir()
    run = run_folder.Run(folder, options, data.fingerprint())
    write_json(folder / "config.json", run.config)
    write_json(folder / "metrics.json", {})
    (folder / "model.keras").write_bytes(b"")
    return folder, data


@pytest.fixture
def scored(cli, monkeypatch):
    """Runs `evaluate`; gives the data that were scored, as the model has them, and what is said."""
    taken = []

    def score(model, data, run, num_importance_samples):
        taken.append(data.test)
        return {}

    monkeypatch.setattr(evaluate, "load_model", lambda run: None)
    monkeypatch.setattr(evaluate, "evaluate_model", score)

    def run(*argv):
        code, out, err = cli("evaluate", *argv, "--json")
        assert code == 0, err
        assert json.loads(out) == {}
        return taken.pop(), err

    return run


def of_kind(kind, folder, x):
    folder.mkdir()
    if kind == "npy" or kind == "stream":
        return npy(folder, x, kind)
    if kind == "npz":
        return npz(folder, x=x)
    if kind == "images":
        return write_images(folder / "images", x)
    return write_shards(folder, x)


KINDS = ("npy", "npz", "stream", "images", "tfrecord")


@pytest.mark.parametrize("kind", KINDS)
def test_all_of_other_images_are_scored(scored, tmp_path, kind, monkeypatch):
    monkeypatch.setattr(streams, "MAX_TEST_IMAGES", 3)
    run, _ = finished_run(tmp_path / "run", "--dataset", npy(tmp_path, BYTES))
    for new in (255 - BYTES[:9], 255 - BYTES[:1]):
        spec = of_kind(kind, tmp_path / f"of {len(new)}", new)
        x, said = scored(run, "--dataset", spec)
        np.testing.assert_allclose(in_order(x), in_order(new / 255), rtol=1e-6)
        assert f"{'All 9 images' if len(new) > 1 else 'The image'} of {spec} " in said


@pytest.mark.parametrize("kind", KINDS)
def test_the_test_images_of_the_run_are_scored_wherever_they_lie(scored, tmp_path, kind):
    spec = of_kind(kind, tmp_path / "here", BYTES)
    run, data = finished_run(tmp_path / "run", "--dataset", spec)
    x, said = scored(run)
    np.testing.assert_array_equal(x, data.x_test)
    assert said == ""
    (tmp_path / "here").rename(tmp_path / "there")
    os.chdir(tmp_path)
    moved = spec.replace(f"{tmp_path}/here", "there")
    x, said = scored(run, "--dataset", moved)
    np.testing.assert_array_equal(x, data.x_test)
    assert "holds the data that the model was trained on: its 4 test images are scored." in said


@pytest.mark.parametrize("kind", KINDS)
def test_data_of_a_run_that_have_changed(scored, cli, tmp_path, kind):
    spec = of_kind(kind, tmp_path / "here", BYTES[:15])
    run, _ = finished_run(tmp_path / "run", "--dataset", spec)
    longer = of_kind(kind, tmp_path / "longer", BYTES)
    for path in (tmp_path / "longer").rglob("*"):
        if path.is_file():
            path.replace(tmp_path / "here" / path.relative_to(tmp_path / "longer"))
    code, out, err = cli("evaluate", run)
    assert (code, out) == (2, "")
    assert err.startswith(f"tfp-ar1: error: {spec}: has changed since {run} was trained on it (12")
    assert "(12 training and 3 test images then, 16 training and 4 test now)" in err
    assert f"restore it, or give --dataset {spec} to have all of it scored" in err
    x, said = scored(run, "--dataset", spec)
    np.testing.assert_allclose(in_order(x), in_order(BYTES / 255), rtol=1e-6)
    assert f"All 20 images of {spec} are scored." in said
    assert "what is scored may hold data of the training" in said
    assert longer != spec


def test_the_file_of_the_run_read_in_another_way(scored, tmp_path):
    run, data = finished_run(tmp_path / "run", "--dataset", npy(tmp_path, BYTES))
    for spec in (f"stream:{tmp_path / 'own.npy'}", npz(tmp_path, arr_0=BYTES)):
        x, said = scored(run, "--dataset", spec)
        np.testing.assert_array_equal(x, data.x_test)
        assert "holds the data that the model was trained on" in said
    run, _ = finished_run(tmp_path / "other", "--dataset", npy(tmp_path, BYTES, "stream"))
    os.chdir(tmp_path / "run")
    x, said = scored(run, "--dataset", "npy:../own.npy")
    assert len(x) == 20
    assert "what is scored may hold data of the training" in said


def test_a_file_that_has_a_test_part(scored, tmp_path):
    run, _ = finished_run(tmp_path / "run", "--dataset", npy(tmp_path, BYTES))
    spec = npz(tmp_path, x_train=BYTES[:5], x_test=255 - BYTES[:3])
    x, said = scored(run, "--dataset", spec)
    np.testing.assert_allclose(x, 1 - BYTES[:3] / 255, atol=1e-6)
    assert f"The 3 test images of {spec} are scored, its 5 training images not." in said
    for part, images in (("train", BYTES[:5]), ("test", BYTES[:2])):
        write_images(tmp_path / "folder" / part, images)
    x, said = scored(run, "--dataset", f"images:{tmp_path / 'folder'}")
    np.testing.assert_allclose(x, BYTES[:2] / 255, atol=1e-6)


def test_a_file_that_is_gone(refused, tmp_path):
    spec = npy(tmp_path, BYTES)
    run, _ = finished_run(tmp_path / "run", "--dataset", spec)
    (tmp_path / "own.npy").unlink()
    message = refused("evaluate", run)
    assert "own.npy: No such file or directory" in message
    assert "if it was moved, give its place with --dataset" in message


SEQUENCE = ("--model", "sequence", "--dataset")


def write_series(kind, folder, x):
    folder.mkdir(exist_ok=True)
    if kind == "csv":
        return csv(folder, "\n".join(",".join(map(repr, map(float, row))) for row in x))
    return npz(folder, x=x) if kind == "npz" else npy(folder, x)


@pytest.mark.parametrize("kind", ["npy", "npz", "csv"])
def test_all_of_other_series_are_scored(scored, tmp_path, kind):
    trained = write_series(kind, tmp_path / "here", WALKS)
    run, data = finished_run(tmp_path / "run", *SEQUENCE, trained)
    for number in (5, 1):
        new = WALKS[:number] + 100
        spec = write_series(kind, tmp_path / f"of {number}", new)
        x, said = scored(run, "--dataset", spec)
        np.testing.assert_allclose(data.units.restore(x["x"])[..., 0], new, atol=1e-4)
        assert f"{'All 5' if number > 1 else 'The one'} series of {spec[4:]} " in said
        assert f"scored: {number} windows of 7 steps." in said
    # Those of the training, in another place.
    (tmp_path / "here").rename(tmp_path / "there")
    x, said = scored(run, "--dataset", trained.replace("here", "there"))
    np.testing.assert_array_equal(x["x"], data.x_test)
    assert "holds the data of the training, whose test series are scored: 2 windows" in said
    # A test part of their own.
    spec = npz(tmp_path, x=WALKS, x_test=WALKS[:3] + 1)
    x, said = scored(run, "--dataset", spec)
    assert len(x["x"]) == 3
    assert "The 3 test series of" in said


def test_one_long_series_is_scored_as_a_whole(scored, tmp_path):
    long = WALKS.reshape(1, -1)
    run, data = finished_run(tmp_path / "run", *SEQUENCE, npy(tmp_path, long), "--window", 7)
    (tmp_path / "new").mkdir()
    spec = npy(tmp_path / "new", long + 1)
    x, said = scored(run, "--dataset", spec)
    np.testing.assert_allclose(data.units.restore(x["x"]).ravel(), long[0] + 1, atol=1e-5)
    assert "The one series of" in said
    # Of what is no whole window, single steps cannot be scored.
    spec = npy(tmp_path / "new", WALKS.reshape(4, 21)[:, :15])
    x, said = scored(run, "--dataset", spec)
    assert len(x["x"]) == 8
    assert "8 windows of 7 steps; 4 pieces of 1 step or without values are left out." in said
    x, _ = scored(run)
    assert len(x["x"]) == 2


def test_series_of_a_run_that_have_changed(scored, cli, tmp_path):
    spec = npy(tmp_path, WALKS[:10])
    run, _ = finished_run(tmp_path / "run", *SEQUENCE, spec)
    npy(tmp_path, WALKS)
    code, _, err = cli("evaluate", run)
    assert code == 2
    assert "(8 training and 2 test windows then, 10 training and 2 test now)" in err
    x, _ = scored(run, "--dataset", spec)
    assert len(x["x"]) == 12


def test_training_is_not_resumed_on_other_data(refused, tmp_path):
    spec = npy(tmp_path, BYTES[:15])
    run, _ = finished_run(tmp_path / "run", "--dataset", spec, "--epochs", 3)
    (run / "metrics.json").unlink()
    npy(tmp_path, BYTES)
    message = refused("train", "--dataset", spec, "--epochs", 3, "--out", run)
    assert f"holds an unfinished run on {spec}, which has changed since; restore it" in message


def test_another_window_is_no_change_of_the_file(refused, tmp_path):
    spec = npy(tmp_path, WALKS)
    run, _ = finished_run(tmp_path / "run", *SEQUENCE, spec, "--window", 3)
    (run / "metrics.json").unlink()
    message = refused("train", *SEQUENCE, spec, "--window", 4, "--epochs", 3, "--out", run)
    assert "with --window 3, not 4; resume it with the same options" in message
