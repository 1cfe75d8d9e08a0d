"""What is known about each token of a sample besides the expert that it goes to."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from storyteller_ds.atlas.parts_of_speech import can_tag
from storyteller_ds.atlas.sample import Sample
from storyteller_ds.atlas.story_marks import END, KINDS, NO_WORD, PARTS_OF_SPEECH, SPEECH, WORD_PLACES, marks_of
from storyteller_ds.data.tokenizers.pieces import pieces
from storyteller_ds.evaluation.strata import POSITIONS
from storyteller_ds.evaluation.text import EvaluatedText

_PHASES = ("opening third", "middle third", "last third")
_BYTES = (*(f"byte {start:,} to {end:,}" for start, end in pairwise(POSITIONS)), f"from byte {POSITIONS[-1]:,} on")
_NAMES: dict[str, tuple[str, ...]] = {
    "kind": KINDS,
    "place in a word": WORD_PLACES,
    "speech": SPEECH,
    "part of speech": PARTS_OF_SPEECH,
    "part of the story": _PHASES,
    "byte of the story": _BYTES,
}
_AT_THE_BEGINNING = {"kind": END, "place in a word": NO_WORD, "part of speech": len(PARTS_OF_SPEECH) - 1}
"""Values of the separator before a story, where they are not 0."""


@dataclass(frozen=True)
class Feature:
    """A property of the tokens that experts work on."""

    name: str
    values: tuple[str, ...]
    """Its possible values."""
    value_T: NDArray[np.int8]
    """[T] value of each token, as an index into `values`."""

    def shares(self, of_T: NDArray[np.bool_] | slice = slice(None)) -> tuple[float, ...]:
        """The fraction of these tokens that has each value; 0 if there are no tokens."""
        count = np.bincount(self.value_T[of_T], minlength=len(self.values))
        return tuple((count / max(1, count.sum())).tolist())


def features_of(text: EvaluatedText, sample: Sample) -> list[Feature]:
    """The features of the tokens before the predicted ones: these are what the experts see.

    The end of a story is where the next one begins, and counts as byte 0 of that one. The kind of a token is that of
    its last character that is not white space.

    Args:
        text: the text that was read.
        sample: a sample of it.
    """
    names = [name for name in _NAMES if name != "part of speech" or can_tag()]
    value_FN = np.zeros((len(names), len(text.stream)), np.int8)
    separators, content = text.stories.separators, pieces(text.tokenizer)
    for number in np.unique(text.story_of_each()[sample.place_T - 1]):
        begin, end = separators[number : number + 2].tolist()
        contents = [content.get(i, b"") for i in text.stream.read(begin + 1, end).tolist()]
        of_story = dict(_of_story(contents, "part of speech" in names))
        for row, name in enumerate(names):
            value_FN[row, begin] = _AT_THE_BEGINNING.get(name, 0)
            value_FN[row, begin + 1 : end] = of_story[name]
    return [Feature(name, _NAMES[name], value_FN[row, sample.place_T - 1]) for row, name in enumerate(names)]


def _of_story(contents: list[bytes], tags: bool) -> Iterator[tuple[str, NDArray[np.integer]]]:
    """Features of the tokens of a story, from the bytes that each stands for."""
    size_T = np.array([len(each) for each in contents], np.int64)
    start_T = np.cumsum(size_T) - size_T
    total = int(size_T.sum())
    yield "byte of the story", np.searchsorted(POSITIONS, start_T, side="right") - 1
    yield "part of the story", np.minimum(len(_PHASES) * start_T // max(1, total), len(_PHASES) - 1)
    story = b"".join(contents).decode(errors="surrogateescape")
    if not story:
        story, size_T, start_T = " ", np.ones_like(size_T), np.zeros_like(size_T)  # tokens that stand for nothing
    first_T, last_T = _solid_ends(story, start_T, size_T)
    marks = marks_of(story, tags)
    yield "kind", marks.kind_C[last_T]
    yield "place in a word", marks.word_place_C[first_T]
    yield "speech", marks.speech_C[last_T]
    if marks.part_of_speech_C is not None:
        yield "part of speech", marks.part_of_speech_C[last_T]


def _solid_ends(
    story: str, start_T: NDArray[np.int64], size_T: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Each token's first and last character that is not white space; its last character if there is none."""
    sizes = np.array([len(each.encode(errors="surrogateescape")) for each in story])
    begins_C = np.cumsum(sizes) - sizes
    first_T = np.searchsorted(begins_C, start_T, side="right") - 1
    last_T = np.searchsorted(begins_C, start_T + np.maximum(size_T, 1) - 1, side="right") - 1
    solid_C = np.array([not each.isspace() for each in story])
    index_C = np.arange(len(story))
    before_C = np.maximum.accumulate(np.where(solid_C, index_C, -1))
    after_C = np.minimum.accumulate(np.where(solid_C, index_C, len(story))[::-1])[::-1]
    has_solid_T = before_C[last_T] >= first_T
    return np.where(has_solid_T, after_C[first_T], last_T), np.where(has_solid_T, before_C[last_T], last_T)
