"""Openings for a model to continue, taken from held-out stories."""

import re
from typing import NamedTuple

import numpy as np

from storyteller_ds.evaluation.text import EvaluatedText

WORDS = 10
"""Length of an opening, or half of the story's words if that is less."""


class Opening(NamedTuple):
    """A prompt, and how the story it is taken from continues."""

    prompt: str
    rest: str


def openings(text: EvaluatedText, number: int, seed: int) -> list[Opening]:
    """The openings of different stories drawn at random; fewer if there are not that many stories.

    Args:
        text: the stories.
        number: how many openings.
        seed: of the draw; the same text and seed give the same openings, whatever the tokenizer.
    """
    stories = text.stories
    drawn = np.random.default_rng(seed).permutation(len(stories))
    return [cut(text.tokenizer.decode(stories.ids(int(each) + 1))) for each in drawn[:number]]


def cut(story: str) -> Opening:
    """Split a story into its first words and the rest, including the white space in between."""
    ends = [found.end() for found in re.finditer(r"\S+", story)]
    words = min(WORDS, len(ends) // 2)
    end = ends[words - 1] if words else 0
    return Opening(story[:end], story[end:])
