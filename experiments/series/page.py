"""The page on causes, filled in from results.

A template calls `table`, `mean`, `each`, `difference`, `seeds`, `commands` and `versions`; the same
results give the same page, byte for byte.
"""

import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd
import scipy.stats

from experiments import results as experiments_results
from experiments.report import filled, markdown, number_text
from experiments.series.results import key_of, read


def write(results: pathlib.Path, template: pathlib.Path, page: pathlib.Path) -> None:
    """Fills in a template.

    Raises:
      ValueError: if a line repeats a run, or the template asks for something that does not exist.
    """
    mark = f"<!-- Written by 'python -m experiments.series page' from {template.name}. -->\n\n"
    page.write_text(mark + filled(template, Numbers(read(results))), encoding="utf-8")


class Numbers:
    """Methods for templates.

    Fields are named as in the results, with `a.0` for a member of a. Variants are too; `base@40`
    selects the runs with 40 epochs if there are others.
    """

    def __init__(self, records: list[dict[str, Any]]) -> None:
        keys = [key_of(record) for record in records]
        if repeated := {key for key in keys if keys.count(key) > 1}:
            raise ValueError(f"These runs appear twice: {sorted(repeated)}; remove one of each.")
        self._records = records
        self._frame = pd.DataFrame([dict(_flat(record)) for record in records])

    def seeds(self, variant: str, dataset: str) -> int:
        """The number of runs of a variant."""
        return len(self._choose(variant, dataset))

    def mean(self, field: str, variant: str, dataset: str, digits: int = 3) -> str:
        """Mean ± standard error over the seeds; a single number for a variant without seeds."""
        values = self._choose(variant, dataset)[field].to_numpy()
        if pd.isna(values).all():
            return "–"
        text = number_text(float(values.mean()), digits)
        return text if len(values) < 2 else f"{text} ± {scipy.stats.sem(values):.{digits}f}"

    def each(self, field: str, variant: str, dataset: str, digits: int = 3) -> str:
        """The number of each seed, in order of the seeds."""
        values = self._choose(variant, dataset).sort_values("seed")[field]
        return ", ".join(number_text(float(value), digits) for value in values)

    def difference(self, field: str, variant: str, to: str, dataset: str, digits: int = 3) -> str:
        """Mean difference of two variants, paired by seed, and its 95% interval.

        If `to` has no seeds, each seed is compared with its single number.
        """
        one, other = self._choose(variant, dataset), self._choose(to, dataset)
        keys: Any = {"how": "cross"} if other.epochs.eq(0).all() else {"on": "seed"}
        paired = one.merge(other, suffixes=("", "_of_baseline"), **keys)
        numbers = experiments_results.difference(paired, field)
        mean, low, high = (number_text(x, digits, "+") for x in numbers)
        return mean if len(paired) < 2 else f"{mean} [{low}, {high}]"

    def table(
        self, dataset: str, variants: Sequence[str], fields: dict[str, str], digits: int = 3
    ) -> str:
        """A row for each variant, a column for each field under its heading."""
        rows = [
            {"": f"`{variant}`", "runs": str(self.seeds(variant, dataset))}
            | {
                heading: self.mean(field, variant, dataset, digits)
                for heading, field in fields.items()
            }
            for variant in variants
        ]
        return markdown(rows)

    def commands(self) -> str:
        """The commands that produced the results."""
        return "\n".join(dict.fromkeys(record["command"] for record in self._records))

    def versions(self) -> str:
        """The code and the packages that produced the results."""
        versions = [record["versions"].items() for record in self._records]
        packages = sorted({" ".join(item) for items in versions for item in items})
        code = sorted({record["code"] for record in self._records})
        return f"Code: {', '.join(code)}. Packages: {', '.join(packages)}."

    def _choose(self, variant: str, dataset: str) -> pd.DataFrame:
        frame, (name, _, epochs) = self._frame, variant.partition("@")
        chosen = frame[(frame.variant == name) & (frame.dataset == dataset)]
        if epochs:
            chosen = chosen[chosen.epochs == int(epochs)]
        if chosen.empty:
            raise ValueError(f"There is no run of {variant} on {dataset}.")
        if chosen.epochs.nunique() > 1:
            raise ValueError(
                f"The runs of {variant} on {dataset} have different numbers of epochs."
            )
        return chosen


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yields the numbers and texts of a record with their names."""
    parts: Any = value.items() if isinstance(value, dict) else enumerate(value)
    for key, part in parts:
        path = f"{name}.{key}" if name else str(key)
        if isinstance(part, dict | list):
            yield from _flat(part, path)
        else:
            yield path, part
