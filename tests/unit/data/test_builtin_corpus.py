"""The built-in corpus: the form and number of its stories, and the separation of its splits."""

import hashlib
import re
from collections import Counter
from importlib.resources import files

import pytest
from pydantic import ValidationError

from storyteller_ds.config.data import DataConfig
from storyteller_ds.data.builtin import grammar, vocabulary
from storyteller_ds.data.sources.builtin import BuiltinSource

SAMPLE = 3000
SPLITS: tuple[grammar.Split, ...] = ("train", "validation")

# Change it together with grammar.GRAMMAR_VERSION: a run's record names its corpus by that version.
GOLDEN_VERSION = 1
GOLDEN_SHA256 = "88028c923b43a040e3f4a794a4a4d74a251c4295c7ec8dead5703750f1eadb31"


@pytest.fixture(scope="module", params=SPLITS)
def stories(request: pytest.FixtureRequest) -> list[str]:
    return list(BuiltinSource(request.param, SAMPLE).documents())


def test_the_first_200_stories_are_golden():
    text = "\0".join(BuiltinSource("train", 200).documents())
    assert grammar.GRAMMAR_VERSION == GOLDEN_VERSION
    assert hashlib.sha256(text.encode()).hexdigest() == GOLDEN_SHA256


def test_story_lengths_are_bounded(stories):
    lengths = [len(story.split()) for story in stories]
    assert min(lengths) >= 80
    assert max(lengths) <= 250


def test_every_telling_of_a_plot_can_fit():
    # A plot whose shortest telling is too long would be retried forever; a margin rules that out.
    for name, plot in grammar.PLOTS.items():
        fewest = sum(
            min(sum(len(p.split()) for p in wording if isinstance(p, str)) for wording in sentence.wordings)
            for paragraph in plot.paragraphs
            for sentence in paragraph
            if not sentence.optional
        )
        assert fewest < grammar.LONGEST_STORY_WORDS - 50, name


def test_20000_stories_are_distinct():
    assert len(set(BuiltinSource("train", 20_000).documents())) == 20_000


def test_train_and_validation_share_no_text_and_no_key():
    texts = [set(BuiltinSource(split, SAMPLE).documents()) for split in SPLITS]
    keys = [{grammar.story_key(split, seed, index) for seed in (0, 1) for index in range(SAMPLE)} for split in SPLITS]
    assert texts[0].isdisjoint(texts[1])
    assert keys[0].isdisjoint(keys[1])
    assert all(key.split == split for split, drawn in zip(SPLITS, keys, strict=True) for key in drawn)


def test_about_one_key_in_twenty_is_validation():
    keys = [
        grammar.StoryKey(plot, name, thing.word, "park")
        for plot, shape in grammar.PLOTS.items()
        for name in vocabulary.GIRL_NAMES
        for thing in shape.things
    ]
    share = Counter(key.split for key in keys)["validation"] / len(keys)
    assert 0.04 < share < 0.06


def test_a_story_names_what_its_key_says():
    # This is why disjoint keys give disjoint texts.
    for split in SPLITS:
        for index in range(SAMPLE):
            key = grammar.story_key(split, 0, index)
            text = grammar.story(split, 0, index)
            assert key.name in text
            assert key.thing in text
            assert f"the {key.place}" in text


def test_stories_do_not_depend_on_the_order_of_asking():
    in_order = list(BuiltinSource("train", 50, seed=3).documents())
    assert [grammar.story("train", 3, index) for index in reversed(range(50))] == in_order[::-1]


def test_seeds_tell_other_stories():
    assert grammar.story("train", 0, 0) != grammar.story("train", 1, 0)


def test_nothing_of_the_notation_is_left(stories):
    for story in stories:
        assert not re.search(r"[{}<>\[\]|*/_]", story), story


def test_text_is_printable_ascii_in_tidy_paragraphs(stories):
    for story in stories:
        assert re.fullmatch(r"[ -~\n]+", story), story
        assert "  " not in story
        assert not re.search(r" \n|\n | [.,!?]", story), story
        assert all(story.split("\n\n"))
        assert "\n" not in story.replace("\n\n", "")


def test_articles_fit_the_next_word(stories):
    for story in stories:
        assert not re.search(r"\ba [aeiou]", story, re.IGNORECASE), story
        assert not re.search(r"\ban [^aeiou]", story, re.IGNORECASE), story


def test_stories_end_and_sentences_begin_as_they_should(stories):
    for story in stories:
        assert re.search(r'[.!?]"?$', story), story
        assert story.count('"') % 2 == 0, story
        assert not re.search(r"(?<=[a-z][.!?] )[a-z]", story), story
        assert all(re.match(r'"?[A-Z]', paragraph) for paragraph in story.split("\n\n")), story


def test_no_sentence_is_told_twice(stories):
    for story in stories:
        sentences = re.findall(r"[^.!?]{25,}[.!?]", story)
        assert len(sentences) == len(set(sentences)), story


def test_pronouns_follow_the_hero():
    heroes = Counter()
    for index in range(SAMPLE):
        is_girl = grammar.story_key("train", 0, index).name in vocabulary.GIRL_NAMES
        trait_sentence = re.search(r"\b([Hh]e|[Ss]he)\b", grammar.story("train", 0, index))
        assert trait_sentence
        assert (trait_sentence[1].lower() == "she") == is_girl
        heroes["she" if is_girl else "he"] += 1
    assert min(heroes["she"], heroes["he"]) > SAMPLE / 3


def test_every_plot_is_told():
    told = Counter(grammar.story_key("train", 0, index).plot for index in range(SAMPLE))
    assert set(told) == set(grammar.PLOTS)


def test_the_word_lists_are_rich():
    assert len(set(vocabulary.GIRL_NAMES + vocabulary.BOY_NAMES)) >= 60
    assert len({place for _, place in vocabulary.PLACES}) >= 40
    assert len({thing.word for plot in grammar.PLOTS.values() for thing in plot.things}) >= 60
    assert not set(vocabulary.GIRL_NAMES) & set(vocabulary.BOY_NAMES)
    assert not {helper for _, helper in vocabulary.HELPERS} & set(vocabulary.HERO_ANIMALS)


def test_every_plot_follows_the_notation():
    plots = list((files("storyteller_ds.data.builtin") / "plots").iterdir())
    assert len(plots) == len(grammar.PLOTS) + 1  # and the opening
    for plot in plots:
        for line in filter(None, plot.read_text(encoding="utf-8").splitlines()):
            assert re.match(r"[*?/] \S", line), line
            # Choices do not nest.
            assert not re.search(r"[][<>|]", re.sub(r"\[[^][<>]*\]|<\w+>", "", line)), line


def test_the_fingerprint_names_the_documents(monkeypatch):
    source = BuiltinSource("train", 10)
    assert source.name == "builtin"
    assert source.fingerprint == BuiltinSource("train", 10, seed=0).fingerprint
    prints = {
        source.fingerprint,
        BuiltinSource("validation", 10).fingerprint,
        BuiltinSource("train", 11).fingerprint,
        BuiltinSource("train", 10, seed=1).fingerprint,
    }
    monkeypatch.setattr(grammar, "GRAMMAR_VERSION", grammar.GRAMMAR_VERSION + 1)
    prints.add(source.fingerprint)
    assert len(prints) == 5


@pytest.mark.parametrize("stories", [0, -1])
def test_an_empty_corpus_is_refused(stories):
    with pytest.raises(ValidationError, match="greater than or equal to 1"):
        DataConfig(builtin_stories=stories)
