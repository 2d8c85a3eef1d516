"""Checkpoints of unfinished runs: written during training, read to resume."""

import math
import pathlib
import time
import zipfile
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from tfp_ar1_cli import continuing, run_folder
from tfp_ar1_cli.atomic import atomic, write_json
from tfp_ar1_cli.errors import UserError
from tfp_ar1_cli.run_folder import Position, Run

_SECONDS = "seconds"
# Epochs that take less time share a checkpoint: writing it can take longer than they do.
SECONDS_BETWEEN = 1.0


class Checkpoint(keras.callbacks.Callback):
    """Saves the state of the training in the run's folder, after epochs and every few steps.

    It is saved after every epoch, unless the last time was less than `SECONDS_BETWEEN` ago.

    The state consists of all variables of the model and the optimizer: weights, moments, step
    counter, states of the random number generators, and the running means of the metrics. As the
    order of the data depends only on the seed and the epoch, resumed training gives the same
    results as uninterrupted training.

    `keras.callbacks.BackupAndRestore` writes weights and epoch separately and in place: killed in
    between, it repeats an epoch or leaves an unreadable backup. Here the position is in the name of
    a single file, which is written atomically, after the history. The history also has the seconds
    of each epoch, without validation.

    Only the first worker writes, but all workers must read their variables: where a metric's
    variables are partial sums, reading them involves all workers.

    Args:
      run: The run.
      model: Its model, built and compiled.
      steps_per_epoch: The number of steps in an epoch.
      every: Save after every `every` steps of an epoch; 0 saves only at its end.
      skipped: Returns the images left out so far, for `Run.add_skipped`.
    """

    def __init__(
        self,
        run: Run,
        model: keras.Model,
        steps_per_epoch: int,
        every: int = 0,
        skipped: Callable[[], dict[str, str]] = dict,
    ) -> None:
        super().__init__()
        self._run, self._model = run, model
        self._steps_per_epoch, self._every = steps_per_epoch, every
        self._skipped = skipped
        self._begin = Position(0, 0)
        self._state: dict[str, np.ndarray] = {}
        self._history = run.history()
        self._earlier_seconds = 0.0
        self._written = -math.inf

    def restore(self) -> Position:
        """Restores the latest checkpoint, or the run's initial state; returns the position."""
        files = self._run.checkpoint_files()
        position = max(files, default=Position(0, 0))
        if files:
            try:
                with np.load(files[position]) as file:
                    state = dict(file)
            except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
                then = "resume from an earlier state" if len(files) > 1 else "begin anew"
                raise UserError(
                    f"{files[position]}: cannot be read ({error}); delete it to {then}."
                ) from error
            self._earlier_seconds = float(state.pop(_SECONDS))
            load_state(self._model, state)
            self._state = state
        else:
            loaded, self._history = continuing.begin(self._run)
            position = Position(len(self._history.get("loss", [])), 0)
            if position.epoch:
                state = state_of(loaded)
                load_state(self._model, state)
                self._model.optimizer.learning_rate = self._run.options.learning_rate
                if self._run.options.patience is not None:
                    self._save(self._run.best_file, state)
            elif loaded is not None:
                self._model.set_weights(loaded.get_weights())
        # If the run was killed between history and checkpoint, the history is one epoch ahead.
        self._history = {name: values[: position.epoch] for name, values in self._history.items()}
        self._begin = position
        return position

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        """Starts the clock; restores the metrics of a resumed epoch, which Keras has just reset."""
        self._epoch, self._first = epoch, 0
        if self._begin.step and self._begin.epoch == epoch:
            self._first = self._begin.step
            for name, variable in _metric_variables(self.model).items():
                variable.assign(self._state[name])
        else:
            self._earlier_seconds = 0.0
        self._start = time.perf_counter()
        self._seconds = 0.0

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        """Saves the state every few steps."""
        step = self._first + batch + 1
        if self._every and step % self._every == 0 and step < self._steps_per_epoch:
            self._write(Position(self._epoch, step))

    def on_test_begin(self, logs: dict | None = None) -> None:
        """Stops the clock: the validation of an epoch comes after its training."""
        self._seconds = self._elapsed()

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Writes history and checkpoint, unless it has just done so."""
        for name, value in {**(logs or {}), "seconds": self._seconds}.items():
            self._history.setdefault(name, []).append(float(value))
        if self._run.options.patience is not None:
            losses = self._history["val_loss"]
            if run_folder.best_epoch(losses) == len(losses):
                # Before the checkpoint: if killed in between, the epoch is repeated identically.
                self._save(self._run.best_file, state_of(self.model))
        if run_folder.has_waited(self._history["val_loss"], self._run.options.patience):
            self.model.stop_training = True
        ended = self.model.stop_training or epoch + 1 == self.params["epochs"]
        # Workers read variables together, so their clocks must not decide.
        together = self._run.options.strategy != "none"
        if ended or together or time.perf_counter() - self._written >= SECONDS_BETWEEN:
            self._write(Position(epoch + 1, 0))

    def _elapsed(self) -> float:
        return self._earlier_seconds + time.perf_counter() - self._start

    def _write(self, position: Position) -> None:
        state: dict[str, Any] = {_SECONDS: self._elapsed(), **state_of(self.model)}
        self._run.add_skipped(self._skipped())
        if self._run.worker == 0:
            write_json(self._run.history_file, self._history)
        old = {} if self._run.worker else self._run.checkpoint_files()
        self._save(self._run.checkpoints / f"{position.epoch}-{position.step}.npz", state)
        for path in old.values():
            path.unlink()
        self._written = time.perf_counter()

    def _save(self, place: pathlib.Path, state: dict[str, Any]) -> None:
        """Writes a state; only the first worker does."""
        if self._run.worker:
            return
        place.parent.mkdir(exist_ok=True)
        with atomic(place) as path, path.open("wb") as file:
            np.savez(file, **state)


def state_of(model: keras.Model) -> dict[str, np.ndarray]:
    """The values of all variables of a model, its metrics and its optimizer."""
    return {
        name: keras.ops.convert_to_numpy(variable) for name, variable in _variables(model).items()
    }


def load_state(model: keras.Model, state: dict[str, np.ndarray]) -> None:
    """Sets all variables of a model, its metrics and its optimizer.

    Raises `UserError` if the state is that of another model.
    """
    variables = _variables(model)
    shapes = {name: tuple(variable.shape) for name, variable in variables.items()}
    if shapes != {name: array.shape for name, array in state.items()}:
        raise UserError(
            "the checkpoint does not match the model that this version builds; finish the run with "
            "the version that began it, or choose another --out."
        )
    for name, variable in variables.items():
        variable.assign(state[name])


def load_best(run: Run) -> dict[str, np.ndarray]:
    """The state after the best epoch of a run with early stopping."""
    with np.load(run.best_file) as file:
        return dict(file)


def _variables(model: keras.Model) -> dict[str, Any]:
    """The variables, under names that are the same in every process."""
    of_metrics = _metric_variables(model)
    known = {id(variable) for variable in of_metrics.values()}
    rest = {id(v): v for v in (*model.variables, *model.optimizer.variables) if id(v) not in known}
    return of_metrics | {f"variable-{i}": v for i, v in enumerate(rest.values())}


def _metric_variables(model: keras.Model) -> dict[str, Any]:
    variables = (variable for metric in model.metrics for variable in metric.variables)
    return {f"metric-{i}": variable for i, variable in enumerate(variables)}
