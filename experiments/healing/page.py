"""The page of Healing MNIST, whose numbers come from the lines of results.

A template calls `table`, `differences`, `mean`, `difference`, `published`, `runs` and `versions`;
the same results give the same page, byte for byte.
"""

import pathlib
from typing import Any

import jinja2
import pandas as pd
import scipy.stats

from experiments import results as experiments_results
from experiments.healing.data import FRAMES
from experiments.healing.latents import LATENTS, METHODS, least_kl
from experiments.healing.results import key_of, read
from experiments.report import markdown, number_text
from experiments.results import Measure

MEASURES = {
    "nll": Measure("NLL", 4),
    "nll_mixed": Measure("NLL, mean of 20 draws", 4),
    "mse": Measure("MSE", 4),
    "auroc": Measure("AUROC", 4),
    "neg_elbo": Measure("−ELBO", 1),
    "kl": Measure("KL", 1),
    "posterior_correlation": Measure("posterior correlation", 3),
    "prior_correlation": Measure("prior correlation", 3),
    "seconds_per_epoch": Measure("s per epoch", 2),
}
_COMPARED = ("nll", "nll_mixed", "mse", "auroc", "neg_elbo")
# Table 1 of arXiv:1907.04155: mean ± standard error.
_PUBLISHED = {
    "mean imputation": ("–", "0.168 ± 0.000", "0.938 ± 0.000"),
    "forward imputation": ("–", "0.177 ± 0.000", "0.935 ± 0.000"),
    "VAE": ("0.599 ± 0.002", "0.232 ± 0.000", "0.922 ± 0.000"),
    "HI-VAE": ("0.372 ± 0.008", "0.134 ± 0.003", "0.962 ± 0.001"),
    "GP-VAE": ("0.350 ± 0.007", "0.114 ± 0.002", "0.960 ± 0.002"),
}


def write(results: pathlib.Path, template: pathlib.Path, page: pathlib.Path) -> None:
    """Fills in a template.

    Raises:
      ValueError: if a line repeats a run, or the template asks for what there is not.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(template.parent),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
    )
    paths = results.with_name("long_paths.jsonl")
    tables = Tables(read(results), read(paths) if paths.exists() else [])
    known = {name: getattr(tables, name) for name in dir(tables) if not name.startswith("_")}
    mark = f"<!-- Written by 'python -m experiments.healing page' from {template.name}. -->\n\n"
    page.write_text(mark + environment.get_template(template.name).render(known), encoding="utf-8")


class Tables:
    """What a template may call; `settings` choose the runs, as in `table(missing="random")`."""

    def __init__(self, records: list[dict[str, Any]], paths: list[dict[str, Any]]) -> None:
        keys = [key_of(record) for record in records]
        if repeated := {key for key in keys if keys.count(key) > 1}:
            raise ValueError(f"These runs are there twice: {sorted(repeated)}.")
        self._frame, self._paths = pd.DataFrame(records), paths
        # Whether other draws of the latents make the same images: the decoder does not use them.
        gain = self._frame.nll - self._frame.nll_mixed
        self._frame["collapsed"] = gain.abs() < 1e-3 * self._frame.nll

    def runs(self, **settings: Any) -> int:
        """The number of runs."""
        return len(self._choose(settings))

    def collapsed(self, **settings: Any) -> str:
        """The runs whose decoder came not to use the latents, by method and seed."""
        chosen = self._choose(settings)
        found = _by_method(chosen[chosen.collapsed])
        return ", ".join(
            f"`{method}` (seed {', '.join(map(str, sorted(runs.seed)))})" for method, runs in found
        )

    def versions(self, **settings: Any) -> str:
        """What the results were made with, and on."""
        chosen = self._choose(settings)
        packages = {" ".join(item) for versions in chosen.versions for item in versions.items()}
        code, devices = (", ".join(sorted(set(x))) for x in (chosen.code, chosen.device))
        return f"Device: {devices}. Code: {code}. Packages: {', '.join(sorted(packages))}."

    def table(self, **settings: Any) -> str:
        """Mean ± standard error of each method."""
        chosen = self._choose(settings)
        rows = [
            {"method": f"`{method}`", "runs": str(len(runs))}
            | {measure.label: _mean(runs, field) for field, measure in MEASURES.items()}
            for method, runs in _by_method(chosen)
        ]
        return markdown(rows)

    def differences(self, to: str, **settings: Any) -> str:
        """Differences of each method to another, paired by seed, and their intervals."""
        methods = [method for method, _ in _by_method(self._choose(settings)) if method != to]
        rows = [
            {"method": f"`{method}`"}
            | {
                MEASURES[field].label: self.difference(field, method, to, **settings)
                for field in _COMPARED
            }
            for method in methods
        ]
        return markdown(rows)

    def mean(self, field: str, method: str, **settings: Any) -> str:
        """Mean ± standard error of one method."""
        return _mean(self._choose(settings | {"method": method}), field)

    def difference(
        self, field: str, method: str, to: str, to_beta: float | None = None, **settings: Any
    ) -> str:
        """Mean difference of a method to another, paired by seed, and its 95% interval.

        `to_beta` is the weight of the KL divergence of the other, if not the same.
        """
        one = self._choose(settings | {"method": method})
        of_other = {"method": to} | ({} if to_beta is None else {"beta": to_beta})
        other = self._choose(settings | of_other)
        paired = one.merge(other, on="seed", suffixes=("", "_of_baseline"))
        paired = paired.dropna(subset=[field, f"{field}_of_baseline"])
        if paired.empty:
            return "–"
        numbers = experiments_results.difference(paired, field)
        mean, low, high = (number_text(x, MEASURES[field].digits, "+") for x in numbers)
        return mean if len(paired) < 2 else f"{mean} [{low}, {high}]"

    def has(self, **settings: Any) -> bool:
        """Whether there are such runs."""
        return bool((self._frame[list(settings)] == pd.Series(settings)).all(axis=1).any())

    def least_kl(self, prior: str) -> str:
        """What GP-VAE's posterior pays at least, over all latents, in nats per sequence."""
        return number_text(LATENTS * least_kl(prior, FRAMES), 1)

    def long_paths(self) -> str:
        """Milliseconds and megabytes of a gradient, by the number of steps; empty without lines."""
        rows: dict[int, dict[str, str]] = {}
        for line in sorted(self._paths, key=lambda line: line["steps"]):
            seconds = line["seconds"]
            time = "not run" if seconds is None else f"{number_text(1e3 * seconds, 2)} ms"
            row = rows.setdefault(line["steps"], {"steps": f"{line['steps']:,}"})
            row[f"`{line['method']}`"] = f"{time}, {number_text(line['bytes'] / 1e6, 1)} MB"
        return markdown(list(rows.values())) if rows else ""

    def published(self) -> str:
        """The table of the paper."""
        return markdown(
            [
                {"method, as published": method, "NLL": nll, "MSE": mse, "AUROC": auroc}
                for method, (nll, mse, auroc) in _PUBLISHED.items()
            ]
        )

    def _choose(self, settings: dict[str, Any]) -> pd.DataFrame:
        frame = self._frame
        for key, value in settings.items():
            frame = frame[frame[key] == value]
        if frame.empty:
            raise ValueError(f"There is no run with {settings}.")
        if frame.duplicated(["method", "seed"]).any():
            raise ValueError(f"Runs of several settings fit {settings}; add settings.")
        return frame


def _by_method(frame: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """The runs of each method that has some, in the order of `METHODS`."""
    found = {str(method): runs for method, runs in frame.groupby("method")}
    return [(method, found[method]) for method in METHODS if method in found]


def _mean(runs: pd.DataFrame, field: str) -> str:
    values = runs[field].dropna() if field in runs else pd.Series(dtype=float)
    if values.empty:
        return "–"
    digits = MEASURES[field].digits
    text = number_text(float(values.mean()), digits)
    return text if len(values) < 2 else f"{text} ± {scipy.stats.sem(values):.{digits}f}"
