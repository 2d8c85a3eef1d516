"""`tfp-ar1 list`: the runs in a folder."""

import pathlib

import click
import rich.console
import rich.table

from tfp_ar1_cli import info, run_folder
from tfp_ar1_cli.data import loading
from tfp_ar1_cli.errors import UserError


@click.command("list")
@click.argument(
    "folder", metavar="[FOLDER]", type=click.Path(path_type=pathlib.Path), default="runs"
)
def command(folder: pathlib.Path) -> None:
    """Show the runs in FOLDER ("runs" by default), and how far each has got.

    \b
    Examples:
      tfp-ar1 list
      tfp-ar1 list experiments/may
    """  # noqa: D301
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; name one that holds runs.")
    names = sorted(path.parent for path in folder.glob("*/config.json"))
    if not names:
        raise UserError(f"{folder}: holds no runs; name the folder that holds them.")
    table = rich.table.Table(title=str(folder))
    for heading in ("run", "data", "posterior", "epochs", "-ELBO", "state"):
        table.add_column(heading, overflow="fold")
    for name in names:
        try:
            run = run_folder.read(name)
            elbo = f"{run.metrics()['neg_elbo']:.2f}" if run.finished else ""
            cells = (
                *(loading.short_name(run.options.dataset), run.options.posterior),
                *(info.epochs(run), elbo),
                "finished" if run.finished else "unfinished",
            )
        except UserError as error:
            cells = ("", "", "", "", error.message)
        table.add_row(name.name, *cells)
    rich.console.Console().print(table)
