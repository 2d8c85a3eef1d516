"""Late, quiet import of TensorFlow or JAX; handling of Ctrl-C and SIGTERM."""

import contextlib
import importlib
import logging
import os
import re
import signal
import tempfile
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

_T = TypeVar("_T")


def set_environment() -> None:
    """Sets the environment that libraries read on import, unless the user has set it."""
    # If it cannot write to the home folder, Matplotlib logs where it caches its list of fonts.
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    # Fatal errors only: what TensorFlow logs as other errors are notices (about oneDNN or missing
    # devices), or are also raised as exceptions.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")


def import_backend(start: Callable[[], _T] | None = None, announce: bool = True) -> _T | None:
    """Imports TensorFlow or JAX without their notices; returns the result of `start`.

    Args:
      start: Starts the devices; None for `backend.start`.
      announce: Whether to show a message if it takes a while.
    """
    from tfp_ar1_cli import backend
    from tfp_ar1_cli.progress import doing

    title = {"tensorflow": "TensorFlow", "jax": "JAX"}[backend.name()]
    says = doing(f"Starting {title}") if announce else contextlib.nullcontext()
    with says, _errors_only_on_stderr(), interrupt_afterwards():
        importlib.import_module(backend.name())
        for name in ("absl", "tensorflow"):
            logging.getLogger(name).setLevel(logging.ERROR)
        return (start or backend.start)()


def _terminate(*_: object) -> None:
    from tfp_ar1_cli.errors import Terminated

    raise Terminated


@contextlib.contextmanager
def terminated_as_interrupted() -> Iterator[None]:
    """Raises `Terminated`, a `KeyboardInterrupt`, on SIGTERM, unless SIGTERM has a handler."""
    with _handled(signal.SIGTERM, signal.SIG_DFL, _terminate):
        yield


@contextlib.contextmanager
def interrupt_afterwards() -> Iterator[None]:
    """Defers Ctrl-C and SIGTERM to the end of the block; a second one exits at once.

    During an import, the exception would surface as another one with a traceback, or C++ code would
    swallow it.
    """
    signals: list[int] = []

    def note(number: int, _: object) -> None:
        if signals:
            os._exit(128 + number)
        signals.append(number)

    # Only if the signal would raise an exception.
    with (
        _handled(signal.SIGINT, signal.default_int_handler, note),
        _handled(signal.SIGTERM, _terminate, note),
    ):
        try:
            yield
        finally:
            if signals == [signal.SIGTERM]:
                _terminate()
            elif signals:
                raise KeyboardInterrupt


@contextlib.contextmanager
def _handled(number: signal.Signals, usual: Any, handler: Any) -> Iterator[None]:
    """Replaces the handler of a signal in the block, if it is `usual`, in the main thread."""
    ours = signal.getsignal(number) == usual
    with contextlib.suppress(ValueError):
        ours = ours and signal.signal(number, handler) == usual
    try:
        yield
    finally:
        if ours and signal.getsignal(number) is handler:
            signal.signal(number, usual)


@contextlib.contextmanager
def _errors_only_on_stderr() -> Iterator[None]:
    """Captures what C++ code writes to stderr, and lets only errors through.

    TensorFlow logs some lines to the file descriptor before it reads TF_CPP_MIN_LOG_LEVEL.
    """
    try:
        held, stderr = tempfile.TemporaryFile(), os.dup(2)  # noqa: SIM115
    except OSError:  # No temporary folder, or no stderr.
        yield
        return
    with held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
            held.seek(0)
            for line in held:
                # TensorFlow logs as errors that there is no GPU, and that its parts register the
                # same library twice; neither is one.
                if re.match(rb"[EF]\d{4} ", line) and not re.search(
                    rb"cuInit|Unable to register cu|oneDNN supports", line
                ):
                    os.write(2, line)
