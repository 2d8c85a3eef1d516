"""Style and writing of all pictures.

Uses only Matplotlib's object interface: no global state, no window, no choice of backend.
"""

import contextlib
import contextvars
import pathlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.text import Text

from tfp_ar1_cli.atomic import atomic
from tfp_ar1_cli.data import loading
from tfp_ar1_cli.errors import UserError, dispensable
from tfp_ar1_cli.progress import counted, doing
from tfp_ar1_cli.run_folder import Run

DPI = 300
BLUE, ORANGE, BLACK, GRAY = "#1f5fa8", "#e0923a", "#303030", "#a0a0a0"
# The most characters of a name, and of any line.
_MAX_NAME, _MAX_LINE = 24, 100
_SUBSCRIPTS = str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉")
# Latents are unused if the variance of their posterior means is below this; the prior's is 1.
_LEAST_VARIANCE = 0.01
_MAX_UNUSED = 6
_CAPTION: contextvars.ContextVar[str] = contextvars.ContextVar("caption", default="")


@contextlib.contextmanager
def captioned(run: Run) -> Iterator[None]:
    """Adds a small caption that describes the run to the pictures saved in the block."""
    options, epochs = run.options, run.options.epochs
    with contextlib.suppress(UserError, OSError):
        epochs = len(run.history().get("loss", ())) or epochs
    name = label(loading.short_name(options.dataset))
    text = f"{name} · {options.posterior} posterior · {counted(epochs, 'epoch')}"
    token = _CAPTION.set(text)
    try:
        yield
    finally:
        _CAPTION.reset(token)


def draw_all(run: Run, **draw: Callable[[pathlib.Path], None]) -> list[pathlib.Path]:
    """Draws the pictures of a run, each to the file `NAME.png`.

    A picture that fails causes a warning; the others are drawn.

    Returns:
      The files that were written.
    """
    files = []
    with doing("Drawing the pictures"), captioned(run):
        for name, function in draw.items():
            path = run.folder / f"{name}.png"
            with dispensable(path):
                function(path)
                files.append(path)
    return files


def panels(
    width: float, height: float, rows: int = 1, columns: int = 1, **kwargs: Any
) -> tuple[Figure, np.ndarray]:
    """A figure with axes `[rows, columns]`, without right and top spines."""
    fig = Figure(figsize=(width, height), layout="constrained")
    axes = fig.subplots(rows, columns, squeeze=False, **kwargs)
    for ax in axes.flat:
        ax.spines[["top", "right"]].set_visible(False)
    return fig, axes


def learning_curves(
    path: pathlib.Path,
    history: dict[str, list[float]],
    unit: str = "nats per image",
    training: str = "training",
    monitored: str = "test",
) -> None:
    """Draws -ELBO, reconstruction and KL over the epochs, on training and on monitored data."""
    fig, axes = panels(11, 3.6, columns=3)
    shown = (
        ("−ELBO = reconstruction + KL", ("reconstruction", "kl")),
        ("Reconstruction −E log p(x | z)", ("reconstruction",)),
        ("KL(q(z | x) ‖ p(z))", ("kl",)),
    )
    for ax, (title, terms) in zip(axes[0], shown, strict=True):
        curves = []
        for name, prefix, colour in ((training, "", ORANGE), (monitored, "val_", BLUE)):
            curve = np.sum([history[prefix + term] for term in terms], axis=0)
            epochs = np.arange(1, len(curve) + 1)
            marker = "." if len(curve) <= 20 else ""
            ax.plot(epochs, curve, color=colour, linewidth=1.2, marker=marker, label=name)
            curves.append(curve)
        # The steep fall of the first epochs would flatten the rest.
        settled = np.array(curves)[:, len(curves[0]) // 20 :]
        margin = 0.05 * np.ptp(settled) + 1e-3
        ax.set_ylim(settled.min() - margin, settled.max() + margin)
        ax.set(title=title, xlabel="epoch", ylabel=unit)
        ax.xaxis.get_major_locator().set_params(integer=True)
    axes[0, 0].legend(frameon=False)
    save(fig, path)


def of_samples(number: int, noise: bool) -> str:
    """The title of pictures of samples."""
    x = "x ~ p(x | z)" if noise else "mean of p(x | z)"
    return f"{counted(number, 'sample')} from the model: z ~ prior, {x}"


def numbered(folder: pathlib.Path, number: int) -> list[pathlib.Path]:
    """The file names of this number of samples."""
    width = len(str(number - 1))
    return [folder / f"sample-{i:0{width}}.png" for i in range(number)]


def latent_name(index: int) -> str:
    """The name of a latent coordinate or path: z₁ is the first."""
    return f"z{index + 1}".translate(_SUBSCRIPTS)


def unused(variances: Sequence[float] | np.ndarray) -> str:
    """The end of a title that names unused latents, found by the variances of their means."""
    (found,) = np.nonzero(np.asarray(variances) < _LEAST_VARIANCE)
    names = [latent_name(i) for i in found.tolist()]
    more = f" and {len(names) - _MAX_UNUSED} more" * (len(names) > _MAX_UNUSED)
    return f"; unused: {', '.join(names[:_MAX_UNUSED])}{more}" if names else ""


def label(text: str, most: int = _MAX_NAME) -> str:
    """The user's text for a picture: shortened, without control characters."""
    text = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text.strip())
    return text if len(text) <= most else text[: most - 1] + "…"


def save(fig: Figure, path: pathlib.Path) -> None:
    """Writes a picture, reproducibly byte for byte.

    Text is not parsed as math, because data may have any name, even `$x_1`.
    """
    plain: dict[Any, bool] = {"text.parse_math": False, "text.usetex": False}
    with mpl.rc_context(plain), warnings.catch_warnings(), atomic(path) as temporary:
        # The picture itself shows missing glyphs and lack of space.
        warnings.filterwarnings("ignore", "Glyph .* missing from|constrained_layout not applied")
        for text in fig.findobj(Text):  # Created under other settings.
            text.set(parse_math=False, usetex=False, text=label(text.get_text(), _MAX_LINE))
        if caption := _CAPTION.get():
            fig.draw_without_rendering()
            fig.set_layout_engine("none")  # Repeating the layout would take as long as drawing.
            for legend in fig.legends:  # Without this, it would move down onto the caption.
                legend.set_bbox_to_anchor((0, 0, 1, 1), fig.transFigure)
            box, (width, height) = fig.get_tightbbox(), fig.get_size_inches()
            corner = {
                "x": box.x1 / width,
                "y": (box.y0 - 0.05) / height,
                "ha": "right",
                "va": "top",
            }
            fig.text(s=caption, color="#808080", fontsize=6.5, parse_math=False, **corner)
        # The metadata would contain the version of Matplotlib.
        fig.savefig(
            temporary, metadata={"Software": None}, dpi=DPI, bbox_inches="tight", pad_inches=0.15
        )
