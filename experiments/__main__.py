"""The commands of `python -m experiments`."""

import pathlib
import sys

import click

from experiments import grid
from tfp_ar1_cli import backend, startup
from tfp_ar1_cli.errors import Interrupted


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
def cli() -> None:
    """Grids of experiments, and tables, pictures and pages of their results."""


@cli.command(
    context_settings={"ignore_unknown_options": True},
    options_metavar="[--out FOLDER] [--jobs N] [--dry-run]",
)
@click.argument("train", metavar="[OPTIONS OF TRAIN]...", nargs=-1, type=click.UNPROCESSED)
@click.option(
    "--out",
    metavar="FOLDER",
    type=click.Path(path_type=pathlib.Path, file_okay=False),
    default="experiments-runs",
    show_default=True,
    help="Folder of the run folders.",
)
@click.option(
    "--jobs",
    metavar="N",
    type=click.IntRange(min=1),
    default=1,
    help="Runs at a time; each has its share of the cores.",
)
@click.option("--dry-run", is_flag=True, help="Print what would be run and what is done.")
def run(train: tuple[str, ...], out: pathlib.Path, jobs: int, dry_run: bool) -> None:
    r"""Run a grid of experiments: every combination of the values of options.

    The options are those of 'tfp-ar1 train', which checks them. --dataset, --network, --objective,
    --beta, --latent-dim, --channels, --prior, --posterior and --seed may have several values,
    separated by commas, as in --seed 0,1,2. The defaults are the posteriors ar1 and diag, three
    seeds, and 100 samples for the importance-weighted likelihood.

    Each run is what 'tfp-ar1 train' makes of its options, in a folder of its own in FOLDER, and
    leaves a result.json there. 'cat FOLDER/*/result.json' is a file of results. Stopped in any way
    and started again, the command resumes unfinished runs. Several processes may work on one
    FOLDER, each started with the same command or with another.

    A run whose loss is not finite leaves a failed.txt instead, and is not tried again until its
    folder is removed.

    
    Examples:
      python -m experiments run
      python -m experiments run --dataset digits,mnist --posterior ar1,diag,full --jobs 2
      python -m experiments run --network cnn --objective elbo,infovae --epochs 5 --dry-run
      python -m experiments run --model sequence --posterior diag,ante1 --prior ar1,normal
    """
    backend.check()
    words = [word for x in train for word in (x.split("=", 1) if x.startswith("--") else [x])]
    if len(words) % 2 or not all(word.startswith("--") for word in words[::2]):
        raise click.UsageError(f"expected options, each with a value, got {' '.join(train)}")
    names = (word.removeprefix("--").replace("-", "_") for word in words[::2])
    experiments = grid.make(dict(zip(names, words[1::2], strict=True)))
    if dry_run:
        grid.dry_run(experiments, out)
    else:
        grid.run(experiments, out, jobs)


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

    
      table(NAME)            results, measures, differences (paired, with 95% intervals); for
                             series also imputation, forecasts, baselines (what needs no model)
      mean(FIELD)            mean ± standard error of one model
      difference(FIELD)      paired difference of one model, and its interval
      baseline(NAME, FIELD)  what needs no model, on one data set
      runs(), versions()     number of runs; versions of the code and of the packages

    FIELD is a measure as the results call it. Settings may follow, to choose the runs:
    difference("neg_elbo", dataset="mnist", posterior="ar1"); to="isotropic" says what a difference
    is to. What cannot be filled in is an error.

    
    Examples:
      python -m experiments report experiments-runs --out report
      python -m experiments report results.jsonl --out docs --page docs/results.template.md
    """
    from experiments import report as writer

    for path in writer.write(results, out, page):
        click.echo(path)


def main(argv: list[str] | None = None) -> int:
    """Runs a command and returns its exit code; reports an error in one line on stderr."""
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
