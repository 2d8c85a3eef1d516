"""`python -m experiments.series`: trains the variants, and makes a page of the results."""

import argparse
import pathlib

from experiments.series.data import DATASETS


def main(argv: list[str] | None = None) -> None:
    """Parses the arguments and runs a command."""
    parser = argparse.ArgumentParser(prog="python -m experiments.series", description=__doc__)
    commands = parser.add_subparsers(required=True)
    run = commands.add_parser("run", help="train and measure variants")
    run.set_defaults(function=_run)
    run.add_argument("--variants", required=True, help="names, separated by commas")
    run.add_argument("--seeds", default="0,1,2,3,4")
    run.add_argument("--epochs", type=int, required=True)
    baselines = commands.add_parser(
        "baselines", help="measure the baselines, which need no network"
    )
    baselines.set_defaults(function=_baselines)
    for command in (run, baselines):
        command.add_argument("--dataset", choices=DATASETS, required=True)
        command.add_argument(
            "--out",
            type=pathlib.Path,
            required=True,
            help="file of results, continued if it exists",
        )
    page = commands.add_parser("page", help="fill in a page from results")
    page.set_defaults(function=_page)
    page.add_argument("results", type=pathlib.Path, help="file of results")
    page.add_argument("--template", type=pathlib.Path, required=True)
    page.add_argument("--out", type=pathlib.Path, required=True, help="the page")
    arguments = vars(parser.parse_args(argv))
    arguments.pop("function")(**arguments)


def _run(variants: str, seeds: str, **arguments) -> None:
    from experiments.series import run

    numbers = [int(seed) for seed in seeds.split(",")]
    run.run(names=variants.split(","), seeds=numbers, **arguments)


def _baselines(**arguments) -> None:
    from experiments.series import run

    run.run_baselines(**arguments)


def _page(results: pathlib.Path, template: pathlib.Path, out: pathlib.Path) -> None:
    from experiments.series import page

    page.write(results, template, out)


if __name__ == "__main__":
    main()
