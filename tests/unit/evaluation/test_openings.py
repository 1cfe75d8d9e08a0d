"""The openings of stories that a model is asked to continue."""

import pytest

from storyteller_ds.evaluation.openings import WORDS, cut


def test_the_first_words_and_the_rest():
    words = [f"word{i}," for i in range(25)]
    opening = cut("\n ".join(words))
    assert opening.prompt.split() == words[:WORDS]
    assert opening.prompt + opening.rest == "\n ".join(words)
    assert opening.rest[0].isspace()


@pytest.mark.parametrize(("story", "prompt"), [("a b c", "a"), ("a", ""), ("", ""), ("a b c d e f", "a b c")])
def test_of_a_short_story_half(story, prompt):
    assert cut(story) == (prompt, story[len(prompt) :])
