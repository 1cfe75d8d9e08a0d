"""How figures look: as SVG that follows the page's light or dark colors, and as PNG on white."""

import io
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib
from cycler import cycler
from matplotlib.figure import Figure

WIDTH, HEIGHT = 4.3, 2.7
"""Size of a figure (inches): 9-point text is still readable where a phone shows the figure at full width."""
_INK = "#0b0c0e"
_COLORS = ("#2f7ebc", "#e0653a", "#2a9d6e", "#b9609f", "#c59a1b", "#5fb3d4", "#8a6d5b", "#7f7f7f")
"""Readable on white and near-black, and for color-blind people: after Okabe and Ito, Color Universal Design (2008)."""
_STYLE: Any = {
    "axes.edgecolor": "#8a8d91",
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.labelcolor": _INK,
    "axes.prop_cycle": cycler(color=_COLORS),
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.facecolor": "none",
    "font.size": 9,
    "grid.alpha": 0.35,
    "grid.color": "#8a8d91",
    "grid.linewidth": 0.6,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "lines.linewidth": 1.4,
    "svg.fonttype": "none",
    "text.color": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
}
_UNUSED_ID = re.compile(r' id="[A-Za-z0-9.]+_\d+"')
"""Ids of groups, which are the same in every figure; nothing refers to them."""


@contextmanager
def style() -> Iterator[None]:
    """Give all figures made inside the same style. Hides matplotlib's remarks about fonts and its cache."""
    logger = logging.getLogger("matplotlib")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with matplotlib.rc_context(_STYLE):
            yield
    finally:
        logger.setLevel(level)


def as_svg(figure: Figure, name: str) -> str:
    """An SVG element for an HTML page that uses the page's text color and keeps text as text.

    Args:
        figure: made inside style(), where this must be called, too.
        name: of the figure, unique on its page, so that no two figures share ids.
    """
    out = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name}):
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    text = text[text.index("<svg") :]
    return _UNUSED_ID.sub("", text.replace(_INK, "currentColor")).strip()
