"""Training of a run: batches, callbacks and checkpoints."""

import contextlib
import functools
import math
import pathlib
import tempfile
from collections.abc import Callable
from typing import Any

import click
import keras
import numpy as np

from tfp_ar1_cli import backend, kinds
from tfp_ar1_cli.atomic import check_space
from tfp_ar1_cli.data.protocol import Data
from tfp_ar1_cli.errors import NotFinite, dispensable
from tfp_ar1_cli.options import RunOptions
from tfp_ar1_cli.progress import Progress, doing
from tfp_ar1_cli.run_folder import Position, Run
from tfp_ar1_cli.training import strategies
from tfp_ar1_cli.training.batches import Batches
from tfp_ar1_cli.training.checkpoints import Checkpoint, load_best, load_state, state_of

# TensorBoard's log has pictures and histograms at most this often, at least this many epochs apart.
_MOST_LOGGED, _LEAST_BETWEEN = 10, 3


def train(
    run: Run,
    data: Data,
    strategy: Any = None,
    backup_steps: int = 0,
    on_epoch: Callable[[dict[str, float]], None] | None = None,
) -> keras.Model:
    """Trains the model of a run from its current position, and writes `history.json`.

    Interrupted and resumed training gives the same results as uninterrupted training.

    Args:
      run: A run, new or unfinished.
      data: Its data.
      strategy: The distribution strategy; `None` if training is not distributed.
      backup_steps: See `Checkpoint`.
      on_epoch: Called with the losses after each epoch.

    Returns:
      The trained model, outside of the strategy; with early stopping, that of the best epoch.

    Raises:
      click.ClickException: If memory runs out, or the loss is not finite (`NotFinite`).
    """
    options = run.options
    strategy = strategy or strategies.none()
    batches = Batches(data.train, options.batch_size, options.seed, options.hide or 0)
    try:
        with batches.own_errors():
            return _train(run, data, batches, strategy, backup_steps, on_epoch)
    except Exception as error:
        if not backend.out_of_memory(error):
            raise
        raise click.ClickException(
            "not enough memory; start a new run with a smaller --batch-size, --hidden-units, "
            f"--filters or --latent-dim (for series: --window, --channels). {run.folder} stays "
            "unfinished."
        ) from error


def _train(
    run: Run,
    data: Data,
    batches: Batches,
    strategy: Any,
    backup_steps: int,
    on_epoch: Callable[[dict[str, float]], None] | None,
) -> keras.Model:
    options = run.options
    epochs, steps = options.epochs, batches.steps_per_epoch

    def new_model() -> keras.Model:
        keras.utils.set_random_seed(options.seed)
        return kinds.of(options).build(options, data.data_shape)

    with strategy.scope(), doing("Building the model"):
        model = new_model()
    checkpoint = Checkpoint(run, model, steps, backup_steps, lambda: data.skipped)
    position = checkpoint.restore()
    if run.worker == 0:
        # Space for two backups while one replaces the other, the best one with early stopping, and
        # the model with its optimizer. Sizes are computed from shapes, because reading variables
        # involves all workers.
        variables = (*model.variables, *model.optimizer.variables)
        size = sum(math.prod(v.shape) * np.dtype(v.dtype).itemsize for v in variables)
        check_space(run.folder, (3 if options.patience is None else 4) * size)
    strategies.check_alike(strategy, run, position)
    with contextlib.ExitStack() as stack:
        rate, done = options.learning_rate, position.epoch * steps + position.step
        progress = None
        ended = position.epoch >= epochs or run.waited(position.epoch)
        if run.worker == 0 and not ended:
            progress = stack.enter_context(Progress("training", epochs * steps, done))
        callbacks = [_Watch(options, done, progress)]
        if options.model == "sequence":
            # Cosine decay (arXiv:1608.03983, no restarts): if series are reproduced closely, the
            # likelihood has a steep optimum; with a constant rate, the loss would jump by some ten
            # nats from epoch to epoch until the end.
            decay = keras.callbacks.LearningRateScheduler
            callbacks.append(
                decay(lambda epoch: rate * (1 + math.cos(math.pi * epoch / epochs)) / 2)
            )
        # No TensorBoard on JAX: it is written by TensorFlow, which would take the GPU's memory.
        if progress is not None and backend.name() == "tensorflow":
            # Not with several replicas: the others would wait while one draws.
            rhythm = max(_LEAST_BETWEEN, math.ceil(epochs / _MOST_LOGGED))
            every = rhythm if options.strategy == "none" else 0
            draw = functools.partial(kinds.of(options).draw_progress, run, model, data)
            callbacks.append(_TensorBoard(run.logs, draw, every))
        if on_epoch is not None:
            report = lambda epoch, logs: on_epoch({"epoch": epoch + 1, **logs})  # noqa: E731
            callbacks.append(keras.callbacks.LambdaCallback(on_epoch_end=report))
        while not ended:
            # Keras starts at the first step of an epoch, so the rest of one needs its own `fit`.
            last = position.epoch + 1 if position.step else epochs
            model.fit(
                batches.dataset(position.epoch * steps + position.step, strategy),
                epochs=last,
                initial_epoch=position.epoch,
                steps_per_epoch=steps - position.step,
                shuffle=False,
                **batches.validation(data.monitored, strategy),
                verbose=0,
                callbacks=[*callbacks, checkpoint],
            )
            position = Position(last, 0)
            ended = last == epochs or model.stop_training
    if strategy.num_replicas_in_sync > 1:
        # One process saves and evaluates; it cannot read variables shared with others.
        state = state_of(model)
        model = new_model()
        load_state(model, state)
    if options.patience is not None and run.worker == 0:
        load_state(model, load_best(run))
    return model


class _TensorBoard(keras.callbacks.TensorBoard):
    """Writes TensorBoard's log; if that fails, training continues without it.

    Args:
      folder: The folder of the log.
      draw: Draws pictures as PNG files into a folder. It must not use the model's random numbers.
      every: The number of epochs between pictures and histograms of the weights; 0 for none.
    """

    def __init__(
        self, folder: pathlib.Path, draw: Callable[[pathlib.Path], None], every: int
    ) -> None:
        super().__init__(folder, write_graph=False, histogram_freq=every)
        self._failed, self._draw = False, draw
        for name in ("set_model", *(name for name in dir(self) if name.startswith("on_"))):
            setattr(self, name, functools.partial(self._try, getattr(self, name)))

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        import tensorflow as tf

        super().on_epoch_end(epoch, logs)
        if not self.histogram_freq or epoch % self.histogram_freq:
            return
        with tempfile.TemporaryDirectory() as folder, self._val_writer.as_default():
            self._draw(pathlib.Path(folder))
            for path in sorted(pathlib.Path(folder).iterdir()):
                picture = tf.io.decode_png(path.read_bytes())
                tf.summary.image(path.stem, picture[None], step=epoch)

    def _try(self, hook: Callable[..., None], *args, **kwargs) -> None:
        if self._failed:
            return
        self._failed = True
        with dispensable(f"TensorBoard's log in {self.log_dir}"):
            hook(*args, **kwargs)
            self._failed = False


class _Watch(keras.callbacks.Callback):
    """Shows progress, and stops training if the loss is not finite."""

    def __init__(self, options: RunOptions, done: int, progress: Progress | None) -> None:
        super().__init__()
        self._options, self._done, self._progress = options, done, progress
        self._epoch, self._test = 0, ""

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        self._epoch = epoch

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self._check(logs["loss"])
        self._done += 1
        if self._progress is not None:
            epoch = f"epoch {self._epoch + 1}/{self._options.epochs}"
            self._progress.update(self._done, f"{epoch}  loss {logs['loss']:.2f}{self._test}")

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self._check(logs["val_loss"])
        self._test = f"  {self._options.monitored} {logs['val_loss']:.2f}"

    def _check(self, loss: float) -> None:
        if not math.isfinite(loss):
            raise NotFinite(
                f"the loss became {loss} in epoch {self._epoch + 1}; start a new run with a lower "
                f"--learning-rate than {self._options.learning_rate:g}."
            )
