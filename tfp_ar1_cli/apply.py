"""Applies the model of a run to a file, and writes what it answers to another one."""

import pathlib
from collections.abc import Callable
from typing import Any

import click
import numpy as np

from tfp_ar1_cli import run_folder, trained
from tfp_ar1_cli.answer_options import EncodeOptions, ImputeOptions, new_file
from tfp_ar1_cli.answers import Answer
from tfp_ar1_cli.errors import UserError
from tfp_ar1_cli.evaluate import load_model
from tfp_ar1_cli.progress import doing


def is_of_series(folder: pathlib.Path) -> bool:
    """Whether the model of a finished run is one of series."""
    return run_folder.read_finished(folder).options.model == "sequence"


def to_series(
    command: str,
    options: ImputeOptions | EncodeOptions,
    verb: str,
    method: Callable[..., Answer],
    *args: Any,
) -> None:
    """Writes what a function of `answers` gives for a file of series.

    Raises:
      UserError: If the run is not of series, or the file cannot be used or written.
    """
    if not is_of_series(options.run):
        raise UserError(f"{command} is for models of series; {options.run} is one of images.")
    out = new_file(options.out, options.file, verb)
    run = run_folder.read_finished(options.run)
    with doing(f"Reading {options.file}"):
        table = trained.read_table(run, options.file)
    click.echo(f"Read {options.file}: {table.describe()}.", err=True)
    for note in table.notes:
        click.echo(note, err=True)
    model = trained.TrainedSeries(run, load_model(run))
    with doing(f"{command.capitalize()} {options.file}"):
        answer = model.answer(method, table, *args)
    answer.write(out, table.dialect)
    click.echo(out)


def to_images(
    options: ImputeOptions | EncodeOptions, verb: str, method: Callable[[Any, Any], Any]
) -> None:
    """Writes a table, or an array, that a method of `TrainedImages` gives for a file of images."""
    out = new_file(options.out, options.file, verb)
    model = trained.load(options.run)
    result = method(model, options.file)
    if not isinstance(result, np.ndarray):
        Answer(lambda: result, {str(k): v.to_numpy() for k, v in result.items()}).write(out)
    elif out.suffix == ".npz":
        Answer(lambda: None, {"x": result}).write(out)
    else:
        raise UserError(f"{out}: images are written to .npz files; choose another --out.")
    click.echo(out)
