"""Arrays in the files of NumPy, and in those of MNIST."""

import gzip
import math
import pathlib
import zlib
from collections.abc import Callable
from typing import IO

import numpy as np

from tfp_ar1_cli.data.files import check_memory, check_regular
from tfp_ar1_cli.data.pixels import shape_text
from tfp_ar1_cli.errors import UserError

# Compressed data cannot become more than 1032 times as much (deflate, RFC 1951).
_MOST_INFLATED = 1032
# How far past its end a file is read, to say by how much it is too long.
_PAST_THE_END = 2**16
_IDX_FILES = {
    "x_train": "train-images-idx3-ubyte",
    "y_train": "train-labels-idx1-ubyte",
    "x_test": "t10k-images-idx3-ubyte",
    "y_test": "t10k-labels-idx1-ubyte",
}


def read_npy_header(file: IO[bytes], path: pathlib.Path) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Reads an .npy file up to its first value; a `UserError` if there is no such header.

    Returns:
      The shape of the array, whether it is in Fortran order, and its dtype.
    """
    if file.read(6) != b"\x93NUMPY":
        raise UserError(f"{path}: is not an .npy file; write one with numpy.save.")
    file.seek(0)
    try:
        version = np.lib.format.read_magic(file)
        if version == (1, 0):
            return np.lib.format.read_array_header_1_0(file)
        if version == (2, 0):
            return np.lib.format.read_array_header_2_0(file)
    except ValueError as error:
        raise UserError(f"{path}: cannot be read as .npy: {error}") from error
    raise UserError(
        f"{path}: is an .npy file of version {version[0]}.{version[1]}, which is for structured "
        "arrays; store plain numbers."
    )


def read_numpy(
    path: pathlib.Path,
    kind: str,
    choose: Callable[[list[str]], dict[str, str]],
    expected: str,
    notes: list[str],
    advice: str,
) -> dict[str, np.ndarray]:
    """Reads the arrays of a NumPy file.

    Args:
      path: The file.
      kind: `"npz"` or `"npy"`; the one array of the latter is called `x`.
      choose: From the names in an .npz file, which arrays are read: our name -> name in the file.
      expected: What is said of a file in which it finds none.
      notes: Where it is noted which arrays are not read.
      advice: What to do where the memory is not enough.

    Raises:
      UserError: If the file is of another kind or damaged, holds pickled objects, or needs more
        memory than there is.
    """
    check_regular(path)
    with path.open("rb") as file:
        if kind == "npy":
            _check_size(path, file, advice)
        elif file.read(2) != b"PK":
            raise UserError(f"{path}: is not an .npz file; write one with numpy.savez.")
    try:
        # Never unpickle: a pickle runs whatever code its author put in.
        loaded = np.load(path, allow_pickle=False)
        if kind == "npy":
            return {"x": loaded}
        with loaded:
            members = loaded.zip.namelist()
            arrays = [name.removesuffix(".npy") for name in members if name.endswith(".npy")]
            if members and not arrays:
                raise UserError(
                    f"{path}: is a zip archive of {members[0]} and the like, not of arrays; unpack "
                    "it, or write an .npz file with numpy.savez."
                )
            names = choose(arrays) or ({"x": arrays[0]} if len(arrays) == 1 else {})
            if not names:
                held = ", ".join(sorted(arrays)) or "(none)"
                raise UserError(f"{path}: holds the arrays {held}; expected {expected}.")
            if unread := sorted(set(loaded.files) - set(names.values())):
                notes.append(
                    f"Of {path} are read: {', '.join(sorted(names.values()))}; not read: "
                    f"{', '.join(unread)}."
                )
            for name in names.values():
                with loaded.zip.open(f"{name}.npy") as member:
                    _check_size(path / f"{name}.npy", member, advice)
            return {ours: np.asarray(loaded[theirs]) for ours, theirs in names.items()}
    except UserError:
        raise
    except MemoryError as error:
        raise UserError(f"{path}: cannot be read as .{kind}: {error}; {advice}.") from error
    except Exception as error:  # Foreign bytes: zip, zlib and header errors of many kinds.
        hint = "; store numbers, not objects." * ("allow_pickle" in str(error))
        raise UserError(f"{path}: cannot be read as .{kind}: {error}{hint}") from error


def _check_size(path: pathlib.Path, file: IO[bytes], advice: str) -> None:
    """Checks that there is memory for an array, by its header, and for its copies as float32."""
    shape, _, dtype = read_npy_header(file, path)
    check_memory(path, math.prod(shape) * (dtype.itemsize + 8), advice)


def read_idx_folder(folder: pathlib.Path, dataset: str) -> dict[str, np.ndarray]:
    """Reads the four IDX files of a data set, gzipped or not, in a folder or one of its name there.

    A `UserError` if one is missing or damaged, or they do not belong together.
    """
    folders = (folder / name for name in (dataset, dataset.replace("_", "-")))
    folder = next((path for path in folders if path.is_dir()), folder)
    arrays = {}
    for name, file in _IDX_FILES.items():
        candidates = (folder / f"{file}.gz", folder / file)
        path = next((path for path in candidates if path.is_file()), None)
        if path is None:
            raise UserError(
                f"{candidates[0]}: no such file (nor {file} without .gz); --data-dir must name the "
                f"folder of the four IDX files of {dataset}."
            )
        arrays[name] = read_idx(path, ndim=3 if name.startswith("x") else 1)
        images = arrays[f"x_{name[2:]}"]
        if len(images) != len(arrays[name]):
            raise UserError(
                f"{path}: holds {len(arrays[name])} labels for {len(images)} images; the files do "
                "not belong together."
            )
    return arrays


def read_idx(path: pathlib.Path, ndim: int) -> np.ndarray:
    """Reads an IDX file of bytes, gzipped if its name ends in `.gz`: images `[N, H, W]` or labels.

    A `UserError` if the magic number, the header or the length is not what it must be.
    """
    size, compressed = check_regular(path).st_size, path.suffix == ".gz"
    try:
        with (gzip.open if compressed else open)(path, "rb") as file:
            start = file.read(4 + 4 * ndim)
            if len(start) < 4 + 4 * ndim:
                raise UserError(
                    f"{path}: truncated: expected a header of {4 + 4 * ndim} bytes, found "
                    f"{len(start)} bytes; download it again."
                )
            magic, *sizes = np.frombuffer(start, ">u4").tolist()
            shape = tuple(sizes)
            if magic != 0x0800 + ndim:
                raise UserError(
                    f"{path}: wrong magic number: expected {0x0800 + ndim} (IDX "
                    f"{'images' if ndim == 3 else 'labels'}), found {magic}; it is another kind of "
                    "file."
                )
            expected = math.prod(shape)
            # No more than what the header announces is read, and only if that can be in the file.
            most = min(expected, size * (_MOST_INFLATED if compressed else 1))
            check_memory(path, 9 * most, "it is not a data set for reading into memory")
            content = file.read(most + _PAST_THE_END)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(
            f"{path}: truncated or damaged gzip file ({error}); download it again."
        ) from error
    if len(content) != expected:
        problem = "truncated" if len(content) < expected else "too long"
        more = "more than " * (len(content) == most + _PAST_THE_END)
        raise UserError(
            f"{path}: {problem}: expected {expected} bytes for {shape_text(shape)} values, "
            f"found {more}{len(content)}; download it again."
        )
    return np.frombuffer(content, np.uint8).reshape(shape)
