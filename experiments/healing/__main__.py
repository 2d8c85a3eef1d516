"""`python -m experiments.healing`: trains the methods, and makes a page of the results."""

import argparse
import pathlib

from experiments.healing.data import MISSING
from experiments.healing.latents import METHODS


def main(argv: list[str] | None = None) -> None:
    """Parses the arguments and runs a command."""
    parser = argparse.ArgumentParser(prog="python -m experiments.healing", description=__doc__)
    commands = parser.add_subparsers(required=True)
    run = commands.add_parser(
        "run", help="train and evaluate", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    run.set_defaults(function=_run)
    run.add_argument("--data-dir", type=pathlib.Path, required=True, help="MNIST's IDX files")
    run.add_argument(
        "--out", type=pathlib.Path, required=True, help="file of results, continued if it exists"
    )
    run.add_argument("--methods", default=",".join(METHODS), help="names, the most important first")
    run.add_argument("--seeds", default="0,1,2,3,4")
    run.add_argument("--together", type=int, default=5, help="seeds to train at once")
    run.add_argument("--epochs", type=int, default=20)
    run.add_argument("--num-train", type=int, default=50_000, help="sequences for training")
    run.add_argument("--num-test", type=int, default=10_000, help="sequences for testing")
    run.add_argument("--beta", type=float, default=0.8, help="weight of the KL divergence")
    run.add_argument("--missing", choices=tuple(MISSING), default="random")
    run.add_argument("--degrees", type=float, default=30.0, help="spread of a step of the angle")
    run.add_argument("--seconds", type=float, default=300.0, help="time limit in seconds")
    paths = commands.add_parser("paths", help="measure what long paths cost")
    paths.set_defaults(function=_paths)
    paths.add_argument(
        "--out", type=pathlib.Path, required=True, help="file of results, continued if it exists"
    )
    paths.add_argument("--seconds", type=float, default=120.0, help="time limit in seconds")
    paths.add_argument("--most-bytes", type=float, default=8e9, help="memory limit in bytes")
    for command in (run, paths):
        command.add_argument("--code", default="", help="the commit, if git does not know it")
    page = commands.add_parser("page", help="fill in a page from results")
    page.set_defaults(function=_page)
    page.add_argument("results", type=pathlib.Path, help="file of results")
    page.add_argument("--template", type=pathlib.Path, required=True)
    page.add_argument("--out", type=pathlib.Path, required=True, help="the page")
    arguments = vars(parser.parse_args(argv))
    arguments.pop("function")(arguments)


def _run(arguments: dict) -> None:
    # Imported late: processes that do not use JAX import this file too.
    from experiments.healing import run

    methods, seeds = arguments["methods"].split(","), arguments["seeds"].split(",")
    if unknown := set(methods) - METHODS.keys():
        raise SystemExit(f"--methods: unknown {sorted(unknown)}; choose from {', '.join(METHODS)}.")
    run.run(run.Options(**(arguments | {"methods": methods, "seeds": [int(s) for s in seeds]})))


def _paths(arguments: dict) -> None:
    from experiments.healing import long_paths

    long_paths.measure(**arguments)


def _page(arguments: dict) -> None:
    # Imported late: needs pandas and jinja2, which training does not.
    from experiments.healing import page

    page.write(arguments["results"], arguments["template"], arguments["out"])


if __name__ == "__main__":
    main()
