"""`tfp-ar1 sample`: new data from the model of a run."""

import contextlib
import os
import pathlib
from collections.abc import Iterator

import click
import numpy as np

from tfp_ar1_cli import kinds, run_folder
from tfp_ar1_cli.atomic import atomic, atomic_folder, check_new_file, check_new_folder, free_name
from tfp_ar1_cli.errors import UserError, reason
from tfp_ar1_cli.evaluate import load_model
from tfp_ar1_cli.option_fields import takes
from tfp_ar1_cli.options import SampleOptions

_SUFFIXES = {".png": "a picture", ".npy": "an array", ".npz": "an array", ".csv": "a table"}


def sample(options: SampleOptions) -> pathlib.Path:
    """Draws new data from the model of a finished run.

    Returns:
      The file or folder that holds them.

    Raises:
      UserError: If the run or its model cannot be used, or the file cannot be written.
    """
    run = run_folder.read_finished(options.run)
    name = f"samples{'-noise' * options.noise}-seed{options.seed}.png"
    out = free_name(run.folder / name) if options.out is None else pathlib.Path(options.out)
    is_folder = str(options.out).endswith(("/", os.sep))
    if is_folder:
        check_new_folder(out)
    elif out.suffix not in _SUFFIXES:
        known = ", ".join(f"{suffix} ({what})" for suffix, what in _SUFFIXES.items())
        raise UserError(f"{out}: --out must end in {known} or / (a picture of each).")
    else:
        check_new_file(out)
    kind, noise = kinds.of(run.options), options.noise
    model = load_model(run)
    new = np.asarray(model.generate(options.num_samples, seed=options.seed, noise=noise))
    if is_folder:
        with _drawing(out), atomic_folder(out) as folder:
            kind.draw_each(run, folder, new, noise)
    elif out.suffix == ".png":
        with _drawing(out):
            kind.draw_samples(run, out, new, noise)
    else:
        restored = kind.restore(run, new)
        with atomic(out) as path:
            if out.suffix == ".csv":
                kind.table(run, restored).to_csv(path)
            elif out.suffix == ".npz":
                np.savez(path, x=restored)
            else:
                np.save(path, restored)
    return out


@contextlib.contextmanager
def _drawing(out: pathlib.Path) -> Iterator[None]:
    """Reports in one line why a picture cannot be drawn, and what to do instead."""
    try:
        yield
    except (ArithmeticError, MemoryError, RuntimeError, ValueError) as error:
        raise click.ClickException(
            f"{out}: cannot be drawn: {reason(error)}; try fewer --num-samples, or --out FILE.npy."
        ) from error


@click.command("sample")
@takes(SampleOptions)
def command(options: SampleOptions) -> None:
    """Draw new images, or new windows of series, from the model of RUN.

    \b
    Examples:
      tfp-ar1 sample runs/digits-ar1-001
      tfp-ar1 sample runs/digits-ar1-001 -n 1000 --seed 3 --out images.npy
      tfp-ar1 sample runs/pig_cvp-ar1-001 -n 20 --noise --out new.csv
      tfp-ar1 sample runs/digits-ar1-001 -n 100 --out digits/
    """  # noqa: D301
    click.echo(sample(options))
