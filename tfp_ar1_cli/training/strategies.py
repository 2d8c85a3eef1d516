"""Training on several devices or machines: `--strategy`.

Uses `tf.distribute`, and adds checks of the configuration and the restart of a worker from the last
backup after another worker was lost.
"""

import contextlib
import dataclasses
import json
import os
import signal
import sys
import time
import zlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from tfp_ar1_cli import backend, startup
from tfp_ar1_cli.errors import UserError
from tfp_ar1_cli.progress import counted
from tfp_ar1_cli.run_folder import MAY_CHANGE, Position, Run

if TYPE_CHECKING:
    import tensorflow as tf

_DEFAULT_CPU_REPLICAS = 2
_EXAMPLE = (
    """TF_CONFIG='{"cluster": {"worker": ["HOST0:PORT", "HOST1:PORT"]}, """
    """"task": {"type": "worker", "index": 0}}'"""
)
# How often a worker restarts without a new backup, and the environment variable of the count.
_MAX_RESTARTS = 10
_SECONDS_BEFORE_RESTART = 1.0
_SECONDS_FOR_BACKUP = 60.0
_RESTARTS = "TFP_AR1_RESTARTS"


class WorkerLost(click.ClickException):
    """Another worker no longer responds."""


@dataclasses.dataclass(frozen=True)
class Task:
    """This process's place among the workers of `TF_CONFIG`.

    Attributes:
      index: The number of this worker; 0 is the chief, which writes the run.
      addresses: Host and port of each worker.
    """

    index: int
    addresses: list[str]

    def describe(self) -> str:
        """One line about the workers, for the user."""
        others = [a for i, a in enumerate(self.addresses) if i != self.index]
        return (
            f"Worker {self.index} of {len(self.addresses)}"
            f"{'; waits for ' * bool(others)}{', '.join(others)}"
            f"{' (Ctrl-C to stop)' * bool(others)}."
        )


def task() -> Task:
    """Reads `TF_CONFIG`; raises `UserError` if `MultiWorkerMirroredStrategy` cannot use it."""
    text = os.environ.get("TF_CONFIG")
    if not text:
        raise UserError(
            "--strategy multiworker needs the environment variable TF_CONFIG, which says where the "
            f"workers are and which of them this one is; for two workers it is {_EXAMPLE}"
        )
    try:
        config = json.loads(text)
        cluster, role = config["cluster"], config["task"]
        chiefs, workers = list(cluster.get("chief", [])), list(cluster.get("worker", []))
        kind, index = role["type"], int(role["index"])
        addresses = chiefs + workers
        number = index + (len(chiefs) if kind == "worker" else 0)
        of_kind = {"chief": chiefs, "worker": workers}[kind]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(
            f"TF_CONFIG cannot be read ({type(error).__name__}: {error}): {text!r}; for two "
            f"workers it is {_EXAMPLE}"
        ) from error
    if not 0 <= index < len(of_kind):
        raise UserError(
            f"TF_CONFIG has {len(of_kind)} of type {kind}, so there is no index {index}; count "
            "from 0."
        )
    return Task(number, addresses)


def num_replicas(strategy: str, asked: int | None) -> int:
    """The number of replicas of a run, before TensorFlow starts its devices.

    `asked` is the value of `--replicas`. Raises `UserError` if there are fewer GPUs, or if it does
    not fit the strategy.
    """
    backend.check_strategy(strategy)
    if strategy == "none":
        return 1
    if strategy == "multiworker":
        workers = len(task().addresses)
        if asked not in (None, workers):
            raise UserError(
                "--replicas is for --strategy mirrored, not for multiworker; leave it out."
            )
        return workers

    def find() -> list:
        import tensorflow as tf

        return tf.config.list_physical_devices("GPU")

    gpus = len(startup.import_backend(find) or [])
    if asked is not None and gpus and asked > gpus:
        raise UserError(
            f"--replicas {asked} is too many for {counted(gpus, 'GPU')}; give fewer, or "
            "leave it out."
        )
    return asked or gpus or _DEFAULT_CPU_REPLICAS


def none() -> Any:
    """The strategy of training that is not distributed."""
    if backend.name() == "jax":
        return backend.OneDevice()
    import tensorflow as tf

    return tf.distribute.get_strategy()


def start(strategy: str, replicas: int) -> Any:
    """Starts the devices, and creates the strategy on them.

    With several workers, waits until all have started; raises `UserError` if this worker cannot
    listen on its address.
    """
    if strategy == "multiworker":
        return _start_worker()
    if strategy == "mirrored":
        import tensorflow as tf

        gpus = tf.config.list_physical_devices("GPU")
        if not gpus:
            (cpu,) = tf.config.list_physical_devices("CPU")
            parts = [tf.config.LogicalDeviceConfiguration()] * replicas
            tf.config.set_logical_device_configuration(cpu, parts)
        kind = "GPU" if gpus else "CPU"
        return tf.distribute.MirroredStrategy([f"{kind}:{i}" for i in range(replicas)])
    backend.start()
    return none()


def describe_devices(strategy: str, replicas: int) -> str:
    """The devices of this process in words: `CPU`, `GPU:0 (NVIDIA H100 80GB HBM3)`."""
    if backend.name() == "jax":
        device = backend.start()[0]
        kind = device.platform.upper()
        return kind if kind == "CPU" else f"{kind}:{device.id} ({device.device_kind})"
    import tensorflow as tf

    number = replicas if strategy == "mirrored" else 1
    gpus = tf.config.list_physical_devices("GPU")[:number]
    details = map(tf.config.experimental.get_device_details, gpus)
    named = [f"GPU:{i} ({d.get('device_name', 'unnamed')})" for i, d in enumerate(details)]
    return ", ".join(named) or ("CPU" if number == 1 else f"{number} parts of the CPU")


def _start_worker() -> "tf.distribute.MultiWorkerMirroredStrategy":
    import tensorflow as tf

    # While TensorFlow waits for the other workers, Python cannot handle signals.
    handler = signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        # Before anything else: collective operations are configured when the runtime starts.
        return tf.distribute.MultiWorkerMirroredStrategy()
    except tf.errors.UnknownError as error:
        me = task()
        raise UserError(
            f"worker {me.index} cannot listen on {me.addresses[me.index]}, its address in "
            f"TF_CONFIG: the port is taken, or this machine does not have the address "
            f"({error.message})"
        ) from error
    finally:
        signal.signal(signal.SIGINT, handler)
        # TensorFlow treats SIGTERM as a preemption notice, and continues.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def check_alike(strategy: Any, run: Run, position: Position) -> None:
    """Raises `UserError` unless all workers are at the same position of the same training."""
    if run.options.strategy != "multiworker":
        return
    import tensorflow as tf

    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return
    mine = tf.constant([[what_is_alike(run), *position]], tf.int64)
    everyones = strategy.gather(strategy.run(lambda: tf.identity(mine)), axis=0).numpy()
    if len({row[0] for row in everyones}) > 1:
        raise UserError(
            "the workers were started with different options or data; give all of them the same."
        )
    if len({tuple(row) for row in everyones}) > 1:
        places = ", ".join(
            f"{counted(epoch, 'epoch')} and {counted(step, 'step')}" for _, epoch, step in everyones
        )
        raise UserError(
            f"the workers are at different positions ({places}); {run.folder} must be a folder "
            "that all of them share."
        )


def what_is_alike(run: Run) -> int:
    """A number that is equal on workers started for the same training."""
    options = {k: v for k, v in run.options.as_json().items() if k not in MAY_CHANGE}
    told = {"options": options, "data": run.data}
    return zlib.crc32(json.dumps(told, sort_keys=True, default=str).encode())


def wait_for_last_backup(run: Run) -> None:
    """Waits until worker 0 has written the final backup, from which it can continue alone.

    Raises `tf.errors.UnavailableError` if it has not after a minute.
    """
    import tensorflow as tf

    deadline = time.monotonic() + _SECONDS_FOR_BACKUP
    while not run.trained:
        if time.monotonic() > deadline:
            raise tf.errors.UnavailableError(None, None, "Worker 0 did not write the last backup.")
        time.sleep(0.1)


@contextlib.contextmanager
def restarting(run: Run) -> Iterator[None]:
    """Restarts the command if another worker is lost; it then waits for that worker.

    Raises `WorkerLost` if that has happened a few times without progress.
    """
    try:
        yield
    except Exception as error:
        if run.options.strategy != "multiworker":
            raise
        from tensorflow import errors  # Late, because `startup` imports it without its notices.

        lost: tuple = (errors.UnavailableError, errors.AbortedError, errors.CancelledError)
        lost += (errors.DeadlineExceededError, errors.InternalError)
        if not isinstance(error, lost):
            raise
        _start_again(run.position(), error)


def _start_again(done: Position, error: Exception) -> None:
    """Replaces this process by a new one: TensorFlow cannot rejoin workers."""
    here = f"{done.epoch}-{done.step}"
    before, _, number = os.environ.get(_RESTARTS, "").rpartition("/")
    count = int(number) + 1 if before == here else 1
    if count > _MAX_RESTARTS:
        raise WorkerLost(
            f"the other workers were lost {_MAX_RESTARTS} times without a backup in between; see "
            f"their output. TensorFlow says: {error}"
        ) from error
    os.environ[_RESTARTS] = f"{here}/{count}"
    click.echo(
        "Another worker was lost (if it stopped by itself, its output says why); restarting from "
        "the last backup.",
        err=True,
    )
    time.sleep(_SECONDS_BEFORE_RESTART)
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, sys.orig_argv)
