"""Lines that are broken between words, of a text that comes in pieces."""

import re

from rich.cells import cell_len

_PARTS = re.compile(r"\n|[^\S\n]*\S+|[^\S\n]+")
"""A line end; a word with the blanks before it, which are left out where a line begins; blanks at the end."""


class WordWrap:
    """Breaks lines at `width`; a word is held back until it is known to be whole.

    Args:
        width: of the terminal (columns).
    """

    def __init__(self, width: int) -> None:
        self._width = width
        self._column = 0
        self._held = ""

    def feed(self, piece: str) -> str:
        """What can be printed when `piece` has come."""
        *whole, self._held = _PARTS.findall(self._held + piece) or [""]
        return "".join(map(self._placed, whole))

    def rest(self) -> str:
        """What is still held back, at the end of the text."""
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
