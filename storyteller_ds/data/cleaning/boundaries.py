"""Where stories end in text that has no `<|endoftext|>`: determined from the content, or set by the user.

| boundary   | a story ends …                                                                             |
|------------|--------------------------------------------------------------------------------------------|
| blank_line | at every blank line                                                                        |
| line       | at the end of every line                                                                   |
| line_break | at a line break without a blank line; blank lines separate its paragraphs                  |
| heading    | before the heading of the next tale                                                        |
| opening    | before a paragraph that opens a story ("Once upon a time", "One day, a …")                 |
| file       | at the end of the file                                                                     |

All of these work on blocks, which are the text between blank lines, and read them one by one.
"""

import re
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence

from storyteller_ds.data.cleaning.headings import is_chapter, is_heading
from storyteller_ds.data.cleaning.openings import Openings, opens_story
from storyteller_ds.data.cleaning.policy import Boundary
from storyteller_ds.data.sources.story_ends import SHORT_WORDS

LOOKED_AT = 10_000
"""Number of blocks at the beginning of a text that decide the boundary."""
_FEW = 3
"""Fewer headings or openings than this decide nothing."""
_SHARE_OF_OPENINGS = 0.02
"""Least share of paragraphs that are openings, if stories have up to 50 paragraphs."""
_UNWRAPPED = 100
"""Lines of at least this median length are not wrapped to a width (characters)."""
_PARAGRAPH = "\n\n"


def find_boundary(head: Sequence[str]) -> Boundary:
    """What ends the stories of a text.

    Args:
        head: its first LOOKED_AT blocks.
    """
    lines = [line for block in head for line in block.split("\n") if line.strip()]
    if not lines:
        return "file"
    later = [line for block in head for line in block.split("\n")[1:] if line.strip()]
    unwrapped = statistics.median_low(map(len, lines)) >= _UNWRAPPED
    if sum(map(is_heading, head)) >= _FEW and _has_text_between(head):
        return "heading"
    if unwrapped and len(later) > 10 * len(head):
        return "line"
    at_lines, at_blocks = (sum(map(opens_story, each)) for each in (later, head))
    if unwrapped and at_lines >= _FEW and at_lines > at_blocks:
        return "line_break"
    if statistics.median_low(len(block.split()) for block in head) >= SHORT_WORDS:
        return "blank_line"
    if at_blocks >= max(_FEW, _SHARE_OF_OPENINGS * len(head)):
        return "opening"
    return "file"


def stories_of(blocks: Iterable[str], boundary: Boundary) -> Iterator[str]:
    """The stories of a text, each with a blank line between its paragraphs.

    Args:
        blocks: the text between blank lines, in order.
        boundary: from find_boundary; not `auto`.
    """
    if boundary == "blank_line":
        yield from blocks
        return
    story: list[str] = []
    parts_of = _PARTS[boundary]()
    for block in blocks:
        for joint, part, is_start in parts_of(block):
            if is_start and story:
                yield "".join(story)
                story = []
            story.append(f"{joint}{part}" if story else part)
    if story:
        yield "".join(story)


Parts = Iterator[tuple[str, str, bool]]
"""Parts of a block: what joins each to the story before it, the part, and whether a story begins with it."""


class _Lines:
    def __call__(self, block: str) -> Parts:
        return (("", line, True) for line in block.split("\n") if line.strip())


class _LineBreaks:
    def __call__(self, block: str) -> Parts:
        first, *others = (line for line in block.split("\n") if line.strip())
        yield _PARAGRAPH, first, False
        # If paragraphs have no blank lines between them, only an opening shows that a story begins.
        yield from (("\n", line, len(others) == 1 or opens_story(line)) for line in others)


class _Headings:
    def __init__(self) -> None:
        self._behind_heading = False

    def __call__(self, block: str) -> Parts:
        # The headings of chapters belong to the tale, and so does a heading right after its title.
        heads = is_heading(block)
        yield _PARAGRAPH, block, heads and not is_chapter(block) and not self._behind_heading
        self._behind_heading = heads


class _Openings:
    def __init__(self) -> None:
        self._openings = Openings()

    def __call__(self, block: str) -> Parts:
        yield _PARAGRAPH, block, self._openings.is_next(block)


class _Never:
    def __call__(self, block: str) -> Parts:
        yield _PARAGRAPH, block, False


_PARTS: dict[str, Callable[[], Callable[[str], Parts]]] = {
    "line": _Lines,
    "line_break": _LineBreaks,
    "heading": _Headings,
    "opening": _Openings,
    "file": _Never,
}


def _has_text_between(head: Sequence[str]) -> bool:
    """Whether the headings are a small part of a text."""
    characters = sum(map(len, head))
    return sum(len(block) for block in head if is_heading(block)) < 0.05 * characters


def paragraphs(text: str) -> list[str]:
    """The blocks of a document."""
    return [block for block in re.split(r"\n\s*\n", text) if block.strip()]
