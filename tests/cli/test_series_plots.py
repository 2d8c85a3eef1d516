"""Pictures of runs on series."""

import matplotlib.image
import numpy as np
import pytest

from tfp_ar1_cli.data import series
from tfp_ar1_cli.pictures import series as series_plots
from tfp_ar1_cli.pictures import style

UNITS = {
    1: series.Units(["pressure"], "step", [10.0], [2.0]),
    8: series.Units([f"channel {i}" for i in range(8)], "step (0.1 s)", [0.0] * 8, [1.0] * 8),
}


def windows(n, channels, steps=20):
    x = np.random.default_rng(0).normal(size=(n, steps, channels)).cumsum(axis=1)
    x[0, 3:5] = np.nan
    x[-1, 15:] = np.nan
    return x.astype(np.float32)


def read(path):
    picture = matplotlib.image.imread(path)
    assert np.ptp(picture) > 0.5, "the picture is blank"
    return picture[..., :3]


def draw(kind, folder, n, channels):
    """Draws a picture of windows; it must not be blank."""
    units, x, path = UNITS[channels], windows(n, channels), folder / f"{kind}.png"
    draws = np.nan_to_num(x) + np.random.default_rng(1).normal(size=(30, *x.shape))
    gap = series_plots.gaps(np.array([20] * n), 20, 0.2, seed=0)
    arguments = {
        "reconstructions": (x, np.array([20] * (n - 1) + [15]), draws),
        "imputations": (x, gap, draws),
        "forecasts": (x, np.array([10] * n), draws[:, :, 10:]),
        "samples": (x,),
    }[kind]
    getattr(series_plots, kind)(path, units, *arguments)
    read(path)


@pytest.mark.parametrize("kind", ["reconstructions", "imputations", "forecasts", "samples"])
def test_pictures_of_every_shape(tmp_path, kind):
    draw(kind, tmp_path, 4, 1)
    if kind == "forecasts":  # More channels than there are rows, in the grid that all of them have.
        draw(kind, tmp_path, 1, 8)
    assert [file.name for file in tmp_path.iterdir()] == [f"{kind}.png"]


def test_the_caption_stands_below_the_legend(tmp_path):
    """The lowest line of letters is grey: nothing of the legend, which has colours, is in it."""
    token = style._CAPTION.set("a long caption: " + 5 * "letters ")
    try:
        draw("imputations", tmp_path, 1, 1)
    finally:
        style._CAPTION.reset(token)
    picture = read(tmp_path / "imputations.png")
    rows = np.flatnonzero(np.any(picture < 0.95, axis=(1, 2)))
    block = rows[np.flatnonzero(np.diff(rows) > 1)[-1] + 1 :]
    assert np.ptp(picture[block], axis=-1).max() < 0.02


def drawn(monkeypatch):
    """The figures of the pictures that are drawn from now on, which are not written."""
    figures = []
    monkeypatch.setattr(style, "save", lambda figure, path: figures.append(figure))
    return figures


def bands_of(ax):
    """The first and the last step of each band of a panel."""
    paths = (collection.get_paths()[0].vertices[:, 0] for collection in ax.collections)
    return [(steps.min(), steps.max()) for steps in paths]


def test_a_reconstruction_ends_with_its_series(monkeypatch):
    figures, x = drawn(monkeypatch), windows(2, 1)
    draws = np.nan_to_num(x) + np.zeros((5, 1, 1, 1))
    series_plots.reconstructions(None, UNITS[1], x, np.array([20, 15]), draws)
    assert [bands_of(ax) for ax in figures[0].axes] == [[(0, 19)], [(0, 14)]]


def test_a_gap_of_one_step_is_seen(monkeypatch):
    figures, x = drawn(monkeypatch), windows(1, 1)
    gap = np.arange(20) == [[4]]
    series_plots.imputations(None, UNITS[1], x, gap, np.zeros((5, *x.shape)))
    ((low, high),) = bands_of(figures[0].axes[0])
    assert low < 4 < high


def test_every_column_says_what_its_steps_are(monkeypatch):
    """Also the second and third, which have no panel at the bottom."""
    figures, x = drawn(monkeypatch), windows(4, 1)
    series_plots.samples(None, UNITS[1], x)
    labelled = [ax.get_xlabel() for ax in figures[0].axes if ax.get_visible()]
    assert labelled == ["", "step", "step", "step"]
    figures[0].canvas.draw()
    shown = [
        any(tick.label1.get_visible() for tick in ax.xaxis.get_major_ticks())
        for ax in figures[0].axes
        if ax.get_visible()
    ]
    assert shown == [False, True, True, True]


@pytest.mark.parametrize("channels", [1, 7])
def test_pictures_of_latent_paths(tmp_path, channels):
    rho = np.linspace(-0.5, 0.999, channels)
    means = windows(2, channels).swapaxes(1, 2)
    series_plots.latent_paths(
        tmp_path / "x.png", np.nan_to_num(means), np.ones_like(means), [20, 9], rho, "step"
    )
    read(tmp_path / "x.png")
    series_plots.correlations(tmp_path / "y.png", rho, 20, "step (0.1 s)")
    read(tmp_path / "y.png")


def test_unused_paths_are_named(monkeypatch):
    """Past the end of a window there is nothing to go by."""
    figures, means = drawn(monkeypatch), np.nan_to_num(windows(4, 3).swapaxes(1, 2))
    means[:, 1], means[:, 1, 9:] = 0.5, 70
    length, rho = np.array([9] * 4), np.array([0.9, 0.2, 0.3])
    series_plots.latent_paths(None, means, np.ones_like(means), length, rho, "step")
    assert figures[0].get_suptitle().endswith("posterior mean and 90% band; unused: z₂")


def test_gaps_are_inside_and_of_the_share():
    length = np.array([100, 50, 3, 2])
    for seed in range(50):
        gap = series_plots.gaps(length, 100, 0.2, seed)
        assert gap.sum(axis=1).tolist() == [20, 10, 1, 1]
        for row, end in zip(gap, length, strict=True):
            inside = np.flatnonzero(row)
            assert inside[0] >= 1
            assert inside[-1] < end
            # One piece.
            assert inside[-1] - inside[0] + 1 == len(inside)


def test_bands_hold_the_quantiles_of_the_draws(tmp_path, monkeypatch):
    bands = []

    def fill_between(ax, x, low, high, **kwargs):
        bands.append((np.asarray(x), low, high))

    monkeypatch.setattr("matplotlib.axes.Axes.fill_between", fill_between)
    x = windows(1, 1)
    # At every step the numbers 0, 1, ..., 100, whose quantiles are known; 10 + 2 x in own units.
    draws = np.tile(np.arange(101.0)[:, None, None, None], (1, 1, 12, 1))
    series_plots.forecasts(tmp_path / "x.png", UNITS[1], x, np.array([8]), draws)
    (steps, low, high), (_, q1, q3) = bands
    np.testing.assert_array_equal(steps, np.arange(8, 20))
    np.testing.assert_allclose([low, high], [[20] * 12, [200] * 12])
    np.testing.assert_allclose([q1, q3], [[60] * 12, [160] * 12])
