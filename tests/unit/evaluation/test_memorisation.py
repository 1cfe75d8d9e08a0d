"""A planted copy of a training story is found, and held-out stories are the control."""

from pathlib import Path

import pytest

from storyteller_ds.config.run import RunConfig
from storyteller_ds.data.corpus import Corpus
from storyteller_ds.data.stories import Stories
from storyteller_ds.evaluation.memorisation import memorisation
from storyteller_ds.evaluation.story_figures import COMMON_IN, common_words
from storyteller_ds.evaluation.text import EvaluatedText, validation_text
from storyteller_ds.evaluation.told_stories import Told
from tests.support.small_corpus import opened

ANIMALS = ("fox", "bear", "owl", "mouse", "hare", "deer", "frog", "cat")
PLACES = ("wood", "garden", "lake", "hill", "house", "field", "barn", "cave", "shop", "park", "river")


def story(i: int) -> str:
    one, two = ANIMALS[i % 8], ANIMALS[(i // 8 + i + 3) % 8]
    first, then = PLACES[i % 11], PLACES[(i * 7 + 5) % 11]
    return (
        f"A {one} lived by the {first}. The {two} of the {then} came with {i} cakes. They ate near the {then} "
        f"until the {one} went to the {first}. Day {i * i} was sunny and the {two} sang of the {first}. The end."
    )


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> tuple[Corpus, EvaluatedText]:
    file: Path = tmp_path_factory.mktemp("text") / "stories.txt"
    file.write_text("\n\n".join(map(story, range(200))))
    run = RunConfig.model_validate(
        {
            "data": {"source": str(file), "cache_dir": str(file.parent / "cache"), "validation_fraction": 0.2},
            "tokenizer": {"vocab_size": 400},
        }
    )
    corpus = opened(run)
    return corpus, validation_text(corpus, run.data)


def stories_of(corpus: Corpus, split: str) -> list[str]:
    found = Stories(getattr(corpus, split), corpus.tokenizer.end_of_text)
    return [corpus.tokenizer.decode(found.ids(i)) for i in range(1, 1 + len(found))]


def test_a_planted_copy_is_found_and_strangers_are_none(known):
    corpus, text = known
    copied = stories_of(corpus, "train")[17]
    prompt, rest = copied[:20], copied[20:]
    words = "seven purple whales quickly dreamt about algebra beneath quiet volcanoes while nobody painted zebras"
    told = [Told(prompt, rest, True), Told(prompt, f" {words} {words}", False), Told(prompt, "", True)]
    held_out = [Told("", each, True) for each in stories_of(corpus, "validation")[:5]]
    found = memorisation(corpus, text, 400, told, held_out, lambda line: None)
    assert found.of_model.share[0] == 1
    assert found.of_model.share[1] == 0
    assert found.of_model.share[2] is None
    assert found.of_model.near_copies == 1 / 2  # of the two that have a window
    assert found.of_model.longest == rest.strip()
    assert found.of_model.longest_words[0] == len(rest.replace(".", "").split()) - sum(
        each.strip(".").isdigit() for each in rest.split()
    )
    assert found.of_model.longest_words[1] <= 2
    # Control: from the same source, but not copied.
    assert found.held_out.near_copies == 0
    assert max(found.held_out.longest_words) < found.of_model.longest_words[0]


def test_a_window_is_13_words_in_tokens(known):
    corpus, text = known
    found = memorisation(corpus, text, 400, [], [], lambda line: None)
    stories = stories_of(corpus, "validation")
    tokens = sum(len(corpus.tokenizer.encode(each)) for each in stories)
    words = sum(len([word for word in each.split() if not word.strip(".").isdigit()]) for each in stories)
    assert found.window_tokens == round(13 * tokens / words)
    assert (found.of_model.near_copies, found.of_model.longest, found.of_model.median_words) == (None, "", None)


def test_common_words_are_those_of_several_stories(known):
    corpus, _ = known
    common = common_words(Stories(corpus.train, corpus.tokenizer.end_of_text), corpus.tokenizer)
    stories = [set(each.casefold().replace(".", "").split()) for each in stories_of(corpus, "train")]
    every = set().union(*stories)
    assert common == {word for word in every if word.isalpha() and sum(word in each for each in stories) >= COMMON_IN}
    assert {"fox", "cave", "the"} <= common
