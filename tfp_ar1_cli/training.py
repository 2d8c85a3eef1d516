"""The training of a run: model, callbacks, checkpoints. Imports Keras, so import it late."""

import contextlib
import functools
import math
from collections.abc import Callable

import click
import keras
import numpy as np
import tensorflow as tf

from tfp_ar1 import RhoVAE, SequenceVAE
from tfp_ar1.vae import architectures, objectives, sequence_networks
from tfp_ar1_cli import strategies
from tfp_ar1_cli.batches import Batches
from tfp_ar1_cli.checkpoints import Checkpoint, load_state, state_of
from tfp_ar1_cli.data.protocol import Data
from tfp_ar1_cli.errors import dispensable
from tfp_ar1_cli.progress import Progress, doing
from tfp_ar1_cli.runs import Position, Run, check_space

_COMPILES = "compiling the first step, which takes some seconds"


class NotFinite(click.ClickException):
    """The loss or a result is NaN or infinite."""


def build(options: dict, data_shape: tuple[int, ...]) -> keras.Model:
    """The model that the options of `train` describe, built and compiled."""
    of_objective = {"beta": options["beta"]} if options["objective"] == "elbo" else {}
    arguments = {
        "posterior": options["posterior"],
        "likelihood": options["likelihood"],
        "objective": objectives.get(options["objective"], **of_objective),
        "seed": options["seed"],
    }
    of_sequences = options.get("model") == "sequence"
    model = (_sequence_vae if of_sequences else _image_vae)(options, data_shape, arguments)
    model.build((None, *data_shape))
    model.compile(optimizer=keras.optimizers.Adam(options["learning_rate"]))
    model.optimizer.build(model.trainable_variables)
    return model


def _image_vae(options: dict, image_shape: tuple[int, ...], arguments: dict) -> RhoVAE:
    of_network = {"hidden_units": options["hidden_units"]} if options["network"] == "mlp" else {}
    encoder, decoder = architectures.NETWORKS[options["network"]](
        image_shape, options["latent_dim"], **of_network
    )
    return RhoVAE(encoder, decoder, options["latent_dim"], **arguments)


def _sequence_vae(options: dict, data_shape: tuple[int, int], arguments: dict) -> SequenceVAE:
    channels, steps = options["channels"], data_shape[0]
    encoder, decoder = sequence_networks.NETWORKS[options["network"]](data_shape, channels)
    prior = {"ar1": "ar1", "normal": None}[options["prior"]]
    return SequenceVAE(encoder, decoder, channels, steps, prior=prior, **arguments)


def prior_correlation(model: SequenceVAE) -> np.ndarray:
    """The prior's lag-one correlation for each latent path, `[channels]`; 0 for N(0, I)."""
    learned = getattr(model.prior, "correlation_parameter", lambda: 0.0)()
    return np.broadcast_to(np.asarray(learned, np.float64), [model.channels])


def train(
    run: Run,
    data: Data,
    report: bool = True,
    strategy: tf.distribute.Strategy | None = None,
    backup_steps: int = 0,
) -> keras.Model:
    """Trains the model of a run from where it stands, and leaves `history.json`.

    A training that was interrupted ends where it would have ended without.

    Args:
      run: A run, new or unfinished.
      data: Its images, or its series.
      report: Whether to show the progress, and to write TensorBoard's log.
      strategy: How the training is distributed; `None` if it is not.
      backup_steps: See `Checkpoint`.

    Returns:
      The trained model. It is no part of the strategy.

    Raises:
      NotFinite: If the loss is no longer finite.
      click.ClickException: If the memory is not enough.
    """
    options = run.options
    strategy = strategy or tf.distribute.get_strategy()
    batches = Batches(data.train, options["batch_size"], options["seed"], options.get("hide", 0))
    try:
        with batches.own_errors():
            report = report and run.worker == 0
            return _train(run, data, batches, report, strategy, backup_steps)
    except (MemoryError, tf.errors.ResourceExhaustedError) as error:
        raise click.ClickException(
            "not enough memory; start a new run with a smaller --batch-size, --latent-dim or "
            f"--hidden-units (or --window, --channels). {run.folder} stays unfinished."
        ) from error


def check_finite(metrics: dict) -> None:
    """Checks the results of a run.

    Raises:
      NotFinite: If one of them is NaN or infinite.
    """
    for name, value in metrics.items():
        if not math.isfinite(value):
            raise NotFinite(
                f"the evaluation gave {name} = {value}; start a new run with a lower "
                "--learning-rate."
            )


def _train(
    run: Run,
    data: Data,
    batches: Batches,
    report: bool,
    strategy: tf.distribute.Strategy,
    backup_steps: int,
) -> keras.Model:
    options = run.options
    epochs, steps = options["epochs"], batches.steps_per_epoch

    def new_model() -> keras.Model:
        keras.utils.set_random_seed(options["seed"])
        return build(options, data.x_train.shape[1:])

    with strategy.scope(), doing("Building the model"):
        model = new_model()
    checkpoint = Checkpoint(run, model, steps, backup_steps, lambda: data.skipped)
    position = checkpoint.restore()
    if run.worker == 0:
        # Two backups while one takes the place of the other, and the model with its optimizer.
        # By shapes: to read a variable of several workers, all of them would have to do it.
        variables = (*model.variables, *model.optimizer.variables)
        size = sum(math.prod(v.shape) * tf.as_dtype(v.dtype).size for v in variables)
        check_space(run.folder, 3 * size)
    strategies.check_alike(strategy, run, position)
    with contextlib.ExitStack() as stack:
        callbacks = [_StopUnlessFinite(options["learning_rate"])]
        if run.of_sequences:
            callbacks.append(_cosine_decay(options["learning_rate"], epochs))
        if report and position.epoch < epochs:
            done = position.epoch * steps + position.step
            progress = Progress("training", total=epochs * steps, done=done, first=_COMPILES)
            callbacks.append(_Report(stack.enter_context(progress), epochs, done))
            callbacks.append(_TensorBoard(run.logs, write_graph=False))
        while position.epoch < epochs:
            # Keras begins at the first step of an epoch, so the rest of one is a `fit` of its own.
            last = position.epoch + 1 if position.step else epochs
            model.fit(
                batches.dataset(position.epoch * steps + position.step, strategy),
                epochs=last,
                initial_epoch=position.epoch,
                steps_per_epoch=steps - position.step,
                shuffle=False,
                validation_data=(data.test,),
                validation_batch_size=options["batch_size"],
                verbose=0,
                callbacks=[*callbacks, checkpoint],
            )
            position = Position(last, 0)
    if strategy.num_replicas_in_sync == 1:
        return model
    # Saving and evaluating are for one process, which cannot read what is shared with others.
    state = state_of(model)
    model = new_model()
    load_state(model, state)
    return model


def _cosine_decay(learning_rate: float, epochs: int) -> keras.callbacks.Callback:
    """Lowers the step size to 0 over the epochs: half a cosine (arXiv:1608.03983, no restarts).

    The likelihood of series that are reproduced closely has a steep optimum: with steps of one size
    the loss jumps by some ten nats from epoch to epoch to the end.
    """
    return keras.callbacks.LearningRateScheduler(
        lambda epoch: learning_rate * (1 + math.cos(math.pi * epoch / epochs)) / 2
    )


class _TensorBoard(keras.callbacks.TensorBoard):
    """Writes TensorBoard's log until that fails, and lets the training go on without it."""

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self._failed = False
        for name in ("set_model", *(name for name in dir(self) if name.startswith("on_"))):
            setattr(self, name, functools.partial(self._try, getattr(self, name)))

    def _try(self, hook: Callable[..., None], *args, **kwargs) -> None:
        if self._failed:
            return
        self._failed = True
        with dispensable(f"TensorBoard's log in {self.log_dir}"):
            hook(*args, **kwargs)
            self._failed = False


class _StopUnlessFinite(keras.callbacks.Callback):
    """Stops the training when the loss is no longer finite."""

    def __init__(self, learning_rate: float) -> None:
        super().__init__()
        self._learning_rate = learning_rate

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        self._epoch = epoch

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        self._check(logs["loss"])

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        self._check(logs["val_loss"])

    def _check(self, loss: float) -> None:
        if not math.isfinite(loss):
            raise NotFinite(
                f"the loss became {loss} in epoch {self._epoch + 1}; start a new run with a lower "
                f"--learning-rate than {self._learning_rate:g}."
            )


class _Report(keras.callbacks.Callback):
    """Shows the progress."""

    def __init__(self, progress: Progress, epochs: int, done: int) -> None:
        super().__init__()
        self._progress, self._epochs, self._done = progress, epochs, done
        self._epoch, self._test = 0, ""

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        self._epoch = epoch

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        self._done += 1
        self._progress.update(
            self._done,
            f"epoch {self._epoch + 1}/{self._epochs}  loss {logs['loss']:.2f}{self._test}",
        )

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        self._test = f"  test {logs['val_loss']:.2f}"
