"""Where stories end in a text, and how that is determined."""

import codecs
import io
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal

from storyteller_ds.data.sources.source import LONGEST, LOOKED_AT, too_long
from storyteller_ds.errors import DataError

MARKER = "<|endoftext|>"
BYTE_ORDER_MARK = "\ufeff"
"""Dropped wherever it occurs, because files get joined."""
SHORT_WORDS = 100
"""A shorter median document is more likely a paragraph than a story (words)."""
LEAST_LINES = 20
"""Fewer lines are one story rather than one each."""
ENDED_LINES = 0.9
"""Least fraction of lines that end like sentences if each is a story; in wrapped text, few do."""
_ENDS_OF_SENTENCES = ".!?…\"'”’»)*_。！？」』"
_FIX = f"put {MARKER} between its stories, or set data.split to where they end"

Ends = Literal["marker", "blank_line", "line", "file", "none"]
"""data.split, once decided."""


class Evidence:
    """What a text says about where its stories end; it is shown the text piece by piece."""

    def __init__(self) -> None:
        self.has_marker = False
        self.has_blank_line = False
        """Whether there is one between two lines of text; not looked for after a marker."""
        self._decoder = io.IncrementalNewlineDecoder(codecs.getincrementaldecoder("utf-8")("replace"), translate=True)
        self._tail = ""
        self._lines = self._ended = 0
        self._is_behind_blank_line = False
        self._last = ""
        """The last character so far in the current line that is not white space."""

    def look_at(self, piece: bytes) -> None:
        """Take in the next bytes of UTF-8; b"" at the end."""
        if self.has_marker:
            return
        text = self._decoder.decode(piece, final=not piece).replace(BYTE_ORDER_MARK, "")
        with_tail = self._tail + text
        self.has_marker = MARKER in with_tail
        self._tail = with_tail[1 - len(MARKER) :]
        if self.has_marker or self.has_blank_line:
            return
        *ended, rest = text.split("\n")
        for line in ended:
            self._go_on(line)
            self._end_line()
        self._go_on(rest)
        if not piece:
            self._end_line()

    @property
    def ends(self) -> Ends:
        """The marker if there is one, else blank lines, else line ends, else the end of the file.

        Line ends only if there are many lines and nearly all are whole sentences.
        """
        if self.has_marker:
            return "marker"
        if self.has_blank_line:
            return "blank_line"
        return "line" if self._lines >= LEAST_LINES and self._ended >= ENDED_LINES * self._lines else "file"

    def _go_on(self, text: str) -> None:
        if stripped := text.rstrip():
            self._last = stripped[-1]

    def _end_line(self) -> None:
        if not self._last:
            self._is_behind_blank_line = self._lines > 0
            return
        self.has_blank_line = self.has_blank_line or self._is_behind_blank_line
        self._lines += 1
        self._ended += self._last in _ENDS_OF_SENTENCES
        self._last = ""


def by_lines(ends: Ends) -> bool:
    """Whether `pieces` takes lines; otherwise, it takes any pieces."""
    return ends in ("blank_line", "line")


def pieces(text: Iterable[str], ends: Ends, name: str) -> Iterator[str]:
    """The texts between the ends of stories; they may be blank.

    Args:
        text: line by line, with LF at their ends, or in pieces; see by_lines.
        ends: where stories end.
        name: name of the text, for messages.

    Raises:
        DataError: one is too long to be a story.
    """
    # Joined only when a story ends: appending to a string would be quadratic for long ones.
    story: list[str] = []
    length = 0
    for part in _PARTS[ends](text):
        if part is not None:
            story.append(part)
            length += len(part)
            if length > LONGEST:
                raise too_long(f"a document of {name}", _FIX)
        else:
            yield "".join(story)
            story, length = [], 0
    yield "".join(story)


def long_line(name: str, number: int) -> DataError:
    """The error about a line of a text that is too long, by its number."""
    return too_long(f"line {number:,} of {name}", _FIX)


_Parts = Iterator[str | None]
"""Parts of stories; None ends a story."""


def _at_markers(text: Iterable[str]) -> _Parts:
    tail = ""
    for piece in text:
        *ended, rest = (tail + piece).split(MARKER)
        for part in ended:
            yield part
            yield None
        tail = rest[1 - len(MARKER) :]  # a marker could begin in it
        yield rest[: len(rest) - len(tail)]
    yield tail


def _at_blank_lines(text: Iterable[str]) -> _Parts:
    for line in text:
        yield line if line.strip() else None


def _at_lines(text: Iterable[str]) -> _Parts:
    for line in text:
        yield line
        yield None


def _nowhere(text: Iterable[str]) -> _Parts:
    yield from text


_PARTS: dict[Ends, Callable[[Iterable[str]], _Parts]] = {
    "marker": _at_markers,
    "blank_line": _at_blank_lines,
    "line": _at_lines,
    "file": _nowhere,
    "none": _nowhere,
}


def described(name: str, documents: Sequence[str], ends: Ends) -> str:
    """How a text was split, and what helps if that was not intended.

    Args:
        name: name of the text.
        documents: its first LOOKED_AT documents, at least one.
        ends: where they end.
    """
    words = statistics.median_low(len(document.split()) for document in documents)
    length = f"{words:,} word{'s' if words != 1 else ''}"
    if len(documents) == 1:
        if ends == "marker":
            return f"{name} is one document of {length}, for it has no text on the other side of {MARKER}"
        each_line = ", or set data.split=line if each line is one" if "\n" in documents[0] else ""
        return (
            f"{name} is one document of {length}, for it has no blank line within and no {MARKER}; "
            f"put {MARKER} between its stories{each_line}"
        )
    first = "the first " if len(documents) == LOOKED_AT else ""
    how = {
        "marker": f"split at {MARKER}",
        "blank_line": "split at blank lines",
        "line": "one a line; set data.split=file if its lines are one story",
    }.get(ends, f"one a file; set data.split=blank_line, or put {MARKER} between stories, if a file has several")
    advice = ""
    if ends == "blank_line" and words < SHORT_WORDS:
        advice = f"; put {MARKER} between stories that have blank lines within"
    return f"{name}: {first}{len(documents):,} documents of {length} (median), {how}{advice}"
