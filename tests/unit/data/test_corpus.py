"""A prepared corpus is made once, completely or not at all, and is named by what went into it."""

import itertools
import json
import os
import re
import shutil
import threading
from pathlib import Path

import pytest

from storyteller_ds.config.run import RunConfig
from storyteller_ds.data import corpus as module
from storyteller_ds.data import corpus_index, preparing
from storyteller_ds.data.corpus import open_corpus, prepare_corpus
from storyteller_ds.data.sources.choose import HeldOutPart
from storyteller_ds.data.tokenizers.tokenizer import Tokenizer
from storyteller_ds.data.tokenizers.tokenizer_json import load_tokenizer
from storyteller_ds.errors import DataError, InterruptedSafely
from tests.support.small_corpus import STORIES, config, content_of, folder_of, opened, prepared


def stories_of(stream, tokenizer) -> list[str]:
    """The documents between the separators."""
    ids = stream.read(0, len(stream)).tolist()
    assert ids[0] == ids[-1] == tokenizer.end_of_text
    cuts = [i for i, x in enumerate(ids) if x == tokenizer.end_of_text]
    return [tokenizer.decode(ids[a + 1 : b]) for a, b in itertools.pairwise(cuts)]


def test_the_tokens_are_the_documents_split_in_two(text):
    run = config(text)
    remark, *lines = prepared(run)
    assert "40 documents of 9 words (median), split at blank lines" in remark
    assert len(lines) == 3
    corpus = opened(run)
    train, held_out = (stories_of(s, corpus.tokenizer) for s in (corpus.train, corpus.validation))
    assert sorted(train + held_out) == sorted(STORIES)
    assert set(train).isdisjoint(held_out)
    assert 2 <= len(held_out) <= 16  # about a fifth of 40
    assert train == [s for s in STORIES if s in set(train)]  # in file order


def test_it_is_made_once(text, monkeypatch):
    run = config(text)
    prepared(run)
    folder = folder_of(run)
    before = {p.name: (p.stat().st_mtime_ns, p.stat().st_ino) for p in folder.iterdir()}
    monkeypatch.setattr(module, "make_corpus", lambda *a: pytest.fail("made again"))
    assert prepared(run) == []
    assert {p.name: (p.stat().st_mtime_ns, p.stat().st_ino) for p in folder.iterdir()} == before
    assert [p.name for p in folder.parent.iterdir()] == [folder.name]


def test_the_same_text_gives_the_same_tokens_and_the_same_split(text):
    run = config(text)
    prepared(run)
    folder = folder_of(run)
    first = {p.name: p.read_bytes() for p in folder.iterdir()}
    shutil.rmtree(folder)
    prepared(run)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == first


STAGES = {
    "train tokenizer": (preparing, "train_tokenizer", 1),
    "first split": (preparing, "write_shards", 1),
    "second split": (preparing, "write_shards", 2),
    "index": (corpus_index.json, "dumps", 3),  # the index of the tokenizer alone makes the first two calls
}


def failing_at(stage: str, error: type[BaseException], patch: pytest.MonkeyPatch) -> list[int]:
    owner, name, which = STAGES[stage]
    real, calls = getattr(owner, name), []

    def failing(*args, **kwargs):
        calls.append(1)
        if len(calls) == which:
            raise error("on the way")
        return real(*args, **kwargs)

    patch.setattr(owner, name, failing)
    return calls


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("error", [OSError, DataError], ids=lambda e: e.__name__)
def test_a_failure_on_the_way_leaves_nothing(text, monkeypatch, stage, error):
    run = config(text)
    with monkeypatch.context() as patch:
        calls = failing_at(stage, error, patch)
        with pytest.raises(DataError):
            prepared(run)
    assert calls
    assert list((text.parent / "cache").iterdir()) == []
    assert len(prepared(run)) == 4  # the next try starts over
    assert len(opened(run).train) > 100


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("error", [KeyboardInterrupt, InterruptedSafely], ids=lambda e: e.__name__)
def test_what_an_interruption_leaves_is_taken_over(text, monkeypatch, stage, error):
    run = config(text)
    undisturbed = content_of(folder_of(config(text, cache_dir=str(text.parent / "other"))))
    with monkeypatch.context() as patch:
        failing_at(stage, error, patch)
        with pytest.raises(error):
            prepared(run)
    assert len(list((text.parent / "cache").iterdir())) == 1
    said = prepared(run)
    assert any("training" in line for line in said) == (stage == "train tokenizer")
    assert content_of(folder_of(run)) == undisturbed
    assert [path.name for path in (text.parent / "cache").iterdir()] == [folder_of(run).name]


def test_finished_shards_are_not_made_again(text, monkeypatch):
    monkeypatch.setattr(preparing, "SHARD_TOKENS", 300)
    monkeypatch.setattr(preparing, "_DOCUMENTS_AT_ONCE", 2)
    run = config(text)
    undisturbed = content_of(folder_of(config(text, cache_dir=str(text.parent / "other"))))
    shards = sorted(name for name in undisturbed if name.startswith("train-"))
    assert len(shards) >= 4
    encoded: list[str] = []
    real = Tokenizer.encode_batch

    def counting(self, texts):
        encoded.extend(texts)
        if len(encoded) > stop_after:
            raise KeyboardInterrupt
        return real(self, texts)

    monkeypatch.setattr(Tokenizer, "encode_batch", counting)
    seen = []
    for stop_after in (12, 12, 12, 1000):  # each try gets further, and the last one finishes
        encoded.clear()
        if stop_after == 1000:
            said = prepared(run)
        else:
            with pytest.raises(KeyboardInterrupt):
                prepared(run)
        seen.append(encoded[0])
    assert len(set(seen)) == 4
    assert len(encoded) < len(STORIES) / 2
    assert any(re.search(r"taking over .* tokenizer, \d+ finished shard", line) for line in said)
    assert content_of(folder_of(run)) == undisturbed


@pytest.mark.parametrize("damage", ["half a shard", "another tokenizer", "no index", "foreign files"])
def test_what_is_taken_over_is_checked(text, monkeypatch, damage):
    monkeypatch.setattr(preparing, "SHARD_TOKENS", 300)
    run = config(text)
    undisturbed = content_of(folder_of(config(text, cache_dir=str(text.parent / "other"))))
    with monkeypatch.context() as patch:
        failing_at("second split", KeyboardInterrupt, patch)
        with pytest.raises(KeyboardInterrupt):
            prepared(run)
    (left,) = (text.parent / "cache").iterdir()
    outside = text.parent / "outside"
    outside.write_text("not ours")
    match damage:
        case "half a shard":
            shard = left / "train-00001.tokens"
            shard.write_bytes(shard.read_bytes()[:-7])
        case "another tokenizer":
            path = left / "tokenizer.json"
            path.write_text(path.read_text().replace('"o"', '"0"'))
        case "no index":
            (left / "corpus.json").unlink()
        case "foreign files":
            (left / "train-00099.tokens").write_bytes(b"x")
            (left / "validation-00000.tokens").symlink_to(outside)
            (left / "folder").mkdir()
    prepared(run)
    assert content_of(folder_of(run)) == undisturbed
    assert outside.read_text() == "not ours"


@pytest.mark.parametrize("split", ["source", "validation"])
def test_text_that_changes_while_it_is_prepared_is_not_kept_under_its_old_name(text, monkeypatch, split):
    other = text.with_name("other.txt")
    other.write_text("\n\n".join(STORIES[::-1]), encoding="utf-8")
    run = config(text, validation=str(other))
    changing, real = {"source": text, "validation": other}[split], preparing.train_tokenizer
    before = changing.read_text(encoding="utf-8")

    def change(*args):
        changing.write_text(f"{before}\n\nOne more.", encoding="utf-8")
        return real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(preparing, "train_tokenizer", change)
        with pytest.raises(DataError, match=rf"{text} or {other} was changed .*run again"):
            prepared(run)
    assert list((text.parent / "cache").iterdir()) == []
    changing.write_text(before, encoding="utf-8")
    corpus = opened(run)
    assert stories_of(corpus.train, corpus.tokenizer) == STORIES
    assert stories_of(corpus.validation, corpus.tokenizer) == STORIES[::-1]


def test_a_cache_that_is_removed_while_it_is_made_is_a_data_error_that_asks_for_another_try(text, monkeypatch):
    run, real = config(text), preparing.write_shards

    def removed(*args):
        shutil.rmtree(text.parent / "cache")
        return real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(preparing, "write_shards", removed)
        with pytest.raises(DataError, match=r"No such file or directory; .*, and run again"):
            prepared(run)
    assert len(opened(run).train) > 100


def test_a_long_preparation_shows_that_it_lives(text, monkeypatch):
    monkeypatch.setattr(preparing, "LINE_EVERY_S", 0.001)
    run, said, shown = config(text), [], {"training": threading.Event(), "tokenizing": threading.Event()}

    def say(line: str) -> None:
        said.append(line)
        for kind, event in shown.items():
            if re.match(rf"{kind} .*: [1-9]\d* stories, [\d.]+ MB so far$", line):
                event.set()

    def slow(documents):
        for number, document in enumerate(documents):
            if number == 5:
                kind = "tokenizing" if any("tokenizing" in line for line in said) else "training"
                assert shown[kind].wait(60)  # a line about the documents so far
            yield document

    real = HeldOutPart.documents
    monkeypatch.setattr(HeldOutPart, "documents", lambda self: slow(real(self)))
    prepare_corpus(run, say)
    assert all(event.is_set() for event in shown.values())
    assert not [thread for thread in threading.enumerate() if thread.name == "meanwhile"]


def test_what_a_killed_process_left_is_not_in_the_way(text):
    # A killed process leaves NAME.tmp-PID behind; in a container the next process often has the same PID.
    run = config(text)
    folder = folder_of(run)
    shutil.rmtree(folder)
    left = folder.with_name(f"{folder.name}.tmp-{os.getpid()}")
    left.mkdir(parents=True)
    (left / "train-00000.tokens").write_bytes(b"half")
    assert len(prepared(run)) == 4
    assert len(opened(run).train) > 100


def test_a_slower_process_takes_the_result_of_the_faster(text, monkeypatch):
    run = config(text)
    real = module.make_corpus

    def overtaken(run, sources, given, work, say):
        real(run, sources, given, work, say)
        shutil.copytree(work, work.with_name(work.name.split(".work")[0]))

    monkeypatch.setattr(module, "make_corpus", overtaken)
    prepared(run)
    assert [p.name for p in (text.parent / "cache").iterdir()] == [folder_of(run).name]
    assert len(opened(run).train) > 100


def test_two_that_prepare_the_same_at_once_do_not_meet(text, monkeypatch):
    """The second process starts and finishes while the first is still working."""
    run = config(text)
    real, folders = module.make_corpus, []

    def nested(run, sources, given, work, say):
        folders.append(work)
        if len(folders) == 1:
            prepared(run)
        real(run, sources, given, work, say)

    monkeypatch.setattr(module, "make_corpus", nested)
    prepared(run)
    assert len(set(folders)) == 2
    assert [p.name for p in (text.parent / "cache").iterdir()] == [folder_of(run).name]
    assert len(opened(run).train) > 100


def test_the_fingerprint_is_that_of_text_split_and_tokenizer(text):
    runs = {"base": config(text), "fraction": config(text, validation_fraction=0.3)}
    runs["tokenizer"] = runs["base"].model_copy(
        update={"tokenizer": runs["base"].tokenizer.model_copy(update={"vocab_size": 20})}
    )
    fingerprints = {}
    for name, run in runs.items():
        prepared(run)
        fingerprints[name] = opened(run).fingerprint
    copy = text.with_name("copy.txt")
    copy.write_bytes(text.read_bytes())
    assert folder_of(config(copy)) == folder_of(runs["base"])  # only the content matters, not the name
    text.write_text("\n\n".join([*STORIES, "One more."]), encoding="utf-8")
    prepared(config(text))
    fingerprints["text"] = opened(config(text)).fingerprint
    assert len(set(fingerprints.values())) == 4


def test_a_tokenizer_of_ones_own_is_used_as_it_is(text):
    prepared(config(text))
    given = folder_of(config(text)) / "tokenizer.json"
    run = config(text).model_copy(update={"tokenizer": config(text).tokenizer.model_copy(update={"path": given})})
    assert not any("training" in line for line in prepared(run))
    assert opened(run).tokenizer.to_json() == load_tokenizer(given).to_json()


@pytest.mark.parametrize("field", ["source", "validation", "cache_dir", "tokenizer.path"])
def test_a_home_folder_is_expanded_in_every_path(text, monkeypatch, field):
    monkeypatch.setenv("HOME", str(text.parent))
    given = folder_of(config(text)) / "tokenizer.json"
    (text.parent / "tokenizer.json").write_bytes(given.read_bytes())
    section, name = field.split(".") if "." in field else ("data", field)
    settings = config(text).model_dump()
    settings[section][name] = {"cache_dir": "~/other", "path": "~/tokenizer.json"}.get(name, f"~/{text.name}")
    run = RunConfig.model_validate(settings)
    assert len(open_corpus(run, prepare_corpus(run, lambda line: None)).train) > 100
    assert not Path("~").exists()


@pytest.mark.parametrize("is_cached", [False, True])
def test_a_tokenizer_that_is_larger_than_the_model_is_refused(text, is_cached):
    run = config(text)
    other = text.with_name("other.txt")
    other.write_text(text.read_text(encoding="utf-8") + "\n\nŽ", encoding="utf-8")
    prepared(config(other))
    given = folder_of(config(other)) / "tokenizer.json"  # has one rare character that the text does not need

    def with_rows(rows: int) -> RunConfig:
        return run.model_copy(
            update={"tokenizer": run.tokenizer.model_copy(update={"path": given, "vocab_size": rows})}
        )

    size = load_tokenizer(given).vocab_size
    if is_cached:
        prepared(with_rows(size))
    small = with_rows(size - 1)
    with pytest.raises(DataError, match=rf"more than tokenizer\.vocab_size={size - 1}"):
        opened(small)


def test_too_few_documents_to_hold_one_out_are_refused(text):
    text.write_text("Only one story.", encoding="utf-8")
    with pytest.raises(DataError, match=r"nothing can be held out .* one document of 3 words"):
        prepared(config(text))
    assert list((text.parent / "cache").iterdir()) == []


@pytest.mark.parametrize("empty", ["train", "validation"])
def test_a_text_without_a_document_is_refused(text, empty):
    blank = text.with_name("blank.txt")
    blank.write_text(" \n<|endoftext|>\n", encoding="utf-8")
    names = {"source": str(text), "validation": str(text), {"train": "source"}.get(empty, empty): str(blank)}
    with pytest.raises(DataError, match=rf"blank\.txt has no document for {empty}; "):
        prepared(config(text, **names))
    assert list((text.parent / "cache").iterdir()) == []


def test_the_index_says_what_was_read(text):
    run = config(text)
    prepared(run)
    index = json.loads((folder_of(run) / "corpus.json").read_text())
    assert index["train"]["documents"] + index["validation"]["documents"] == len(STORIES)
    assert str(text) in index["train"]["source"]
