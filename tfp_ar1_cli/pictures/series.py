"""Pictures of a run on series, in the data's own units; `draw_run` draws all of them.

Bands and lines are quantiles of draws from the model, including observation noise.
"""

import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from tfp_ar1_cli.data.series import SeriesData, Units
from tfp_ar1_cli.pictures import style
from tfp_ar1_cli.pictures.style import BLACK, BLUE, GRAY, ORANGE
from tfp_ar1_cli.run_folder import Run
from tfp_ar1_cli.training.model import prior_correlation, replicate

_CHANNELS = (BLUE, "#c44e52", "#3c8d5a", "#8064a2", "#937860", "#b8860b")
# More windows, channels or samples would not show more in a picture.
_NUM_WINDOWS, _MAX_ROWS, _MAX_SAMPLES = 3, 6, 12
_NUM_DRAWS = 400
_GAP = 0.2


def draw_run(run: Run, model: Any, data: SeriesData) -> list[pathlib.Path]:
    """Draws all pictures of a run with its trained `SequenceVAE`; returns the files in order."""
    seed = run.options.seed
    units, (x, length) = data.units, _choose_windows(data)
    few = {"x": x, "length": length}

    def impute(path: pathlib.Path) -> None:
        gap = gaps(length, x.shape[1], _GAP, seed)
        hidden = {"x": np.where(gap[..., None], np.nan, x), "length": length}
        draws = np.asarray(model.impute(hidden, num_samples=_NUM_DRAWS, seed=seed))
        imputations(path, units, x, gap, draws)

    def forecast(path: pathlib.Path) -> None:
        origin = length // 2
        start, steps = {"x": x, "length": origin}, int((length - origin).max())
        draws = model.forecast(start, steps, num_samples=_NUM_DRAWS, seed=seed)
        forecasts(path, units, x, origin, np.asarray(draws))

    def encode(path: pathlib.Path) -> None:
        posterior, prior = model.encode(few), prior_correlation(model)
        mean, stddev = np.asarray(posterior.mean()), np.asarray(posterior.stddev())
        latent_paths(path, mean, stddev, length, prior, units.step)

    training = "training, steps hidden" if run.options.hide else "training"
    return style.draw_all(
        run,
        reconstructions=lambda path: reconstructions(
            path, units, x, length, replicate(model, few, _NUM_DRAWS, seed)
        ),
        imputations=impute,
        forecasts=forecast,
        samples=lambda path: samples(
            path, units, np.asarray(model.generate(_MAX_SAMPLES, seed=seed, noise=True)), True
        ),
        latent_paths=encode,
        correlations=lambda path: correlations(
            path, prior_correlation(model), data.data_shape[0], units.step
        ),
        learning_curves=lambda path: style.learning_curves(
            path, run.history(), "nats per window", training, run.options.monitored
        ),
    )


def draw_progress(run: Run, model: Any, data: SeriesData, folder: pathlib.Path) -> None:
    """Draws reconstructions above samples, each time for the same test windows and the same z."""
    units, seed = data.units, run.options.seed
    x, length = (part[:_NUM_WINDOWS] for part in _choose_windows(data))
    new = np.asarray(model.generate(len(x), seed=seed, noise=True))
    fitted = np.asarray(model.reconstruct({"x": x, "length": length}))
    x, fitted, new = (units.restore(part)[..., 0] for part in (x, fitted, new))
    fig, axes = style.panels(9, 4, 2, len(x), sharex=True)
    for i, (above, below) in enumerate(axes.T):
        _points(above, x[i], BLACK, "observed")
        above.plot(fitted[i, : length[i]], color=BLUE, linewidth=1.2)
        below.plot(new[i], color=BLUE, linewidth=1.2)
        below.set_xlabel(style.label(units.step), parse_math=False)
    for ax, name in zip(axes[:, 0], ("reconstructions", "samples"), strict=True):
        ax.set_ylabel(f"{name}\n{style.label(units.names[0])}", parse_math=False)
    fig.savefig(folder / "windows.png", dpi=80)


def gaps(length: np.ndarray, steps: int, share: float, seed: int) -> np.ndarray:
    """A gap at a random place inside each window, a share of its length: bool `[N, steps]`."""
    rng = np.random.default_rng(seed)
    size = np.maximum(1, np.round(share * length)).astype(int)
    start = 1 + rng.integers(0, np.maximum(1, length - size - 1))
    step = np.arange(steps)
    return (step >= start[:, None]) & (step < np.minimum(start + size, length)[:, None])


def reconstructions(
    path: pathlib.Path, units: Units, x: np.ndarray, length: np.ndarray, draws: np.ndarray
) -> None:
    """Draws windows `[N, steps, channels]`, up to their length, and bands of reconstructions.

    `draws` are reconstructions `[num, N, steps, channels]`; past the end of a window, they are
    ignored.
    """
    x, draws = units.restore(x), units.restore(draws)

    def panel(ax: Axes, i: int, channel: int) -> None:
        steps = np.arange(length[i])
        _band(ax, steps, draws[:, i, steps, channel], "reconstruction")
        _points(ax, x[i, :, channel], BLACK, "observed")

    _grid(path, units, len(x), panel, "Test windows and their reconstructions")


def imputations(
    path: pathlib.Path, units: Units, x: np.ndarray, gap: np.ndarray, draws: np.ndarray
) -> None:
    """Draws windows with a gap, bool `[N, steps]`, and the model's draws for the gap."""
    x, draws = units.restore(x), units.restore(draws)

    def panel(ax: Axes, i: int, channel: int) -> None:
        steps = np.flatnonzero(gap[i])
        ax.axvspan(steps[0] - 0.5, steps[-1] + 0.5, color="#f2f2f2", linewidth=0, zorder=0)
        _band(ax, steps, draws[:, i, steps, channel], "imputed")
        _points(ax, np.where(gap[i], np.nan, x[i, :, channel]), BLACK, "observed")
        _points(ax, np.where(gap[i], x[i, :, channel], np.nan), ORANGE, "hidden from the model")

    _grid(path, units, len(x), panel, "Test windows with a gap, imputed")


def forecasts(
    path: pathlib.Path, units: Units, x: np.ndarray, origin: np.ndarray, draws: np.ndarray
) -> None:
    """Draws windows of which the model saw `origin` steps, and its draws of the following steps."""
    x, draws = units.restore(x), units.restore(draws)
    steps = np.arange(x.shape[1])

    def panel(ax: Axes, i: int, channel: int) -> None:
        first = origin[i]
        ahead = min(draws.shape[2], len(steps) - first)
        ax.axvline(first - 0.5, color=GRAY, linewidth=0.8, linestyle=":")
        _band(ax, first + np.arange(ahead), draws[:, i, :ahead, channel], "forecast", half=True)
        _points(ax, np.where(steps < first, x[i, :, channel], np.nan), BLACK, "observed")
        future = np.where(steps < first, np.nan, x[i, :, channel])
        _points(ax, future, ORANGE, "actual")

    _grid(path, units, len(x), panel, "Forecasts from the first half of test windows")


def samples(path: pathlib.Path, units: Units, x: np.ndarray, noise: bool = False) -> None:
    """Draws the first of the windows `[N, steps, channels]` sampled from the model."""
    x = units.restore(x[: _MAX_SAMPLES if len(units.names) == 1 else _NUM_WINDOWS])

    def panel(ax: Axes, i: int, channel: int) -> None:
        ax.plot(x[i, :, channel], color=BLUE, linewidth=1.2)

    _grid(path, units, len(x), panel, style.of_samples(len(x), noise))


def latent_paths(
    path: pathlib.Path,
    means: np.ndarray,
    stddevs: np.ndarray,
    length: np.ndarray,
    correlation: np.ndarray,
    step: str,
) -> None:
    """Draws posterior means and 90% bands of latent paths `[N, latent channels, steps]`.

    Each window is a column of panels and ends at its `length`; `correlation` is the prior's. The
    title names paths that no window uses, drawn or not.
    """
    inside = np.arange(means.shape[-1]) < np.asarray(length)[:, None]
    unused = style.unused(means.swapaxes(1, 2)[inside].var(axis=0))
    means = means[:_NUM_WINDOWS]
    named = (f"{style.latent_name(i)}, prior ρ = {_rho(rho)}" for i, rho in enumerate(correlation))

    def panel(ax: Axes, i: int, channel: int) -> None:
        colour, steps = _CHANNELS[channel % len(_CHANNELS)], np.arange(length[i])
        mean, half = means[i, channel, steps], 1.645 * stddevs[i, channel, steps]
        ax.fill_between(steps, mean - half, mean + half, color=colour, alpha=0.2, linewidth=0)
        ax.plot(steps, mean, color=colour, linewidth=1.2)

    title = f"Latent paths of test windows: posterior mean and 90% band{unused}"
    _grid(path, Units(list(named), step, [], []), len(means), panel, title, alike=True)


def correlations(path: pathlib.Path, correlation: np.ndarray, steps: int, step: str) -> None:
    """Draws the prior's learned correlation against lag, for each latent channel."""
    fig, ((ax,),) = style.panels(6.8, 3.8)
    lag = np.arange(steps + 1)
    for channel, rho in enumerate(correlation):
        colour = _CHANNELS[channel % len(_CHANNELS)]
        text = f"{style.latent_name(channel)}: ρ = {_rho(rho)}"
        ax.plot(lag, rho**lag, color=colour, linewidth=1.4, label=text)
    ax.axhline(0, color=GRAY, linewidth=0.8, zorder=0)
    ax.set_xlim(0, steps)
    ax.set_ylim(min(-0.02, 1.05 * correlation.min()), 1.02)
    ax.set_title("Prior correlation of a latent path with itself, ρᵏ")
    ax.set_xlabel(f"lag k in steps{step.removeprefix('step')}")
    ax.set_ylabel("correlation")
    ax.legend(frameon=False, loc="best", ncols=1 + (len(correlation) > 6))
    style.save(fig, path)


def _choose_windows(data: SeriesData) -> tuple[np.ndarray, np.ndarray]:
    """Chooses test windows of the greatest length, from different series if possible."""
    whole = np.flatnonzero(data.length_test == data.length_test.max())
    spread = np.linspace(0, len(whole), 2 * _NUM_WINDOWS, endpoint=False).astype(int)
    chosen = whole[np.unique(spread)]
    if data.data_shape[1] > 1:
        chosen = chosen[:: max(1, len(chosen) // _NUM_WINDOWS)][:_NUM_WINDOWS]
    return data.x_test[chosen], data.length_test[chosen]


def _rho(rho: float) -> str:
    # Near 1, where paths vary slowly, two decimals are not enough.
    return f"{rho:.4f}" if abs(rho) > 0.99 else f"{rho:.2f}"


def _band(ax: Axes, steps: np.ndarray, draws: np.ndarray, name: str, half: bool = False) -> None:
    """Draws the median and the central 90% (with `half`, also 50%) of draws `[num, len(steps)]`."""
    if len(steps) == 1:
        # A single step would be invisible.
        steps, draws = steps[0] + np.array([-0.3, 0.3]), np.repeat(draws, 2, axis=1)
    low, q1, median, q3, high = np.quantile(draws, (0.05, 0.25, 0.5, 0.75, 0.95), axis=0)
    marks: dict[str, Any] = {"color": BLUE, "linewidth": 0}
    ax.fill_between(steps, low, high, alpha=0.2, label="90%", **marks)
    if half:
        ax.fill_between(steps, q1, q3, alpha=0.3, label="50%", **marks)
    ax.plot(steps, median, color=BLUE, linewidth=1.2, label=name)


def _points(ax: Axes, x: np.ndarray, colour: str, name: str) -> None:
    ax.plot(x, color=colour, linewidth=0.4, marker=".", markersize=2.2, label=name)


def _grid(
    path: pathlib.Path,
    units: Units,
    num_windows: int,
    panel: Callable[[Axes, int, int], None],
    title: str,
    alike: bool = False,
) -> None:
    """Draws windows side by side, with one row per channel, or rows of windows for one channel.

    `panel(axes, i, j)` draws channel j of window i. With several channels, or if `alike`, the
    panels of a row share their limits.
    """
    num_channels = len(units.names)
    columns = min(num_windows, _NUM_WINDOWS)
    rows = -(-num_windows // columns) if num_channels == 1 else min(num_channels, _MAX_ROWS)
    fig, axes = style.panels(1 + 3.4 * columns, 0.8 + 2.0 * rows, rows, columns, sharex=True)
    for row in range(rows):
        for column in range(columns):
            window, channel = (row * columns + column, 0) if num_channels == 1 else (column, row)
            if window < num_windows:
                panel(axes[row, column], window, channel)
            else:
                axes[row, column].set_visible(False)
        name = units.names[0 if num_channels == 1 else row]
        axes[row, 0].set_ylabel(style.label(name))
        if num_channels > 1 or alike:
            limits = np.array([ax.get_ylim() for ax in axes[row]])
            for ax in axes[row]:
                ax.set_ylim(limits[:, 0].min(), limits[:, 1].max())
    handles, labels = axes[0, 0].get_legend_handles_labels()
    if labels:
        fig.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    fig.suptitle(title)
    for column in axes.T:
        lowest = [ax for ax in column if ax.get_visible()][-1]
        lowest.set_xlabel(units.step)
        lowest.tick_params(labelbottom=True)
    fig.align_ylabels(axes[:, 0])
    style.save(fig, path)
