"""The command line `tfp-ar1`, also `python -m tfp_ar1`."""

import sys
from collections.abc import Sequence

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
      argv: The arguments, without the program's name; None takes those of the process.

    Returns:
      The exit code: 0; 1 if the work failed, 2 if what was asked is wrong, 130 after Ctrl-C.
    """
    try:
        from tfp_ar1.cli import commands

        return commands.run(argv)
    except ModuleNotFoundError as error:
        # `pip install tfp_ar1` installs the program, but not what only the program needs.
        needs = f"{error.name} is not installed; run: pip install 'tfp_ar1[cli]'"
        print(f"tfp-ar1: error: {needs}", file=sys.stderr)
        return 2
