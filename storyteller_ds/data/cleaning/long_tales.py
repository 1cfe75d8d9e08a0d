"""Cuts tales that are longer than a story may be, at chapters, the ends of paragraphs or the ends of sentences."""

import math
import re
from collections.abc import Sequence

from storyteller_ds.data.cleaning.boundaries import paragraphs
from storyteller_ds.data.cleaning.headings import is_heading

_SENTENCE_END = re.compile(r"""(?<=[.!?])\s+|(?<=[.!?]["'”’)])\s+|(?<=[。！？])""")

_ROOM = 1.1


def cut(tale: str, longest: int) -> list[str]:
    """The parts of a tale, none longer than `longest` characters if there is a place to cut it.

    Parts have about the same length, because a last part of a few words would not be a story.

    Args:
        tale: the normalized tale.
        longest: maximum length of a part (characters).
    """
    if len(tale) <= longest:
        return [tale]
    parts: list[str] = []
    for chapter in _chapters(paragraphs(tale)):
        parts += _windows(chapter, longest)
    return parts


def _chapters(blocks: Sequence[str]) -> list[str]:
    """The text in pieces that each begin with a heading."""
    starts = [i for i, block in enumerate(blocks) if i == 0 or (is_heading(block) and not is_heading(blocks[i - 1]))]
    return ["\n\n".join(blocks[start:end]) for start, end in zip(starts, [*starts[1:], len(blocks)], strict=True)]


def _windows(text: str, longest: int) -> list[str]:
    if len(text) <= longest:
        return [text]
    pieces = [piece for block in paragraphs(text) for piece in _sentences(block, longest)]
    # A little more room than needed, because paragraphs do not end exactly where a part should.
    target = len(text) / math.ceil(_ROOM * len(text) / longest)
    windows: list[str] = []
    window, done = "", 0
    for joint, piece in pieces:
        after = len(window) + len(joint) + len(piece)
        # A piece whose middle is beyond the place of the cut belongs to the next part.
        if window and (after > longest or done + after - len(piece) / 2 > target * (len(windows) + 1)):
            windows.append(window)
            done += len(window)
            window = piece
        else:
            window = f"{window}{joint}{piece}" if window else piece
    return [*windows, window]


def _sentences(block: str, longest: int) -> list[tuple[str, str]]:
    """A paragraph, or its sentences if it is longer than a part may be; each with what joins it to the text before."""
    if len(block) <= longest:
        return [("\n\n", block)]
    sentences = [each for each in _SENTENCE_END.split(block) if each]
    return [("\n\n" if i == 0 else " ", sentence) for i, sentence in enumerate(sentences)]
