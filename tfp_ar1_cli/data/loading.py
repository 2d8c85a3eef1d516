"""Reads the data that options name: images or series."""

import pathlib
import re
from typing import Any

import click

from tfp_ar1_cli.data import images, series, streams
from tfp_ar1_cli.data.protocol import Data, DataOptions

_FILES = {"image": ("npz", "npy", *streams.KINDS), "sequence": ("npz", "npy", "csv")}
_NAMES = {"image": ("digits", *images.IDX_DATASETS), "sequence": tuple(series.SHIPPED)}


def resolve(spec: str, model: str) -> str:
    """Checks the form of a `--dataset` value for a model and makes its path absolute.

    Raises:
      click.BadParameter: If there is no such data set.
    """
    kind, colon, file = spec.partition(":")
    if kind in _FILES[model] and file:
        return f"{kind}:{pathlib.Path(file).expanduser().absolute()}"
    if kind in _NAMES[model] and not colon:
        return spec
    choices = {"image": f"dataset {spec!r}; choose {images.CHOICES}"}
    choices["sequence"] = f"set of series {spec!r}; choose {series.CHOICES}"
    raise click.BadParameter(f"there is no {choices[model]}.")


def short_name(spec: str) -> str:
    """A `--dataset` value as a name for folders and titles: `digits`, or the stem of the file."""
    kind, _, file = spec.partition(":")
    stem = pathlib.Path(file).stem if file else kind
    # What is left of a pattern without its wildcards.
    return re.sub(r"\[.*?\]|[*?]", "", stem).strip("-_.") or kind if kind == "tfrecord" else stem


def is_stream(spec: str) -> bool:
    """Whether the images of a `--dataset` value stay on disk."""
    return spec.partition(":")[0] in streams.KINDS


def load(options: DataOptions, trained: dict[str, Any] | None = None, whole: bool = False) -> Data:
    """Reads data and checks that a model can be trained, or tested, on them; a `UserError` if not.

    Args:
      options: Which data.
      trained: To test a trained model: the fingerprint of the data that it was trained on.
      whole: With `trained`: all examples are test examples then, unless they come with a test set,
        or are the data of the training.
    """
    if options.model == "sequence":
        return series.load(
            options.dataset, options.window, options.likelihood, trained, whole, options.split
        )
    return images.load(
        options.dataset,
        options.data_dir,
        options.likelihood,
        options.corrupt,
        trained if whole else None,
        options.split,
    )
