"""The pictures of a run, of images or of series."""

import pathlib
from typing import Any

import numpy as np

from tfp_ar1_cli.data.images import ImageData
from tfp_ar1_cli.data.protocol import Data
from tfp_ar1_cli.data.series import SeriesData, Units
from tfp_ar1_cli.pictures import images, series
from tfp_ar1_cli.runs import Run


def draw_run(run: Run, model: Any, data: Data) -> list[pathlib.Path]:
    """Draws every picture of a trained run into its folder.

    Returns:
      The files, in the order in which a person would look at them.
    """
    if isinstance(data, SeriesData):
        return series.draw_run(run, model, data)
    assert isinstance(data, ImageData)
    return images.draw_run(run, model, data)


def draw_samples(run: Run, path: pathlib.Path, new: np.ndarray) -> None:
    """Draws new images, or new windows, of the model of a run."""
    if run.of_sequences:
        series.samples(path, Units(**run.config["data"]["units"]), new)
    else:
        images.samples(path, new, run.value_range)
