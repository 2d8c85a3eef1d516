"""Trained models in the units of their data: the Python interface to the commands.

```python
from tfp_ar1_cli import trained

model = trained.load("runs/nile-ar1-001")
model.impute("nile.csv")  # the table in the file, with its gaps filled
model.forecast(frame, steps=12)  # for a DataFrame: a row for each of the next 12 steps
```
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tfp_ar1_cli import answers, backend, run_folder
from tfp_ar1_cli.answer_options import NUM_DRAWS, QUANTILES
from tfp_ar1_cli.data import loading, series_files, table_forms
from tfp_ar1_cli.data.images import ImageData
from tfp_ar1_cli.data.series import Units
from tfp_ar1_cli.data.series_table import SeriesTable
from tfp_ar1_cli.errors import UserError
from tfp_ar1_cli.evaluate import load_model
from tfp_ar1_cli.run_folder import Run

if TYPE_CHECKING:
    import pandas as pd


class TrainedSeries:
    """A model of series, with the units of its data.

    Its methods take a file (see `--dataset`), a `pandas.DataFrame` with the layout of such a file,
    an array `[series, steps, features]` or `[series, steps]`, or a dictionary of arrays as in an
    .npz file. Missing values are NaN, or missing rows. The methods return a `DataFrame` in the same
    layout; for arrays, a dictionary of arrays.

    Attributes:
      model: The `tfp_ar1.SequenceVAE`, which takes standardised values.
      units: Names, means and scales of the features.
    """

    def __init__(self, run: Run, model: Any) -> None:
        self.run, self.model = run, model
        self.units = Units(**run.data["units"])

    def table(self, data: Any) -> SeriesTable:
        """Reads data into a table that fits the model.

        Raises:
          UserError: If the data cannot be read, or do not match the training data.
        """
        return data if isinstance(data, SeriesTable) else read_table(self.run, data)

    def answer(self, method: Callable[..., answers.Answer], data: Any, *args: Any) -> Any:
        """The result of a function of `answers` for the data."""
        return method(self.model, self.units, self.table(data), *args)

    def _like(self, data: Any, answer: answers.Answer) -> Any:
        return answer.arrays if _is_arrays(data) else answer.frame()

    def impute(
        self,
        data: Any,
        quantiles: Sequence[float] = QUANTILES,
        num_samples: int = NUM_DRAWS,
        seed: int = 0,
    ) -> pd.DataFrame | dict[str, np.ndarray]:
        """Fills gaps in series.

        Series longer than the model's windows are filled in windows that overlap by half.

        Args:
          data: See the class.
          quantiles: Levels between 0 and 1.
          num_samples: The number of draws for means, standard deviations and quantiles.
          seed: The seed of the draws.

        Returns:
          In each column of values, the observed values, and means in place of the missing ones.
          Beside it, `NAME_sd` is the standard deviation, including observation noise, and
          `NAME_q0.05` and so on are the quantiles; for an observed value, the standard deviation is
          0 and the quantiles are the value. Arrays are called `x`, `sd`, `quantiles`
          `[levels, ...]`.

        Raises:
          UserError: If the data do not match the training data.
        """
        answer = self.answer(answers.impute, data, quantiles, num_samples, seed)
        return self._like(data, answer)

    def forecast(
        self,
        data: Any,
        steps: int,
        quantiles: Sequence[float] = QUANTILES,
        num_samples: int = NUM_DRAWS,
        seed: int = 0,
    ) -> pd.DataFrame | dict[str, np.ndarray]:
        """Forecasts the steps that follow each series.

        Args:
          data: See the class.
          steps: The number of steps.
          quantiles: See `impute`.
          num_samples: See `impute`.
          seed: The seed of the draws.

        Returns:
          A table of only the following steps, with their times; its columns are those of `impute`.

        Raises:
          UserError: If the data do not match the training data.
        """
        answer = self.answer(answers.forecast, data, steps, quantiles, num_samples, seed)
        return self._like(data, answer)

    def reconstruct(
        self,
        data: Any,
        quantiles: Sequence[float] = QUANTILES,
        num_samples: int = NUM_DRAWS,
        seed: int = 0,
    ) -> pd.DataFrame | dict[str, np.ndarray]:
        """Predicts new observations of the latent paths, in columns beside the data (`impute`)."""
        answer = self.answer(answers.reconstruct, data, quantiles, num_samples, seed)
        return self._like(data, answer)

    def encode(self, data: Any) -> pd.DataFrame | dict[str, np.ndarray]:
        """Posterior of each latent path at each step: means `z1`, ..., deviations `z1_sd`, ..."""
        return self._like(data, self.answer(answers.encode, data))

    def score(
        self, data: Any, num_importance_samples: int | None = None, per_step: bool = False
    ) -> pd.DataFrame | dict[str, np.ndarray]:
        """Scores how unexpected each window or step is, in nats; see `answers.score`."""
        number = num_importance_samples or self.run.options.num_importance_samples
        return self._like(data, self.answer(answers.score, data, number, per_step))


def read_table(run: Run, data: Any) -> SeriesTable:
    """Reads data into a table that fits the model of a run on series; see `TrainedSeries`.

    Raises:
      UserError: If the data cannot be read, or do not match the training data.
    """
    columns, source = run.options.columns, "the data"
    if isinstance(data, str | os.PathLike):
        kind, _, source = loading.resolve(os.fspath(data), "sequence").partition(":")
        if not source:
            raise UserError(f"{kind} is the name of a data set; give a file.")
        table, test = series_files.read(pathlib.Path(source), kind, columns)
        if test is not None:
            table.notes.append(f"The {len(test.x)} test series of {source} are not used.")
    elif _is_arrays(data):
        arrays = data if isinstance(data, Mapping) else {"x": data}
        found = {key: np.asarray(value) for key, value in arrays.items()}
        table = series_files.from_arrays(found, "", source)
    else:
        table = table_forms.of_frame(source, data, columns)
    units = run.data["units"]
    table = series_files.chosen(table, units["names"], units["step"], source)
    series_files.check_values(table, source, run.options.likelihood, empty=True)
    return table


def _is_arrays(data: Any) -> bool:
    return isinstance(data, Mapping) or hasattr(data, "__array_interface__")


class TrainedImages:
    """A model of images.

    Its methods take a value of `--dataset` or an array `[N, *image_shape]`, and return a
    `pandas.DataFrame` with a row for each image, or an array.

    Attributes:
      model: The `tfp_ar1.RhoVAE`.
    """

    def __init__(self, run: Run, model: Any) -> None:
        self.run, self.model = run, model

    def images(self, data: Any) -> tuple[np.ndarray, list[Any]]:
        """Images as the model takes them, and their names; the training set, if any, is first."""
        if not isinstance(data, str | os.PathLike):
            return np.asarray(data), list(range(len(data)))
        dataset = loading.resolve(os.fspath(data), "image")
        wanted = dataclasses.replace(self.run.options.data, dataset=dataset)
        found = loading.load(wanted, {}, whole=True)
        if found.data_shape != self.run.data_shape:
            raise UserError(
                f"the images of {dataset} have shape {found.data_shape}, but {self.run.folder} was "
                f"trained on {self.run.data_shape}; give images of that shape."
            )
        train = np.asarray(found.x_train[:])
        names: list[Any] = list(range(len(train) + len(found.x_test)))
        if isinstance(found, ImageData) and found.names and not len(train):
            names = found.names
        return np.concatenate([train, found.x_test]), names

    def encode(self, data: Any) -> pd.DataFrame:
        """Posterior of each image: means `z1`, ..., and standard deviations `z1_sd`, ..."""
        import pandas as pd

        x, names = self.images(data)
        mean, stddev = answers.posterior_of(self.model, x)
        columns = {f"z{i + 1}": mean[:, i] for i in range(mean.shape[1])}
        columns |= {f"z{i + 1}_sd": stddev[:, i] for i in range(mean.shape[1])}
        return pd.DataFrame({"image": names, **columns})

    def score(self, data: Any, num_importance_samples: int | None = None) -> pd.DataFrame:
        """Scores how unexpected each image is, in nats; see `answers.score`."""
        import pandas as pd

        x, names = self.images(data)
        number = num_importance_samples or self.run.options.num_importance_samples
        scores = answers.scores_of(self.model, x, number)
        return pd.DataFrame({"image": names, **scores})

    def reconstruct(self, data: Any) -> np.ndarray:
        """The mean of p(x | z) for each image, where z is the posterior mean."""
        batching = backend.library("vae.batching")

        parts = batching.batches(self.images(data)[0], 128)
        return np.concatenate([np.asarray(self.model.reconstruct(part)) for part in parts])


def load(folder: str | os.PathLike[str]) -> TrainedSeries | TrainedImages:
    """Loads the model of a finished run.

    Raises:
      UserError: If there is no finished run, or it is damaged.
    """
    run = run_folder.read_finished(pathlib.Path(folder))
    kind = TrainedSeries if run.options.model == "sequence" else TrainedImages
    return kind(run, load_model(run))
