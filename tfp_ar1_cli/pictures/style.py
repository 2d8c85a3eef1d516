"""The style of all pictures, and how they are written.

Matplotlib's object interface is used throughout: no global state, no window, no choice of backend.
"""

import pathlib
import warnings
from collections.abc import Callable

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text

from tfp_ar1_cli.errors import dispensable
from tfp_ar1_cli.progress import doing
from tfp_ar1_cli.runs import atomic

# Letters of a name, and of any line.
_MAX_NAME, _MAX_LINE = 24, 100


def draw_all(folder: pathlib.Path, **draw: Callable[[pathlib.Path], None]) -> list[pathlib.Path]:
    """Draws pictures; one that fails is told in a warning, and costs no other.

    Args:
      folder: Where they go.
      **draw: For each name what draws that picture, given its file.

    Returns:
      The files that were written.
    """
    files = []
    with doing("Drawing the pictures"):
        for name, function in draw.items():
            path = folder / f"{name}.png"
            with dispensable(path):
                function(path)
                files.append(path)
    return files


def save(fig: Figure, path: pathlib.Path) -> None:
    """Writes the picture: the same bytes for the same picture.

    Text is shown as it is: data may be called anything, `$x_1` too.
    """
    plain = {"text.parse_math": False, "text.usetex": False}
    with mpl.rc_context(plain), warnings.catch_warnings(), atomic(path) as temporary:
        # The picture itself shows that the font lacks a letter, or that there was little room.
        warnings.filterwarnings("ignore", "Glyph .* missing from|constrained_layout not applied")
        for text in fig.findobj(Text):  # Made before, under other settings.
            text.set(parse_math=False, usetex=False, text=label(text.get_text(), _MAX_LINE))
        # No metadata: the version of matplotlib would be in it.
        fig.savefig(
            temporary, metadata={"Software": None}, dpi=150, bbox_inches="tight", pad_inches=0.15
        )


def label(text: str, most: int = _MAX_NAME) -> str:
    """Text of the user's as it can stand in a picture: one line, not too long, no control codes."""
    text = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text.strip())
    return text if len(text) <= most else text[: most - 1] + "…"


def bare(ax: Axes) -> None:
    """Takes away the frame on the right and above."""
    ax.spines[["top", "right"]].set_visible(False)
