"""Passages that occur in the training text, compared with a search of every window."""

import numpy as np
import pytest

from storyteller_ds.data.shards import TokenStream
from storyteller_ds.evaluation import overlap
from storyteller_ds.evaluation.overlap import Passage, TrainingText

VOCABULARY = 4


def brute_force(text: list[int], story: list[int]) -> int:
    """Length of the longest run of the story's tokens that occurs in the text."""
    windows = {tuple(text[i : i + n]) for n in range(1, len(story) + 1) for i in range(len(text) - n + 1)}
    found = [j - i for i in range(len(story)) for j in range(i + 1, len(story) + 1) if tuple(story[i:j]) in windows]
    return max(found, default=0)


@pytest.mark.parametrize("chunk", [1, 7, 64, 1 << 20])
def test_equals_brute_force(chunk, monkeypatch):
    monkeypatch.setattr(overlap, "_CHUNK", chunk)
    generator = np.random.default_rng(0)
    text = generator.integers(0, VOCABULARY, 300)
    stories = [generator.integers(0, VOCABULARY + 1, n).tolist() for n in (0, 1, 2, 9, 30, 30, 30)]
    stories.append(text[100:140].tolist())
    stream = TokenStream([text[:90].astype(np.uint16), text[90:].astype(np.uint16)])
    training = TrainingText(stream, VOCABULARY + 1)
    for story, passage in zip(stories, training.longest(stories, lambda _: None), strict=True):
        assert passage.length == brute_force(text.tolist(), story)
        copied = story[passage.start : passage.start + passage.length]
        assert " ".join(map(str, copied)) in " ".join(map(str, text.tolist()))
    for length in (1, 4, 13):
        windows = {tuple(text[i : i + length].tolist()) for i in range(len(text) - length + 1)}
        for story, has in zip(stories, training.has(stories, length), strict=True):
            assert has.tolist() == [
                tuple(story[i : i + length]) in windows for i in range(max(0, len(story) - length + 1))
            ]


def test_a_planted_passage_is_found_to_the_token():
    generator = np.random.default_rng(1)
    text, story = generator.integers(0, 5000, 200_000), generator.integers(0, 5000, 150)
    story[40:91] = text[77_000:77_051]
    assert story[39] != text[76_999]
    assert story[91] != text[77_051]
    training = TrainingText(TokenStream([text.astype(np.uint16)]), 5000)
    other = generator.integers(0, 5000, 150).tolist()  # control
    planted, control = training.longest([story.tolist(), other], lambda _: None)
    assert planted == Passage(40, 51)
    assert control.length <= 2


def test_the_order_of_tokens_counts():
    # A sum of hashes would take these for the same, and so do weak polynomials (Thue and Morse).
    thue = [bin(i).count("1") % 2 for i in range(1024)]
    stream = TokenStream([np.array(thue, np.uint16)])
    turned = [1 - each for each in thue]
    (passage,) = TrainingText(stream, 2).longest([turned], lambda _: None)
    assert passage.length == len_of_longest(thue, turned) < 1024


def len_of_longest(text: list[int], story: list[int]) -> int:
    one, other = "".join(map(str, text)), "".join(map(str, story))
    length = 0
    while any(other[i : i + length + 1] in one for i in range(len(other) - length)):
        length += 1
    return length


def test_no_stories_and_no_text():
    stream = TokenStream([np.array([1, 2, 3], np.uint16)])
    assert TrainingText(stream, 4).longest([], lambda _: None) == []
    assert TrainingText(stream, 4).has([], 3) == []
    assert TrainingText(stream, 4).longest([[3, 2]], lambda _: None) == [Passage(0, 1)]
    assert TrainingText(TokenStream([]), 4).longest([[3, 2]], lambda _: None)[0].length == 0
