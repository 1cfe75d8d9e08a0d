"""The cache of prepared corpora, whose folder may be full, read-only, damaged, or set by the environment."""

import errno
import json
import os
import shutil
import sys

import pytest

from storyteller_ds.data import preparing
from storyteller_ds.data.corpus import open_corpus, prepare_corpus
from storyteller_ds.errors import DataError
from storyteller_ds.untrusted import seal_of
from tests.support.small_corpus import config, content_of, folder_of, opened, prepared


def test_the_cache_is_where_the_environment_says(text, monkeypatch, tmp_path):
    monkeypatch.setenv("STORYTELLER_CACHE", str(tmp_path / "elsewhere"))
    run = config(text, cache_dir=None)
    key = prepare_corpus(run, lambda line: None)
    assert [path.name for path in (tmp_path / "elsewhere").iterdir()] == [key]
    assert not (text.parent / "cache").exists()
    assert len(open_corpus(run, key).train) > 100


def test_an_empty_variable_is_no_cache_folder(text, monkeypatch, tmp_path):
    monkeypatch.setenv("STORYTELLER_CACHE", "")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    prepare_corpus(config(text, cache_dir=None), lambda line: None)
    assert list(here.iterdir()) == []
    assert len(list((tmp_path / "home/.cache/storyteller_ds").iterdir())) == 1


@pytest.mark.parametrize("cache", ["", "below a file"])
def test_a_cache_that_cannot_be_written_is_a_data_error(text, cache):
    with pytest.raises(DataError, match=r"set data\.cache_dir \(or STORYTELLER_CACHE\) to a folder that can be"):
        prepared(config(text, cache_dir=str(text / cache)))


def test_a_full_disk_is_a_data_error_that_asks_for_room(text, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(preparing, "write_shards", full)
    with pytest.raises(DataError, match=r"No space left on device; make room there, or set data\.cache_dir"):
        prepared(config(text))
    assert list((text.parent / "cache").iterdir()) == []


def test_a_cache_that_holds_the_corpus_is_only_read(text, monkeypatch):
    run = config(text)
    prepared(run)

    def refused(event: str, arguments: tuple[object, ...]) -> None:
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if watching and (writes or event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir")):
            raise PermissionError(errno.EROFS, "Read-only file system")

    watching = True
    sys.addaudithook(refused)
    try:
        assert len(opened(run).train) > 100
        with pytest.raises(PermissionError):
            (text.parent / "control").write_text("")
    finally:
        watching = False


@pytest.mark.parametrize(
    "kind", ["no index", "empty folder", "a file", "a link to nowhere", "half an index", "no shard"]
)
def test_a_cache_that_is_not_whole_is_prepared_again(text, kind):
    run = config(text)
    folder = folder_of(run)
    whole = content_of(folder)
    match kind:
        case "no index":
            (folder / "corpus.json").unlink()
        case "half an index":
            (folder / "corpus.json").write_bytes(whole["corpus.json"][:50])
        case "no shard":
            (folder / "train-00000.tokens").unlink()
        case _:
            shutil.rmtree(folder)
            make = {"empty folder": folder.mkdir, "a file": folder.touch}
            make.get(kind, lambda: folder.symlink_to(folder.parent / "nowhere"))()
    said: list[str] = []
    prepare_corpus(run, said.append)
    assert said[0].startswith(f"preparing the corpus {folder} again: ")
    assert len([line for line in said if "again: " in line]) == 1
    assert content_of(folder) == whole
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    assert prepared(run) == []


@pytest.mark.parametrize(
    ("name", "is_missing"),
    [
        ("corpus.json", False),
        ("tokenizer.json", False),
        ("tokenizer.json", True),
        ("train-00000.tokens", False),
        ("validation-00000.tokens", True),
    ],
)
def test_a_damaged_cache_is_a_data_error(text, name, is_missing):
    run = config(text)
    path = folder_of(run) / name
    content = path.read_bytes()
    path.unlink()
    if not is_missing:
        path.write_bytes(content[:-3])
    with pytest.raises(DataError) as caught:
        open_corpus(run, path.parent.name)
    assert str(path.parent) in str(caught.value)
    # The cache is our own, so it is rebuilt from the text and the files that are still intact.
    prepare_corpus(run, lambda line: None)
    assert len(open_corpus(run, path.parent.name).train) > 100
    assert path.read_bytes() == content


@pytest.mark.parametrize("name", ["train-00000.tokens", "validation-00000.tokens"])
def test_a_whole_shard_of_another_corpus_is_not_taken_for_ours(text, name):
    run = config(text)
    folder = folder_of(run)
    whole = content_of(folder)
    other = folder_of(config(text, validation_fraction=0.4))
    (folder / name).write_bytes((other / name).read_bytes())
    with pytest.raises(DataError, match=f"{name}: not the shard"):
        open_corpus(run, folder.name)
    prepare_corpus(run, lambda line: None)
    assert content_of(folder) == whole


def test_an_index_of_before_checksums_were_in_it_still_opens(text):
    run = config(text)
    key = folder_of(run).name
    tokens = opened(run).train.read(0, 1000)
    path = folder_of(run) / "corpus.json"
    index = json.loads(path.read_text())
    del index["sha256"], index["seal"]
    path.write_text(json.dumps({**index, "seal": seal_of(index)}))
    before = path.read_bytes()
    assert (open_corpus(run, key).train.read(0, 1000) == tokens).all()
    assert prepared(run) == []
    assert path.read_bytes() == before
