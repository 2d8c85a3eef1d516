"""Pictures of a run on images; `draw_run` draws all of them."""

import functools
import math
import pathlib
from typing import Any

import matplotlib as mpl
import matplotlib.image
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from tfp_ar1_cli.data.images import ImageData
from tfp_ar1_cli.pictures import style
from tfp_ar1_cli.pictures.style import BLUE
from tfp_ar1_cli.run_folder import Run

_MAX_CATEGORIES = 20
# More test images would not show more in a picture.
_MAX_IMAGES = 5000


def draw_run(run: Run, model: Any, data: ImageData) -> list[pathlib.Path]:
    """Draws all pictures of a run with its trained `RhoVAE`; returns the files in order."""
    x = data.x_test[:_MAX_IMAGES]
    labels = None if data.y_test is None else data.y_test[:_MAX_IMAGES]
    few, scale, options = x[:20], run.value_range, run.options

    @functools.cache
    def encoded() -> tuple[np.ndarray, np.ndarray]:
        posterior = model.encode(x)
        return np.asarray(posterior.mean()), np.asarray(posterior.stddev())

    return style.draw_all(
        run,
        samples=lambda path: samples(
            path, np.asarray(model.generate(64, seed=options.seed)), scale
        ),
        reconstructions=lambda path: reconstructions(
            path, few, np.asarray(model.reconstruct(few)), scale
        ),
        latent_traversal=lambda path: latent_traversal(path, model, encoded()[0], scale),
        latent_scatter=lambda path: latent_scatter(path, *encoded(), labels),
        correlations=lambda path: correlations(path, model.correlation(x), options.posterior),
        learning_curves=lambda path: style.learning_curves(
            path, run.history(), monitored=options.monitored
        ),
    )


def draw_progress(run: Run, model: Any, data: ImageData, folder: pathlib.Path) -> None:
    """Writes samples and reconstructions, each time for the same z and the same test images."""
    if len(run.data_shape) == 1:
        return
    few = data.x_test[:10]
    new = np.asarray(model.generate(20, seed=run.options.seed))
    cells = {
        "samples": _in_rows(new, 10),
        "reconstructions": np.stack([few, np.asarray(model.reconstruct(few))]),
    }
    for name, images in cells.items():
        canvas = np.squeeze(_canvas(_scaled(images, run.value_range)))
        mpl.image.imsave(folder / f"{name}.png", canvas, cmap="gray", vmin=0, vmax=1)


def samples(
    path: pathlib.Path,
    images: np.ndarray,
    value_range: tuple[float, float],
    noise: bool = False,
) -> None:
    """Draws images `[N, *image_shape]` in a roughly square grid."""
    columns = math.ceil(math.sqrt(len(images)))
    fig, ax = _image_figure(_in_rows(images, columns), value_range)
    ax.set_title(style.of_samples(len(images), noise))
    style.save(fig, path)


def write_each(folder: pathlib.Path, images: np.ndarray, value_range: tuple[float, float]) -> None:
    """Writes each image `[N, H, W]` or `[N, H, W, C]` as a PNG file of its size."""
    from PIL import Image

    x = np.round(255 * np.clip(_scaled(images, value_range), 0, 1)).astype(np.uint8)
    if x.shape[-1] == 1 and x.ndim == 4:
        x = x[..., 0]
    for path, image in zip(style.numbered(folder, len(x)), x, strict=True):
        Image.fromarray(image).save(path)


def reconstructions(
    path: pathlib.Path,
    originals: np.ndarray,
    reconstructed: np.ndarray,
    value_range: tuple[float, float],
) -> None:
    """Draws rows of originals, each above the row of their reconstructions."""
    rows = [_in_rows(x, min(10, len(x))) for x in (originals, reconstructed)]
    cells = np.stack(rows, axis=1).reshape(-1, *rows[0].shape[1:])
    fig, ax = _image_figure(cells, value_range)
    ax.set_title("Test images and their reconstructions")
    ax.set_yticks(np.arange(len(cells)) + 0.5, ["original", "reconstruction"] * len(rows[0]))
    style.save(fig, path)


def latent_traversal(
    path: pathlib.Path, model: Any, means: np.ndarray, value_range: tuple[float, float]
) -> None:
    """Draws the decoder's outputs while one latent coordinate at a time varies.

    Draws the ten coordinates in which the posterior means `[N, latent_dim]` vary most.
    """
    latent_dim = means.shape[-1]
    order = np.argsort(-means.var(axis=0))[:10]
    values = np.linspace(-3, 3, 11, dtype=np.float32)
    z = np.zeros((len(order), len(values), latent_dim), np.float32)
    for row, coordinate in enumerate(order):
        z[row, :, coordinate] = values
    images = np.asarray(model.decode(z.reshape(-1, latent_dim)).mean())
    fig, ax = _image_figure(images.reshape(*z.shape[:2], *images.shape[1:]), value_range)
    several = latent_dim > 1
    title = f"{'One' if several else 'The'} latent coordinate varied{', the others 0' * several}"
    ax.set_title(title + style.unused(means.var(axis=0)))
    ax.set_yticks(np.arange(len(order)) + 0.5, [style.latent_name(i) for i in order])
    ax.set_xticks(np.arange(len(values)) + 0.5, [f"{value:+.1f}" for value in values])
    ax.set_xlabel("value of the coordinate (prior standard deviations)")
    style.save(fig, path)


def correlations(path: pathlib.Path, rho: np.ndarray, posterior: str) -> None:
    """Draws the histogram of the posterior's lag-one correlation, one value per test image."""
    fig, ((ax,),) = style.panels(6.4, 3.8)
    ax.hist(rho, bins=np.linspace(-1, 1, 82), color=BLUE)
    mean = rho.mean()
    ax.axvline(mean, color="black", linewidth=1, linestyle="--", label=f"mean {mean:+.3f}")
    ax.set_xlim(-1, 1)
    ax.yaxis.get_major_locator().set_params(integer=True)
    titles = {
        "ar1": "Correlation ρ of neighbouring latent coordinates",
        "full": "Mean correlation of neighbouring latent coordinates",
    }
    ax.set(
        title=titles.get(posterior, f"The {posterior} posterior has no correlations: ρ is 0"),
        xlabel="ρ of the posterior q(z | x), from −1 to 1",
        ylabel="test images",
    )
    ax.legend(frameon=False)
    style.save(fig, path)


def latent_scatter(
    path: pathlib.Path, means: np.ndarray, stddevs: np.ndarray, labels: np.ndarray | None
) -> None:
    """Draws the test images in latent space, coloured by label `[N]` if labels are known.

    Posterior means `[N, latent_dim]` are drawn along their first two principal components; if there
    is only one latent coordinate, standard deviations against means.
    """
    fig, ((ax,),) = style.panels(6.8, 5.4)
    if means.shape[-1] == 1:
        x, y = means[:, 0], stddevs[:, 0]
        ax.set(
            title="Test images in latent space",
            xlabel="posterior mean (prior standard deviations)",
            ylabel="posterior standard deviation",
        )
    else:
        centred = means - means.mean(axis=0)
        variances, directions = np.linalg.eigh(centred.T @ centred)
        x, y = (centred @ directions[:, :-3:-1]).T
        share = variances[::-1] / max(variances.sum(), np.finfo(np.float32).tiny)
        ax.set(
            title="Posterior means of the test images",
            xlabel=f"principal component 1 ({share[0]:.0%} of the variance)",
            ylabel=f"principal component 2 ({share[1]:.0%} of the variance)",
        )
        ax.set_aspect("equal", adjustable="datalim")
    marks = {"s": float(np.clip(20000 / len(x), 3, 25)), "linewidths": 0, "alpha": 0.8}
    names = np.array([]) if labels is None else np.unique(labels)
    if labels is None or (len(names) > _MAX_CATEGORIES and names.dtype.kind not in "buif"):
        ax.scatter(x, y, color=BLUE, **marks)
    elif len(names) <= _MAX_CATEGORIES:
        palette = mpl.colormaps["tab10" if len(names) <= 10 else "tab20"]
        for index, name in enumerate(names):
            chosen = labels == name
            ax.scatter(x[chosen], y[chosen], color=palette(index), label="-", **marks)
        size = 6 / marks["s"] ** 0.5
        legend = fig.legend(
            title="label", loc="outside right center", frameon=False, markerscale=size
        )
        # Not passed as `label`: Matplotlib leaves out labels that begin with an underscore.
        for text, name in zip(legend.get_texts(), names, strict=True):
            text.set_text(style.label(str(name)))
    else:
        fig.colorbar(ax.scatter(x, y, c=labels.astype(float), **marks), label="label")
    style.save(fig, path)


def _scaled(x: np.ndarray, value_range: tuple[float, float]) -> np.ndarray:
    low, high = value_range
    return (x - low) / max(high - low, float(np.finfo(np.float32).tiny))


def _in_rows(images: np.ndarray, columns: int) -> np.ndarray:
    """Arranges `[N, ...]` as `[rows, columns, ...]`; cells without an image are NaN."""
    rows = math.ceil(len(images) / columns)
    cells = np.full((rows * columns, *images.shape[1:]), np.nan, np.float32)
    cells[: len(images)] = images
    return cells.reshape(rows, columns, *images.shape[1:])


def _image_figure(cells: np.ndarray, value_range: tuple[float, float]) -> tuple[Figure, Axes]:
    """A figure with a grid of images; cell [row, column] is the unit square at (column, row)."""
    rows, columns, *shape = cells.shape
    cells = _scaled(cells, value_range)
    ratio = shape[0] / shape[1] if len(shape) > 1 else 0.6
    width = np.clip(0.8 * columns, 4, 10)
    height = np.clip(width / columns * ratio * rows, 1, 20)
    fig = Figure(figsize=(width + 1, height + 1), layout="constrained")
    ax = fig.subplots()
    if len(shape) == 1:
        _draw_lines(ax, cells)
    else:
        canvas = _canvas(cells)
        if canvas.shape[-1] == 1:
            canvas = canvas[..., 0]
        aspect = canvas.shape[0] / rows / (canvas.shape[1] / columns)
        unit_cells = {"extent": (0, columns, rows, 0), "aspect": aspect}
        ax.imshow(canvas, cmap="gray", vmin=0, vmax=1, interpolation="nearest", **unit_cells)
    ax.set_xticks([])
    ax.set_yticks([])
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    return fig, ax


def _canvas(cells: np.ndarray) -> np.ndarray:
    """One image `[height, width, 1 or 3]` of all cells, with white gaps to the right and below.

    3 channels are colours; any other number is averaged to gray.
    """
    if cells.ndim == 4:
        cells = cells[..., None]
    if cells.shape[-1] != 3:
        cells = cells.mean(axis=-1, keepdims=True)
    cells = np.clip(np.nan_to_num(cells, nan=1), 0, 1)  # Missing cells are white.
    rows, columns, height, width, channels = cells.shape
    gap = max(1, max(height, width) // 16)
    cells = np.pad(cells, [(0, 0), (0, 0), (0, gap), (0, gap), (0, 0)], constant_values=1)
    return cells.swapaxes(1, 2).reshape(rows * (height + gap), columns * (width + gap), channels)


def _draw_lines(ax: Axes, cells: np.ndarray) -> None:
    """Draws each vector of `[rows, columns, D]` as a line in its cell."""
    rows, columns, size = cells.shape
    x = np.linspace(0.05, 0.95, size) if size > 1 else np.array([0.5])
    x = np.broadcast_to(x + np.arange(columns)[:, None], cells.shape)
    y = 0.95 - 0.9 * cells + np.arange(rows)[:, None, None]
    lines = np.stack([x, y], axis=-1).reshape(-1, size, 2)
    ax.add_collection(LineCollection(list(lines), color=BLUE, linewidths=0.8))
    if size == 1:
        ax.scatter(lines[..., 0], lines[..., 1], s=6, color=BLUE)
    ax.set_xlim(0, columns)
    ax.set_ylim(rows, 0)
