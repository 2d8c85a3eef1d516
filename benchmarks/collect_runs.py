"""Collects finished runs of `tfp-ar1 train` into one JSON file of results.

    python benchmarks/collect_runs.py runs/fashion_mnist-* > benchmarks/results/fashion_mnist.json

Each entry holds the command (without paths), the versions, the sum of the data and the metrics.
"""

import json
import pathlib

import click

# Options that say where something lies, not what was done.
_PATHS = {"data_dir", "out"}


@click.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=pathlib.Path))
def main(runs: tuple[pathlib.Path, ...]) -> None:
    """Print the configuration and the metrics of each of RUNS as JSON."""
    entries = []
    for run in runs:
        config = json.loads((run / "config.json").read_text())
        options = {k: v for k, v in config["options"].items() if k not in _PATHS}
        arguments = " ".join(
            f"--{name.replace('_', '-')} {_argument(value)}" for name, value in options.items()
        )
        entries.append(
            {
                "command": f"tfp-ar1 train {arguments}",
                "options": options,
                "data_sha256": config["data"]["sha256"],
                "versions": config["versions"],
                "metrics": json.loads((run / "metrics.json").read_text()),
            }
        )
    click.echo(json.dumps(entries, indent=1))


def _argument(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


if __name__ == "__main__":
    main()
