"""`python -m experiments.scan_lines`: trains the models, and makes a page of the results."""

import argparse
import pathlib

from experiments.scan_lines.results import DECODERS, METHODS, ORDERS


def main(argv: list[str] | None = None) -> None:
    """Parses the arguments and runs a command."""
    parser = argparse.ArgumentParser(prog="python -m experiments.scan_lines", description=__doc__)
    commands = parser.add_subparsers(required=True)
    run = commands.add_parser(
        "run", help="train and evaluate", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    run.set_defaults(function=_run)
    run.add_argument("--data-dir", type=pathlib.Path, required=True, help="MNIST's IDX files")
    run.add_argument(
        "--out", type=pathlib.Path, required=True, help="file of results, continued if it exists"
    )
    run.add_argument("--decoders", nargs="+", choices=DECODERS, default=list(DECODERS))
    run.add_argument("--orders", nargs="+", choices=ORDERS, default=ORDERS)
    run.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    run.add_argument("--seeds", nargs="+", type=int, default=range(5), help="trained at once")
    run.add_argument("--epochs", type=int, default=10)
    run.add_argument("--num-train", type=int, default=20_000, help="images for training")
    run.add_argument("--num-test", type=int, default=10_000, help="images for testing")
    page = commands.add_parser("page", help="fill in a page from results")
    page.set_defaults(function=_page)
    page.add_argument("results", type=pathlib.Path, help="file of results")
    page.add_argument("--template", type=pathlib.Path, required=True)
    page.add_argument("--out", type=pathlib.Path, required=True, help="the page")
    arguments = vars(parser.parse_args(argv))
    arguments.pop("function")(arguments)


def _run(arguments: dict) -> None:
    # Imported late: processes that do not use JAX import this file too.
    from experiments.scan_lines import run

    run.run(run.Options(**arguments))


def _page(arguments: dict) -> None:
    # Imported late: needs pandas and jinja2, which training does not.
    from experiments.scan_lines import page

    page.write(arguments["results"], arguments["template"], arguments["out"])


if __name__ == "__main__":
    main()
