"""Datasets: folders in the hub's layout, and valid dataset names."""

import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from storyteller_ds.data.sources.hub import PINNED_REVISIONS
from storyteller_ds.data.sources.huggingface import HuggingFaceSource
from storyteller_ds.errors import DataError
from tests.support.small_dataset import COMMIT, HUB_NAME, OTHER_COMMIT, TINY_STORIES, TRAIN, VALIDATION, write_dataset

datasets = pytest.importorskip("datasets", reason="needs pip install datasets")
pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
pytestmark = pytest.mark.usefixtures("empty_datasets_cache")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_dataset(tmp_path / "stories")


def refused(dataset: str | Path, split: str = "train", **fields: Any) -> str:
    with pytest.raises(DataError) as error:
        list(HuggingFaceSource(str(dataset), split, **fields).documents())
    message = str(error.value)
    assert "\n" not in message
    return message


# --- local folders ---


@pytest.mark.parametrize("streaming", [False, True])
def test_folder_documents(folder: Path, streaming: bool) -> None:
    source = HuggingFaceSource(str(folder), "train", streaming=streaming)
    assert list(source.documents()) == TRAIN
    assert list(source.documents()) == TRAIN
    assert list(HuggingFaceSource(str(folder), "validation", streaming=streaming).documents()) == VALIDATION


def test_folder_with_files_named_in_its_card(folder: Path) -> None:
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files:\n"
        "  - split: bedtime\n    path: data/validation-*\n---\nStories.\n"
    )
    assert list(HuggingFaceSource(str(folder), "bedtime").documents()) == VALIDATION


def test_folder_of_json_lines(tmp_path: Path) -> None:
    rows = [{"story": "One."}, {"story": "Two."}]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert list(HuggingFaceSource(str(tmp_path), "train", text_field="story").documents()) == ["One.", "Two."]
    assert refused(tmp_path).endswith("no field 'text'; set data.text_field to one of: story")


@pytest.mark.parametrize("other", ["more.jsonl", "data.csv", "more/stories.jsonl"])
def test_data_files_that_the_library_passes_over_are_told(tmp_path: Path, other: str) -> None:
    row = json.dumps({"text": "One."})
    (tmp_path / "more").mkdir()
    for name in ("train.jsonl", "validation.jsonl", "test.jsonl", "dataset_info.json", other):
        (tmp_path / name).write_text(row)
    source = HuggingFaceSource(str(tmp_path), "train")
    assert source.remarks() == [f"not read: {tmp_path / other}"]
    (tmp_path / other).unlink()
    assert source.remarks() == []


def test_a_file_that_git_lfs_has_not_fetched_is_named(tmp_path: Path) -> None:
    (tmp_path / "train.parquet").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12345\n")
    assert refused(tmp_path).startswith(f"{tmp_path / 'train.parquet'} is a Git LFS pointer, not data; ")


@pytest.mark.parametrize("wanted", [1, 3, 4, 99])
def test_max_documents_counts_documents_not_rows(folder: Path, wanted: int) -> None:
    assert list(HuggingFaceSource(str(folder), "train", max_documents=wanted).documents()) == TRAIN[:wanted]


def test_folder_that_is_read_again_after_a_change(folder: Path) -> None:
    source = HuggingFaceSource(str(folder), "validation")
    file = folder / "data" / "validation-00000-of-00001.parquet"
    times = file.stat()
    before, fingerprint = list(source.documents()), source.fingerprint
    pq.write_table(pa.table({"text": ["Lost one."], "pages": [1]}), file)
    # A cache must not mistake a new file with the same modification time for the old one.
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert (before, list(source.documents())) == (VALIDATION, ["Lost one."])
    assert source.fingerprint != fingerprint


def test_missing_field_names_those_there(folder: Path) -> None:
    assert refused(folder, text_field="story").endswith("set data.text_field to one of: text, pages")


@pytest.mark.parametrize("field", ["text", "id;text"])
def test_columns_that_are_not_separated_by_commas_are_named(tmp_path: Path, field: str) -> None:
    (tmp_path / "train.csv").write_text("id;text\n1;A fox.\n2;A dog.\n")
    message = refused(tmp_path, text_field=field)
    assert "would be read as one column, named 'id;text'; separate the columns by commas in .csv" in message


def test_field_that_is_not_text(folder: Path) -> None:
    assert "'pages' of" in (message := refused(folder, text_field="pages"))
    assert "holds int, not text" in message


def test_missing_split_names_those_there(folder: Path) -> None:
    for split in ("test", "train[:10]", "train+validation", "", "../train"):
        assert refused(folder, split).endswith(f"has no split {split!r}; it has: train, validation")
    with pytest.raises(DataError, match=r"it has: train, validation$"):
        _ = HuggingFaceSource(str(folder), "test").fingerprint


def test_split_without_a_document(folder: Path) -> None:
    table = pa.table({"text": ["  ", None], "pages": [1, 2]})
    pq.write_table(table, folder / "data" / "validation-00000-of-00001.parquet")
    assert "has no document in its field 'text'" in refused(folder, "validation")


def test_damaged_file(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (folder / "data" / "validation-00000-of-00001.parquet").write_bytes(b"PAR1 and no more")
    assert "Parquet magic bytes not found" in refused(folder, "validation")
    # The error already says what the library would log.
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("b.jsonl", b'{"text": "x\n'),
        ("b.jsonl", b"Once upon a time.\n\nTwice."),
        ("b.jsonl", b'{"text": "caf\xe9"}\n'),
        ("b.csv", b'text,id\n"x,1\n,,,,\n'),
        ("b.parquet", b"PAR1 and no more"),
        ("b.csv", b""),
        ("b.jsonl", b""),
    ],
)
def test_damaged_file_is_named(tmp_path: Path, capfd: pytest.CaptureFixture[str], name: str, content: bytes) -> None:
    good = {".jsonl": b'{"text": "One."}\n', ".csv": b"text,id\nOne.,1\n", ".parquet": b""}[Path(name).suffix]
    (tmp_path / name).write_bytes(content)
    if good and content:
        (tmp_path / f"a{Path(name).suffix}").write_bytes(good)
    assert refused(tmp_path).startswith(f"{tmp_path / name} cannot be read: ")
    assert capfd.readouterr() == ("", "")


def test_separator_within_a_text(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text('{"text": "One."}\n{"text": "Two.<|endoftext|>Three."}\n')
    assert "has <|endoftext|> within a text" in refused(tmp_path)


def test_text_files_that_a_card_names_are_read_by_the_line_and_never_split_wrongly(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("---\nconfigs:\n- config_name: default\n  data_files: a.txt\n---\n")
    (tmp_path / "a.txt").write_text("One.\nTwo.\n")
    assert list(HuggingFaceSource(str(tmp_path), "train").documents()) == ["One.", "Two."]
    (tmp_path / "a.txt").write_text("One.\nStill one.\n<|endoftext|>\nTwo.\n")
    assert "put the stories into a text file" in refused(tmp_path)


def test_damaged_card(folder: Path) -> None:
    (folder / "README.md").write_text("---\nconfigs: [a: b: c\n---\n")
    assert "README.md line 1: " in refused(folder)


def test_folder_without_data(tmp_path: Path) -> None:
    assert "doesn't contain any data files" in refused(tmp_path)


def fingerprints(dataset: str, revision: str | None = None) -> set[str]:
    changes: list[dict[str, Any]] = [{}, {"split": "validation"}, {"text_field": "pages"}, {"max_documents": 2}]
    fields = {"dataset": dataset, "split": "train", "revision": revision}
    return {HuggingFaceSource(**(fields | change)).fingerprint for change in changes}


def test_folder_fingerprint_changes_with_all_that_is_asked_for(folder: Path) -> None:
    found = fingerprints(str(folder))
    assert len(found) == 4
    assert all(re.fullmatch(r"[0-9a-f]{64}", fingerprint) for fingerprint in found)


def test_folder_fingerprint_does_not_change_with_its_place(folder: Path, tmp_path: Path) -> None:
    before = HuggingFaceSource(str(folder), "train").fingerprint
    moved = folder.rename(tmp_path / "moved")
    assert HuggingFaceSource(str(moved), "train").fingerprint == before


# --- names and revisions ---


def test_tiny_stories_is_pinned() -> None:
    source = HuggingFaceSource(TINY_STORIES, "train")
    assert source.name == "roneneldan/TinyStories@f54c09fd (train)"
    pinned = HuggingFaceSource(TINY_STORIES, "train", PINNED_REVISIONS[TINY_STORIES])
    assert source.fingerprint == pinned.fingerprint


def test_hub_fingerprint_changes_with_all_that_is_asked_for() -> None:
    found = fingerprints(HUB_NAME, COMMIT)
    assert len(found | fingerprints(HUB_NAME, OTHER_COMMIT) | fingerprints("someone/Else", COMMIT)) == 12
    assert HuggingFaceSource(HUB_NAME, "train", COMMIT, streaming=True).fingerprint in found


@pytest.mark.parametrize("revision", ["main", "v1.0", "", COMMIT[:8], COMMIT.upper(), COMMIT + "0", COMMIT + "\n"])
def test_revision_that_is_missing_or_no_commit(revision: str) -> None:
    assert "data.revision=<commit sha>" in refused(TINY_STORIES, revision=revision)
    assert "data.revision=<commit sha>" in refused(HUB_NAME)


@pytest.mark.parametrize("dataset", ["json", "no/such/folder", "./stories", "hf://datasets/a/b", "/absent"])
def test_neither_folder_nor_hub_name(dataset: str) -> None:
    assert "neither a folder here nor a hub name" in refused(dataset, revision=COMMIT)


def test_folder_passes_over_the_revision_of_another_dataset(folder: Path) -> None:
    source = HuggingFaceSource(str(folder), "train", COMMIT)
    assert list(source.documents()) == TRAIN
    assert source.fingerprint == HuggingFaceSource(str(folder), "train").fingerprint


def test_library_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert "pip install datasets" in refused(TINY_STORIES)
