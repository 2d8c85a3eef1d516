"""The page on Healing MNIST, filled in from results."""

import pathlib
from typing import Any

from experiments.healing.data import FRAMES
from experiments.healing.latents import IN_BETWEEN, LATENTS, METHODS, least_kl
from experiments.healing.results import SETTINGS, read
from experiments.method_tables import MethodTables
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
    "prior_correlation_10": Measure("prior correlation, 10%", 3),
    "prior_correlation": Measure("50%", 3),
    "prior_correlation_90": Measure("90%", 3),
    "seconds_per_epoch": Measure("s per epoch", 2),
    "seen": Measure("pixels seen", 2),
}
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
      ValueError: if a line repeats a run, or the template asks for something that does not exist.
    """
    paths = results.with_name("long_paths.jsonl")
    tables = Tables(read(results), read(paths) if paths.exists() else [])
    tables.write(template, page, "python -m experiments.healing page")


class Tables(MethodTables):
    """Methods for the template."""

    measures, methods, settings = MEASURES, tuple(METHODS), SETTINGS
    compared = ("nll", "nll_mixed", "mse", "auroc", "neg_elbo")

    def __init__(self, records: list[dict[str, Any]], paths: list[dict[str, Any]]) -> None:
        super().__init__(records)
        self._paths = paths
        self._frame["rectified"] = [METHODS[name].rectified for name in self._frame.method]
        self._frame["in_between"] = self._frame.method.isin(list(IN_BETWEEN))
        # Whether the decoder ignores the latents: other draws of them give the same images.
        gain = self._frame.nll - self._frame.nll_mixed
        self._frame["collapsed"] = gain.abs() < 1e-3 * self._frame.nll

    def collapsed(self, **settings: Any) -> str:
        """The runs whose decoder learned to ignore the latents, by method and seed."""
        chosen = self._choose(settings)
        found = self._by_method(chosen[chosen.collapsed])
        return ", ".join(
            f"`{method}` (seed {', '.join(map(str, sorted(runs.seed)))})" for method, runs in found
        )

    def least_kl(self, prior: str) -> str:
        """The least KL divergence of GP-VAE's posterior, over all latents, in nats per sequence."""
        return number_text(LATENTS * least_kl(prior, FRAMES), 1)

    def long_paths(self) -> str:
        """Time and memory of a gradient by the number of steps; empty without measurements."""
        lines = {(line["method"], line["steps"]): line for line in self._paths}
        methods = dict.fromkeys(method for method, _ in lines)
        rows = [
            {"steps": f"{steps:,}"}
            | {f"`{method}`": _cost(lines.get((method, steps))) for method in methods}
            for steps in sorted({steps for _, steps in lines})
        ]
        return markdown(rows) if rows else ""

    def path_ratio(self, of: str, to: str, field: str, steps: int) -> str:
        """The ratio of a `field`, time or memory, of the method `of` to that of the method `to`."""
        one, other = (
            next(x[field] for x in self._paths if (x["method"], x["steps"]) == (method, steps))
            for method in (of, to)
        )
        return number_text(one / other, 0)

    def path_device(self) -> str:
        """The devices on which long paths were measured."""
        return ", ".join(sorted({line["device"] for line in self._paths}))

    def published(self) -> str:
        """The published table of the paper."""
        return markdown(
            [
                {"method, as published": method, "NLL": nll, "MSE": mse, "AUROC": auroc}
                for method, (nll, mse, auroc) in _PUBLISHED.items()
            ]
        )


def _cost(line: dict[str, Any] | None) -> str:
    """The time, the memory that XLA allocates, and the peak of the process if it is known."""
    if line is None:
        return "–"
    time, peak = line["seconds"], line.get("peak_bytes")
    if time is None:
        text = "not run"
    elif time < 1:
        text = f"{number_text(1e3 * time, 2)} ms"
    else:
        text = f"{number_text(time, 1)} s"
    return f"{text}, {_size(line['bytes'])}" + ("" if peak is None else f" ({_size(peak)})")


def _size(size: float) -> str:
    if size < 1e9:
        return f"{number_text(size / 1e6, 1)} MB"
    return f"{number_text(size / 1e9, 1)} GB"
