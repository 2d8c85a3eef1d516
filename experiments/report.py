"""Tables and pictures from a file of results, and pages whose numbers come from it.

A page is written from a template: text in which every `{{...}}` is replaced. The help of the
command lists what there is; `_fill` reads it.

The same results give the same files, byte for byte.
"""

import functools
import math
import pathlib
import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import PIL.Image
from matplotlib.figure import Figure
from scipy.special import stdtrit

from experiments import results
from tfp_ar1_cli import runs
from tfp_ar1_cli.errors import UserError
from tfp_ar1_cli.pictures import style
from tfp_ar1_cli.progress import counted

TEMPLATE_SUFFIX = ".template.md"
_MARK = "<!-- Written by 'tfp-ar1 report'"
_CONFIDENCE = 0.95
_COLOURS = {
    "ar1": "#c8442b",
    "diag": "#1f5fa8",
    "isotropic": "#4f9d69",
    "full": "#7b5ea7",
    "arh1": "#b58900",
    "ante1": "#7b5ea7",
}


class _Measure(NamedTuple):
    """How a measure is called in a table, and to how many decimals it is printed."""

    label: str
    digits: int


class _Kind(NamedTuple):
    """What differs between results of images and of series.

    `variant` are the settings that make the rows to be compared, with `baseline`; `tables` say
    which measures are in a table, and `compared` which have differences.
    """

    variant: tuple[str, ...]
    baseline: str
    size: str
    symbol: str
    unit: str
    notes: str
    measures: dict[str, _Measure]
    tables: dict[str, tuple[str, ...]]
    compared: tuple[str, ...]

    def name(self, record: dict[str, Any]) -> str:
        """The variant of a record: `ar1`, or `ar1/normal` for posterior and prior."""
        return "/".join(record[key] for key in self.variant)


_BOUNDS = {
    "neg_elbo": _Measure("−ELBO", 2),
    "nll_iw": _Measure("NLL", 2),
    "reconstruction": _Measure("reconstruction", 2),
    "kl": _Measure("KL", 2),
}
_COMMON = {
    "active_units": _Measure("active units", 1),
    "mmd": _Measure("MMD²", 4),
    "rho_mean": _Measure("ρ, mean", 3),
    "rho_std": _Measure("ρ, spread", 3),
    "scale_mean": _Measure("√s, mean", 3),
    "scale_std": _Measure("√s, spread", 3),
    "seconds_per_epoch": _Measure("s per epoch", 1),
}
_NUMBER = {"num_covariance_parameters": _Measure("covariance parameters", 0)}
_IMPUTATION = {
    f"imputation_{measure}_{share}": _Measure(f"{label}, {share}% missing", digits)
    for share in (20, 50)
    for measure, label, digits in (
        ("rmse", "imputation RMSE", 3),
        ("coverage", "coverage of 90% intervals", 3),
    )
}
_FORECAST = {
    f"forecast_{measure}_{horizon}": _Measure(f"{label}, {horizon} ahead", digits)
    for horizon in (1, 10, 50)
    for measure, label, digits in (
        ("rmse", "forecast RMSE", 3),
        ("coverage", "coverage of 90% intervals", 3),
    )
}
_BASELINES_OF_SERIES = ("last_value", "linear_interpolation", "matern_half")
_IMAGES = _Kind(
    variant=("posterior",),
    baseline="diag",
    size="latent_dim",
    symbol="d",
    unit="image",
    notes="MMD² is between the aggregate posterior and the prior; a spread is the standard "
    "deviation over the test images.",
    measures={**_NUMBER, **_BOUNDS, **_COMMON},
    tables={"results": (*_NUMBER, *_BOUNDS), "measures": tuple(_COMMON)},
    compared=tuple(_BOUNDS),
)
_SERIES = _Kind(
    variant=("posterior", "prior"),
    baseline="diag/normal",
    size="channels",
    symbol="channels",
    unit="window",
    notes="RMSE in units of the standard deviation of the training data; a share of the steps is "
    "hidden at random, and forecasts start from the middle of the window.",
    measures={
        **_NUMBER,
        **_BOUNDS,
        "prior_correlation": _Measure("prior correlation", 3),
        **_IMPUTATION,
        **_FORECAST,
        "rho_mean": _COMMON["rho_mean"],
        "seconds_per_epoch": _COMMON["seconds_per_epoch"],
    },
    tables={
        "results": (*_NUMBER, *_BOUNDS, "prior_correlation"),
        "imputation": tuple(_IMPUTATION),
        "forecasts": tuple(_FORECAST),
    },
    compared=(*_BOUNDS, *(key for key in (*_IMPUTATION, *_FORECAST) if "rmse" in key)),
)
_MEASURES = _IMAGES.measures | _SERIES.measures
_VALID = {
    **dict.fromkeys(_MEASURES, runs.is_number),
    "history": lambda value: runs.is_table(runs.is_list())(value) and "val_neg_elbo" in value,
    "versions": runs.is_table(runs.is_text),
    "code": runs.is_text,
}
_TICKS = sorted([0, *(sign * t for sign in (-1, 1) for t in (0.5, 1, 2, 5, 10, 20, 50, 100, 1000))])
_MOST_TICKS = 12
_STRETCH = 1.3  # of the limits of that axis
# Settings that have a column of their own only where they differ.
_MINOR = ("batch_size", "learning_rate", "num_importance_samples")


class Setting(NamedTuple):
    """What variants are compared within: all other settings but the seed."""

    dataset: str
    network: str
    objective: str
    size: int
    epochs: int
    minor: tuple[tuple[str, Any], ...]
    symbol: str

    def cells(self) -> dict[str, str]:
        """The columns that it has in a table."""
        head = zip(("dataset", "network", "objective", self.symbol, "epochs"), self, strict=False)
        return {key: str(value) for key, value in head} | {
            key.replace("_", " "): f"{value:g}" for key, value in self.minor
        }

    def file_name(self) -> str:
        """What pictures of it are called; the data sets share a picture."""
        minor = "".join(f"-{key.replace('_', '-')}{value:g}" for key, value in self.minor)
        size = f"{self.symbol[0]}{self.size}"
        text = f"{self.network}-{self.objective}-{size}-{self.epochs}epochs{minor}"
        return text.replace("β=", "beta").replace(" ", "-")

    def title(self) -> str:
        """The same for people."""
        minor = "".join(f", {key.replace('_', ' ')} {value:g}" for key, value in self.minor)
        return (
            f"{self.network}, {self.objective}, {self.symbol} = {self.size}, "
            f"{counted(self.epochs, 'epoch')}"
            f"{minor}"
        )


class Run(NamedTuple):
    """A result, with its setting."""

    setting: Setting
    record: dict[str, Any]

    @property
    def variant(self) -> str:
        """What is compared within a setting: the posterior, or for series posterior/prior."""
        return _kind(self.record).name(self.record)


def _kind(record: dict[str, Any]) -> _Kind:
    return _SERIES if record.get("model") == "sequence" else _IMAGES


class Interval(NamedTuple):
    """A mean, and half the width of its confidence interval; NaN if there is but one value."""

    mean: float
    half_width: float


def mean_and_standard_error(values: Sequence[float]) -> tuple[float, float]:
    """The mean and its standard error; NaN if there is but one value."""
    values = np.asarray(values, np.float64)
    if len(values) < 2:
        return float(values.mean()), math.nan
    return float(values.mean()), float(values.std(ddof=1) / math.sqrt(len(values)))


def paired_difference(values: Sequence[float], baseline: Sequence[float]) -> Interval:
    """The mean of the differences, with its 95% interval by Student's t."""
    mean, error = mean_and_standard_error(np.subtract(values, baseline))
    return Interval(mean, float(stdtrit(max(len(values) - 1, 1), (1 + _CONFIDENCE) / 2)) * error)


def load(path: pathlib.Path) -> list[Run]:
    """The results in a file, in the order of settings, posteriors and seeds.

    Raises:
      UserError: If there are none, if they are of images and of series, if a measure is missing, or
        if a run is there twice.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; name the file that 'tfp-ar1 compare' wrote.")
    records = results.read(path)
    if not records:
        raise UserError(f"{path}: holds no results yet; 'tfp-ar1 compare' adds them.")
    if len({_kind(record).unit for record in records}) > 1:
        raise UserError(f"{path}: holds results of images and of series; make it two files.")
    needed = {*_kind(records[0]).measures, "history", "versions", "code"}
    names = set()
    for number, record in enumerate(records, 1):
        if missing := needed - record.keys():
            raise UserError(
                f"{path}: line {number} has no {', '.join(sorted(missing))}; remove the line and "
                "run 'tfp-ar1 compare' again."
            )
        if key := runs.first_invalid(record, _VALID):
            raise UserError(
                f"{path}: line {number} has no valid {key!r}; remove the line and run 'tfp-ar1 "
                "compare' again."
            )
        name = results.name(record)
        if name in names:
            raise UserError(f"{path}: line {number} repeats the run {name}; remove one of them.")
        names.add(name)
    minor = [key for key in _MINOR if len({record[key] for record in records}) > 1]
    images = {(record["dataset"], record["data_sha256"]) for record in records}
    runs_of_file = [Run(_setting(record, minor, images), record) for record in records]
    return sorted(runs_of_file, key=_order)


def _setting(record: dict, minor: list[str], images: set[tuple[str, str]]) -> Setting:
    """The setting of a record of a file with these minor settings, and these sets of images."""
    alike = sum(dataset == record["dataset"] for dataset, _ in images)
    return Setting(
        record["dataset"] + f" {record['data_sha256'][:8]}" * (alike > 1),
        " ".join([record["network"], *map(str, record.get("hidden_units") or [])]),
        record["objective"] + f" β={record['beta']:g}" * (record["beta"] != 1),
        record[_kind(record).size],
        record["epochs"],
        tuple((key, record[key]) for key in minor),
        _kind(record).symbol,
    )


def _order(run: Run) -> tuple:
    # From few covariance parameters to many.
    record = run.record
    parameters = record["num_covariance_parameters"]
    return run.setting, parameters, run.variant, record["seed"]


def configurations(chosen: Iterable[Run]) -> dict[tuple[Setting, str], list[dict]]:
    """The records of each setting and variant, one for each seed."""
    records = {}
    for run in chosen:
        records.setdefault((run.setting, run.variant), []).append(run.record)
    return records


def differences(
    chosen: Sequence[Run], to: str | None = None
) -> dict[tuple[Setting, str], list[tuple[dict, dict]]]:
    """For each setting and variant: the pairs of its records with those of `to` (the baseline)."""
    records = configurations(chosen)
    to = _baseline(chosen) if to is None else to
    pairs = {}
    for (setting, variant), group in records.items():
        baseline = {record["seed"]: record for record in records.get((setting, to), [])}
        paired = [
            (record, baseline[record["seed"]]) for record in group if record["seed"] in baseline
        ]
        if variant != to and paired:
            pairs[setting, variant] = paired
    return pairs


def _baseline(chosen: Sequence[Run]) -> str:
    return _kind(chosen[0].record).baseline


def versions(chosen: Iterable[Run]) -> str:
    """What the results were made with."""
    code = {run.record["code"] for run in chosen}
    packages = {" ".join(item) for run in chosen for item in run.record["versions"].items()}
    return f"Code: {', '.join(sorted(code))}. Packages: {', '.join(sorted(packages))}."


def write(
    path: pathlib.Path, out: pathlib.Path, template: pathlib.Path | None
) -> list[pathlib.Path]:
    """Writes tables, pictures and the page.

    Args:
      path: The file of results.
      out: The folder to write to.
      template: The template of the page, or None for no page.

    Returns:
      The files.

    Raises:
      UserError: If results or template are wrong, or a file stands in the way.
    """
    every = load(path)
    texts = {out / "tables.md": _tables_page(every, path)}
    if template is not None:
        texts[out / _page_name(template)] = _page(every, template)
    for file in texts:
        _check_ours(file)
        runs.check_writable(file)
    out.mkdir(parents=True, exist_ok=True)
    for file, text in texts.items():
        with runs.atomic(file) as temporary:
            temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
    return [*texts, *_draw(every, path, out)]


def _page_name(template: pathlib.Path) -> str:
    if not template.name.endswith(TEMPLATE_SUFFIX):
        raise UserError(f"{template}: --page must end in {TEMPLATE_SUFFIX}.")
    return template.name.removesuffix(TEMPLATE_SUFFIX) + ".md"


def _check_ours(path: pathlib.Path) -> None:
    if path.exists() and not path.read_bytes().startswith(_MARK.encode()):
        raise UserError(f"{path}: was not written by 'tfp-ar1 report'; choose another --out.")


# Tables


def _tables_page(every: list[Run], path: pathlib.Path) -> str:
    failed = [
        f"- {results.name(record)}: {record['error']}\n"
        for record in results.read(results.failures_file(path))
    ]
    kind = _kind(every[0].record)
    captions = {"measures": "Other measures", "imputation": "Imputation", "forecasts": "Forecasts"}
    others = []
    for name in kind.tables:
        if name in captions:
            others += [f"## {captions[name]}\n", _table_of_means(every, name)]
    if kind is _SERIES:
        others += ["## Baselines\n", _table_of_baselines(every)]
    parts = [
        f"{_MARK}. -->\n\n# Results of {path.name}\n",
        f"{counted(len(every), 'run')}. {versions(every)}\n",
        "## Results\n",
        f"Test {kind.unit}s, nats per {kind.unit}: mean ± standard error over the runs, one for "
        "each seed. NLL is the importance-weighted estimate. The lower −ELBO and NLL, the better. "
        f"{kind.notes}\n",
        _table_of_means(every, "results"),
        f"## Differences to {kind.baseline}\n",
        f"Paired by seed: mean [{_CONFIDENCE:.0%} confidence interval, Student's t]. −ELBO and "
        f"NLL below 0 are better than {kind.baseline}.\n",
        _table_of_differences(every, differences(every)),
        *others,
        *(["## Failed runs\n", "".join(failed)] if failed else []),
    ]
    return "\n".join(parts)


def _table(rows: list[dict[str, str]]) -> str:
    """Rows, all with the same columns, as Markdown."""
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(list(row.values()) for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _table_of_means(chosen: Sequence[Run], name: str) -> str:
    kind = _kind(chosen[0].record)
    return _table(
        [
            setting.cells()
            | {" / ".join(kind.variant): variant, "runs": str(len(records))}
            | {_MEASURES[field].label: _mean_text(records, field) for field in kind.tables[name]}
            for (setting, variant), records in configurations(chosen).items()
        ]
    )


def _table_of_differences(
    chosen: Sequence[Run], pairs: dict[tuple[Setting, str], list[tuple[dict, dict]]]
) -> str:
    kind = _kind(chosen[0].record)
    if not pairs:
        return f"No run shares its seed with one of {kind.baseline}.\n"
    return _table(
        [
            setting.cells()
            | {" / ".join(kind.variant): variant, "pairs": str(len(paired))}
            | {_MEASURES[field].label: _difference_text(paired, field) for field in kind.compared}
            for (setting, variant), paired in pairs.items()
        ]
    )


def _table_of_baselines(chosen: Sequence[Run]) -> str:
    """What needs no model, on the same hidden values; it is the same in every run."""
    fields = (*_IMPUTATION, *_FORECAST)
    first = {run.setting.dataset: run.record for run in reversed(chosen)}
    return _table(
        [
            {"dataset": dataset, "baseline": name.replace("_", " ")}
            | {_MEASURES[field].label: _baseline_text(record, name, field) for field in fields}
            for dataset, record in sorted(first.items())
            for name in _BASELINES_OF_SERIES
        ]
    )


def _baseline_text(record: dict, name: str, field: str, digits: int | None = None) -> str:
    digits = _MEASURES[field].digits if digits is None else digits
    value = record.get(f"{name}_{field}")
    return "–" if value is None else _number(value, digits)


def _mean_text(records: Sequence[dict], field: str, digits: int | None = None) -> str:
    values = [record[field] for record in records]
    if len(set(values)) == 1 and isinstance(values[0], int):
        return str(values[0])
    digits = _MEASURES[field].digits if digits is None else digits
    mean, error = mean_and_standard_error(values)
    text = _number(mean, digits)
    return text if math.isnan(error) else f"{text} ± {error:.{digits}f}"


def _difference_text(
    pairs: Sequence[tuple[dict, dict]], field: str, digits: int | None = None
) -> str:
    digits = _MEASURES[field].digits if digits is None else digits
    mean, half_width = _difference(pairs, field)
    text = _number(mean, digits, sign="+")
    if math.isnan(half_width):
        return text
    low, high = (_number(mean + side * half_width, digits, sign="+") for side in (-1, 1))
    return f"{text} [{low}, {high}]"


def _difference(pairs: Sequence[tuple[dict, dict]], field: str) -> Interval:
    values, baseline = ([record[field] for record in side] for side in zip(*pairs, strict=True))
    return paired_difference(values, baseline)


def _number(value: float, digits: int, sign: str = "") -> str:
    # Adding 0 takes the sign from what is rounded to 0.
    return f"{round(value, digits) + 0.0:{sign}.{digits}f}".replace("-", "−")


# Pages


def _page(every: list[Run], template: pathlib.Path) -> str:
    try:
        text = template.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{template}: is not UTF-8 text ({error}).") from error

    def replacement(match: re.Match) -> str:
        try:
            return _fill(every, match.group(1).split())
        except ValueError as error:
            number = text.count("\n", 0, match.start()) + 1
            raise UserError(f"{template}: line {number}: {match.group()}: {error}") from error

    page = re.sub(r"\{\{(.*?)\}\}", replacement, text, flags=re.DOTALL)
    return f"{_MARK} from {template.name}; change that. -->\n\n{page}"


def _fill(every: list[Run], words: list[str]) -> str:
    """What a placeholder stands for; `ValueError` if it cannot be filled."""
    what = [word for word in words if "=" not in word]
    settings = dict(word.split("=", 1) for word in words if "=" in word)
    digits = settings.pop("digits", None)
    if digits is not None and not re.fullmatch("[0-9]", digits):
        raise ValueError(f"digits={digits} is not a number from 0 to 9.")
    digits = None if digits is None else int(digits)
    to = settings.pop("to", None)
    if to is not None and what[:1] != ["difference"]:
        raise ValueError(f"to={to} is for differences of one configuration.")
    known = results.settings_of(every[0].record)
    if unknown := settings.keys() - set(known):
        raise ValueError(
            f"there is no setting {', '.join(sorted(unknown))}; choose from {', '.join(known)}."
        )
    kind = _kind(every[0].record)
    match what:
        case ["table", name] if name in kind.tables:
            return _table_of_means(_choose(every, settings), name).rstrip()
        case ["table", "differences"]:
            return _table_of_differences(every, _choose_differences(every, settings)).rstrip()
        case ["table", "baselines"] if kind is _SERIES:
            return _table_of_baselines(_choose(every, settings)).rstrip()
        case ["mean", field]:
            records = _only(configurations(_choose(every, settings)))
            return _mean_text(records, _known(field), digits)
        case ["baseline", name, field] if kind is _SERIES:
            if name not in _BASELINES_OF_SERIES:
                known = ", ".join(_BASELINES_OF_SERIES)
                raise ValueError(f"there is no baseline {name!r}; choose from {known}.")
            record = _one_data_set(_choose(every, settings))
            return _baseline_text(record, name, _known(field), digits)
        case ["difference", field]:
            pairs = _only(_choose_differences(every, settings, to))
            return _difference_text(pairs, _known(field), digits)
        case ["runs"]:
            return str(len(_choose(every, settings)))
        case ["versions"]:
            return versions(_choose(every, settings))
    raise ValueError("there is no such placeholder; 'tfp-ar1 report --help' lists them.")


def _choose(every: list[Run], settings: dict[str, str]) -> list[Run]:
    """The runs with these settings."""
    chosen = [
        run
        for run in every
        if all(_setting_text(run.record[key]) == value for key, value in settings.items())
    ]
    if not chosen:
        raise ValueError("there is no such run.")
    return chosen


def _one_data_set(chosen: list[Run]) -> dict[str, Any]:
    """A record of the one data set: what needs no model is the same in all of them."""
    datasets = sorted({run.setting.dataset for run in chosen})
    if len(datasets) > 1:
        raise ValueError(f"{len(datasets)} data sets fit ({', '.join(datasets)}); add dataset=.")
    return chosen[0].record


def _choose_differences(
    every: list[Run], settings: dict[str, str], to: str | None = None
) -> dict[tuple[Setting, str], list[tuple[dict, dict]]]:
    """The differences with these settings, of one variant if that is among them."""
    kind = _kind(every[0].record)
    shared = {key: value for key, value in settings.items() if key not in kind.variant}
    chosen = {
        (setting, variant): pairs
        for (setting, variant), pairs in differences(_choose(every, shared), to).items()
        if all(_setting_text(pairs[0][0][key]) == value for key, value in settings.items())
    }
    if not chosen:
        raise ValueError(f"no such run shares its seed with one of {to or kind.baseline}.")
    return chosen


def _setting_text(value: Any) -> str:
    """How a setting is written in a placeholder."""
    if isinstance(value, list):
        return ",".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _only(groups: dict[tuple[Setting, str], list]) -> list:
    """The records of the one configuration."""
    if len(groups) > 1:
        names = "; ".join(f"{s.dataset}, {s.title()}, {variant}" for s, variant in groups)
        raise ValueError(f"{len(groups)} configurations fit ({names}); add settings.")
    (records,) = groups.values()
    return records


def _known(field: str) -> str:
    if field not in _MEASURES:
        raise ValueError(f"there is no measure {field!r}; choose from {', '.join(_MEASURES)}.")
    return field


# Pictures


def _draw(every: list[Run], path: pathlib.Path, out: pathlib.Path) -> list[pathlib.Path]:
    """Draws all pictures, and returns their files."""
    shared = {}
    for setting in dict.fromkeys(run.setting for run in every):
        shared.setdefault(setting.file_name(), []).append(setting)
    groups = configurations(every)
    draw = {}
    for name, settings in shared.items():
        draw[f"curves-{name}"] = functools.partial(_draw_curves, settings=settings, groups=groups)
        pictures = _pictures(settings, groups, path)
        if pictures:
            draw[f"samples-{name}"] = functools.partial(
                _draw_samples, settings=settings, pictures=pictures
            )
    if pairs := differences(every):
        draw["differences"] = functools.partial(_draw_differences, pairs=pairs)
    return style.draw_all(out, **draw)


def _draw_curves(
    path: pathlib.Path,
    settings: list[Setting],
    groups: dict[tuple[Setting, str], list[dict]],
) -> None:
    """Draws −ELBO of the test images against the epoch, a panel for each data set."""
    unit = next(_kind(records[0]).unit for records in groups.values())
    fig = Figure(figsize=(1 + 5 * len(settings), 4), layout="constrained")
    for ax, setting in zip(fig.subplots(1, len(settings), squeeze=False)[0], settings, strict=True):
        lowest, highest = math.inf, -math.inf
        for (other, variant), records in groups.items():
            if other != setting:
                continue
            curves = np.array([record["history"]["val_neg_elbo"] for record in records])
            epochs, colour = np.arange(1, curves.shape[1] + 1), _colour(variant)
            label = f"{variant} ({counted(len(records), 'run')})"
            style = "--" if variant.endswith("/normal") else "-"
            ax.plot(epochs, curves.mean(axis=0), style, color=colour, linewidth=1.4, label=label)
            low, high = curves.min(axis=0), curves.max(axis=0)
            ax.fill_between(epochs, low, high, color=colour, alpha=0.2, linewidth=0)
            lowest = min(lowest, low.min())
            # The fall of the first epochs would flatten all the rest.
            highest = max(highest, high[len(high) // 5 :].max())
        margin = 0.05 * (highest - lowest) + 1e-3
        ax.set_ylim(lowest - margin, highest + margin)
        ax.set_title(f"{setting.dataset}: {setting.title()}", fontsize="medium")
        ax.set_xlabel("epoch")
        ax.set_ylabel(f"−ELBO of the test {unit}s (nats per {unit})")
        ax.xaxis.get_major_locator().set_params(integer=True)
        ax.legend(frameon=False, title="mean; range over runs shaded")
        style.bare(ax)
    style.save(fig, path)


def _colour(variant: str) -> str:
    return _COLOURS.get(variant.split("/")[0], "#606060")


def _draw_differences(
    path: pathlib.Path, pairs: dict[tuple[Setting, str], list[tuple[dict, dict]]]
) -> None:
    """Draws the differences of −ELBO and NLL as dots, with whiskers for their intervals."""
    rows = list(pairs.items())
    kind = _kind(rows[0][1][0][0])
    fig = Figure(figsize=(11, 1.6 + 0.32 * len(rows)), layout="constrained")
    axes = fig.subplots(1, 2, sharey=True)
    labels = [f"{setting.dataset}: {variant}" for (setting, variant), _ in rows]
    if len(set(labels)) < len(labels):
        labels = [f"{one.dataset}, {one.title()}: {variant}" for (one, variant), _ in rows]
    for ax, field in zip(axes, ("neg_elbo", "nll_iw"), strict=True):
        for row, ((_, variant), paired) in enumerate(rows):
            mean, half_width = _difference(paired, field)
            ax.errorbar(
                mean,
                row,
                xerr=None if math.isnan(half_width) else half_width,
                color=_colour(variant),
                markerfacecolor="white" if variant.endswith("/normal") else None,
                marker="o",
                markersize=5,
                capsize=3,
            )
        ax.axvline(0, color="black", linewidth=0.8)
        # One large difference would hide all small ones.
        ax.set_xscale("symlog", linthresh=1)
        # The margin that Matplotlib leaves is linear: next to nothing on this scale.
        low, high = (_STRETCH * limit for limit in ax.get_xlim())
        ax.set_xlim(low, high)
        ticks = [tick for tick in _TICKS if low <= tick <= high]
        if len(ticks) > _MOST_TICKS:
            ticks = [tick for tick in ticks if abs(tick) in (0, 1, 10, 100, 1000)]
        ax.set_xticks(ticks, [_number(tick, 0 if tick % 1 == 0 else 1) for tick in ticks])
        ax.minorticks_off()
        ax.set_xlabel(f"nats per {kind.unit}, logarithmic beyond ±1")
        ax.set_title(f"{_MEASURES[field].label}: difference to {kind.baseline}")
        style.bare(ax)
    axes[0].set_yticks(range(len(rows)), labels)
    axes[0].set_ylim(len(rows) - 0.5, -0.5)
    style.save(fig, path)


def _pictures(
    settings: list[Setting], groups: dict[tuple[Setting, str], list[dict]], path: pathlib.Path
) -> dict[tuple[Setting, str], pathlib.Path]:
    """The picture of samples of each configuration that has one, that of its least seed."""
    pictures = {}
    for (setting, variant), records in groups.items():
        files = (results.samples_file(path, record) for record in records)
        file = next((file for file in files if file.is_file()), None)
        if setting in settings and file is not None:
            pictures[setting, variant] = file
    return pictures


def _draw_samples(
    path: pathlib.Path,
    settings: list[Setting],
    pictures: dict[tuple[Setting, str], pathlib.Path],
) -> None:
    """Draws the samples side by side, a row for each data set and a column for each variant."""
    variants = list(dict.fromkeys(variant for _, variant in pictures))
    size = (0.5 + 4 * len(variants), 0.6 + 2.2 * len(settings))
    fig = Figure(figsize=size, layout="constrained")
    axes = fig.subplots(len(settings), len(variants), squeeze=False)
    for row, setting in zip(axes, settings, strict=True):
        for ax, variant in zip(row, variants, strict=True):
            ax.set_axis_off()
            if file := pictures.get((setting, variant)):
                with PIL.Image.open(file) as image:
                    ax.imshow(np.asarray(image), cmap="gray", vmin=0, vmax=255)
                ax.set_title(f"{setting.dataset}: {variant}")
    fig.suptitle(f"Samples: {settings[0].title()}")
    style.save(fig, path)
