"""Lines that are broken between words, of a text that comes in pieces."""

import re

from rich.cells import cell_len

_PARTS = re.compile(r"\n|[^\S\n]+|\S+")


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
        # Blanks wait for the word after them, which may go to the next line without them.
        if whole and whole[-1] != "\n" and whole[-1].isspace():
            self._held = whole.pop() + self._held
        return self._placed(whole)

    def rest(self) -> str:
        """What is still held back, at the end of the text."""
        held, self._held = self._held, ""
        return self._placed(_PARTS.findall(held))

    def _placed(self, parts: list[str]) -> str:
        placed = ""
        blanks = ""
        for part in parts:
            if part == "\n":
                placed += part
                self._column, blanks = 0, ""
            elif part.isspace():
                blanks = part
            else:
                if self._column and self._column + cell_len(blanks + part) > self._width:
                    placed += "\n"
                    self._column, blanks = 0, ""
                placed += blanks + part
                self._column += cell_len(blanks + part)
                blanks = ""
        return placed + blanks
