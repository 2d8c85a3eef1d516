"""Reads the images or series that the options name."""

import pathlib
import re
from typing import Any

import click

from tfp_ar1_cli.data import images, series, series_files, streams
from tfp_ar1_cli.data.decoding import Form
from tfp_ar1_cli.data.protocol import Data, DataOptions

_FILES = {
    "image": ("npz", "npy", "idx", *streams.KINDS),
    "sequence": tuple(series_files.SUFFIXES),
}
_NAMES = {"image": ("digits", *images.IDX_DATASETS), "sequence": tuple(series.SHIPPED)}


def resolve(spec: str, model: str) -> str:
    """Checks a `--dataset` value for a model and makes its path absolute.

    Raises:
      click.BadParameter: If there is no such data set.
    """
    kind, colon, file = spec.partition(":")
    if kind in _NAMES[model] and not colon:
        return spec
    if kind not in _FILES[model]:  # A bare path: its suffix tells the kind.
        is_folder = model == "image" and pathlib.Path(spec).expanduser().is_dir()
        kind = "images" if is_folder else series_files.kind_of(pathlib.Path(spec)) or ""
        file = spec
    if kind in _FILES[model] and file:
        return f"{kind}:{pathlib.Path(file).expanduser().absolute()}"
    choices = {"image": f"dataset {spec!r}; choose {images.CHOICES}"}
    choices["sequence"] = f"set of series {spec!r}; choose {series.CHOICES}"
    raise click.BadParameter(f"there is no {choices[model]}.")


def short_name(spec: str) -> str:
    """A `--dataset` value as a name for folders and titles: `digits`, or the stem of the file."""
    kind, _, file = spec.partition(":")
    stem = pathlib.Path(file.removesuffix(".gz")).stem if file else kind
    # A pattern is named without its wildcards.
    return re.sub(r"\[.*?\]|[*?]", "", stem).strip("-_.") or kind if kind == "tfrecord" else stem


def is_stream(spec: str) -> bool:
    """Whether the images of a `--dataset` value stay on disk."""
    return spec.partition(":")[0] in streams.KINDS


def is_of_series(spec: str) -> bool:
    """Whether a `--dataset` value is a file of a kind that only holds series."""
    only = set(_FILES["sequence"]) - set(_FILES["image"])
    return not {spec.partition(":")[0], series_files.kind_of(pathlib.Path(spec))}.isdisjoint(only)


def is_encoded(spec: str) -> bool:
    """Whether the images of a `--dataset` value are encoded, for example as PNG or JPEG."""
    return spec.partition(":")[0] in streams.ENCODED


def load(options: DataOptions, trained: dict[str, Any] | None = None, whole: bool = False) -> Data:
    """Reads data and checks that a model can be trained or tested on them.

    Args:
      options: Which data.
      trained: To test a trained model: the fingerprint of its training data.
      whole: With `trained`: all examples are test examples, unless the data come with a test set
        or are the training data.

    Raises:
      UserError: If something is wrong with the data.
    """
    if options.model == "sequence":
        return series.load(
            *(options.dataset, options.window, options.likelihood, trained, whole),
            *(options.columns, options.split),
        )
    return images.load(
        options.dataset,
        options.data_dir,
        options.likelihood,
        options.corrupt,
        trained if whole else None,
        Form(options.resize, bool(options.grayscale)),
        options.split,
    )
