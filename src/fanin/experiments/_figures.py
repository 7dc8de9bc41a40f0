"""Figures: matplotlib's Agg through its object interface, so nobody's backend or style is touched.

Colours are Okabe & Ito's (2008), told apart with any colour vision: vermilion is always PyTorch's
default, blue what fanin does. Lines also differ in dash or marker, for print.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._errors import MissingExtraError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

VERMILION, BLUE, GREEN, ORANGE = "#D55E00", "#0072B2", "#009E73", "#E69F00"
SKY, PINK, GREY, BLACK = "#56B4E9", "#CC79A7", "#767676", "#000000"
DASHES = ("-", "--", "-.", ":")

STYLE: Any = {
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#E5E5E5",
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.8,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "svg.hashsalt": "fanin",
    "savefig.dpi": 150,
}


def draw(
    name: str,
    out: Path,
    size: tuple[float, float],
    paint: Callable[[Figure], Any],
) -> tuple[tuple[Path, ...], tuple[str, ...]]:
    """Paint a figure and write it as PNG and SVG.

    Args:
        name: of the files, without suffix.
        out: their folder, made if missing.
        size: width and height in inches.
        paint: fills the figure.

    Returns:
        (paths written, notes). Without matplotlib: no paths, and a note naming the extra.
    """
    try:
        from matplotlib import rc_context  # noqa: PLC0415 - an optional dependency
        from matplotlib.figure import Figure  # noqa: PLC0415 - an optional dependency
    except ImportError:
        return (), (f"No figure: {MissingExtraError('drawing', 'matplotlib', 'plot')}",)
    out.mkdir(parents=True, exist_ok=True)
    paths = (out / f"{name}.png", out / f"{name}.svg")
    with rc_context(STYLE):
        figure = Figure(figsize=size, layout="constrained")
        paint(figure)
        figure.savefig(paths[0], metadata={"Software": "fanin"})
        figure.savefig(paths[1], metadata={"Date": None, "Creator": "fanin"})
    return paths, ()
