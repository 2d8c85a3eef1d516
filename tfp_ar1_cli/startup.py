"""The import of TensorFlow or JAX: late and quiet; and Ctrl-C and SIGTERM."""

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
    """Sets what libraries read when they are imported, unless the user has set it."""
    # Else it tells where it keeps its list of fonts, if it cannot write to the home folder.
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    # Fatal errors only: what else TensorFlow calls one is a notice (of oneDNN, of devices that are
    # not there), or is raised as an exception too.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")


def import_backend(start: Callable[[], _T] | None = None, announce: bool = True) -> _T | None:
    """Imports TensorFlow or JAX without the notices that they print; returns what `start` returns.

    Args:
      start: What starts the devices.
      announce: Whether it is said what is going on, if it takes a while.
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
    """Raises `Terminated`, a `KeyboardInterrupt`, for a SIGTERM that would just end the process."""
    with _handled(signal.SIGTERM, signal.SIG_DFL, _terminate):
        yield


@contextlib.contextmanager
def interrupt_afterwards() -> Iterator[None]:
    """Raises for a Ctrl-C, or SIGTERM, when the block is done; a second one ends at once.

    While a package is imported, an exception would come out as another one with its traceback, or
    C++ code would swallow it.
    """
    signals: list[int] = []

    def note(number: int, _: object) -> None:
        if signals:
            os._exit(128 + number)
        signals.append(number)

    # Only where it would be raised at all.
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
    """Another handler of a signal meanwhile, in the main thread, if it has the usual one."""
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
    """Holds back what C++ code writes to stderr, and lets only its errors through.

    TensorFlow logs some lines before it reads TF_CPP_MIN_LOG_LEVEL, straight to the descriptor.
    """
    try:
        held, stderr = tempfile.TemporaryFile(), os.dup(2)  # noqa: SIM115
    except OSError:  # There is no folder for such files, or no stderr.
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
                # A machine without a GPU is no error, though TensorFlow calls it one; nor is that
                # its parts register the same library twice.
                if re.match(rb"[EF]\d{4} ", line) and not re.search(
                    rb"cuInit|Unable to register cu|oneDNN supports", line
                ):
                    os.write(2, line)
