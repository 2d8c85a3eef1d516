"""The training of a run: model, callbacks, checkpoints. Imports Keras, so import it late."""

import math

import click
import keras
import tensorflow as tf

from tfp_ar1 import RhoVAE
from tfp_ar1.cli.datasets import Dataset
from tfp_ar1.cli.progress import Progress
from tfp_ar1.cli.runs import Run, atomic
from tfp_ar1.vae import architectures, objectives


def build(options: dict, image_shape: tuple[int, ...]) -> keras.Model:
    """The model that the options of `train` describe, built and compiled."""
    encoder, decoder = architectures.mlp(
        image_shape, options["latent_dim"], tuple(options["hidden_units"])
    )
    model = RhoVAE(
        encoder,
        decoder,
        options["latent_dim"],
        posterior=options["posterior"],
        likelihood=options["likelihood"],
        objective=objectives.ELBO(beta=options["beta"]),
        seed=options["seed"],
    )
    model.build((None, *image_shape))
    model.compile(optimizer=keras.optimizers.Adam(options["learning_rate"]))
    return model


def train(run: Run, data: Dataset) -> keras.Model:
    """Trains the model of a run from where it stands, and leaves `history.json` and the logs.

    Args:
      run: A run, new or unfinished.
      data: Its images.

    Returns:
      The trained model.

    Raises:
      click.ClickException: If the loss is no longer finite, or the memory is not enough.
    """
    try:
        return _train(run, data)
    except (MemoryError, tf.errors.ResourceExhaustedError) as error:
        raise click.ClickException(
            "not enough memory; start a new run with a smaller --batch-size, --latent-dim or "
            f"--hidden-units. {run.folder} stays unfinished."
        ) from error


def _train(run: Run, data: Dataset) -> keras.Model:
    options = run.options
    keras.utils.set_random_seed(options["seed"])
    model = build(options, data.image_shape)
    checkpoint = Checkpoint(run)
    done = checkpoint.restore(model)
    epochs = options["epochs"]
    if done < epochs:
        steps = math.ceil(len(data.x_train) / options["batch_size"])
        with Progress("training", total=epochs * steps, done=done * steps) as progress:
            model.fit(
                data.x_train,
                epochs=epochs,
                initial_epoch=done,
                batch_size=options["batch_size"],
                validation_data=(data.x_test,),
                verbose=0,
                callbacks=[
                    _Report(run, progress, steps),
                    keras.callbacks.TensorBoard(run.logs, write_graph=False),
                    checkpoint,
                ],
            )
    return model


class Checkpoint(keras.callbacks.Callback):
    """Keeps weights, optimizer and history of the last whole epoch in the run's folder.

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

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Writes history and checkpoint."""
        for name, value in (logs or {}).items():
            self.history.setdefault(name, []).append(float(value))
        self.run.write_history(self.history)
        old = self.run.checkpoint_files()
        self.run.checkpoints.mkdir(exist_ok=True)
        with atomic(self.run.checkpoints / f"{epoch + 1}.weights.h5") as path:
            self.model.save_weights(path)
        for file in old.values():
            file.unlink()


class _Report(keras.callbacks.Callback):
    """Shows the progress, and stops the training when the loss is no longer finite."""

    def __init__(self, run: Run, progress: Progress, steps: int) -> None:
        super().__init__()
        self._run, self._progress, self._steps = run, progress, steps
        self._epochs = run.options["epochs"]
        self._epoch, self._test = 0, ""

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        self._epoch = epoch

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        loss = self._finite(logs["loss"])
        self._progress.update(
            self._epoch * self._steps + batch + 1,
            f"epoch {self._epoch + 1}/{self._epochs}  loss {loss:.2f}{self._test}",
        )

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        self._test = f"  test {self._finite(logs['val_loss']):.2f}"

    def _finite(self, loss: float) -> float:
        if not math.isfinite(loss):
            raise click.ClickException(
                f"the loss became {loss} in epoch {self._epoch + 1}; start a new run with a lower "
                f"--learning-rate than {self._run.options['learning_rate']:g}. {self._run.folder} "
                "stays unfinished."
            )
        return loss
