"""File name patterns as sources."""

import gzip
import json
from pathlib import Path

import pytest

from storyteller_ds.config.data import DataConfig
from storyteller_ds.data.sources.choose import choose_sources
from storyteller_ds.data.sources.files import FilesSource
from storyteller_ds.errors import DataError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    home = tmp_path / "my [own] stories"  # with characters that have a meaning in patterns
    (home / "more").mkdir(parents=True)
    (home / "b.txt").write_text("Three.")
    (home / "a.txt").write_text("One.\n\nTwo.")
    (home / "c.txt.gz").write_bytes(gzip.compress(b"Four."))
    (home / "rows.jsonl").write_text("".join(json.dumps({"story": f"Row {i}."}) + "\n" for i in range(3)))
    (home / "more" / "d.txt").write_text("Five.")
    return home


def documents(folder: Path, pattern: str, **data: object) -> list[str]:
    name = str(folder).replace("[", "[[]") + f"/{pattern}"
    train = choose_sources(DataConfig(source=name, validation="builtin", **data)).train
    assert isinstance(train, FilesSource)
    return list(train.documents())


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("*.txt", ["One.\n\nTwo.", "Three."]),
        ("*.txt*", ["One.\n\nTwo.", "Three.", "Four."]),
        ("a.t*", ["One.", "Two."]),
        ("[bc].*", ["Three.", "Four."]),
        ("**/*.txt", ["One.\n\nTwo.", "Three.", "Five."]),
        ("[ar]*", ["One.", "Two.", "Row 0.", "Row 1.", "Row 2."]),
    ],
)
def test_files_come_in_the_order_of_their_paths(folder, pattern, found):
    assert documents(folder, pattern) == found


def test_settings_are_for_all_files(folder):
    assert documents(folder, "[ab].txt", split="file") == ["One.\n\nTwo.", "Three."]
    assert documents(folder, "rows.*", text_field="story") == ["Row 0.", "Row 1.", "Row 2."]


def test_the_fingerprint_is_of_the_contents_in_their_order(folder):
    def fingerprint() -> str:
        name = str(folder).replace("[", "[[]") + "/*.txt"
        return choose_sources(DataConfig(source=name, validation="builtin")).train.fingerprint

    first = fingerprint()
    (folder / "b.txt").rename(folder / "bb.txt")
    assert fingerprint() == first
    (folder / "bb.txt").rename(folder / "0.txt")
    assert fingerprint() != first


def test_what_matches_nothing_is_said(folder):
    with pytest.raises(DataError, match=r"no file is called .*\*\.md; check the pattern, or give a folder"):
        documents(folder, "*.md")


def test_a_file_whose_name_looks_like_a_pattern_is_that_file(folder):
    sources = choose_sources(DataConfig(source=str(folder / "a.txt"), validation="builtin"))
    assert list(sources.train.documents()) == ["One.", "Two."]


def test_a_part_is_held_out_over_all_files(folder):
    for i in range(100):
        (folder / f"{i}.md").write_text(f"Story {i}.")
    name = str(folder).replace("[", "[[]") + "/*.md"
    kept, held = (list(source.documents()) for source in choose_sources(DataConfig(source=name)))
    assert sorted(kept + held) == sorted(f"Story {i}." for i in range(100))
    assert held
