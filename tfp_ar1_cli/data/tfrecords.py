"""Random access to TFRecord files, which `tf.data.TFRecordDataset` does not offer.

A record is its length (uint64, little-endian), the masked CRC-32C of these eight bytes, the data,
and the masked CRC-32C of the data. See tensorflow/core/lib/io/record_writer.h.
"""

import array
import functools
import pathlib
import struct

import numpy as np

from tfp_ar1_cli.data.files import open_raw, read_at
from tfp_ar1_cli.data.sources import Unreadable
from tfp_ar1_cli.errors import UserError

_HEADER, _FOOTER = struct.Struct("<QI"), struct.Struct("<I")
_POLYNOMIAL = 0x82F63B78


def index(path: pathlib.Path) -> tuple[np.ndarray, np.ndarray, str | None]:
    """Finds the records of a file from their headers; raises `UserError` if it is compressed.

    Returns:
      The offset of each record and the length of its data, both int64, and the damage after the
      last of them, if any. Records after the damage cannot be found.
    """
    offsets, lengths, offset, damage = array.array("q"), array.array("q"), 0, None
    size = path.stat().st_size
    with open_raw(path) as file:
        if size >= 2 and read_at(file, 0, 2) == b"\x1f\x8b":
            raise UserError(
                f"{path}: is compressed with gzip, so its records cannot be read by position; "
                "write it without compression, or decompress it with gunzip."
            )
        while offset < size and damage is None:
            end, length = offset + _HEADER.size, 0
            if end <= size:
                header = read_at(file, offset, _HEADER.size)
                length, crc = _HEADER.unpack(header)
                end += length + _FOOTER.size
                if masked_crc32c(bytes(header[:8])) != crc:
                    hint = "" if offset else " (not a TFRecord file, or compressed or damaged)"
                    damage = f"the length of the record does not match its CRC{hint}"
                    break
            if end > size:
                damage = f"truncated: the file ends at byte {size}, before the record's end"
                break
            offsets.append(offset)
            lengths.append(length)
            offset = end
    return np.array(offsets, np.int64), np.array(lengths, np.int64), damage


def end(offsets: np.ndarray, lengths: np.ndarray) -> int:
    """The offset of the byte after the last record."""
    return int(offsets[-1] + lengths[-1]) + _HEADER.size + _FOOTER.size if len(offsets) else 0


def read(path: pathlib.Path, offset: int, length: int) -> bytes:
    """Reads the data of a record; raises `Unreadable` if their CRC is wrong."""
    with open_raw(path) as file:
        content = read_at(file, offset + _HEADER.size, length + _FOOTER.size)
    data, (crc,) = bytes(content[:length]), _FOOTER.unpack(content[length:])
    if masked_crc32c(data) != crc:
        raise Unreadable("the data of the record do not match their CRC")
    return data


def masked_crc32c(data: bytes) -> int:
    """The checksum of TFRecord files."""
    crc = crc32c(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def crc32c(data: bytes) -> int:
    """CRC-32C (Castagnoli) of bytes, in NumPy.

    Without its inversions, the CRC is linear over bits: that of two concatenated parts is the CRC
    of the left part, advanced through as many zero bytes as the right part has, xor the CRC of the
    right part. So the data are split into words of 4 bytes, and neighbours are merged until one is
    left.
    """
    if len(data) < 4:
        crc = 0xFFFFFFFF
        for byte in data:
            crc = int(_BYTES[(crc ^ byte) & 0xFF]) ^ crc >> 8
        return crc ^ 0xFFFFFFFF
    # Without the inversions, leading zeros do not change the CRC.
    padded = np.zeros(-(-len(data) // 4) * 4, np.uint8)
    padded[-len(data) :] = np.frombuffer(data, np.uint8)
    padded[padded.size - len(data) :][:4] ^= 0xFF  # The inversion at the start.
    level, state = 2, _through_zeros(2, padded.view("<u4"))
    while len(state) > 1:
        if len(state) % 2:
            state = np.concatenate([np.zeros(1, np.uint32), state])
        state = _through_zeros(level, state[0::2]) ^ state[1::2]
        level += 1
    return int(state[0]) ^ 0xFFFFFFFF


def _through_zeros(level: int, state: np.ndarray) -> np.ndarray:
    """CRCs (without inversions) advanced through `2**level` zero bytes."""
    low, high = _zeros(level)
    return low[state & 0xFFFF] ^ high[state >> 16]


@functools.cache
def _zeros(level: int) -> np.ndarray:
    """Tables that advance the lower and upper 16 bits of a CRC through `2**level` zero bytes."""
    if level:
        return _through_zeros(level - 1, _zeros(level - 1))
    states = np.arange(2**16, dtype=np.uint32) << np.array([[0], [16]], np.uint32)
    return _BYTES[states & 0xFF] ^ states >> 8


def _of_bytes() -> np.ndarray:
    crc: np.ndarray = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        crc = crc >> 1 ^ np.uint32(_POLYNOMIAL) * (crc & 1)
    return crc


_BYTES = _of_bytes()
