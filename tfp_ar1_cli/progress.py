"""Progress of long tasks: one live line on a terminal, elsewhere occasional plain lines."""

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import TextIO

import click
import rich.console
import rich.markup
import rich.progress

_SECONDS_BETWEEN_LINES = 5.0
_SECONDS_OF_SILENCE = 4.0
_COMPILES = "compiling the first step, which takes a few seconds"


def counted(number: int, noun: str) -> str:
    """A number with a noun: `1 epoch`, `2 epochs`."""
    return f"{number} {noun}{'s' * (number != 1)}"


_silent = False


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Silences this module within the block."""
    global _silent
    before, _silent = _silent, True
    try:
        yield
    finally:
        _silent = before


@contextlib.contextmanager
def doing(what: str) -> Iterator[None]:
    """Shows on stderr what is being done (`Reading x.csv`), except for brief tasks."""
    with contextlib.ExitStack() as stack:
        stream = sys.stderr
        with contextlib.suppress(OSError, ValueError, AttributeError):
            # A duplicate, because stderr is captured while TensorFlow starts.
            stream = os.fdopen(os.dup(stream.fileno()), "w", errors="backslashreplace")
            stack.enter_context(stream)
        console = rich.console.Console(file=stream)
        if _silent:
            pass
        elif console.is_interactive:
            stack.enter_context(console.status(rich.markup.escape(f"{what} …")))
        else:
            stack.callback(_say_later(f"{what} ...", stream))
        yield


def _say_later(line: str, stream: TextIO | None) -> Callable[[], None]:
    """Prints a line after a moment; calling the returned function cancels that."""
    timer = threading.Timer(_SECONDS_OF_SILENCE, lambda: click.echo(line, file=stream))
    timer.daemon = True
    timer.start()

    def stop() -> None:
        timer.cancel()
        timer.join()

    return stop


class Progress:
    """Shows the progress of a task on stderr; a context manager.

    Args:
      name: The name of the task.
      total: The number of steps.
      done: The number of steps done earlier.
      first: A note shown until the first step is done; TensorFlow compiles during that step.
    """

    def __init__(self, name: str, total: int, done: int = 0, first: str = _COMPILES) -> None:
        self._name, self._total = name, total
        self._silence = contextlib.ExitStack()
        self._line = f"{name} {done / total:4.0%}  {first}"
        self._start = self._printed = time.monotonic()
        self._first: tuple[float, int] | None = None
        console = rich.console.Console(stderr=True)
        self._bar, self._is_shown = None, not _silent
        if self._is_shown and console.is_interactive:
            self._bar = rich.progress.Progress(
                rich.progress.TextColumn("{task.description}"),
                rich.progress.BarColumn(bar_width=24),
                rich.progress.TextColumn("{task.fields[note]}", markup=False),
                console=console,
            )
            self._task = self._bar.add_task(name, total=total, completed=done, note=first)

    def __enter__(self) -> "Progress":
        """Starts the live line."""
        if self._bar is not None:
            self._bar.start()
        elif self._is_shown:
            self._silence.callback(_say_later(self._line, sys.stderr))
        return self

    def __exit__(self, *exception: object) -> None:
        """Stops the live line, and leaves it as it is."""
        self._silence.close()
        if self._bar is not None:
            self._bar.stop()

    def update(self, done: int, note: str = "") -> None:
        """Shows the number of steps done, with a short note."""
        self._silence.close()
        now = time.monotonic()
        # The rate excludes the first step, which is slow because TensorFlow compiles in it.
        since, before = self._first = self._first or (now, done)
        if done >= self._total:
            note += f"  {_duration(now - self._start)}"
        elif done > before:
            left = (now - since) / (done - before) * (self._total - done)
            note += f"  {_duration(left)} left"
        if self._bar is not None:
            self._bar.update(self._task, completed=done, note=note)
        elif self._is_shown and (
            done == self._total or now - self._printed >= _SECONDS_BETWEEN_LINES
        ):
            self._printed = now
            click.echo(f"{self._name} {done / self._total:4.0%}  {note.strip()}", err=True)


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes}:{seconds:02d}"
