"""The command line `tfp-ar1`, also `python -m tfp_ar1`."""

import sys
from collections.abc import Sequence

from tfp_ar1_cli import startup

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
      argv: The arguments, without the program's name; None takes those of the process.

    Returns:
      The exit code: 0; 1 if the work failed, 2 if what was asked is wrong, 130 after Ctrl-C, 143
      after SIGTERM.
    """
    try:
        with startup.terminated_as_interrupted():
            with startup.interrupt_afterwards():
                from tfp_ar1_cli import app

            return app.run(argv)
    except KeyboardInterrupt as error:
        print("tfp-ar1: interrupted.", file=sys.stderr)
        return 130 if type(error) is KeyboardInterrupt else 143
    except ModuleNotFoundError as error:
        # The library is installed without what only the program, or only JAX, needs.
        extras = "cli,jax" if error.name == "jax" else "cli"
        needs = f"run, in the project's folder: pip install '.[{extras}]'"
        print(f"tfp-ar1: error: {error.name} is not installed; {needs}", file=sys.stderr)
        return 2
