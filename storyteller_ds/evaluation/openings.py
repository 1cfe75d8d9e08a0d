"""How the stories begin that a model is asked to continue: as held-out stories do."""

import re
from typing import NamedTuple

import numpy as np

from storyteller_ds.evaluation.text import EvaluatedText

WORDS = 10
"""Of a held-out story that are given away, or half of it if it is shorter."""


class Opening(NamedTuple):
    """A prompt, and how the story went on that it is from."""

    prompt: str
    rest: str


def openings(text: EvaluatedText, number: int, seed: int) -> list[Opening]:
    """The openings of different stories drawn at random; fewer where there are not so many.

    Args:
        text: where they are from.
        number: of them.
        seed: of the draw; the same text and seed give the same ones, whatever the tokens.
    """
    stories = text.stories
    drawn = np.random.default_rng(seed).permutation(len(stories))
    return [cut(text.tokenizer.decode(stories.ids(int(each) + 1))) for each in drawn[:number]]


def cut(story: str) -> Opening:
    """The first words of a story, and the rest of it with the white space before it."""
    ends = [found.end() for found in re.finditer(r"\S+", story)]
    words = min(WORDS, len(ends) // 2)
    end = ends[words - 1] if words else 0
    return Opening(story[:end], story[end:])
