"""TFRecord files, read by position, which `tf.data.TFRecordDataset` does not offer.

A record is its length (uint64, little-endian), the masked CRC-32C of these eight bytes, the data,
and the masked CRC-32C of the data. See tensorflow/core/lib/io/record_writer.h.
"""

import array
import functools
import pathlib
import struct

import numpy as np

from tfp_ar1_cli.data.files import open_raw, read_at
from tfp_ar1_cli.errors import UserError

_HEADER, _FOOTER = struct.Struct("<QI"), struct.Struct("<I")
_POLYNOMIAL = 0x82F63B78
# Longer data are cut into lanes of 16 bytes, which are taken through the CRC side by side.
_LANE_BITS = 4


class Damaged(ValueError):
    """Bytes that are not what was written, with the byte where that begins."""

    def __init__(self, message: str, offset: int) -> None:
        super().__init__(message)
        self.offset = offset


def index(path: pathlib.Path) -> tuple[np.ndarray, np.ndarray, Damaged | None]:
    """Finds the records of a file, by reading its headers alone.

    Args:
      path: The file.

    Returns:
      The offset of each record, its length (that of its data), both int64, and what is damaged, if
      anything is: the records before that are given, those behind it cannot be found.

    Raises:
      UserError: If the file is compressed.
      OSError: If it cannot be read.
    """
    offsets, lengths, offset, damage = array.array("q"), array.array("q"), 0, None
    size = path.stat().st_size
    with open_raw(path) as file:
        if size >= 2 and read_at(file, 0, 2) == b"\x1f\x8b":
            raise UserError(
                f"{path}: is compressed by gzip, so that its records cannot be read by position; "
                "write it without compression, or decompress it with gunzip."
            )
        while offset < size:
            end = offset + _HEADER.size
            if end <= size:
                header = read_at(file, offset, _HEADER.size)
                length, crc = _HEADER.unpack(header)
                if masked_crc32c(header[:8]) != crc:
                    what = "the length of the record does not have its CRC"
                    hint = "" if offset else " (no TFRecord file, or a compressed one, or damaged)"
                    damage = Damaged(what + hint, offset)
                    break
                end += length + _FOOTER.size
            if end > size:
                missing = f"the file ends at byte {size}, before the record's end"
                damage = Damaged(f"truncated: {missing}", offset)
                break
            offsets.append(offset)
            lengths.append(length)
            offset = end
    return np.array(offsets, np.int64), np.array(lengths, np.int64), damage


def read(path: pathlib.Path, offset: int, length: int) -> bytes:
    """Reads the data of the record of this length at this offset.

    Raises:
      Damaged: If the data do not have their CRC.
      OSError: If the file cannot be read.
    """
    with open_raw(path) as file:
        data = read_at(file, offset + _HEADER.size, length + _FOOTER.size)
    data, (crc,) = bytes(data[:length]), _FOOTER.unpack(data[length:])
    if masked_crc32c(data) != crc:
        raise Damaged("the data of the record do not have their CRC", offset)
    return data


def masked_crc32c(data: bytes) -> int:
    """The checksum of TFRecord files."""
    crc = crc32c(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def crc32c(data: bytes) -> int:
    """CRC-32C (Castagnoli) of bytes, in NumPy.

    Without its inversions, the CRC is linear over bits. That of two parts in a row is that of the
    left one, taken through as many zero bytes as the right one has, plus (xor) that of the right.
    """
    if len(data) <= 16:
        return _crc32c_of_few(data)
    # Zeros in front do not count, without the inversions.
    lanes = -(-len(data) >> _LANE_BITS)
    padded = np.zeros(lanes << _LANE_BITS, np.uint8)
    padded[-len(data) :] = np.frombuffer(data, np.uint8)
    padded[padded.size - len(data) :][:4] ^= 0xFF  # The inversion at the start.
    state = np.zeros(lanes, np.uint32)
    for word in np.ascontiguousarray(padded.view("<u4").reshape(lanes, -1).T):
        state = _through_zeros(_zeros(2), state ^ word)  # 2**2 bytes.
    level = _LANE_BITS
    while len(state) > 1:
        if len(state) % 2:
            state = np.concatenate([np.zeros(1, np.uint32), state])
        state = _through_zeros(_zeros(level), state[0::2]) ^ state[1::2]
        level += 1
    return int(state[0]) ^ 0xFFFFFFFF


def _crc32c_of_few(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _BYTES[(crc ^ byte) & 0xFF] ^ crc >> 8
    return crc ^ 0xFFFFFFFF


def _through_zeros(table: np.ndarray, state: np.ndarray) -> np.ndarray:
    """CRCs (without inversions) as they are after the zero bytes of a table of `_zeros`."""
    return table[0][state & 0xFFFF] ^ table[1][state >> 16]


@functools.cache
def _zeros(level: int) -> np.ndarray:
    """What `2**level` zero bytes make of each value of the halves of a CRC (without inversions).

    Returns:
      uint32 `[2, 65536]`, for the lower and the upper 16 bits.
    """
    if level:
        return _through_zeros(_zeros(level - 1), _zeros(level - 1))
    states = np.arange(2**16, dtype=np.uint32) << np.array([[0], [16]], np.uint32)
    return np.array(_BYTES, np.uint32)[states & 0xFF] ^ states >> 8


def _crc_of_byte(byte: int) -> int:
    for _ in range(8):
        byte = byte >> 1 ^ _POLYNOMIAL * (byte & 1)
    return byte


_BYTES = [_crc_of_byte(byte) for byte in range(256)]
