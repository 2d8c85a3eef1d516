"""The commands `python -m experiments run`, `collect` and `report`."""

import copy
import pathlib
import sys
from typing import Any

import click

from experiments import grid, results
from tfp_ar1_cli import commands, startup
from tfp_ar1_cli.errors import Interrupted, UserError

# Options of `train` that a grid has no use for.
_LEFT_OUT = ("out", "strategy", "replicas", "backup_steps", "corrupt", "likelihood")
_DEFAULTS = {
    "posterior": "ar1,diag",
    "prior": "ar1,normal",
    "seed": "0,1,2",
    "num_importance_samples": 100,
}


class _CommaList(click.ParamType):
    """Values of an option with commas between, each once."""

    name = "list"

    def __init__(self, option: click.Parameter) -> None:
        self._option = option

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple:
        if isinstance(value, tuple):
            return value
        check = self._option.callback or (lambda ctx, param, item: item)
        parts = (part.strip() for part in str(value).split(","))
        items = (self._option.type.convert(part, param, ctx) for part in parts)
        return tuple(dict.fromkeys(check(ctx, param, item) for item in items))


def _options_of_train() -> list[click.Parameter]:
    """The options of `tfp-ar1 train`; those that make the grid take lists."""
    options = []
    for option in commands.train.params:
        if option.name not in _LEFT_OUT:
            changed = copy.copy(option)
            if option.name in grid.AXES:
                changed.type, changed.callback = _CommaList(option), None
                changed.metavar = "LIST"
            changed.default = _DEFAULTS.get(option.name, option.default)
            options.append(changed)
    return options


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
def cli() -> None:
    """Grids of experiments, and the tables, pictures and pages that are made of their results."""


@cli.command(context_settings={"show_default": True}, params=_options_of_train())
@click.option(
    "--out",
    metavar="FOLDER",
    type=click.Path(path_type=pathlib.Path, file_okay=False),
    default="experiments",
    help="Folder of the run folders.",
)
@click.option(
    "--jobs",
    metavar="N",
    type=click.IntRange(min=1),
    default=1,
    help="Runs at a time; each has its share of the cores.",
)
@click.option("--dry-run", is_flag=True, help="Say what would be run, and what is done.")
@click.pass_context
def run(ctx: click.Context, out: pathlib.Path, jobs: int, dry_run: bool, **options: Any) -> None:
    r"""Run a grid of experiments: every combination of the listed values.

    A LIST has commas between its values, as in --seed 0,1,2. A --beta other than 1 goes with the
    objective elbo only, --hidden-units with the network mlp only.

    Each run is what 'tfp-ar1 train' makes of its options, in a folder of its own in FOLDER, and
    leaves a result.json there, the first seed of each combination also result.png, a picture of
    samples. Stopped in any way and started again, the command resumes what was under way. Several
    processes may work on one FOLDER, each started with the same command or with another.

    A run whose loss is not finite leaves a failed.json instead, and is not tried again until its
    folder is removed.

    \b
    Examples:
      python -m experiments run
      python -m experiments run --dataset digits,mnist --posterior ar1,diag,full --jobs 2
      python -m experiments run --network cnn --objective elbo,infovae --epochs 5 --dry-run
      python -m experiments run --model sequence --posterior diag,ante1 --out series
    """
    startup.check_backend()
    commands._check_of_model(ctx)
    commands._check_used(ctx, options["network"], options["objective"])
    of_sequences = options["model"] == "sequence"
    options["likelihood"] = "gaussian" if of_sequences else "bernoulli"
    unused = commands._ONLY["image" if of_sequences else "sequence"]
    options = {key: value for key, value in options.items() if key not in unused}
    axes = {key: options.pop(key) for key in grid.AXES if key in options}
    options["epochs"] = {
        spec: options["epochs"] or commands._default_epochs(spec) for spec in axes["dataset"]
    }
    experiments = grid.make(axes, options)
    if dry_run:
        grid.dry_run(experiments, out)
    else:
        grid.run(experiments, out, jobs)


_source = click.argument("source", type=click.Path(path_type=pathlib.Path))


@cli.command()
@_source
@click.argument("file", metavar="FILE.jsonl", type=click.Path(path_type=pathlib.Path))
def collect(source: pathlib.Path, file: pathlib.Path) -> None:
    """Add the results in SOURCE, a folder of 'run', to FILE.jsonl, as they are committed.

    Pictures of samples go to the folder FILE.samples. Runs that FILE has are left as they are.
    """
    if file.suffix != ".jsonl":
        raise UserError(f"{file}: must end in .jsonl.")
    click.echo(f"{results.collect(source, file)} results added to {file}.")


@cli.command()
@_source
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
def report(source: pathlib.Path, out: pathlib.Path, page: pathlib.Path | None) -> None:
    r"""Make tables and pictures from SOURCE, a folder of 'run' or a file of 'collect'.

    Writes tables.md, curves-*.png (learning curves), differences.png (to the posterior diag) and
    samples-*.png. It replaces files of these names that it wrote before, and touches no others.
    The same results give the same files, byte for byte.

    A TEMPLATE is text for jinja2, which may call:

    \b
      {{ table("results") }}           means ± standard errors, a row for each model
      {{ table("measures") }}          other measures; for series "imputation", "forecasts"
      {{ table("differences") }}       paired differences to diag, 95% intervals
      {{ table("baselines") }}         of series: what needs no model
      {{ mean(FIELD) }}                mean ± standard error of one model
      {{ difference(FIELD) }}          paired difference of one model, and its interval
      {{ baseline(NAME, FIELD) }}      what needs no model, on one data set
      {{ runs() }}                     number of runs
      {{ versions() }}                 versions of the code and of the packages

    FIELD is a measure as the results call it, such as "neg_elbo"; NAME is "last_value",
    "linear_interpolation" or "matern_half". Settings may follow, to choose the runs:
    difference("neg_elbo", dataset="mnist", latent_dim=10, posterior="ar1"); digits=1 sets the
    number of decimals, and to="isotropic" what a difference is to. What cannot be filled in is an
    error.

    \b
    Examples:
      python -m experiments report experiments --out report
      python -m experiments report results.jsonl --out docs --page docs/results.template.md
    """
    from experiments import report as writer

    for path in writer.write(source, out, page):
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
        message, code = "interrupted.", Interrupted.exit_code
    else:
        return 0
    click.echo(f"experiments: {' '.join(message.split())}", err=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
