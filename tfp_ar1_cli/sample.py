"""`tfp-ar1 sample`: new data from the model of a run."""

import pathlib

import click
import numpy as np

from tfp_ar1_cli import kinds, run_folder
from tfp_ar1_cli.atomic import atomic, check_writable
from tfp_ar1_cli.errors import UserError, reason
from tfp_ar1_cli.evaluate import load_model
from tfp_ar1_cli.options import SampleOptions, takes


def sample(options: SampleOptions) -> pathlib.Path:
    """Draws new data from the model of a run that is finished, and returns the file of them.

    Raises:
      UserError: If the run or its model cannot be used, or the file cannot be written.
    """
    run = run_folder.read_finished(options.run)
    out = options.out or run.folder / f"samples-seed{options.seed}.png"
    if out.suffix not in (".png", ".npy"):
        raise UserError(f"{out}: --out must end in .png (a picture) or .npy (an array).")
    if out.exists():
        raise UserError(f"{out}: exists already; choose another --out.")
    if not out.parent.is_dir():
        raise UserError(f"{out.parent}: no such folder; make it or choose another --out.")
    check_writable(out)
    kind = kinds.of(run.options)
    new = np.asarray(load_model(run).generate(options.num_samples, seed=options.seed))
    if out.suffix == ".npy":
        with atomic(out) as path:
            np.save(path, kind.restore(run, new))
        return out
    try:
        kind.draw_samples(run, out, new)
    except (ArithmeticError, MemoryError, RuntimeError, ValueError) as error:
        raise click.ClickException(
            f"{out}: cannot be drawn: {reason(error)}; try fewer --num-samples, or --out FILE.npy."
        ) from error
    return out


@click.command("sample")
@takes(SampleOptions)
def command(options: SampleOptions) -> None:
    """Draw new images, or new windows of series, from the model of RUN.

    \b
    Examples:
      tfp-ar1 sample runs/digits-ar1-001
      tfp-ar1 sample runs/digits-ar1-001 -n 1000 --seed 3 --out images.npy
    """  # noqa: D301
    click.echo(sample(options))
