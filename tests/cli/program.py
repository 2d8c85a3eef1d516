"""What the tests of the program share: tiny trainings, runs of earlier versions, helpers."""

import pathlib

from tfp_ar1_cli import options, train

ROOT = pathlib.Path(__file__).parents[2]
# Run folders as `tfp-ar1 train` wrote them when format 1 was new, without pictures and logs. They
# stay as they are: every later version must read them. A new format adds folders of its own.
RUNS = {"image": ROOT / "tests/data/run_v1", "sequence": ROOT / "tests/data/series_v1"}
_COMMON = "--epochs 3 --num-importance-samples 4"
TINY = f"--latent-dim 3 --hidden-units 8,5 --batch-size 16 {_COMMON}".split()
TINY_SERIES = f"--model sequence --channels 2 --batch-size 8 {_COMMON}".split()


def contents(folder):
    """Every file below a folder with its bytes, and every folder."""
    paths = sorted(pathlib.Path(folder).rglob("*"))
    return {str(path): path.read_bytes() if path.is_file() else None for path in paths}


def options_of(*argv):
    """What `train` makes of its arguments."""
    params = train.command.make_context("train", list(map(str, argv))).params
    names = options.RunOptions.__dataclass_fields__
    return options.RunOptions(**{name: params[name] for name in names})
