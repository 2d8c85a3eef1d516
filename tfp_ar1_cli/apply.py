"""Applies the model of a run to a file, and writes the result to another file."""

import pathlib
from collections.abc import Callable
from typing import Any

import click
import numpy as np

from tfp_ar1_cli import run_folder
from tfp_ar1_cli.answer_options import EncodeOptions, ImputeOptions, new_file
from tfp_ar1_cli.answers import Answer
from tfp_ar1_cli.errors import UserError
from tfp_ar1_cli.evaluate import load_model
from tfp_ar1_cli.progress import doing
from tfp_ar1_cli.run_folder import Run
from tfp_ar1_cli.trained import TrainedImages, TrainedSeries, read_table


def to_file(
    command: str,
    options: ImputeOptions | EncodeOptions,
    verb: str,
    of_series: Callable[..., Answer],
    of_images: Callable[[TrainedImages, str], Any] | None = None,
    images_are_arrays: bool = False,
) -> None:
    """Applies a model to a file and writes the result.

    Args:
      command: The name of the command, for messages.
      options: The run and the file.
      verb: The word that names the output file if `--out` is not given.
      of_series: Computes the answer from a `TrainedSeries` and a table.
      of_images: Computes a table or an array from a `TrainedImages` and the file; `None` if the
        command is for models of series alone.
      images_are_arrays: Whether `of_images` returns an array.

    Raises:
      UserError: If the run cannot answer, or the file cannot be used or written.
    """
    run = run_folder.read_finished(options.run)
    if run.options.model == "sequence":
        out = new_file(options.out, options.file, verb)
        _of_series(command, run, options.file, out, of_series)
    elif of_images is None:
        raise UserError(
            f"{command} is for models of series, but {run.folder} holds a model of images; name a "
            "run on series."
        )
    else:
        out = new_file(options.out, options.file, verb, only_arrays=images_are_arrays)
        found = of_images(TrainedImages(run, load_model(run)), options.file)
        if isinstance(found, np.ndarray):
            Answer(lambda: found, {"x": found}).write(out)
        else:
            Answer(lambda: found, {str(k): x.to_numpy() for k, x in found.items()}).write(out)
    click.echo(out)


def _of_series(
    command: str, run: Run, file: str, out: pathlib.Path, of_series: Callable[..., Answer]
) -> None:
    with doing(f"Reading {file}"):
        table = read_table(run, file)
    click.echo(f"Read {file}: {table.describe()}.", err=True)
    for note in table.notes:
        click.echo(note, err=True)
    model = TrainedSeries(run, load_model(run))
    with doing(f"{command.capitalize()} {file}"):
        answer = of_series(model, table)
    answer.write(out, table.dialect)
