"""Images that stay on disk: what is read, what is refused, what is skipped, and the memory."""

import concurrent.futures
import gzip
import json
import os
import pathlib
import struct
import subprocess
import sys
import zlib

import data_files
import numpy as np
import pytest
import tensorflow as tf
from data_files import COLOUR, GRAY, STREAMS, all_images, damage, encode, in_order, refusal
from PIL import Image
from program import TINY, contents

from tfp_ar1_cli import kinds
from tfp_ar1_cli.data import image_files, loading, sources, split, streams, tfrecords
from tfp_ar1_cli.data import images as datasets
from tfp_ar1_cli.errors import UserError

KINDS = pytest.mark.parametrize("kind", streams.KINDS)

# What is read


@pytest.mark.parametrize("x", [GRAY, COLOUR], ids=["gray", "colour"])
@KINDS
def test_the_values_of_each_source(tmp_path, kind, x):
    data = datasets.load(STREAMS[kind](tmp_path, x))
    train, test = split.shuffled(len(x))
    stream = data.x_train
    assert isinstance(stream, streams.Stream)
    assert stream.shape == (32, *x.shape[1:])
    assert stream.dtype == np.float32
    assert (data.data_shape, data.notes) == (x.shape[1:], ())
    if kind == "images":  # The names of the two folders.
        assert data.y_test.tolist() == ["a" if row < 20 else "b" for row in test]
    else:
        assert data.y_test is None

    expected = x[train].astype(np.float32) / 255
    shuffled = np.random.default_rng(1).permutation(32)
    slices = (slice(None), slice(3, 20, 4), slice(5, 5))
    for index in (*slices, shuffled, shuffled[:7], np.array([4, 5, 6, 4, -1]), np.array([], int)):
        read = stream[index]
        assert read.dtype == np.float32
        np.testing.assert_array_equal(read, expected[index])
    np.testing.assert_array_equal(data.x_test, x[test].astype(np.float32) / 255)
    assert type(data.x_test) is np.ndarray
    assert data.skipped == {}


@pytest.mark.parametrize("dtype", ["f2", "f4", ">f4", "f8", "u1", "i2", "?"])
@pytest.mark.parametrize("shape", [(10, 3, 4), (10, 3, 4, 3), (10, 7)])
def test_the_same_as_in_memory(tmp_path, dtype, shape):
    x = np.random.default_rng(0).uniform(0, 1.99, shape)
    np.save(tmp_path / "x.npy", (x if "f" in dtype else x * 100).astype(dtype))
    in_memory = datasets.load(f"npy:{tmp_path / 'x.npy'}", likelihood="gaussian")
    streamed = datasets.load(f"stream:{tmp_path / 'x.npy'}", likelihood="gaussian")
    np.testing.assert_array_equal(streamed.x_train[:], in_memory.x_train)
    np.testing.assert_array_equal(streamed.x_test, in_memory.x_test)
    assert streamed.fingerprint().keys() == in_memory.fingerprint().keys()


def test_headers_of_version_2_and_the_other_feature(tmp_path):
    with (tmp_path / "x.npy").open("wb") as file:
        np.lib.format.write_array(file, GRAY, version=(2, 0))
    shards = data_files.shards(tmp_path, GRAY, 1, "image/encoded")
    for spec in (f"stream:{tmp_path / 'x.npy'}", shards):
        np.testing.assert_array_equal(
            all_images(datasets.load(spec)), in_order(np.float32(GRAY) / 255)
        )


SMOOTH = np.add.outer(np.arange(16), np.arange(16)).astype(np.uint8) * 8
PALETTE = Image.fromarray(np.stack([SMOOTH, SMOOTH // 2, SMOOTH], -1)).quantize(16)


@pytest.mark.parametrize("suffix", [".webp", ".TIF", ".pgm", ".jfif", ".BMP", ".gif", ".jpeg"])
def test_other_endings_are_read(tmp_path, suffix):
    gray = Image.fromarray(SMOOTH)
    pictures = [gray.convert("RGB")] * 2 if suffix == ".webp" else [gray, gray]  # It has no gray.
    pictures[0].save(tmp_path / "00.png")
    form = {".webp": "WEBP", ".TIF": "TIFF"}.get(suffix)
    pictures[1].save(tmp_path / f"y{suffix}", form, lossless=True)
    data = datasets.load(f"images:{tmp_path}")
    both = np.concatenate([data.x_train[:], data.x_test]) * 255
    expected = np.stack([np.asarray(picture) for picture in pictures])
    np.testing.assert_allclose(both, expected, atol=9 if suffix in (".jfif", ".jpeg") else 1e-4)
    assert not data.notes


def test_palettes_and_bits(tmp_path):
    bits = Image.fromarray(np.eye(16, dtype=np.uint8) * 255).convert("1")
    for name, pictures in {"b": (bits, bits), "p": (PALETTE, PALETTE.convert("RGB"))}.items():
        (tmp_path / name).mkdir()
        for number, picture in enumerate(pictures):
            picture.save(tmp_path / name / f"{number}.png")
    np.testing.assert_array_equal(datasets.load(f"images:{tmp_path / 'b'}").x_test[0], np.eye(16))
    data = datasets.load(f"images:{tmp_path / 'p'}")
    assert data.data_shape == (16, 16, 3)
    np.testing.assert_array_equal(data.x_train[:], data.x_test)


@pytest.mark.parametrize(
    ("train", "test"), [("train", "test"), ("Train", "TEST"), ("training", "val")]
)
def test_folders_for_training_and_testing(tmp_path, train, test):
    data_files.images(tmp_path / train, GRAY[:10])
    data_files.images(tmp_path / test, GRAY[10:13])
    data_files.images(tmp_path / "other", COLOUR[:3])
    (tmp_path / "README").write_text("beside them")
    data = datasets.load(f"images:{tmp_path}")
    np.testing.assert_array_equal(data.x_train[:], np.float32(GRAY[:10]) / 255)
    np.testing.assert_array_equal(data.x_test, np.float32(GRAY[10:13]) / 255)
    assert f"In {tmp_path}, only {train} and {test} are read, not README, other." in data.notes
    before = data.fingerprint()
    (tmp_path / test / "a" / "000.png").write_bytes(encode(GRAY[20]))
    assert datasets.load(f"images:{tmp_path}").fingerprint()["sha256"] != before["sha256"]
    # Another shape than that of the training images.
    data_files.images(tmp_path / test, COLOUR[:1])
    with pytest.raises(streams.Corrupt, match=r"/b/000\.png: has shape 6x5x3, the others 6x5"):
        datasets.load(f"images:{tmp_path}")


def test_splits_further_below_are_not_pooled(tmp_path):
    below = tmp_path / "own" / "data"
    for part in ("train", "test"):
        data_files.images(below / part, GRAY[:3])
    message = refusal(datasets.load, f"images:{tmp_path / 'own'}")
    assert "holds the folders train and test, whose images would become one set" in message
    assert f"give images:{below}" in message
    # A folder of that name alone may be a class: there are images of trains. So may be any other.
    (below / "test").rename(below / "bus.png")
    assert len(datasets.load(f"images:{tmp_path / 'own'}").x_train) == 5


def test_hidden_and_other_files_are_left_out_and_counted(tmp_path):
    folder = tmp_path / "x"
    spec = data_files.images(folder, GRAY[:10])
    before = datasets.load(spec)
    for name in (".ipynb_checkpoints", "__MACOSX", "a/.cache"):
        data_files.images(folder / name, GRAY[10:12])
    for name in ("._00.png", ".DS_Store", "a.heic", "b.HEIC", "labels.csv", "README"):
        (folder / name).write_bytes(b"no image")
    (folder / "loop").symlink_to(folder)
    data = datasets.load(spec)
    np.testing.assert_array_equal(data.x_train[:], before.x_train[:])
    assert data.notes == (
        f"Left out of {folder}: 1 .csv, 2 .heic, 1 hidden file, 3 hidden folders, 1 linked "
        "folder, 1 other file.",
    )


def test_notes_of_dark_images_and_of_shards_of_two_sets(tmp_path):
    (note,) = datasets.load(data_files.images(tmp_path / "dark", GRAY % 2)).notes
    assert "The images are bytes of at most 1, which are divided by 255; if 1 is white" in note
    for name in ("train", "test"):
        spec = data_files.shards(tmp_path, GRAY, name=name)
    assert not datasets.load(spec).notes
    (note,) = datasets.load(f"tfrecord:{tmp_path}/*").notes
    assert (
        "3 of 6 files are named test-0-of-3.tfrecord or the like, and are read into one set" in note
    )


@KINDS
def test_the_test_images_are_limited(tmp_path, kind, monkeypatch):
    spec = STREAMS[kind](tmp_path, GRAY)
    monkeypatch.setattr(streams, "MAX_TEST_IMAGES", 5)
    data = datasets.load(spec)
    assert (len(data.x_train), len(data.x_test)) == (35, 5)
    monkeypatch.setattr(streams, "MAX_TEST_BYTES", 3 * 6 * 5 * 4 + 1)
    data = datasets.load(spec)
    assert (len(data.x_train), len(data.x_test)) == (37, 3)
    # Each image is in one of the two parts, and in one only.
    np.testing.assert_array_equal(all_images(data), in_order(np.float32(GRAY) / 255))
    monkeypatch.setattr(streams, "MAX_TEST_BYTES", 1)
    assert len(datasets.load(spec).x_test) == 1


def test_given_test_images_are_limited(tmp_path, monkeypatch):
    data_files.images(tmp_path / "train", GRAY[:4])
    data_files.images(tmp_path / "test", GRAY)
    monkeypatch.setattr(streams, "MAX_TEST_IMAGES", 8)
    data = datasets.load(f"images:{tmp_path}")
    assert len(data.x_test) == 8
    assert "Of 40 test images, 8 are used" in data.notes[0]
    # Not the first ones, which are of one kind if the folders below are classes.
    positions = [np.flatnonzero((np.float32(GRAY) / 255 == x).all((1, 2)))[0] for x in data.x_test]
    assert max(positions) >= 20 > min(positions)
    np.testing.assert_array_equal(data.x_test, datasets.load(f"images:{tmp_path}").x_test)


def test_a_stream_does_not_become_an_array(tmp_path):
    stream = datasets.load(data_files.stream(tmp_path, GRAY)).x_train
    for convert in (np.asarray, np.array, tf.convert_to_tensor, np.mean):
        with pytest.raises((TypeError, ValueError), match=r"stay on disk|not by 0"):
            convert(stream)
    for index in (3, np.arange(4).reshape(2, 2)):
        with pytest.raises(TypeError, match=r"a slice or an array \[n\]"):
            stream[index]
    with pytest.raises(IndexError):
        stream[np.array([32])]


@KINDS
def test_many_threads(tmp_path, kind):
    stream = datasets.load(STREAMS[kind](tmp_path, GRAY)).x_train
    expected = stream[:]
    rng = np.random.default_rng(0)
    chosen = [rng.permutation(32)[:9] for _ in range(200)]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for index, read in zip(chosen, pool.map(stream.__getitem__, chosen), strict=True):
            np.testing.assert_array_equal(read, expected[index])


# The fingerprint


@KINDS
def test_the_fingerprint_is_that_of_the_files(tmp_path, kind):
    (tmp_path / "here").mkdir()
    spec = STREAMS[kind](tmp_path / "here", GRAY)
    before = datasets.load(spec).fingerprint()
    assert before == datasets.load(spec).fingerprint()
    assert (before["image_shape"], before["num_train"], before["num_test"]) == ([6, 5], 32, 8)
    assert 0 <= before["range"][0] < before["range"][1] <= 1
    # Another place is no other data.
    (tmp_path / "here").rename(tmp_path / "there")
    moved = spec.replace("here", "there")
    assert datasets.load(moved).fingerprint() == before
    # Another image is.
    other = GRAY.copy()
    other[17] //= 2
    STREAMS[kind](tmp_path / "there", other)
    assert datasets.load(moved).fingerprint()["sha256"] != before["sha256"]


def test_the_fingerprint_does_not_depend_on_the_listing(tmp_path, monkeypatch):
    spec = data_files.images(tmp_path, GRAY)
    before = datasets.load(spec).fingerprint()
    list_images = image_files.list_images
    monkeypatch.setattr(image_files, "list_images", lambda *x: reversed(list(list_images(*x))))
    assert datasets.load(spec).fingerprint() == before
    monkeypatch.undo()
    (tmp_path / "a" / "000.png").rename(tmp_path / "a" / "0000.png")
    assert datasets.load(spec).fingerprint()["sha256"] != before["sha256"]


def test_the_fingerprint_reads_samples_of_a_large_file(tmp_path):
    path = tmp_path / "x.npy"
    np.save(path, np.zeros((128, 2**17), np.uint8))  # 16 MiB, of which 4 MiB are read.
    fingerprint = sources.Files(path).sha256
    before = fingerprint()
    size = path.stat().st_size
    place = 40 * (size - 2**16) // 63  # The 41st of the 64 places.
    damage(path, place + 2**16)
    assert fingerprint() == before
    damage(path, place + 2**16 - 1)
    assert fingerprint() != before
    damage(path, place + 2**16 - 1)
    assert fingerprint() == before
    damage(path, size - 1)
    assert fingerprint() != before
    damage(path, size - 1)
    with path.open("ab") as file:
        file.write(b"\0")
    assert fingerprint() != before


# TFRecord files


def test_crc32c():
    """By single bits; RFC 3720, B.4; and the check value of the catalogue of CRCs."""
    for n in (0, 1, 3, 8, 16, 17, 63, 64, 65, 127, 128, 129, 1000, 4096):
        data = np.random.default_rng(n).bytes(n)
        crc = 0xFFFFFFFF
        for byte in data:
            crc ^= byte
            for _ in range(8):
                crc = crc >> 1 ^ 0x82F63B78 * (crc & 1)
        assert tfrecords.crc32c(data) == crc ^ 0xFFFFFFFF
    known = {b"123456789": 0xE3069283, bytes(32): 0x8A9136AA, b"\xff" * 32: 0x62A8AB43}
    for data, crc in (known | {bytes(range(32)): 0x46DD794E}).items():
        assert tfrecords.crc32c(data) == crc


@pytest.mark.parametrize("size", [0, 1, 100, 70_000, 3_000_001])
def test_records_as_tensorflow_writes_them(tmp_path, size):
    rng = np.random.default_rng(size)
    records = [rng.bytes(size), b"", rng.bytes(17), rng.bytes(size // 2)]
    offsets = data_files.write_records(tmp_path / "x", records)
    found, lengths, problem = tfrecords.index(tmp_path / "x")
    assert problem is None
    np.testing.assert_array_equal(found, offsets)
    assert [tfrecords.read(tmp_path / "x", *at) for at in zip(found, lengths, strict=True)] == (
        records
    )


# Mistakes that are found at the start


def test_nan_and_values_outside(refused):
    x = np.zeros((40, 2, 2), np.float32)
    row = split.stable(40)[1][3]
    for value, expected in (
        (np.nan, "2 of 4 values are NaN or infinite"),
        (1.5, "2 of 4 values lie outside [0, 1] (they range from 0 to 1.5)"),
    ):
        x[row, 1] = value
        message = refused("train", "--dataset", data_files.stream(pathlib.Path(), x))
        assert f"own.npy: row {row} (byte {128 + 16 * row}): {expected}" in message
        assert "--corrupt skip" in message
    datasets.load("stream:own.npy", likelihood="gaussian")


def test_folders_that_are_refused(refused):
    train = ("train", "--dataset", "images:x")
    assert "x: no such folder; give the folder of the image files" in refused(*train)
    pathlib.Path("x").mkdir()
    assert "x: holds 0 files ending in .png, .jpg, .jpeg, " in refused(*train)
    pathlib.Path("x/0.png").write_bytes(encode(GRAY[0]))
    assert "x: holds 1 files" in refused(*train)


def bomb():
    """A PNG of 20,000 x 20,000 pixels, as its header says."""
    content = bytearray(encode(GRAY[0]))
    content[16:24] = struct.pack(">II", 20_000, 20_000)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    return bytes(content)


TURNED = Image.Exif()
TURNED[0x0112] = 6
PAGES = {"save_all": True, "append_images": [Image.fromarray(x) for x in GRAY[1:3]]}
NO_IMAGE = "is not a PNG, JPEG, BMP, GIF, WEBP, TIFF, PPM image"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", f"{NO_IMAGE} (0 bytes)"),
        (b"nonsense", f"{NO_IMAGE} (8 bytes)"),
        (encode(GRAY[0], "TGA"), NO_IMAGE),
        (encode(GRAY[0])[:-40], "cannot be decoded ("),
        (bomb(), "cannot be decoded ("),
        (encode(GRAY[0][:5]), "has shape 5x5, the others 6x5"),
        (encode(COLOUR[0]), "has shape 6x5x3, the others 6x5"),
        (encode(GRAY[0], "TIFF", "CMYK"), "has shape 6x5x3, the others 6x5; give --grayscale to"),
        (encode(GRAY[0].astype(np.int32), "TIFF"), "has the pixel mode I; store it as gray"),
        (encode(GRAY[0], "JPEG", exif=TURNED), "has shape 5x6, the others 6x5; give --resize to"),
        (encode(GRAY[0], "TIFF", **PAGES), "has 3 pages; store each as a file"),
        (2**40, f"has {2**40} bytes, too many for an encoded image"),
    ],
)
def test_images_that_are_refused(tmp_path, content, expected, monkeypatch):
    spec = data_files.images(tmp_path, GRAY[:9])
    path = tmp_path / "b" / "008.png"
    if isinstance(content, int):
        os.truncate(path, content)
    else:
        path.write_bytes(content)
    monkeypatch.setattr(split, "shuffled", lambda *_, **__: (np.arange(8), np.array([7, 8])))
    assert f"b/008.png: {expected}" in refusal(datasets.load, spec)
    # Others are trained on, if that is asked for.
    (problem,) = datasets.load(spec, corrupt="skip").skipped.values()
    assert problem.startswith(expected)


def test_a_damaged_image_is_reported_before_the_shape_is_asked_for(tmp_path):
    data_files.images(tmp_path, GRAY[:6])
    (tmp_path / "a" / "000.png").write_bytes(b"nonsense")
    with pytest.raises(streams.Corrupt, match=r"a/000\.png: is not a PNG"):
        datasets.load(f"images:{tmp_path}")
    assert datasets.load(f"images:{tmp_path}", corrupt="skip").data_shape == (6, 5)
    for path in tmp_path.glob("*/*.png"):
        path.write_bytes(b"nonsense")
    with pytest.raises(UserError, match="none of 6 images can be decoded; the first: "):
        datasets.load(f"images:{tmp_path}", corrupt="skip")


def test_patterns_and_shards_that_are_refused(tmp_path):
    def refuse(expected, pattern="x-*", error=UserError, **options):
        with pytest.raises(error) as caught:
            datasets.load(f"tfrecord:{tmp_path}/{pattern}", **options)
        assert expected in caught.value.message

    refuse("no such file; give a pattern such as")
    (tmp_path / "x-folder").mkdir()
    refuse("no such file; give a pattern such as")
    path = tmp_path / "x-0"
    path.touch()
    refuse("1 files hold 0 records; at least 2 images are needed")
    records = [data_files.example(encode(image)) for image in GRAY[:8]]
    for options in ("stop", "skip"):
        data_files.write_records(path, records, "GZIP")
        refuse("x-0: is compressed with gzip", corrupt=options)
        path.write_bytes(gzip.compress(b""))
        refuse("x-0: is compressed with gzip", corrupt=options)
    data_files.write_records(path, records, "ZLIB")
    refuse("x-0: record 0 (byte 0): the length of the record does not match its CRC (not a TFR")
    for record, expected in (
        (b"\x07nonsense", "is not a tf.train.Example"),
        (
            data_files.example(encode(GRAY[0]), "picture"),
            "has no feature image or image/encoded with one bytes",
        ),
        (
            data_files.example(b"nonsense"),
            "is not a PNG, JPEG, BMP, GIF, WEBP, TIFF, PPM image (8 bytes)",
        ),
        (b"", "has no feature image or image/encoded with one bytes value; its features: none"),
    ):
        data_files.write_records(path, [record, *records])
        refuse(f"x-0: record 0 (byte 0): {expected}", error=streams.Corrupt)


# Corrupt images are skipped and counted, or stop the run


BAD = (3, 4, 30)


def corrupt_npy(folder):
    x = np.float32(GRAY) / 255
    x[BAD, 0, 0] = np.nan, 2, -np.inf
    bad = {f"{folder}/own.npy: row {i} (byte {128 + i * 120})" for i in BAD}
    return data_files.stream(folder, x), bad


def corrupt_folder(folder):
    spec = data_files.images(folder, GRAY)
    paths = [folder / name for name in ("a/003.png", "a/004.png", "b/030.png")]
    for i, path in zip(BAD, paths, strict=True):
        path.write_bytes(encode(GRAY[i])[: i + 20])
    return spec, set(map(str, paths))


def corrupt_records(folder):
    contents, bad = [data_files.example(encode(image)) for image in GRAY], set()
    for shard, damaged in enumerate([(3, 4), (10,)]):
        path = folder / f"s{shard}.tfrecord"
        offsets = data_files.write_records(path, contents[20 * shard : 20 * shard + 20])
        for record in damaged:
            damage(path, offsets[record] + 12 + 30, b"\1")
            bad.add(f"{path}: record {record} (byte {offsets[record]})")
    return f"tfrecord:{folder}/s*.tfrecord", bad


CORRUPT = {"stream": corrupt_npy, "images": corrupt_folder, "tfrecord": corrupt_records}


@KINDS
def test_corrupt_images_are_left_out_and_counted_once(tmp_path, kind):
    spec, positions = CORRUPT[kind](tmp_path)
    train, test = split.shuffled(40)
    data = datasets.load(spec, corrupt="skip")
    good_test = test[~np.isin(test, BAD)]
    np.testing.assert_array_equal(data.x_test, np.float32(GRAY[good_test]) / 255)
    assert len(data.skipped) == np.isin(BAD, test).sum()
    assert len(data.x_train) == 32
    good = np.flatnonzero(~np.isin(train, BAD))
    for _ in range(3):
        np.testing.assert_array_equal(data.x_train[:], np.float32(GRAY[train[good]]) / 255)
    assert data.skipped.keys() == positions
    bad = np.flatnonzero(np.isin(train, BAD))
    assert data.x_train[bad].shape == (0, 6, 5)


@KINDS
def test_corrupt_images_stop(tmp_path, kind, monkeypatch):
    spec, positions = CORRUPT[kind](tmp_path)
    # So that they are found while training.
    monkeypatch.setattr(split, "shuffled", lambda *_, **__: (np.arange(35), np.arange(35, 40)))
    stream = datasets.load(spec).x_train
    np.testing.assert_array_equal(stream[5:30], np.float32(GRAY[5:30]) / 255)
    with pytest.raises(streams.Corrupt) as caught:
        stream[::-1]
    assert any(position in caught.value.message for position in positions)
    assert "--corrupt skip" in caught.value.message
    assert stream.skipped == {}


def test_a_test_set_that_is_all_corrupt(tmp_path):
    x = np.full((10, 3), np.nan)
    with pytest.raises(UserError, match="none of the 2 test images can be used; the first"):
        datasets.load(data_files.stream(tmp_path, x), corrupt="skip")


@pytest.mark.parametrize("how", ["length", "length CRC", "truncated", "truncated header"])
def test_shards_that_cannot_be_followed(tmp_path, how):
    pattern = data_files.shards(tmp_path, GRAY, 2)
    path = tmp_path / "t-0-of-2.tfrecord"
    offsets, lengths, _ = tfrecords.index(path)
    if how == "length":
        damage(path, offsets[15] + 1, b"\x40")
    elif how == "length CRC":
        damage(path, offsets[15] + 9)
    else:
        missing = 5 if how == "truncated" else lengths[15] + 9
        content = path.read_bytes()[: offsets[15] + 16 + lengths[15]]
        path.write_bytes(content[:-missing])
    with pytest.raises(streams.Corrupt) as caught:
        datasets.load(pattern)
    position = f"{path}: record 15 (byte {offsets[15]})"
    assert caught.value.message.startswith(position)
    reason = "truncated: the file ends at" if "trunc" in how else "the length of the record does"
    assert reason in caught.value.message
    data = datasets.load(pattern, corrupt="skip")
    assert list(data.skipped) == [position]
    assert "this record and those after it in the file cannot be read" in data.skipped[position]
    assert (len(data.x_train), len(data.x_test)) == (28, 7)
    kept = np.float32(np.delete(GRAY, np.s_[15:20], 0)) / 255
    np.testing.assert_array_equal(all_images(data), in_order(kept))


def test_every_bit_of_a_record_counts(tmp_path):
    path = tmp_path / "x"
    data_files.write_records(path, [b"abc", b"defg" * 5, b"hi"])
    content = path.read_bytes()
    offset, length = 19, 20
    for bit in range(8 * (12 + length + 4)):
        damage(path, offset + bit // 8, bytes([1 << bit % 8]))
        offsets, _, problem = tfrecords.index(path)
        if bit < 8 * 12:
            assert (len(offsets), problem is None) == (1, False)
        else:
            assert (len(offsets), problem) == (3, None)
            with pytest.raises(sources.Unreadable, match="the data of the record"):
                tfrecords.read(path, offset, length)
        path.write_bytes(content)


def test_a_file_that_gets_shorter_is_an_error_with_its_position(tmp_path):
    stream = datasets.load(data_files.stream(tmp_path, GRAY), corrupt="skip").x_train
    path = tmp_path / "own.npy"
    path.write_bytes(path.read_bytes()[:500])
    # Never skipped: a disk that is gone is no corrupt image.
    with pytest.raises(OSError, match="ends at byte 500, though it was longer before") as caught:
        stream[:]
    assert caught.value.filename == str(path)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"own\.npy"):
        stream[:]


@pytest.mark.slow
def test_batches_of_which_nothing_is_left(tmp_path, cli, monkeypatch):
    """A batch that is skipped as a whole moves nothing, and the loss stays a number."""
    x = np.random.default_rng(0).uniform(size=(20, 4, 4)).astype("float32")
    x[::3] = np.nan
    np.save(tmp_path / "x.npy", x)
    monkeypatch.setattr(kinds.ImageKind, "draw", lambda *_: [])
    code, out, err = cli(
        *("train", "--dataset", f"stream:{tmp_path / 'x.npy'}", "--corrupt", "skip"),
        *("--batch-size", "1", "--epochs", "1", "--hidden-units", "3", "--latent-dim", "2"),
        *("--out", tmp_path / "run"),
    )
    assert code == 0, err
    assert "Left out as corrupt: 7, all in" in out


# The command line


def test_names_of_runs():
    for spec, name in {
        "tfrecord:data/train-*.tfrecord": "train",
        "tfrecord:data/train-?????-of-[0-9]*.tfrecord": "train--of",
        "tfrecord:data/*.tfrecord": "tfrecord",
        "tfrecord:*": "tfrecord",
        "images:photos": "photos",
        "stream:a/photos.npy": "photos",
    }.items():
        assert loading.short_name(spec) == name
        assert loading.short_name(loading.resolve(spec, "image")) == name
        assert loading.is_stream(spec)


@pytest.mark.slow
@KINDS
def test_train_on_each_source(cli, tmp_path, kind):
    (tmp_path / "data").mkdir()
    spec = STREAMS[kind](tmp_path / "data", GRAY)
    before = contents(tmp_path / "data")
    argv = (*TINY, "--epochs", "1")
    code, out, err = cli("train", "--dataset", spec, *argv, "--out", "run")
    assert code == 0, err
    assert "32 training and 8 test images of 6x5" in out
    assert "Left out" not in out
    assert not pathlib.Path("run/skipped.json").exists()
    history = json.loads(pathlib.Path("run/history.json").read_text())
    # The same as of an array in memory.
    np.save("memory.npy", GRAY)
    assert cli("train", "--dataset", "npy:memory.npy", *argv, "--out", "memory")[0] == 0
    in_memory = json.loads(pathlib.Path("memory/history.json").read_text())
    assert history["loss"] == in_memory["loss"]
    assert history["val_loss"] == in_memory["val_loss"]
    code, out, _ = cli("evaluate", "run", "--json")
    assert code == 0
    assert json.loads(out) == json.loads(pathlib.Path("run/metrics.json").read_text())
    assert contents(tmp_path / "data") == before


@pytest.mark.slow
@KINDS
def test_train_stops_at_a_corrupt_image_and_is_resumed_without_it(cli, tmp_path, kind, monkeypatch):
    (tmp_path / "data").mkdir()
    spec, positions = CORRUPT[kind](tmp_path / "data")
    monkeypatch.setattr(split, "stable", lambda *_: (np.arange(35), np.arange(35, 40)))
    argv = ("train", "--dataset", spec, *TINY, "--out", "run")
    code, _, err = cli(*argv)
    assert code == 1
    message = err.splitlines()[-1]
    assert any(f"tfp-ar1: error: {position}: " in message for position in positions)
    assert "--corrupt skip" in message
    assert "The run is unfinished; resume with: " in message

    code, out, err = cli(*argv, "--corrupt", "skip")
    assert code == 0, err
    assert "Left out as corrupt: 3, all in run/skipped.json. The first:" in out
    skipped = json.loads(pathlib.Path("run/skipped.json").read_text())
    assert skipped.keys() == positions
    for position, problem in skipped.items():
        assert f"  {position}: {problem}\n" in out
    assert cli("export", "run")[0] == 0
    card = json.loads(pathlib.Path("run/export/model_card.json").read_text())
    assert card["data"]["num_skipped"] == 3
    assert "corrupt" not in card["training"]  # which it was at the beginning


@pytest.mark.slow
def test_evaluate_skips_as_the_training_did(cli, tmp_path):
    x = np.float32(GRAY) / 255
    _, test = split.stable(40)
    x[test[0]] = np.nan
    spec = data_files.stream(tmp_path, x)
    argv = ("train", "--dataset", spec, "--corrupt", "skip", *TINY, "--epochs", "1")
    assert cli(*argv, "--out", "run")[0] == 0
    code, out, _ = cli("evaluate", "run", "--json")
    assert (code, json.loads(out)["num_examples"]) == (0, 7)


MEGABYTE = 2**20
LIMIT = 1280 * MEGABYTE


@pytest.fixture(scope="module")
def large_file(tmp_path_factory):
    """A file of four times the limit, which takes no room on disk: all of it but the header is a
    hole, which reads as zeros."""
    path = tmp_path_factory.mktemp("large") / "large.npy"
    shape = (4 * LIMIT // (32 * 32 * 8), 32, 32)
    with path.open("wb") as file:
        header = {"descr": "<f8", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        file.truncate(file.tell() + 4 * LIMIT)
    if path.stat().st_blocks * 512 > MEGABYTE:
        path.unlink()
        pytest.skip("this file system has no sparse files")
    yield path
    path.unlink()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA counts otherwise elsewhere")
@pytest.mark.parametrize("kind", ["stream", "npy"])
def test_data_of_four_times_the_memory(tmp_path, large_file, kind):
    # The limit counts what a process has written or may write to, whether it is in RAM or not; that
    # of the address space would count libraries and the heaps of threads, of which TensorFlow
    # reserves more than it uses.
    program = (
        "import resource, sys\n"
        f"resource.setrlimit(resource.RLIMIT_DATA, ({LIMIT}, {LIMIT}))\n"
        "from tfp_ar1_cli import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    options = "--hidden-units 4 --latent-dim 2 --batch-size 1024 --epochs 1"
    argv = ["train", "--dataset", f"{kind}:{large_file}", *options.split()]
    argv += ["--num-importance-samples", "1", "--out", str(tmp_path / "run")]
    # Each thread has a stack and a heap, and a large machine has many.
    threads = {"TF_NUM_INTRAOP_THREADS": "2", "TF_NUM_INTEROP_THREADS": "2"}
    command = [sys.executable, "-c", program, *argv]
    done = subprocess.run(command, env=os.environ | threads, capture_output=True, text=True)
    if kind == "stream":
        assert done.returncode == 0, done.stderr
        assert f"{4 * LIMIT // 8192 * 4 // 5} training and 10000 test images" in done.stdout
        assert "--split shuffled trains on the others." in done.stdout
        assert (tmp_path / "run" / "metrics.json").exists()
    else:
        assert done.returncode == 2, done.stderr
        assert "cannot be read as .npy: Unable to allocate 5.00 GiB" in done.stderr
        assert "--dataset stream:FILE.npy" in done.stderr
        assert not (tmp_path / "run").exists()
