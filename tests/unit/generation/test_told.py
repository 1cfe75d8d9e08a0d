"""Many stories generated together are the same as one after another."""

import importlib.util
import itertools
from pathlib import Path
from typing import Any

import pytest

import storyteller_ds as st
from storyteller_ds.generation import told as telling
from storyteller_ds.generation.story import Ending
from storyteller_ds.generation.told import told
from tests.support.small_runs import SMALLEST

STORIES = [f"There was a dog called Rex {i}. It ran and ran.\n\nThen it slept." for i in range(40)]
PROMPTS = ["", "There was", "It ran and", "a", "Then it slept and slept and", "There was a dog called Rex 7"]
SETTINGS: list[dict[str, Any]] = [
    {},
    {"temperature": 0},
    {"stop": ("a", "e", "t", "h", "n", " "), "seed": 3},
    {"past_context": "slide", "max_new_tokens": 60},
    {"max_new_tokens": 5},
    {"seed": 9, "top_k": 4},
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> st.StoryModel:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STORYTELLER_CACHE", str(tmp_path_factory.mktemp("cache")))
        settings = {**SMALLEST, "data.sequence_length": 40, "train.max_steps": 5}
        return st.load(st.train("tiny_test", settings, data=STORIES, output_dir=tmp_path_factory.mktemp("run")).folder)


def stories(model: st.StoryModel) -> list[Any]:
    return [model.story(p, st.SamplingConfig(**s)) for p, s in zip(PROMPTS * 4, SETTINGS * 4, strict=True)]


@pytest.mark.parametrize("way", ["torch", "machine code"])
def test_they_are_the_same_and_in_order(model, way, monkeypatch):
    if way == "torch":
        model = model._replace(stepper=None)
    elif importlib.util.find_spec("numba") is None:
        pytest.skip("numba is not installed")
    monkeypatch.setattr(telling, "BATCH", 5)
    expected = stories(model)
    for story in expected:
        for _ in story:
            pass
    found = list(told(model.texts(), stories(model)))
    assert [story.text for story in found] == [story.text for story in expected]
    assert [story.ending for story in found] == [story.ending for story in expected]
    assert {story.ending for story in found} >= {Ending.STOP, Ending.LENGTH, Ending.CONTEXT}


def test_each_comes_when_it_is_over(model):
    """Stories are yielded as they finish, not all at the end, so that a file gets what is finished."""
    model = model._replace(stepper=None)
    coming = told(model.texts(), stories(model))
    assert next(coming).ending is not None
    coming.close()


def test_of_a_batch_the_first_comes_before_the_last_is_over(model, monkeypatch):
    model = model._replace(stepper=None)
    short, long = (model.story("a", st.SamplingConfig(max_new_tokens=n)) for n in (3, 30))
    coming = told(model.texts(), [short, long])
    assert next(coming) is short
    assert long.ending is None
    assert next(coming) is long


def test_two_stories_can_be_read_in_turn(model):
    expected = [model.generate("a", seed=seed, max_new_tokens=20) for seed in (1, 2)]
    both = model.stream("a", seed=1, max_new_tokens=20), model.stream("a", seed=2, max_new_tokens=20)
    found = ["", ""]
    for pieces in itertools.zip_longest(*both, fillvalue=""):
        found = [text + piece for text, piece in zip(found, pieces, strict=True)]
    assert found == expected


def test_no_stories_are_none(model, tmp_path: Path):
    assert list(told(model.texts(), [])) == []
    assert list(told(model._replace(stepper=None).texts(), [])) == []


def test_the_next_are_begun_when_their_batch_is_told(model):
    """Stories are started batch by batch, so that a hundred thousand do not fill the memory."""
    begun = (model.story("a", st.SamplingConfig(max_new_tokens=2, seed=seed)) for seed in itertools.count())
    assert next(told(model.texts(), begun)).ending is not None
    assert next(begun).continuation.config.seed == telling.BATCH


@pytest.mark.parametrize("way", ["torch", "fastest"])
def test_all_of_a_list_are_as_each_with_its_seed(model, way):
    model = model._replace(stepper=None) if way == "torch" else model
    found = model.generate_all(["a", "a", "There was"], seed=3, max_new_tokens=20)
    alone = [model.generate(p, seed=s, max_new_tokens=20) for p, s in (("a", 3), ("a", 4), ("There was", 5))]
    assert found == alone
    assert found[0] != found[1]
    assert model.generate_all([]) == []


def test_what_is_wrong_with_a_list_is_said_before_a_story_is_told(model):
    with pytest.raises(st.UserError, match=r"^prompts is one str; give a list of them, or use generate$"):
        model.generate_all("a")
    with pytest.raises(st.UserError, match=r"^prompts\[1\]: the prompt has \d+ tokens and the model's context 40"):
        model.generate_all(["a", "z" * 400])
    with pytest.raises(st.UserError, match=r"^prompts\[0\]: the prompt is of type int; give a str$"):
        model.generate_all([1])
    with pytest.raises(st.UserError, match=r"^temperature=-1"):
        model.generate_all(["a"], temperature=-1)
