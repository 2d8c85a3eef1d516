"""The options of the commands that apply a trained model to a file, and the file they write."""

# ruff: noqa: RUF009  `option` makes a field

import dataclasses
import pathlib
from typing import Any

import click

from tfp_ar1_cli.atomic import check_new_file, free_name
from tfp_ar1_cli.data import tables
from tfp_ar1_cli.errors import UserError
from tfp_ar1_cli.option_fields import COUNT, PATH, SEED, Levels, option, run_argument
from tfp_ar1_cli.options import IMPORTANCE_HELP

QUANTILES = (0.05, 0.5, 0.95)
NUM_DRAWS = 400


def _file() -> Any:
    return dataclasses.field(metadata={"click": {"metavar": "FILE", "type": click.STRING}})


def _out(what: str = ".csv or .tsv (also .gz), .parquet or .npz") -> Any:
    return option(
        PATH,
        f"A new file: {what}.",
        metavar="FILE",
        show_default="named after FILE, in this folder",
    )


def _quantiles() -> Any:
    return option(
        Levels(),
        "Levels of the quantiles, separated by commas.",
        QUANTILES,
        show_default=",".join(map(str, QUANTILES)),
    )


def _draws() -> Any:
    return option(COUNT, "Number of draws for means, deviations and quantiles.", NUM_DRAWS)


@dataclasses.dataclass(frozen=True)
class ImputeOptions:
    """The run and the file for `impute` and `reconstruct`."""

    run: pathlib.Path = run_argument()
    file: str = _file()
    out: pathlib.Path | None = _out()
    quantiles: tuple[float, ...] = _quantiles()
    num_samples: int = _draws()
    seed: int = option(SEED, "Seed of the draws.", 0)


@dataclasses.dataclass(frozen=True)
class ForecastOptions(ImputeOptions):
    """The run, the file and the number of steps for `forecast`."""

    steps: int = option(COUNT, "How many steps to forecast.", required=True)


@dataclasses.dataclass(frozen=True)
class EncodeOptions:
    """The run and the file for `encode`."""

    run: pathlib.Path = run_argument()
    file: str = _file()
    out: pathlib.Path | None = _out()


@dataclasses.dataclass(frozen=True)
class ScoreOptions(EncodeOptions):
    """The run and the file for `score`."""

    num_importance_samples: int | None = option(
        COUNT, IMPORTANCE_HELP, show_default="as in the training"
    )
    per_step: bool = option(
        click.BOOL, "Series: score each step instead of each window.", False, is_flag=True
    )


def new_file(
    out: pathlib.Path | None, file: str, verb: str, only_arrays: bool = False
) -> pathlib.Path:
    """Returns the file to write: `out`, or a new name made from the name of the input file.

    If `only_arrays`, it is an .npz file. Raises a `UserError`, before the work starts, if the file
    cannot be written or is of an unknown kind.
    """
    if out is None:
        name = pathlib.Path(file.partition(":")[2] or file).name
        plain = pathlib.Path(name.removesuffix(".gz"))
        arrays = only_arrays or plain.suffix in (".npz", ".npy")
        suffix = ".npz" if arrays else plain.suffix
        suffix = suffix if suffix in (".npz", *tables.PARQUET_SUFFIXES, ".tsv") else ".csv"
        out = free_name(pathlib.Path(f"{plain.stem}-{verb}{suffix}"))
    tables.check_output(out)
    if only_arrays and out.suffix != ".npz":
        raise UserError(f"{out}: images are written to .npz files; choose another --out.")
    check_new_file(out)
    return out
