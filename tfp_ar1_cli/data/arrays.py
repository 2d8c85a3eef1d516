"""Reading .npy and .npz files."""

import math
import pathlib
from collections.abc import Callable
from typing import IO

import numpy as np

from tfp_ar1_cli.data.files import check_memory, check_regular
from tfp_ar1_cli.errors import UserError


def read_npy_header(file: IO[bytes], path: pathlib.Path) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Reads the header of an .npy file; raises `UserError` if it has none.

    Returns:
      The shape of the array, whether it is in Fortran order, and its dtype. The file is then
      positioned at the first value.
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
      kind: `"npz"` or `"npy"`; the array of an .npy file is called `x`.
      choose: Maps the names in an .npz file to the arrays to read: our name -> name in the file.
      expected: The expected arrays, for the message if `choose` finds none.
      notes: A list to which a note about unread arrays is appended.
      advice: What to do if there is not enough memory.

    Raises:
      UserError: If the file is of another kind or damaged, holds pickled objects, or needs more
        memory than is available.
    """
    check_regular(path)
    with path.open("rb") as file:
        if kind == "npy":
            _check_size(path, file, advice)
        elif file.read(2) != b"PK":
            raise UserError(f"{path}: is not an .npz file; write one with numpy.savez.")
    try:
        # Never unpickle: a pickle can run any code.
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
                    f"Read from {path}: {', '.join(sorted(names.values()))}; not read: "
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
    except Exception as error:  # Arbitrary bytes raise many kinds of zip, zlib and header errors.
        hint = "; store numbers, not objects." * ("allow_pickle" in str(error))
        raise UserError(f"{path}: cannot be read as .{kind}: {error}{hint}") from error


def _check_size(path: pathlib.Path, file: IO[bytes], advice: str) -> None:
    """Checks, from the header, that memory suffices for an array and its float32 copies."""
    shape, _, dtype = read_npy_header(file, path)
    check_memory(path, math.prod(shape) * (dtype.itemsize + 8), advice)
