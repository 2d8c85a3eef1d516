"""The page of paths along lines, whose numbers come from the lines of results."""

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
    """What the template may call."""

    compared = ("neg_elbo", "nll_iw", "kl")
    measures, methods, settings = MEASURES, scan_lines.METHODS, scan_lines.SETTINGS

    def runs_with_a_path_apart(self, method: str, **settings: str) -> int:
        """The runs of a method whose prior has a path without correlation to speak of."""
        chosen = self._choose(settings | {"method": method})
        return sum(min(map(abs, paths)) < 0.1 for paths in chosen.prior_correlations)


def write(results: pathlib.Path, template: pathlib.Path, page: pathlib.Path) -> None:
    """Fills in a template.

    Raises:
      ValueError: if a line repeats a run, or the template asks for what there is not.
    """
    Tables(read(results)).write(template, page, "python -m experiments.scan_lines page")
