"""IDX files of MNIST and its relatives, under the names and in the folders they come in.

Each set has up to four files: images and labels, for training and for testing. They are named
`train-images-idx3-ubyte`, `t10k-images-idx3-ubyte` (or `test-...`) and so on, with a hyphen or a
dot before `idx3`, with or without `.gz`. EMNIST puts the name of the set in front; on Kaggle, each
file is in a folder of the same name.
"""

import gzip
import math
import pathlib
import re
import zlib

import numpy as np

from tfp_ar1_cli.data.files import check_memory, check_regular
from tfp_ar1_cli.data.pixels import shape_text
from tfp_ar1_cli.errors import UserError

# Deflate (RFC 1951) expands data at most 1032 times.
_MOST_INFLATED = 1032
# Bytes read past the expected end, to report by how much a file is too long.
_PAST_THE_END = 2**16
_GZIP = b"\x1f\x8b"
_NAME = re.compile(
    r"(?P<set>.*?)[-_.]?(?P<part>train|t10k|test)[-_.](?P<what>images|labels)"
    r"[-_.]idx[13][-_.]ubyte(?P<gzip>\.gz)?",
    re.IGNORECASE,
)
_MISSING = "train-images-idx3-ubyte"
Found = dict[str, pathlib.Path]


def read_named(folder: pathlib.Path, dataset: str) -> dict[str, np.ndarray]:
    """Reads the four IDX files of `mnist` or `fashion_mnist`.

    They are in the folder itself, in a subfolder named after the data set (also `fashion-mnist`
    or torchvision's `FashionMNIST`), or in `raw` in either.

    Raises `UserError` if one is missing or damaged, or if they do not belong together.
    """
    named = (path for path in sorted(folder.iterdir()) if _plain(path.name) == _plain(dataset))
    folder = next((path for path in named if path.is_dir()), folder)
    if (folder / "raw").is_dir():
        folder /= "raw"
    found = _sets_in(folder).get("", {})
    for name in ("x_train", "y_train", "x_test", "y_test"):
        if name not in found:
            part, what = "train" if "train" in name else "t10k", "images-idx3"
            file = f"{part}-{what if name[0] == 'x' else 'labels-idx1'}-ubyte"
            raise UserError(
                f"{folder / file}.gz: no such file (nor {file} without .gz); --data-dir must name "
                f"the folder of the four IDX files of {dataset}."
            )
    return _read(found)


def read_folder(place: pathlib.Path, notes: list[str]) -> dict[str, np.ndarray]:
    """Reads the IDX files of a folder: the only set there, or the one named by `FOLDER/SET`.

    EMNIST stores its images transposed; they are turned upright, with a note.

    Raises `UserError` if there is no such set or more than one, or if its files are damaged.
    """
    folder, wanted = place, None
    if not place.is_dir():
        match = _NAME.fullmatch(place.name)  # One of the files stands for its set.
        folder, wanted = place.parent, match["set"] if match else place.name
    if (folder / "raw").is_dir():
        folder /= "raw"
    sets = {name: files for name, files in _sets_in(folder).items() if "x_train" in files}
    names = ", ".join(sorted(sets))
    if not sets:
        raise UserError(f"{place}: holds no IDX files of images, named like {_MISSING}(.gz).")
    if wanted is None and len(sets) > 1:
        raise UserError(
            f"{place}: holds the IDX files of {names}; choose one, as in idx:{place}/{max(sets)}."
        )
    name = wanted if wanted is not None else next(iter(sets))
    if name not in sets:
        raise UserError(f"{place}: no such folder, nor IDX files of that name; there are {names}.")
    arrays = _read(sets[name])
    if "x_test" not in arrays:
        arrays = {key[0]: array for key, array in arrays.items() if key != "y_test"}
    if name.lower().startswith("emnist"):
        notes.append("The images of EMNIST are stored transposed; they are turned upright.")
        arrays |= {k: x.swapaxes(1, 2) for k, x in arrays.items() if k[0] == "x"}
    return arrays


def _plain(name: str) -> str:
    return re.sub("[-_. ]", "", name).lower()


def _sets_in(folder: pathlib.Path) -> dict[str, Found]:
    """The IDX files of a folder by set: `x_train`, ... -> path."""
    sets: dict[str, Found] = {}
    # Prefer files to folders, and .gz to uncompressed files.
    for path in sorted(folder.iterdir(), key=lambda path: (path.is_dir(), path.suffix != ".gz")):
        if match := _NAME.fullmatch(path.name):
            inside = path.iterdir() if path.is_dir() else (path,)
            file = next((below for below in inside if _NAME.fullmatch(below.name)), None)
            name = "x_" if match["what"].lower() == "images" else "y_"
            name += "train" if match["part"].lower() == "train" else "test"
            if file is not None:
                sets.setdefault(match["set"], {}).setdefault(name, file)
    return sets


def _read(found: Found) -> dict[str, np.ndarray]:
    arrays = {name: read_idx(path, ndim=3 if name[0] == "x" else 1) for name, path in found.items()}
    for name, path in found.items():
        labels, images = arrays[name], arrays.get(f"x_{name[2:]}")
        if images is not None and len(images) != len(labels):
            raise UserError(
                f"{path}: holds {len(labels)} labels for {len(images)} images; the files do "
                "not belong together."
            )
    return arrays


def read_idx(path: pathlib.Path, ndim: int) -> np.ndarray:
    """Reads an IDX file of bytes, gzipped or not: images `[N, H, W]` or labels.

    Raises `UserError` if the magic number, the header or the length is wrong.
    """
    size = check_regular(path).st_size
    with path.open("rb") as plain:
        # Look at the content: browsers unpack files but keep the name. IDX files begin with 0.
        compressed = plain.read(2) == _GZIP
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
            # Read no more than the header announces and the file can hold.
            most = min(expected, size * (_MOST_INFLATED if compressed else 1))
            check_memory(path, 9 * most, "this data set is too large to read into memory")
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
