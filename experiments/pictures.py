"""Pictures of results: learning curves, differences with intervals, samples side by side."""

import functools
import itertools
import math
import pathlib

import matplotlib.image
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from experiments import results
from experiments.results import BOUNDS, Setting, baseline_of, difference, groups, pairs
from tfp_ar1_cli.errors import dispensable
from tfp_ar1_cli.pictures import style
from tfp_ar1_cli.progress import counted

_COLOURS = {"ar1": "#c8442b", "diag": "#1f5fa8", "isotropic": "#4f9d69"}
_COLOURS |= {"full": "#7b5ea7", "arh1": "#b58900", "ante1": "#7b5ea7"}
_TICKS = sorted([0, *(sign * t for sign in (-1, 1) for t in (0.5, 1, 2, 5, 10, 20, 50, 100, 1000))])
_MOST_TICKS = 12
_STRETCH = 1.3  # of the limits of the symlog axis


def draw(path: pathlib.Path, frame: pd.DataFrame, out: pathlib.Path) -> list[pathlib.Path]:
    """Draws all pictures of the results `frame` of `path` into the folder `out`.

    Returns:
      The files. If a picture fails, a warning is printed and the others are still drawn.
    """
    drawn = {}
    for name, rows in frame.groupby(frame.setting.map(Setting.file_name), sort=False):
        drawn[f"curves-{name}"] = functools.partial(_curves, rows)
        samples = {key: file for key, runs in groups(rows) if (file := _samples_of(path, runs))}
        if samples:
            drawn[f"samples-{name}"] = functools.partial(_samples, samples)
    if len(paired := pairs(frame)):
        drawn["differences"] = functools.partial(_differences, paired)
    files = []
    for name, figure in drawn.items():
        with dispensable(file := out / f"{name}.png"):
            style.save(figure(), file)
            files.append(file)
    return files


def _curves(frame: pd.DataFrame) -> Figure:
    """Plots −ELBO of the test data against the epoch, a panel for each data set."""
    unit = "window" if "prior" in frame else "image"
    panels = list(frame.groupby("setting", sort=False))
    fig, (axes,) = style.panels(1 + 5 * len(panels), 4, columns=len(panels))
    for ax, (setting, rows) in zip(axes, panels, strict=True):
        lowest, highest = math.inf, -math.inf
        for (_, variant), runs in groups(rows):
            curves = np.array([history["val_neg_elbo"] for history in runs.history])
            epochs, colour = np.arange(1, curves.shape[1] + 1), _colour(variant)
            label = f"{variant} ({counted(len(runs), 'run')})"
            line = "--" if variant.endswith("/normal") else "-"
            ax.plot(epochs, curves.mean(axis=0), line, color=colour, linewidth=1.4, label=label)
            low, high = curves.min(axis=0), curves.max(axis=0)
            ax.fill_between(epochs, low, high, color=colour, alpha=0.2, linewidth=0)
            lowest = min(lowest, low.min())
            # Leave out the steep first epochs, which would flatten the rest.
            highest = max(highest, high[len(high) // 5 :].max())
        margin = 0.05 * (highest - lowest) + 1e-3
        ax.set_ylim(lowest - margin, highest + margin)
        ax.set_title(f"{setting.dataset}: {setting.title()}", fontsize="medium")
        ax.set_xlabel("epoch")
        ax.set_ylabel(f"−ELBO of the test {unit}s (nats per {unit})")
        ax.xaxis.get_major_locator().set_params(integer=True)
        ax.legend(frameon=False, title="mean; range over runs shaded")
    return fig


def _differences(paired: pd.DataFrame) -> Figure:
    """Plots the differences of −ELBO and NLL as dots, with whiskers for their intervals."""
    unit = "window" if "prior" in paired else "image"
    rows, baseline = list(groups(paired)), baseline_of(paired)
    fig, (axes,) = style.panels(11, 1.6 + 0.32 * len(rows), columns=2, sharey=True)
    labels = [f"{setting.dataset}: {variant}" for (setting, variant), _ in rows]
    if len(set(labels)) < len(labels):
        labels = [f"{one.dataset}, {one.title()}: {variant}" for (one, variant), _ in rows]
    for ax, field in zip(axes, ("neg_elbo", "nll_iw"), strict=True):
        for row, ((_, variant), runs) in enumerate(rows):
            mean, low, high = difference(runs, field)
            half, colour = None if math.isnan(low) else (high - low) / 2, _colour(variant)
            face = "white" if variant.endswith("/normal") else None
            dot = {"marker": "o", "markersize": 5, "capsize": 3, "markerfacecolor": face}
            ax.errorbar(mean, row, xerr=half, color=colour, **dot)
        ax.axvline(0, color="black", linewidth=0.8)
        # On a linear scale, one large difference would hide all small ones.
        ax.set_xscale("symlog", linthresh=1)
        # Matplotlib's margin is linear, which is next to nothing on this scale.
        low, high = (_STRETCH * limit for limit in ax.get_xlim())
        ax.set_xlim(low, high)
        ticks = [tick for tick in _TICKS if low <= tick <= high]
        if len(ticks) > _MOST_TICKS:
            ticks = [tick for tick in ticks if abs(tick) in (0, 1, 10, 100, 1000)]
        ax.set_xticks(ticks, [f"{tick:g}".replace("-", "−") for tick in ticks])
        ax.minorticks_off()
        ax.set_xlabel(f"nats per {unit}, logarithmic beyond ±1")
        ax.set_title(f"{BOUNDS[field].label}: difference to {baseline}")
    axes[0].set_yticks(range(len(rows)), labels)
    axes[0].set_ylim(len(rows) - 0.5, -0.5)
    return fig


def _samples(files: dict[tuple[Setting, str], pathlib.Path]) -> Figure:
    """Shows samples side by side, a row for each data set and a column for each variant."""
    settings = list(dict.fromkeys(setting for setting, _ in files))
    variants = list(dict.fromkeys(variant for _, variant in files))
    columns, rows = len(variants), len(settings)
    fig, axes = style.panels(0.5 + 4 * columns, 0.6 + 2.2 * rows, rows, columns)
    for ax, key in zip(axes.flat, itertools.product(settings, variants), strict=True):
        ax.set_axis_off()
        if key in files:
            ax.imshow(matplotlib.image.imread(files[key]), cmap="gray", vmin=0, vmax=1)
            ax.set_title(f"{key[0].dataset}: {key[1]}")
    fig.suptitle(f"Samples: {settings[0].title()}")
    return fig


def _samples_of(path: pathlib.Path, runs: pd.DataFrame) -> pathlib.Path | None:
    """The picture of samples from the lowest seed that has one."""
    files = (results.samples_file(path, record) for record in runs.to_dict("records"))
    return next((file for file in files if file.is_file()), None)


def _colour(variant: str) -> str:
    return _COLOURS.get(variant.split("/")[0], "#606060")
