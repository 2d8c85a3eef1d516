"""The options of the commands that apply a trained model to a file, and where its answer goes."""

# ruff: noqa: RUF009  `option` makes a field

import dataclasses
import pathlib
from typing import Any

import click

from tfp_ar1_cli.atomic import check_writable, free_name
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
        "Levels of the quantiles, with commas between.",
        QUANTILES,
        show_default=",".join(map(str, QUANTILES)),
    )


def _draws() -> Any:
    return option(COUNT, "Draws that means, deviations and quantiles are taken over.", NUM_DRAWS)


@dataclasses.dataclass(frozen=True)
class ImputeOptions:
    """Which run fills the gaps of which file, or says what it would observe."""

    run: pathlib.Path = run_argument()
    file: str = _file()
    out: pathlib.Path | None = _out()
    quantiles: tuple[float, ...] = _quantiles()
    num_samples: int = _draws()
    seed: int = option(SEED, "Seed of the draws.", 0)


@dataclasses.dataclass(frozen=True)
class ForecastOptions(ImputeOptions):
    """Which run continues the series of which file, and by how many steps."""

    steps: int = option(COUNT, "How many steps to forecast.", required=True)


@dataclasses.dataclass(frozen=True)
class EncodeOptions:
    """Which run encodes which file."""

    run: pathlib.Path = run_argument()
    file: str = _file()
    out: pathlib.Path | None = _out()


@dataclasses.dataclass(frozen=True)
class ScoreOptions(EncodeOptions):
    """Which run scores which file."""

    num_importance_samples: int | None = option(
        COUNT, IMPORTANCE_HELP, show_default="as in the training"
    )
    per_step: bool = option(
        click.BOOL, "Series: score each step instead of each window.", False, is_flag=True
    )


def new_file(
    out: pathlib.Path | None, file: str, verb: str, only_arrays: bool = False
) -> pathlib.Path:
    """Where an answer goes, to an .npz file if `only_arrays`: `out`, or a name after the file.

    A `UserError`, before the work, unless it can be written and is of a known kind.
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
    if out.exists():
        raise UserError(f"{out}: exists already; choose another --out.")
    if not out.parent.is_dir():
        raise UserError(f"{out.parent}: no such folder; make it or choose another --out.")
    check_writable(out)
    return out
