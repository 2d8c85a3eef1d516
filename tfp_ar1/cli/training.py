"""The training of a run: model, callbacks, checkpoints. Imports Keras, so import it late."""

import contextlib
import math
import time

import click
import keras
import numpy as np
import tensorflow as tf

from tfp_ar1 import RhoVAE, SequenceVAE
from tfp_ar1.cli import series
from tfp_ar1.cli.datasets import Dataset
from tfp_ar1.cli.progress import Progress
from tfp_ar1.cli.runs import Run, atomic
from tfp_ar1.vae import architectures, objectives, sequence_networks


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


def train(run: Run, data: Dataset | series.Series, report: bool = True) -> keras.Model:
    """Trains the model of a run from where it stands, and leaves `history.json`.

    A training that was interrupted ends where it would have ended without.

    Args:
      run: A run, new or unfinished.
      data: Its images, or its series.
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


def _train(run: Run, data: Dataset | series.Series, report: bool) -> keras.Model:
    options = run.options
    keras.utils.set_random_seed(options["seed"])
    model = build(options, data.x_train.shape[1:])
    checkpoint = Checkpoint(run)
    done = checkpoint.restore(model)
    epochs = options["epochs"]
    if done < epochs:
        batches = _Batches(
            data.train, options["batch_size"], options["seed"], done, options.get("hide", 0)
        )
        steps = len(batches)
        with contextlib.ExitStack() as stack:
            callbacks = [_StopUnlessFinite(options["learning_rate"])]
            if run.of_sequences:
                callbacks.append(_cosine_decay(options["learning_rate"], epochs))
            if report:
                progress = Progress("training", total=epochs * steps, done=done * steps)
                callbacks.append(_Report(stack.enter_context(progress), epochs, steps))
                callbacks.append(keras.callbacks.TensorBoard(run.logs, write_graph=False))
            model.fit(
                batches,
                epochs=epochs,
                initial_epoch=done,
                shuffle=False,
                validation_data=(data.test,),
                validation_batch_size=options["batch_size"],
                verbose=0,
                callbacks=[*callbacks, checkpoint],
            )
    return model


def _cosine_decay(learning_rate: float, epochs: int) -> keras.callbacks.Callback:
    """Lowers the step size to 0 over the epochs: half a cosine (arXiv:1608.03983, no restarts).

    The likelihood of series that are reproduced closely has a steep optimum: with steps of one size
    the loss jumps by some ten nats from epoch to epoch to the end.
    """
    return keras.callbacks.LearningRateScheduler(
        lambda epoch: learning_rate * (1 + math.cos(math.pi * epoch / epochs)) / 2
    )


class _Batches(keras.utils.PyDataset):
    """The training data in an order that depends on the seed and the epoch alone.

    Keras shuffles arrays in the same way in every epoch once the seed is set. Here each epoch has
    its own order, and a training that is resumed has the orders of one that never stopped. So it is
    with the steps of series that are hidden.
    """

    def __init__(
        self,
        x: np.ndarray | dict[str, np.ndarray],
        batch_size: int,
        seed: int,
        epoch: int,
        hide: float = 0,
    ) -> None:
        super().__init__()
        self._x, self._batch_size, self._seed = x, batch_size, seed
        self._epoch, self._hide = epoch, hide
        self._order = np.arange(len(keras.tree.flatten(x)[0]))

    def __len__(self) -> int:
        return math.ceil(len(self._order) / self._batch_size)

    def __getitem__(self, index: int) -> tuple[np.ndarray | dict[str, np.ndarray]]:
        start = index * self._batch_size
        chosen = self._order[start : start + self._batch_size]
        batch = keras.tree.map_structure(lambda part: part[chosen], self._x)
        if self._hide:
            batch = series.hide(batch, self._hide, [self._seed, self._epoch, index])
        return (batch,)

    def on_epoch_begin(self) -> None:
        self._order = np.random.default_rng([self._seed, self._epoch]).permutation(len(self._order))
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
