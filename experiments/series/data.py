"""The series: two data sets of the command line, and weekly CO2, which has real gaps."""

import pathlib
import tempfile
from typing import NamedTuple

import numpy as np

from tfp_ar1_cli.data import series

DATASETS = ("pig_cvp", "basic_motions", "co2")


class Series(NamedTuple):
    """Windows `[N, steps, features]` as the model takes them, NaN where unobserved."""

    train: np.ndarray
    test: np.ndarray


def load(name: str) -> Series:
    """The windows of one of `DATASETS`."""
    if name != "co2":
        data = series.load(name)
        # To save time, only a quarter of the test windows of pig_cvp.
        return Series(data.x_train, data.x_test[:: 4 if name == "pig_cvp" else 1])
    import statsmodels.api as sm

    # As in docs/your_data.md: weekly, 1958 to 2001, 59 weeks missing, trend removed.
    co2 = sm.datasets.co2.load_pandas().data
    week, known = np.arange(len(co2)), co2["co2"].notna()
    trend = np.polynomial.Polynomial.fit(week[known], co2["co2"][known], deg=2)
    co2["co2"] -= trend(week)
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder) / "co2.csv"
        co2.to_csv(file)
        data = series.load(f"csv:{file}")
    return Series(data.x_train, data.x_test)
