"""The page on paths along lines, filled in from results."""

import pathlib

from experiments.healing.results import read
from experiments.method_tables import MethodTables
from experiments.results import Measure
from experiments.scan_lines import results as scan_lines

MEASURES = {
    "neg_elbo": Measure("−ELBO", 2),
    "nll_iw": Measure("NLL", 2),
    "kl": Measure("KL", 2),
    "posterior_correlation": Measure("posterior correlation", 3),
    "prior_correlation": Measure("prior correlation", 3),
}


class Tables(MethodTables):
    """Methods for the template."""

    compared = ("neg_elbo", "nll_iw", "kl")
    measures, methods, settings = MEASURES, scan_lines.METHODS, scan_lines.SETTINGS

    def runs_with_a_path_apart(self, method: str, **settings: str) -> int:
        """The number of runs of a method whose prior has a nearly uncorrelated path."""
        chosen = self._choose(settings | {"method": method})
        return sum(min(map(abs, paths)) < 0.1 for paths in chosen.prior_correlations)


def write(results: pathlib.Path, template: pathlib.Path, page: pathlib.Path) -> None:
    """Fills in a template.

    Raises:
      ValueError: if a line repeats a run, or the template asks for something that does not exist.
    """
    Tables(read(results)).write(template, page, "python -m experiments.scan_lines page")
