"""The training of a run: model, callbacks, checkpoints. Imports Keras, so import it late."""

import contextlib
import math
import time

import click
import keras
import numpy as np
import tensorflow as tf

from tfp_ar1 import RhoVAE
from tfp_ar1.cli.datasets import Dataset
from tfp_ar1.cli.progress import Progress
from tfp_ar1.cli.runs import Run, atomic
from tfp_ar1.vae import architectures, objectives


class NotFinite(click.ClickException):
    """The loss or a result is NaN or infinite."""


def build(options: dict, image_shape: tuple[int, ...]) -> keras.Model:
    """The model that the options of `train` describe, built and compiled."""
    of_network = {"hidden_units": options["hidden_units"]} if options["network"] == "mlp" else {}
    of_objective = {"beta": options["beta"]} if options["objective"] == "elbo" else {}
    encoder, decoder = architectures.NETWORKS[options["network"]](
        image_shape, options["latent_dim"], **of_network
    )
    model = RhoVAE(
        encoder,
        decoder,
        options["latent_dim"],
        posterior=options["posterior"],
        likelihood=options["likelihood"],
        objective=objectives.get(options["objective"], **of_objective),
        seed=options["seed"],
    )
    model.build((None, *image_shape))
    model.compile(optimizer=keras.optimizers.Adam(options["learning_rate"]))
    return model


def train(run: Run, data: Dataset, report: bool = True) -> keras.Model:
    """Trains the model of a run from where it stands, and leaves `history.json`.

    A training that was interrupted ends where it would have ended without.

    Args:
      run: A run, new or unfinished.
      data: Its images.
      report: Whether to show the progress, and to write TensorBoard's log.

    Returns:
      The trained model.

    Raises:
      NotFinite: If the loss is no longer finite.
      click.ClickException: If the memory is not enough.
    """
    try:
        return _train(run, data, report)
    except (MemoryError, tf.errors.ResourceExhaustedError) as error:
        raise click.ClickException(
            "not enough memory; start a new run with a smaller --batch-size, --latent-dim or "
            f"--hidden-units. {run.folder} stays unfinished."
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


def _train(run: Run, data: Dataset, report: bool) -> keras.Model:
    options = run.options
    keras.utils.set_random_seed(options["seed"])
    model = build(options, data.image_shape)
    checkpoint = Checkpoint(run)
    done = checkpoint.restore(model)
    epochs = options["epochs"]
    if done < epochs:
        batches = _Batches(data.x_train, options["batch_size"], options["seed"], done)
        steps = len(batches)
        with contextlib.ExitStack() as stack:
            callbacks = [_StopUnlessFinite(options["learning_rate"])]
            if report:
                progress = Progress("training", total=epochs * steps, done=done * steps)
                callbacks.append(_Report(stack.enter_context(progress), epochs, steps))
                callbacks.append(keras.callbacks.TensorBoard(run.logs, write_graph=False))
            model.fit(
                batches,
                epochs=epochs,
                initial_epoch=done,
                shuffle=False,
                validation_data=(data.x_test,),
                validation_batch_size=options["batch_size"],
                verbose=0,
                callbacks=[*callbacks, checkpoint],
            )
    return model


class _Batches(keras.utils.PyDataset):
    """The training images in an order that depends on the seed and the epoch alone.

    Keras shuffles arrays in the same way in every epoch once the seed is set. Here each epoch has
    its own order, and a training that is resumed has the orders of one that never stopped.
    """

    def __init__(self, x: np.ndarray, batch_size: int, seed: int, epoch: int) -> None:
        super().__init__()
        self._x, self._batch_size, self._seed = x, batch_size, seed
        self._epoch = epoch
        self._order = np.arange(len(x))

    def __len__(self) -> int:
        return math.ceil(len(self._x) / self._batch_size)

    def __getitem__(self, index: int) -> tuple[np.ndarray]:
        start = index * self._batch_size
        return (self._x[self._order[start : start + self._batch_size]],)

    def on_epoch_begin(self) -> None:
        self._order = np.random.default_rng([self._seed, self._epoch]).permutation(len(self._x))
        self._epoch += 1


class Checkpoint(keras.callbacks.Callback):
    """Keeps weights, optimizer and history of the last whole epoch in the run's folder.

    The history has the seconds of each epoch too, those of the validation left out.

    `keras.callbacks.BackupAndRestore` writes the weights and the number of the epoch one after the
    other and in place; killed in between, it repeats an epoch or cannot be read. Here the number is
    in the name of the one file, which appears whole or not at all, after its history.
    """

    def __init__(self, run: Run) -> None:
        super().__init__()
        self.run = run
        self.history = run.history()

    def restore(self, model: keras.Model) -> int:
        """Loads the latest checkpoint, if there is one, and returns how many epochs are done."""
        done = self.run.epochs_done()
        if done:
            model.optimizer.build(model.trainable_variables)
            model.load_weights(self.run.checkpoint_files()[done])
        # Killed between history and checkpoint, the history is one epoch ahead.
        self.history = {name: values[:done] for name, values in self.history.items()}
        return done

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        """Starts the clock."""
        self._start = time.perf_counter()

    def on_test_begin(self, logs: dict | None = None) -> None:
        """Stops the clock: the validation of an epoch comes after its training."""
        self._seconds = time.perf_counter() - self._start

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Writes history and checkpoint."""
        for name, value in {**(logs or {}), "seconds": self._seconds}.items():
            self.history.setdefault(name, []).append(float(value))
        self.run.write_history(self.history)
        old = self.run.checkpoint_files()
        self.run.checkpoints.mkdir(exist_ok=True)
        with atomic(self.run.checkpoints / f"{epoch + 1}.weights.h5") as path:
            self.model.save_weights(path)
        for file in old.values():
            file.unlink()


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

    def __init__(self, progress: Progress, epochs: int, steps: int) -> None:
        super().__init__()
        self._progress, self._epochs, self._steps = progress, epochs, steps
        self._epoch, self._test = 0, ""

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        self._epoch = epoch

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        self._progress.update(
            self._epoch * self._steps + batch + 1,
            f"epoch {self._epoch + 1}/{self._epochs}  loss {logs['loss']:.2f}{self._test}",
        )

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        self._test = f"  test {logs['val_loss']:.2f}"
