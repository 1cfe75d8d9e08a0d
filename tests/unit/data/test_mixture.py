"""Lists of weighted sources."""

import json
from collections import Counter
from pathlib import Path

import pytest

from storyteller_ds.config import load_config
from storyteller_ds.config.data import DataConfig
from storyteller_ds.config.load import parse_run_config
from storyteller_ds.data.sources.choose import choose_sources, whole_source
from storyteller_ds.data.sources.text_file import TextFileSource
from storyteller_ds.errors import ConfigError, DataError


@pytest.fixture
def texts(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"{name} stories.txt" for name in "abc"]
    for path in paths:
        path.write_text("\n\n".join(f"Story {i} of {path.stem}." for i in range(2000)), encoding="utf-8")
    return paths


@pytest.mark.parametrize("listed", [lambda name: [name], lambda name: [{"source": name}]])
def test_a_list_of_one_name_is_that_name(texts, listed):
    name = str(texts[0])
    alone, one = choose_sources(DataConfig(source=name)), choose_sources(DataConfig(source=listed(name)))
    assert [source.fingerprint for source in one] == [source.fingerprint for source in alone]


def test_weights_say_how_often_a_story_is_in_the_corpus(texts):
    listed = [str(texts[0]), {"source": str(texts[1]), "weight": 2.3}, {"source": str(texts[2]), "weight": 0.25}]
    train, held_out = choose_sources(DataConfig(source=listed))
    alone = [choose_sources(DataConfig(source=str(path))) for path in texts]
    counts = Counter(train.documents())
    a, b, c = (list(each.train.documents()) for each in alone)
    assert all(counts[story] == 1 for story in a)
    assert {counts[story] for story in b} == {2, 3}
    assert {counts[story] for story in c} == {0, 1}
    for stories, part in ((b, 0.3), (c, 0.25)):  # within five standard deviations of a binomial
        more = sum(counts[story] > min(counts[each] for each in stories) for story in stories)
        assert abs(more - part * len(stories)) < 5 * (len(stories) * part * (1 - part)) ** 0.5
    # Each story held out of its source is in the validation text exactly once.
    assert list(held_out.documents()) == [story for each in alone for story in each.validation.documents()]
    assert set(held_out.documents()).isdisjoint(counts)
    assert whole_source(DataConfig(source=listed)).name == f"{texts[0]} + {texts[1]} x 2.3 + {texts[2]} x 0.25"
    # Deterministic, and depends on the content alone.
    again = choose_sources(DataConfig(source=listed))
    assert again.train.fingerprint == train.fingerprint
    assert list(again.train.documents()) == list(train.documents())
    other = choose_sources(DataConfig(source=[*listed[:2], {"source": str(texts[2]), "weight": 0.5}]))
    assert other.train.fingerprint != train.fingerprint
    assert other.validation.fingerprint == held_out.fingerprint


def test_a_list_keeps_the_splits_of_its_sources_and_takes_one_validation_text(texts):
    text = texts[0]
    train, held_out = choose_sources(DataConfig(source=["builtin", str(text)], builtin_stories=100))
    assert len(list(train.documents())) + len(list(held_out.documents())) == 100 + 5 + 2000
    sources = choose_sources(DataConfig(source=["builtin", str(text)], validation=str(text)))
    assert sources.validation == TextFileSource(text)
    assert sources.remarks()[-1] == f"validation is on the very text that is trained on, {text}"


def test_what_one_source_says_is_said(texts):
    remarks = choose_sources(DataConfig(source=[str(texts[0]), "builtin"], builtin_stories=50)).remarks()
    assert [line for line in remarks if line.startswith(str(texts[0]))]


def test_lists_that_cannot_be(texts, monkeypatch):
    monkeypatch.chdir(texts[0].parent)
    for names in (["builtin", "builtin"], [str(texts[0]), f"./{texts[0].name}"], ["a/b", {"source": "a/b"}]):
        with pytest.raises(DataError, match=r"data\.source names .* twice; name it once, with a weight: \{source: "):
            choose_sources(DataConfig(source=names, revision="0" * 40 if "a/b" in names else None))
    with pytest.raises(DataError, match="nothing of builtin is read with its weight of 1e-09"):
        list(
            choose_sources(
                DataConfig(source=[{"source": "builtin", "weight": 1e-9}], builtin_stories=50)
            ).train.documents()
        )
    with pytest.raises(DataError, match=r"data\.encoding=latin-1 is for text files and tables"):
        choose_sources(DataConfig(source=["builtin"], encoding="latin-1"))
    choose_sources(DataConfig(source=["builtin", str(texts[0])], encoding="latin-1"))


@pytest.mark.parametrize(
    "source", ["[]", "[{source: a, weight: 0}]", "[{weight: 2}]", "[{source: a, part: 2}]", "[1.5, [a]]"]
)
def test_a_list_that_is_none_is_refused_in_one_line(source):
    with pytest.raises(ConfigError, match=r"data\.source") as error:
        load_config("tiny_test", [f"data.source={source}"])
    assert "\n" not in str(error.value)


def test_a_list_comes_from_everywhere_and_is_recorded(tmp_path):
    listed = ["my stories.txt", {"source": "b", "weight": 2}]
    by_line = load_config("tiny_test", ["data.source=[my stories.txt, {source: b, weight: 2}]"]).run
    file = tmp_path / "run.yaml"
    file.write_text("preset: tiny_test\ndata:\n  source:\n  - my stories.txt\n  - {source: b, weight: 2}\n")
    in_json = tmp_path / "run.json"
    in_json.write_text(json.dumps({"preset": "tiny_test", "data": {"source": listed}}))
    for other in (load_config(str(file)), load_config(str(in_json)), load_config("tiny_test", {"data.source": listed})):
        assert other.run.data == by_line.data
    assert by_line.data.source_name == "my stories.txt + b x 2"
    # As stored in a checkpoint.
    stored = json.loads(json.dumps(by_line.model_dump(mode="json")))
    assert parse_run_config(stored, "config.json") == by_line
