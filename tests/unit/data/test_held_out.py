"""Datasets without a validation split."""

import json
from pathlib import Path

import pytest

from storyteller_ds.config.data import DataConfig
from storyteller_ds.data.sources.choose import Sources, choose_sources
from storyteller_ds.errors import DataError

pytest.importorskip("datasets", reason="needs pip install datasets")

STORIES = [f"Story {i}." for i in range(100)]


def rows(folder: Path, name: str, stories: list[str]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text("".join(json.dumps({"text": story}) + "\n" for story in stories))
    return folder


def sources(folder: Path, **data: object) -> Sources:
    return choose_sources(DataConfig(source=str(folder), validation_fraction=0.2, **data))


@pytest.mark.parametrize("name", ["train.jsonl", "stories.jsonl"])
def test_a_part_of_the_training_split_is_held_out_as_of_a_text_file(tmp_path, name):
    chosen = sources(rows(tmp_path / "rows", name, STORIES))
    train, held_out = (list(source.documents()) for source in chosen)
    assert sorted(train + held_out) == sorted(STORIES)
    assert set(train).isdisjoint(held_out)
    (tmp_path / "a.txt").write_text("\n\n".join(STORIES))
    assert held_out == list(sources(tmp_path / "a.txt").validation.documents())
    assert chosen.remarks() == []
    assert len({source.fingerprint for source in chosen}) == 2
    assert "(held-out 20 % of the documents)" in chosen.validation.name


def test_a_dataset_with_a_validation_split_is_not_cut(tmp_path):
    rows(tmp_path, "train.jsonl", STORIES)
    chosen = sources(rows(tmp_path, "val.jsonl", ["Last."]))
    assert [list(source.documents()) for source in chosen] == [STORIES, ["Last."]]
    assert chosen.remarks() == []


def test_max_documents_counts_those_that_are_held_out(tmp_path):
    train, held_out = sources(rows(tmp_path, "train.jsonl", STORIES), max_documents=30)
    assert sorted([*train.documents(), *held_out.documents()]) == sorted(STORIES[:30])


@pytest.mark.parametrize("stories", [STORIES[:1], STORIES[:2]])
def test_too_few_rows_name_the_way_out_and_it_is_one(tmp_path, stories):
    folder = rows(tmp_path / "rows", "stories.jsonl", stories)
    with pytest.raises(DataError, match=r"name another text with data\.validation$"):
        sources(folder).remarks()
    other = rows(tmp_path / "other", "stories.jsonl", ["Last."])
    chosen = sources(folder, validation=str(other))
    assert [list(source.documents()) for source in chosen] == [stories, ["Last."]]


@pytest.mark.parametrize("name", ["rows", "other/../rows", "rows/"])
def test_a_dataset_given_for_validation_too_is_not_read_twice(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other").mkdir()
    folder = rows(tmp_path / "rows", "train.jsonl", STORIES)
    (remark,) = sources(folder, validation=name).remarks()
    assert remark.startswith("validation is on the very text that is trained on")
    (folder / "README.md").write_text("---\nconfigs:\n- config_name: default\n  data_files: train.jsonl\n---\n")
    with pytest.raises(DataError, match=r"has no validation split; leave data\.validation out"):
        sources(folder, validation=name)
