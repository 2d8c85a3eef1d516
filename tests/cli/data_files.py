"""Data in every form that the program reads, written for the tests; and what is read or refused."""

import gzip
import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from tfp_ar1_cli.errors import UserError

RNG = np.random.default_rng(7)
GRAY = RNG.integers(0, 256, (40, 6, 5), dtype=np.uint8)
COLOUR = RNG.integers(0, 256, (40, 6, 5, 3), dtype=np.uint8)
IDX_NAMES = (
    *("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    *("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
)


def npz(folder, x=None, **arrays):
    np.savez(folder / "own.npz", **arrays if x is None else {"x": x} | arrays)
    return f"npz:{folder / 'own.npz'}"


def npy(folder, x, kind="npy"):
    np.save(folder / "own.npy", x, allow_pickle=True)
    return f"{kind}:{folder / 'own.npy'}"


def stream(folder, x):
    return npy(folder, x, "stream")


def csv(folder, content):
    path = folder / "own.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return f"csv:{path}"


def encode(image, form="PNG", mode=None, **options):
    buffer = io.BytesIO()
    image = Image.fromarray(image)
    (image.convert(mode) if mode else image).save(buffer, form, **options)
    return buffer.getvalue()


def images(folder, x):
    """Writes images, in two folders below, so that the order of their paths is that of `x`."""
    for i, image in enumerate(x):
        path = folder / ("a" if i < len(x) // 2 else "b") / f"{i:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(image))
    return f"images:{folder}"


def example(content, feature="image"):
    """A serialized `tf.train.Example` with a bytes feature, and another one that is not read."""
    one = {
        feature: tf.train.Feature(bytes_list=tf.train.BytesList(value=[content])),
        "label": tf.train.Feature(int64_list=tf.train.Int64List(value=[3])),
    }
    return tf.train.Example(features=tf.train.Features(feature=one)).SerializeToString()


def write_records(path, contents, options=None):
    """Writes a TFRecord file, and returns the offset of each record."""
    with tf.io.TFRecordWriter(str(path), options) as writer:
        for content in contents:
            writer.write(content)
    return np.cumsum([0, *(len(content) + 16 for content in contents)])[:-1]


def shards(folder, x, number=3, feature="image", name="t"):
    """Writes images as shards with the first images in the first shard; returns the pattern."""
    for i, part in enumerate(np.array_split(np.arange(len(x)), number)):
        path = folder / f"{name}-{i}-of-{number}.tfrecord"
        write_records(path, [example(encode(x[row]), feature) for row in part])
    return f"tfrecord:{folder}/{name}-*.tfrecord"


STREAMS = {"stream": stream, "images": images, "tfrecord": shards}
WRITERS = {"npy": npy, "npz": npz, **STREAMS}


def idx_bytes(array):
    """An IDX file of unsigned bytes."""
    header = [0x0800 + array.ndim, *array.shape]
    return b"".join(n.to_bytes(4, "big") for n in header) + array.astype(np.uint8).tobytes()


def idx_folder(folder, compress=True):
    """Writes 6 training and 4 test images of 3 x 2; returns the arrays as IDX_NAMES."""
    arrays = []
    for name in IDX_NAMES:
        count = 6 if name.startswith("train") else 4
        arrays.append(RNG.integers(0, 256, (count, 3, 2) if "images" in name else (count,)))
        content = idx_bytes(arrays[-1])
        path = folder / (f"{name}.gz" if compress else name)
        path.write_bytes(gzip.compress(content) if compress else content)
    return arrays


def damage(path, offset, change=b"\xff"):
    """Inverts, where `change` has ones, bits of a file from byte `offset` on."""
    content = bytearray(path.read_bytes())
    for i, mask in enumerate(change):
        content[offset + i] ^= mask
    path.write_bytes(content)


def in_order(x):
    """Examples in an order that depends on their values alone."""
    return x[np.lexsort(x.reshape(len(x), -1).T)]


def all_images(data):
    """Training and test images, in order."""
    return in_order(np.concatenate([data.x_train[:], data.x_test]))


def refusal(load, spec, *args, **options):
    """The one line with which data are refused, which must name the file."""
    with pytest.raises(UserError) as caught:
        load(spec, *args, **options)
    assert spec.partition(":")[2].partition("*")[0] in caught.value.message
    assert "\n" not in caught.value.message
    return caught.value.message
