"""matplotlib figures as PNG files."""

import io
from pathlib import Path
from typing import TYPE_CHECKING

from storyteller_ds.durable import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_DPI = 150


def as_png(figure: "Figure") -> bytes:
    """The content of a PNG file, on white."""
    out = io.BytesIO()
    # Leave out the library's version, so that the same figure stays the same bytes for longer.
    figure.savefig(out, format="png", dpi=_DPI, facecolor="white", metadata={"Software": None})
    return out.getvalue()


def write_png(figure: "Figure", path: Path) -> None:
    """Write a PNG; replaces an existing one once the new one is complete.

    Raises:
        OSError: the file cannot be written.
    """
    write_atomically(path, as_png(figure))
