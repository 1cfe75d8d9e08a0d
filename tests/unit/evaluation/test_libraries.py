"""Self-BLEU and spelling, and the message if their packages are missing."""

import pytest

from storyteller_ds.evaluation import libraries
from storyteller_ds.evaluation.libraries import misspelt, self_bleu, what_is_missing

TEXTS = [
    "Once there was a fox who loved to run.",
    "Once there was a bear who loved to eat honey.",
    "The sun was warm, and the fox loved it.",
]


def test_self_bleu_is_that_of_sacrebleu():
    sacrebleu = pytest.importorskip("sacrebleu")
    scores = [
        sacrebleu.sentence_bleu(text, [each for each in TEXTS if each != text], use_effective_order=True).score
        for text in TEXTS
    ]
    assert 0 < min(scores) < max(scores) < 100
    assert self_bleu(TEXTS) == pytest.approx(sum(scores) / 3)


def test_self_bleu_of_equal_stories_and_of_strangers():
    pytest.importorskip("sacrebleu")
    assert self_bleu([TEXTS[0]] * 3) == pytest.approx(100)
    assert self_bleu(["aa bb cc dd ee", "ff gg hh ii jj"]) == pytest.approx(0, abs=10)  # smoothed
    assert self_bleu([TEXTS[0]]) is None
    assert self_bleu([TEXTS[0], "  ", ""]) is None


def test_only_so_many_stories_are_compared(monkeypatch):
    pytest.importorskip("sacrebleu")
    monkeypatch.setattr(libraries, "MOST_STORIES", 2)
    assert self_bleu(TEXTS) == self_bleu(TEXTS[:2])


def test_spelling():
    pytest.importorskip("spellchecker")
    assert misspelt(["fox", "foxx", "didn't", "qzv", "the", "dog's"]) == {"foxx", "qzv"}
    assert misspelt([]) == set()


def test_without_the_packages_it_is_said(monkeypatch):
    monkeypatch.setattr(libraries.importlib.util, "find_spec", lambda name: None)
    assert self_bleu(TEXTS) is None
    assert misspelt(["fox"]) is None
    (line,) = what_is_missing()
    assert "self-BLEU" in line
    assert "spelling" in line
    assert "pip install 'storyteller_ds[evaluate]'" in line
