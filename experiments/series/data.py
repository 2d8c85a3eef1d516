"""The series: two that the command line has, and weekly CO2, with gaps of its own."""

import pathlib
import tempfile
from typing import NamedTuple

import numpy as np

from tfp_ar1_cli.data import series

DATASETS = ("pig_cvp", "basic_motions", "co2")


class Series(NamedTuple):
    """Windows `[N, steps, features]` as the model takes them, NaN where nothing was observed."""

    train: np.ndarray
    test: np.ndarray


def load(name: str) -> Series:
    """The windows of one of `DATASETS`."""
    if name != "co2":
        data = series.load(name)
        # A quarter of the windows to test on, to save time; every one of the others.
        return Series(data.x_train, data.x_test[:: 4 if name == "pig_cvp" else 1])
    import statsmodels.api as sm

    # As in docs/your_data.md: weekly, 1958 to 2001, 59 weeks of them missing, without the trend.
    co2 = sm.datasets.co2.load_pandas().data
    week, known = np.arange(len(co2)), co2["co2"].notna()
    trend = np.polynomial.Polynomial.fit(week[known], co2["co2"][known], deg=2)
    co2["co2"] -= trend(week)
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder) / "co2.csv"
        co2.to_csv(file)
        data = series.load(f"csv:{file}")
    return Series(data.x_train, data.x_test)
