"""Marks for each character of a story: its kind, its place in a word, whether somebody is speaking."""

import re
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from storyteller_ds.atlas.parts_of_speech import NAMES, parts_of_speech
from storyteller_ds.evaluation.words import names_in

KINDS = ("word", "name", "number", "punctuation", "quotation mark", "white space", "end of a story")
WORD_PLACES = ("begins a word", "within a word", "no word")
SPEECH = ("told", "in quotation marks")
PARTS_OF_SPEECH = (*NAMES, "no word")
_WORD, _NAME, _NUMBER, _PUNCTUATION, _QUOTE, _SPACE, END = range(len(KINDS))
BEGINS, _WITHIN, NO_WORD = range(len(WORD_PLACES))
_PIECE = re.compile(r"(?P<word>[^\W\d_]+(?:['’][^\W\d_]+)*)|(?P<number>\d+)|(?P<quote>[\"“”«»„])|(?P<space>\s+)|.")
_AT_ONCE = 10_000
_SENTENCE_END = '.!?:;…"“”\n'
_OPENS = '"“„«'
_SPEECH_MARK = re.compile(r"\n\s*\n|[\"“”«»„]")


class Marks(NamedTuple):
    """Marks of each of C characters; numbers are indices into the tuples above."""

    kind_C: NDArray[np.int8]
    word_place_C: NDArray[np.int8]
    speech_C: NDArray[np.int8]
    part_of_speech_C: NDArray[np.int8] | None
    """None: not requested."""


def marks_of(story: str, tags: bool) -> Marks:
    """The marks of a story.

    Args:
        story: its text.
        tags: whether parts of speech are wanted, which needs the extra `atlas`.
    """
    kind_C = np.full(len(story), _PUNCTUATION, np.int8)
    word_place_C = np.full(len(story), NO_WORD, np.int8)
    part_C = np.full(len(story), len(NAMES), np.int8)
    # Piece by piece, because the search for names looks back: its time grows with the square of the length.
    names = {name for start in range(0, len(story), _AT_ONCE) for name in names_in(story[start : start + _AT_ONCE])}
    sentence: list[re.Match[str]] = []
    for found in _PIECE.finditer(story):
        start, end = found.span()
        if found.lastgroup == "word":
            kind_C[start:end] = _NAME if re.sub(r"['’]s$", "", found[0]) in names else _WORD
            word_place_C[start:end], word_place_C[start] = _WITHIN, BEGINS
            sentence.append(found)
        elif found.lastgroup is not None:
            kind_C[start:end] = {"number": _NUMBER, "quote": _QUOTE, "space": _SPACE}[found.lastgroup]
        if tags and sentence and (end == len(story) or any(each in _SENTENCE_END for each in found[0])):
            for word, part in zip(sentence, parts_of_speech([each[0] for each in sentence]), strict=True):
                part_C[word.start() : word.end()] = part
            sentence = []
    return Marks(kind_C, word_place_C, _speech(story), part_C if tags else None)


def _speech(story: str) -> NDArray[np.int8]:
    """Whether each character is within double quotation marks (exclusive); a new paragraph ends a quotation.

    Single quotation marks are ignored because they are also apostrophes.
    """
    speech_C = np.zeros(len(story), np.int8)
    began: int | None = None
    for mark in _SPEECH_MARK.finditer(story):
        if began is not None:
            speech_C[began : mark.start()] = 1
        # “ closes „; any other mark within a quotation is ambiguous, so it closes the quotation, too.
        began = mark.end() if began is None and mark[0] in _OPENS else None
    if began is not None:
        speech_C[began:] = 1
    return speech_C
