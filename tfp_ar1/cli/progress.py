"""Progress of long work: one live line on a terminal, elsewhere a plain line now and then."""

import time

import click
import rich.console
import rich.progress

_SECONDS_BETWEEN_LINES = 5.0


class Progress:
    """Shows how far a piece of work is, on stderr; a context manager.

    Args:
      name: What is being done.
      total: The number of steps.
      done: How many of them were done before.
    """

    def __init__(self, name: str, total: int, done: int = 0) -> None:
        self._name, self._total = name, total
        self._start = self._printed = time.monotonic()
        self._first = None
        console = rich.console.Console(stderr=True)
        self._bar = None
        if console.is_interactive:
            self._bar = rich.progress.Progress(
                rich.progress.TextColumn("{task.description}"),
                rich.progress.BarColumn(bar_width=24),
                rich.progress.TextColumn("{task.fields[note]}", markup=False),
                console=console,
            )
            self._task = self._bar.add_task(name, total=total, completed=done, note="")

    def __enter__(self) -> "Progress":
        """Starts the live line."""
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        """Leaves the live line as it is."""
        if self._bar is not None:
            self._bar.stop()

    def update(self, done: int, note: str = "") -> None:
        """Tells how many steps are done, and a few words about them."""
        now = time.monotonic()
        # The first step is left out of the rate: it is slow, because TensorFlow compiles in it.
        since, before = self._first = self._first or (now, done)
        if done >= self._total:
            note += f"  {_duration(now - self._start)}"
        elif done > before:
            left = (now - since) / (done - before) * (self._total - done)
            note += f"  {_duration(left)} left"
        if self._bar is not None:
            self._bar.update(self._task, completed=done, note=note)
        elif done == self._total or now - self._printed >= _SECONDS_BETWEEN_LINES:
            self._printed = now
            click.echo(f"{self._name} {done / self._total:4.0%}  {note.strip()}", err=True)


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes}:{seconds:02d}"
