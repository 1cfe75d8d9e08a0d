"""Figures of a few stories, by hand."""

import pytest

from storyteller_ds.evaluation.story_figures import figures_of
from storyteller_ds.evaluation.told_stories import Told


def test_by_hand():
    stories = [
        Told("A girl named", " Lily saw a cat. Then the cat saw Lily.", ended=True),
        Told("A boy", " ran and ran and the wibblx", ended=False),
        Told("A dog", "", ended=True),
    ]
    found = figures_of(stories, frozenset({"saw", "a", "cat", "the", "ran", "and"}))
    assert (found.stories, found.empty) == (3, 1)
    assert found.words == pytest.approx((9 + 6 + 0) / 3)
    assert found.vocabulary == 9  # lily saw a cat then the ran and wibblx
    assert found.common_share == pytest.approx(11 / 15)
    assert found.distinct_1 == 9 / 15
    assert found.distinct_2 == 12 / 13  # "ran and" comes twice
    assert found.repeated_4 == 0
    assert found.ended == pytest.approx(2 / 3)
    assert found.ended_in_a_sentence == pytest.approx(1 / 3)
    assert found.names_kept == 1
    if found.misspelt_share is not None:
        assert found.misspelt_share == pytest.approx(1 / 13)  # Lily is a name


def test_stories_without_a_word():
    found = figures_of([Told("Once", "", ended=True), Told("Once", " 12 !", ended=False)], None)
    assert (found.stories, found.empty, found.words, found.vocabulary) == (2, 2, 0, 0)
    for name in ("common_share", "misspelt_share", "distinct_1", "distinct_3", "self_bleu", "repeated_4", "names_kept"):
        assert getattr(found, name) is None or name == "self_bleu"
    assert found.ended == 1 / 2
