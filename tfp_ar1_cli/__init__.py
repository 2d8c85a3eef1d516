"""The command line `tfp-ar1`, also `python -m tfp_ar1`."""

import contextlib
import os
import signal
import sys
from collections.abc import Iterator, Sequence

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
      argv: The arguments, without the program's name; None takes those of the process.

    Returns:
      The exit code: 0; 1 if the work failed, 2 if what was asked is wrong, 130 after Ctrl-C.
    """
    try:
        with _ended_by_ctrl_c():
            from tfp_ar1_cli import commands

        return commands.run(argv)
    except KeyboardInterrupt:
        print("tfp-ar1: interrupted.", file=sys.stderr)
        return 130
    except ModuleNotFoundError as error:
        # The library is installed without what only the program needs.
        needs = "run, in the project's folder: pip install '.[cli]'"
        print(f"tfp-ar1: error: {error.name} is not installed; {needs}", file=sys.stderr)
        return 2


@contextlib.contextmanager
def _ended_by_ctrl_c() -> Iterator[None]:
    """Ends the process at once on Ctrl-C.

    While a package is imported, an exception would come out as another one, with its traceback, or
    would be lost.
    """

    def end(*_: object) -> None:
        os.write(2, b"tfp-ar1: interrupted.\n")
        os._exit(130)

    try:
        before = signal.signal(signal.SIGINT, end)
    except ValueError:  # Not in the main thread, where no signal arrives.
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
