"""Words, names, endings and repetitions in short texts, by hand."""

import pytest

from storyteller_ds.evaluation.words import (
    distinct,
    ends_in_a_sentence,
    keeps_names,
    names_in,
    repeated_share,
    words_of,
)


def test_words():
    assert words_of("Tim’s dog, ROVER, didn't (ever) see 3 cats — or Zoë!") == [
        *("tim's", "dog", "rover", "didn't", "ever", "see", "cats", "or", "zoë"),
    ]
    assert words_of("") == words_of(" 12 !? ") == []


def test_names_are_capitals_within_a_sentence():
    story = "One day Tim and Sue's cat saw Mr. Fox. Then I said, \"Look!\" But BIG Ben and I'm sure Ann-Lee ran."
    assert names_in(story) == {"Tim", "Sue", "Mr", "Ben", "Ann"}
    assert names_in("Every. Word. Begins. Here.") == set()


@pytest.mark.parametrize(
    ("story", "kept"),
    [
        ("There was a girl named Lily. She ran and then they saw Lily.", True),
        ("Lily was a girl and she ran. She liked to play with Lily.", True),
        ("There was a girl named Lily. She ran and then they saw Tom.", False),
        ("There was a girl named Lily. She ran and then they saw Lily's dog.", True),
        ("There was a girl and a dog. They ran and they were glad.", None),
        ("There was a girl named Lily. Tom ran and they were glad.", None),
        ("", None),
        ("Lily", None),
    ],
)
def test_a_name_that_comes_out_of_nowhere(story, kept):
    assert keeps_names(story) is kept


@pytest.mark.parametrize("text", ["The end.", 'He said, "Yes!"', "Why?", "(So be it.)", "She slept…\n ", "‘Go!’"])
def test_what_ends_in_a_sentence(text):
    assert ends_in_a_sentence(text)


@pytest.mark.parametrize("text", ["", "and then the", "He said,", 'He said, "yes', "3."[:-1]])
def test_what_does_not(text):
    assert not ends_in_a_sentence(text)


def test_repetition_and_distinct_by_hand():
    words = ["a", "b", "c", "d", "a", "b", "c", "d"]  # abcd bcda cdab dabc abcd
    assert repeated_share(words, 4) == pytest.approx(1 / 5)
    assert repeated_share(words[:4], 4) == 0
    assert repeated_share(words[:3], 4) is None
    texts = [["a", "b", "a"], ["b"], []]
    assert distinct(texts, 1) == 2 / 4
    assert distinct(texts, 2) == 1
    assert distinct([["a", "a", "a"]], 2) == 1 / 2
    assert distinct([["a"]], 2) is None
    assert distinct([], 1) is None
