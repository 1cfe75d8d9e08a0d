"""Word wrapping for text that arrives in pieces."""

import re

from rich.cells import cell_len

_PARTS = re.compile(r"\n|[^\S\n]*\S+|[^\S\n]+")
"""A line end; a word with the blanks before it, which are dropped where a line begins; blanks at the end."""


class WordWrap:
    """Breaks lines at `width`; a word is held back until it is known to be complete.

    Args:
        width: width of the terminal (columns).
    """

    def __init__(self, width: int) -> None:
        self._width = width
        self._column = 0
        self._held = ""

    def feed(self, piece: str) -> str:
        """The text that can be printed now that `piece` has arrived."""
        *whole, self._held = _PARTS.findall(self._held + piece) or [""]
        return "".join(map(self._placed, whole))

    def rest(self) -> str:
        """The text that is still held back at the end."""
        held, self._held = self._held, ""
        return self._placed(held)

    def _placed(self, part: str) -> str:
        word = part.lstrip()
        if part == "\n":
            self._column = 0
        elif word and self._column and self._column + cell_len(part) > self._width:
            self._column = cell_len(word)
            return f"\n{word}"
        else:
            self._column += cell_len(part)
        return part
