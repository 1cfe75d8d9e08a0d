"""Tales longer than a story may be: cut at chapters, at the ends of paragraphs, at the ends of sentences."""

import math
import re
from collections.abc import Sequence

from storyteller_ds.data.cleaning.boundaries import paragraphs
from storyteller_ds.data.cleaning.headings import is_heading

_SENTENCE_END = re.compile(r"""(?<=[.!?])\s+|(?<=[.!?]["'”’)])\s+|(?<=[。！？])""")

_ROOM = 1.1


def cut(tale: str, longest: int) -> list[str]:
    """The parts of a tale, none longer than `longest` characters where there is a place to cut it.

    Parts are of about the same length: a last one of a few words would be no story.

    Args:
        tale: normalised.
        longest: characters of a part.
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
    # A little more room than needed: paragraphs end where they do.
    target = len(text) / math.ceil(_ROOM * len(text) / longest)
    windows: list[str] = []
    window, done = "", 0
    for joint, piece in pieces:
        after = len(window) + len(joint) + len(piece)
        # Where the middle of a piece lies beyond the place of the cut, it belongs to the next part.
        if window and (after > longest or done + after - len(piece) / 2 > target * (len(windows) + 1)):
            windows.append(window)
            done += len(window)
            window = piece
        else:
            window = f"{window}{joint}{piece}" if window else piece
    return [*windows, window]


def _sentences(block: str, longest: int) -> list[tuple[str, str]]:
    """A paragraph, or its sentences if it is longer than a part may be; each with what joins it to what is before."""
    if len(block) <= longest:
        return [("\n\n", block)]
    sentences = [each for each in _SENTENCE_END.split(block) if each]
    return [("\n\n" if i == 0 else " ", sentence) for i, sentence in enumerate(sentences)]
