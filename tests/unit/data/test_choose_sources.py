"""Which source a name means, and the split of a text file."""

from pathlib import Path

import pytest

from storyteller_ds.config.data import DataConfig
from storyteller_ds.data.sources.builtin import BuiltinSource
from storyteller_ds.data.sources.choose import HeldOutPart, choose_sources
from storyteller_ds.data.sources.huggingface import HuggingFaceSource
from storyteller_ds.data.sources.text_file import TextFileSource


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "stories.txt"
    path.write_text("\n\n".join(f"Story {i}." for i in range(2000)), encoding="utf-8")
    return path


@pytest.mark.parametrize(("stories", "validation"), [(20_000, 1000), (21, 2), (20, 1), (1, 1)])
def test_builtin_has_a_validation_split_of_its_own(stories, validation):
    train, held_out = choose_sources(DataConfig(builtin_stories=stories))
    assert train == BuiltinSource("train", stories)
    assert held_out == BuiltinSource("validation", validation)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("builtin", BuiltinSource),
        ("roneneldan/TinyStories", HuggingFaceSource),
        ("missing.txt", TextFileSource),
        ("missing.md", TextFileSource),
        ("./missing", TextFileSource),
        ("/missing/file", TextFileSource),
        ("~/missing", TextFileSource),
    ],
)
def test_a_name_that_does_not_exist_here_is_told_by_its_form(tmp_path, monkeypatch, name, kind):
    monkeypatch.chdir(tmp_path)
    assert isinstance(choose_sources(DataConfig(validation=name)).validation, kind)


def test_what_exists_is_told_by_what_it_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "corpus").write_text("A story.", encoding="utf-8")
    (tmp_path / "folder").mkdir()
    assert choose_sources(DataConfig(validation="corpus")).validation == TextFileSource(Path("corpus"))
    assert isinstance(choose_sources(DataConfig(validation="folder")).validation, HuggingFaceSource)


def test_a_home_folder_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert choose_sources(DataConfig(validation="~/a.txt")).validation == TextFileSource(tmp_path / "a.txt")


def test_a_validation_of_its_own_leaves_the_training_text_whole(text):
    train, held_out = choose_sources(DataConfig(source=str(text), validation="builtin"))
    assert train == TextFileSource(text)
    assert held_out == BuiltinSource("validation", 1000)


def test_the_documents_of_the_hub_are_limited_in_training_only():
    data = DataConfig(source="a/b", revision="0" * 40, max_documents=5, text_field="story", streaming=True)
    train, held_out = choose_sources(data)
    assert isinstance(train, HuggingFaceSource)
    assert isinstance(held_out, HuggingFaceSource)
    assert (train.max_documents, held_out.max_documents) == (5, None)
    assert (train.split, held_out.split) == ("train", "validation")
    assert (train.text_field, train.streaming) == ("story", True)


@pytest.mark.parametrize("fraction", [0.05, 0.5, 0.9])
def test_a_text_file_is_split_in_two_disjoint_parts(text, fraction):
    sources = choose_sources(DataConfig(source=str(text), validation_fraction=fraction))
    train, held_out = (list(source.documents()) for source in sources)
    assert set(train).isdisjoint(held_out)
    assert len(train) + len(held_out) == 2000
    # Five deviations of a binomial around the fraction.
    assert abs(len(held_out) - 2000 * fraction) < 5 * (2000 * fraction * (1 - fraction)) ** 0.5
    assert [list(source.documents()) for source in sources] == [train, held_out]


def test_a_document_stays_on_its_side_when_others_come_and_go(text):
    before = set(choose_sources(DataConfig(source=str(text))).validation.documents())
    lines = text.read_text(encoding="utf-8").split("\n\n")
    text.write_text("\n\n".join(["New.", *reversed(lines[100:]), *lines[100:]]), encoding="utf-8")
    after = list(choose_sources(DataConfig(source=str(text))).validation.documents())
    assert set(after) - {"New."} == before & set(lines[100:])
    assert len(after) - after.count("New.") == 2 * len(set(after) - {"New."})  # a repeated one is held out twice


def test_fingerprints_differ_by_part_fraction_and_text(text):
    source = TextFileSource(text)
    prints = [HeldOutPart(source, f, part).fingerprint for f in (0.1, 0.2) for part in ("kept", "held_out")]
    text.write_text("Another.", encoding="utf-8")
    prints.append(HeldOutPart(TextFileSource(text), 0.1, "kept").fingerprint)
    assert len(set(prints)) == 5
    assert prints[-1] == HeldOutPart(TextFileSource(text), 0.1, "kept").fingerprint
