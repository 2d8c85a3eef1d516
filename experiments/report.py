"""Tables of results, and pages whose numbers come from them.

A page is a jinja2 template that calls the methods of `Page`; the same results give the same files,
byte for byte.
"""

import math
import pathlib
import traceback
from collections.abc import Callable, Iterable
from typing import Any

import jinja2
import pandas as pd
import scipy.stats

from experiments import pictures, results
from experiments.results import BOUNDS, MEASURES, PREDICTIONS, groups, pairs
from tfp_ar1_cli.errors import UserError
from tfp_ar1_cli.progress import counted

TEMPLATE_SUFFIX = ".template.md"
_MARK = "<!-- Written by 'python -m experiments report'"
# The fields of each table; fields that the results lack are left out.
TABLES = {
    "results": ("num_covariance_parameters", *BOUNDS, "prior_correlation"),
    "measures": (
        *("active_units", "mmd", "rho_mean", "rho_std", "scale_mean", "scale_std"),
        "seconds_per_epoch",
    ),
    "differences": (*BOUNDS, *(field for field in PREDICTIONS if "rmse" in field)),
    "imputation": tuple(field for field in PREDICTIONS if field.startswith("imputation")),
    "forecasts": tuple(field for field in PREDICTIONS if field.startswith("forecast")),
    "baselines": tuple(PREDICTIONS),
}


def number_text(value: float, digits: int, sign: str = "") -> str:
    """Formats a number for a page, with a minus sign instead of a hyphen."""
    # Adding 0 turns -0 into 0.
    return f"{round(value, digits) + 0.0:{sign}.{digits}f}".replace("-", "−")


def _mean_text(runs: pd.DataFrame, field: str) -> str:
    values, digits = runs[field].to_numpy(), MEASURES[field].digits
    if values.dtype.kind == "i" and len(set(values)) == 1:
        return str(values[0])
    text = number_text(float(values.mean()), digits)
    return text if len(values) < 2 else f"{text} ± {scipy.stats.sem(values):.{digits}f}"


def _difference_text(paired: pd.DataFrame, field: str) -> str:
    numbers = results.difference(paired, field)
    mean, low, high = (number_text(x, MEASURES[field].digits, "+") for x in numbers)
    return mean if len(paired) < 2 else f"{mean} [{low}, {high}]"


def markdown(rows: list[dict[str, str]]) -> str:
    """Formats rows that have the same columns as a Markdown table."""
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(list(row.values()) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


class Page:
    """Methods for templates, called in `{{ ... }}`.

    `settings` select the runs, as in `mean("kl", dataset="mnist", posterior="ar1")`. Anything that
    cannot be filled in raises a `ValueError`.
    """

    def __init__(self, frame: pd.DataFrame) -> None:
        self._frame = frame

    def runs(self, **settings: Any) -> int:
        """The number of runs."""
        return len(self._choose(settings))

    def versions(self, **settings: Any) -> str:
        """The code and the packages that produced the results."""
        chosen = self._choose(settings)
        packages = {" ".join(item) for versions in chosen.versions for item in versions.items()}
        code = ", ".join(sorted(set(chosen.code)))
        return f"Code: {code}. Packages: {', '.join(sorted(packages))}."

    def table(self, name: str, **settings: Any) -> str:
        """One of `TABLES`, in Markdown."""
        fields = [field for field in TABLES[_known(name, TABLES)] if field in self._frame]
        if name == "differences":
            return _table(self._choose_pairs(settings), "pairs", fields, _difference_text)
        if name != "baselines":
            return _table(self._choose(settings), "runs", fields, _mean_text)
        rows = []
        for dataset in sorted(set(self._choose(settings).dataset)):
            for baseline in results.BASELINES:
                row = {"dataset": dataset, "baseline": baseline.replace("_", " ")}
                for field in fields:
                    row[MEASURES[field].label] = self.baseline(baseline, field, dataset=dataset)
                rows.append(row)
        return markdown(rows)

    def mean(self, field: str, **settings: Any) -> str:
        """Mean ± standard error of one variant in one setting."""
        return _mean_text(_only(self._choose(settings)), _known(field, MEASURES))

    def difference(self, field: str, to: str | None = None, **settings: Any) -> str:
        """Paired difference of a variant to the variant `to` or the baseline, and its interval."""
        return _difference_text(_only(self._choose_pairs(settings, to)), _known(field, MEASURES))

    def baseline(self, name: str, field: str, **settings: Any) -> str:
        """A measure of a baseline without a model, which is the same for all runs on a data set."""
        column = f"{_known(name, results.BASELINES)}_{_known(field, MEASURES)}"
        chosen = self._choose(settings)
        datasets = sorted(set(chosen.dataset))
        if len(datasets) > 1:
            raise ValueError(f"{len(datasets)} data sets fit ({', '.join(datasets)}); name one.")
        value = chosen.iloc[0].get(column, math.nan)
        return "–" if math.isnan(value) else number_text(value, MEASURES[field].digits)

    def _choose(self, settings: dict[str, Any]) -> pd.DataFrame:
        """The runs with these settings."""
        return _with(self._frame, settings, "there is no such run.")

    def _choose_pairs(self, settings: dict[str, Any], to: str | None = None) -> pd.DataFrame:
        """The pairs with these settings."""
        to = to or results.baseline_of(self._frame)
        missing = f"no such run shares its seed with one of {to}."
        return _with(pairs(self._frame, to), settings, missing)


def _known(name: str, known: Iterable[str]) -> str:
    if name not in known:
        raise ValueError(f"there is no {name!r}; choose from {', '.join(known)}.")
    return name


def _with(frame: pd.DataFrame, settings: dict[str, Any], missing: str) -> pd.DataFrame:
    known = results.SEQUENCE_SETTINGS if "prior" in frame else results.SETTINGS
    for key, value in settings.items():
        frame = frame[[other == value for other in frame[_known(key, known)]]]
    if frame.empty:
        raise ValueError(missing)
    return frame


def _only(chosen: pd.DataFrame) -> pd.DataFrame:
    """The rows; an error unless they are of one setting and variant."""
    keys = [key for key, _ in groups(chosen)]
    if len(keys) > 1:
        names = "; ".join(f"{s.dataset}, {s.title()}, {variant}" for s, variant in keys)
        raise ValueError(f"{len(keys)} configurations fit ({names}); add settings.")
    return chosen


def _table(
    chosen: pd.DataFrame, count: str, fields: Iterable[str], text: Callable[..., str]
) -> str:
    """A row for each setting and variant."""
    heading = "posterior / prior" if "prior" in chosen else "posterior"
    return markdown(
        [
            setting.cells()
            | {heading: variant, count: str(len(rows))}
            | {MEASURES[field].label: text(rows, field) for field in fields}
            for (setting, variant), rows in groups(chosen)
        ]
    )


def write(
    path: pathlib.Path, out: pathlib.Path, template: pathlib.Path | None = None
) -> list[pathlib.Path]:
    """Writes tables, pictures and, given a template, the page; returns the files.

    Raises:
      UserError: If results or template are invalid, or a file is in the way.
    """
    frame = results.load(path)
    known = {
        "title": path.name,
        "has_pairs": not pairs(frame).empty,
        "failures": {x.parent.name: x.read_text("utf-8") for x in path.glob("*/failed.txt")},
    }
    tables = pathlib.Path(__file__).with_name("tables.template.md")
    texts = {out / "tables.md": f"{_MARK}. -->\n\n{_fill(tables, frame, **known)}"}
    if template is not None:
        if not template.name.endswith(TEMPLATE_SUFFIX):
            raise UserError(f"{template}: --page must end in {TEMPLATE_SUFFIX}.")
        mark = f"{_MARK} from {template.name}; change that. -->\n\n"
        page = out / f"{template.name.removesuffix(TEMPLATE_SUFFIX)}.md"
        texts[page] = mark + _fill(template, frame)
    for file in texts:
        if file.exists() and not file.read_bytes().startswith(b"<!-- Written by "):
            raise UserError(f"{file}: was not written by this command; choose another --out.")
    out.mkdir(parents=True, exist_ok=True)
    for file, text in texts.items():
        file.write_text(text, encoding="utf-8")
    return [*texts, *pictures.draw(path, frame, out)]


def filled(template: pathlib.Path, page: object, **known: Any) -> str:
    """Fills in a jinja2 template, which may use the public methods of `page` and `known`."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(template.parent),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
    )
    known |= {name: getattr(page, name) for name in dir(page) if not name.startswith("_")}
    return environment.get_template(template.name).render(known)


def _fill(template: pathlib.Path, frame: pd.DataFrame, **known: Any) -> str:
    """`filled` for pages of grids; errors in the user's template become a `UserError`."""
    known |= {"counted": counted, "of_series": "prior" in frame, "baselines": results.BASELINES}
    try:
        return filled(template, Page(frame), **known)
    except UnicodeDecodeError as error:
        raise UserError(f"{template}: is not UTF-8 text ({error}).") from error
    except (TypeError, ValueError, jinja2.TemplateError) as error:
        # jinja2 puts the lines of the template into the traceback.
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == str(template)]
        line = getattr(error, "lineno", None) or lines[-1]
        raise UserError(f"{template}: line {line}: {error}") from error
