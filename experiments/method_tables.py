"""Pages that compare methods seed by seed, with numbers from result files.

A template calls the methods of a `MethodTables`; the same results give the same page, byte for
byte.
"""

import pathlib
from collections.abc import Sequence
from typing import Any

import pandas as pd
import scipy.stats

from experiments import results
from experiments.report import filled, markdown, number_text
from experiments.results import Measure


class MethodTables:
    """Methods for templates; `settings` select the runs, as in `table(missing="random")`."""

    measures: dict[str, Measure]
    compared: Sequence[str]  # The measures in tables of differences.
    methods: Sequence[str]  # In the order of the tables.
    settings: Sequence[str]  # The settings that identify a run.

    def __init__(self, records: list[dict[str, Any]]) -> None:
        keys = [tuple(record[key] for key in self.settings) for record in records]
        if repeated := {key for key in keys if keys.count(key) > 1}:
            raise ValueError(f"These runs appear twice: {sorted(repeated)}; remove one of each.")
        self._frame = pd.DataFrame(records)

    def write(self, template: pathlib.Path, page: pathlib.Path, command: str) -> None:
        """Fills in a template; the page says which command wrote it.

        Raises:
          ValueError: if the template asks for something that does not exist.
        """
        mark = f"<!-- Written by '{command}' from {template.name}. -->\n\n"
        page.write_text(mark + filled(template, self), encoding="utf-8")

    def runs(self, **settings: Any) -> int:
        """The number of runs."""
        return len(self._with(settings))

    def versions(self, **settings: Any) -> str:
        """The device, the code and the packages that produced the results."""
        chosen = self._with(settings)
        packages = {" ".join(item) for versions in chosen.versions for item in versions.items()}
        code, devices = (", ".join(sorted(set(x))) for x in (chosen.code, chosen.device))
        return f"Device: {devices}. Code: {code}. Packages: {', '.join(sorted(packages))}."

    def table(self, **settings: Any) -> str:
        """Mean ± standard error for each method, of all measures that any run has.

        If only some runs of a method have a measure, their number is given.
        """
        chosen = self._choose(settings)
        fields = [f for f in self.measures if f in chosen and chosen[f].notna().any()]
        rows = [
            {"method": f"`{method}`", "runs": str(len(runs))}
            | {self.measures[field].label: self._mean(runs, field) for field in fields}
            for method, runs in self._by_method(chosen)
        ]
        return markdown(rows)

    def differences(self, to: str, **settings: Any) -> str:
        """Differences of each method to the method `to`, paired by seed, with intervals."""
        methods = [method for method, _ in self._by_method(self._choose(settings)) if method != to]
        rows = [
            {"method": f"`{method}`"}
            | {
                self.measures[field].label: self.difference(field, method, to, **settings)
                for field in self.compared
            }
            for method in methods
        ]
        return markdown(rows)

    def mean(self, field: str, method: str, **settings: Any) -> str:
        """Mean ± standard error of one method."""
        return self._mean(self._choose(settings | {"method": method}), field)

    def difference(
        self,
        field: str,
        method: str,
        to: str,
        to_settings: dict[str, Any] | None = None,
        **settings: Any,
    ) -> str:
        """Mean difference of a method to the method `to`, paired by seed, and its 95% interval.

        `to_settings` replace settings for the runs of `to`.
        """
        one = self._choose(settings | {"method": method})
        other = self._choose(settings | {"method": to} | (to_settings or {}))
        paired = one.merge(other, on="seed", suffixes=("", "_of_baseline"))
        paired = paired.dropna(subset=[field, f"{field}_of_baseline"])
        if paired.empty:
            return "–"
        numbers = results.difference(paired, field)
        mean, low, high = (number_text(x, self.measures[field].digits, "+") for x in numbers)
        return mean if len(paired) < 2 else f"{mean} [{low}, {high}]"

    def has(self, **settings: Any) -> bool:
        """Whether any run has these settings."""
        return bool((self._frame[list(settings)] == pd.Series(settings)).all(axis=1).any())

    def _with(self, settings: dict[str, Any]) -> pd.DataFrame:
        """The runs with these settings."""
        frame = self._frame
        for key, value in settings.items():
            frame = frame[frame[key] == value]
        if frame.empty:
            raise ValueError(f"There is no run with {settings}.")
        return frame

    def _choose(self, settings: dict[str, Any]) -> pd.DataFrame:
        """The runs with these settings; an error unless they differ only in method and seed."""
        frame = self._with(settings)
        if frame.duplicated(["method", "seed"]).any():
            raise ValueError(f"Runs of several settings fit {settings}; add settings.")
        return frame

    def _by_method(self, frame: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
        """The runs of each method that has any, in the order of `methods`."""
        found = {str(method): runs for method, runs in frame.groupby("method")}
        return [(method, found[method]) for method in self.methods if method in found]

    def _mean(self, runs: pd.DataFrame, field: str) -> str:
        values = runs[field].dropna() if field in runs else pd.Series(dtype=float)
        if values.empty:
            return "–"
        digits = self.measures[field].digits
        text = number_text(float(values.mean()), digits)
        if len(values) > 1:
            text += f" ± {scipy.stats.sem(values):.{digits}f}"
        return text if len(values) == len(runs) else f"{text} (of {len(values)})"
