"""Removes header, license and credits of a Project Gutenberg book, which are not part of the tale.

Books begin after `*** START OF THE PROJECT GUTENBERG EBOOK … ***`, those of the first decades after the end of "the
small print", and end before `*** END OF …` or `End of the Project Gutenberg Etext`. Anything between the end of one
book and the beginning of the next in the same file is removed, too.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from itertools import chain

HEAD_CHARACTERS = 1 << 16
"""How far a header can reach (characters); the longest small print has some 20,000."""
_START = re.compile(
    r"\*{3}\s?START OF (?:THE|THIS) PROJECT GUTENBERG.*?\*{3}"
    r"|\*END\*?\s?THE SMALL PRINT!?.*?\*END\*"
    r"|\*END THE SMALL PRINT[^\n]*",
    re.IGNORECASE | re.DOTALL,
)
_END = re.compile(
    r"\*{3}\s?END OF (?:THE|THIS) PROJECT GUTENBERG"
    r"|^\s*End of (?:the |this )?Project Gutenberg(?:'s|’s)?\b",
    re.IGNORECASE | re.MULTILINE,
)
_CREDITS = re.compile(
    r"(?:produced|transcribed|prepared|e-?text prepared|scanned|digitized) (?:by|for)\b", re.IGNORECASE
)
_NAME = re.compile(r"project gutenberg", re.IGNORECASE)


def without_license(blocks: Iterable[str], removed: Callable[[str], object]) -> Iterator[str]:
    """The blocks of the tale, unchanged if no book of Project Gutenberg is recognized.

    Args:
        blocks: the text between blank lines, in order; read one by one after the head.
        removed: called with each piece that is left out.
    """
    iterator = iter(blocks)
    head = _head(iterator)
    rest = chain(head, iterator)
    is_book = any(_NAME.search(block) for block in head)
    outside = is_book and any(_START.search(block) for block in head)
    credits_may_follow = False
    for block in rest:
        text = block
        if is_book or "***" in block:
            text, outside, started = _part_of_the_tale(block, outside, removed)
            credits_may_follow |= started
        if not text:
            continue
        if credits_may_follow and _CREDITS.match(text):
            removed(text)
        else:
            yield text
        credits_may_follow = False


def _head(blocks: Iterator[str]) -> list[str]:
    head, characters = [], 0
    for block in blocks:
        head.append(block)
        characters += len(block)
        if characters > HEAD_CHARACTERS:
            break
    return head


def _part_of_the_tale(block: str, outside: bool, removed: Callable[[str], object]) -> tuple[str, bool, bool]:
    """The part of a block that belongs to the tale, whether its end is outside one, and whether a book began in it."""
    kept, started = "", False
    while block:
        edge = (_START if outside else _END).search(block)
        before, block = (block, "") if edge is None else (block[: edge.start()], block[edge.start() :])
        if outside:
            if edge is not None:
                before, block = before + edge[0], block[len(edge[0]) :]
                started = True
            if before.strip():
                removed(before)
        else:
            kept += before
        if edge is not None:
            outside = not outside
    return kept.strip(), outside, started
