"""The commands of `python -m experiments`."""

import pathlib
import sys

import click

from tfp_ar1_cli import startup
from tfp_ar1_cli.errors import Interrupted


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
def cli() -> None:
    """Grids of experiments, and the tables, pictures and pages that are made of their results."""


@cli.command()
@click.argument("results", metavar="RESULTS", type=click.Path(path_type=pathlib.Path))
@click.option(
    "--out",
    metavar="FOLDER",
    type=click.Path(path_type=pathlib.Path, file_okay=False),
    required=True,
    help="Folder to write to; it may hold other files.",
)
@click.option(
    "--page",
    metavar="TEMPLATE",
    type=click.Path(path_type=pathlib.Path, exists=True, dir_okay=False),
    help="A page to fill in, NAME.template.md; it becomes NAME.md in the folder.",
)
def report(results: pathlib.Path, out: pathlib.Path, page: pathlib.Path | None) -> None:
    r"""Make tables and pictures from RESULTS, the folder of 'run' or a file of its results.

    Writes tables.md, curves-*.png (learning curves), differences.png (to the posterior diag) and
    samples-*.png. It replaces files of these names that it wrote before, and touches no others.
    The same results give the same files, byte for byte.

    A TEMPLATE is text for jinja2, which may call:

    \b
      table(NAME)            results, measures, differences (paired, with 95% intervals); for
                             series also imputation, forecasts, baselines (what needs no model)
      mean(FIELD)            mean ± standard error of one model
      difference(FIELD)      paired difference of one model, and its interval
      baseline(NAME, FIELD)  what needs no model, on one data set
      runs(), versions()     number of runs; versions of the code and of the packages

    FIELD is a measure as the results call it. Settings may follow, to choose the runs:
    difference("neg_elbo", dataset="mnist", posterior="ar1"); digits=1 sets the number of decimals,
    and to="isotropic" what a difference is to. What cannot be filled in is an error.

    \b
    Examples:
      python -m experiments report experiments --out report
      python -m experiments report results.jsonl --out docs --page docs/results.template.md
    """
    from experiments import report as writer

    for path in writer.write(results, out, page):
        click.echo(path)


def main(argv: list[str] | None = None) -> int:
    """Runs a command; returns the exit code, and says what is wrong in one line on stderr."""
    startup.set_environment()
    try:
        cli.main(argv, prog_name="python -m experiments", standalone_mode=False)
    except click.ClickException as error:
        message, code = error.format_message(), error.exit_code
    except OSError as error:
        message, code = f"{error.filename or 'error'}: {error.strerror or error}.", 2
    except (click.Abort, KeyboardInterrupt):
        message, code = "interrupted; resume with the same command.", Interrupted.exit_code
    else:
        return 0
    click.echo(f"experiments: {' '.join(message.split())}", err=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
