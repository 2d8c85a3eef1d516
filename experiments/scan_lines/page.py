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
    "seconds_per_epoch": Measure("s per epoch", 1),
}


class Tables(MethodTables):
    """What the template may call."""

    compared = ("neg_elbo", "nll_iw", "kl")
    measures, methods, settings = MEASURES, scan_lines.METHODS, scan_lines.SETTINGS


def write(results: pathlib.Path, template: pathlib.Path, page: pathlib.Path) -> None:
    """Fills in a template.

    Raises:
      ValueError: if a line repeats a run, or the template asks for what there is not.
    """
    Tables(read(results)).write(template, page, "python -m experiments.scan_lines page")
