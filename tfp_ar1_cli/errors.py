"""The errors and warnings that the command line reports in one line."""

import contextlib
import pathlib
import traceback
from collections.abc import Iterator

import click


class UserError(click.ClickException):
    """Something is wrong with the user's request or data; nothing was written."""

    exit_code = 2


class Terminated(KeyboardInterrupt):
    """The process received SIGTERM: it ends as after Ctrl-C."""


class Interrupted(click.ClickException):
    """The user pressed Ctrl-C, or the process was asked to end."""

    exit_code = 130

    def __init__(self, message: str, interrupt: BaseException | None) -> None:
        super().__init__(message)
        # By convention, 128 plus the number of the signal.
        self.code = 143 if isinstance(interrupt, Terminated) else self.exit_code


class NotFinite(click.ClickException):
    """The loss or a result is NaN or infinite."""


@contextlib.contextmanager
def dispensable(what: object) -> Iterator[None]:
    """Turns an error in an optional part of a run, such as a picture, into a warning."""
    try:
        yield
    except Exception as error:  # No error of a picture may cost hours of training.
        warn(f"{what}: left out because it failed: {reason(error)}. Everything else is written.")


def warn(message: str) -> None:
    """Prints a warning of one line on stderr."""
    click.echo(f"tfp-ar1: warning: {' '.join(message.split())}", err=True)


def reason(error: BaseException) -> str:
    """Returns the message of an error in one line, or its name if it has no message."""
    first_line = str(error).strip().partition("\n")[0].rstrip(".")
    return first_line or type(error).__name__


def describe(error: OSError, where: pathlib.Path | None = None) -> str:
    """Says what went wrong and where; errors of writing to an open file lack the path."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    if frame.f_globals.get("__name__", "").partition(".")[0] in ("click", "rich"):
        where = pathlib.Path("standard output")
    place = error.filename or where
    return f"{place}: {error.strerror or error}." if place else f"{error}."
