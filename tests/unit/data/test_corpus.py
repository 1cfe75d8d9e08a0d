"""A prepared corpus: made once, whole or not at all, and named by what went into it."""

import itertools
import json
import os
import shutil
from pathlib import Path

import pytest

from storyteller_ds.config.run import RunConfig
from storyteller_ds.data import corpus as module
from storyteller_ds.data.corpus import Corpus, open_corpus, prepare_corpus
from storyteller_ds.data.tokenizer import load_tokenizer
from storyteller_ds.errors import DataError

STORIES = [f"Story number {i}. There was a dog called Rex{i}." for i in range(40)]


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "stories.txt"
    path.write_text("\n\n".join(STORIES), encoding="utf-8")
    return path


def config(text: Path, **data: object) -> RunConfig:
    settings = {"source": str(text), "cache_dir": str(text.parent / "cache"), "validation_fraction": 0.2, **data}
    return RunConfig.model_validate({"data": settings, "tokenizer": {"kind": "char", "vocab_size": 64}})


def prepared(run: RunConfig) -> list[str]:
    said: list[str] = []
    prepare_corpus(run, said.append)
    return said


def opened(run: RunConfig) -> Corpus:
    return open_corpus(run, prepare_corpus(run, lambda line: None))


def folder_of(run: RunConfig) -> Path:
    """Where the corpus lies, which is made if need be."""
    assert run.data.cache_dir is not None
    return run.data.cache_dir / prepare_corpus(run, lambda line: None)


def stories_of(stream, tokenizer) -> list[str]:
    """The documents between separators."""
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
    assert 2 <= len(held_out) <= 16  # a fifth of forty, give or take
    assert train == [s for s in STORIES if s in set(train)]  # in the order of the file


def test_it_is_made_once(text, monkeypatch):
    run = config(text)
    prepared(run)
    folder = folder_of(run)
    before = {p.name: (p.stat().st_mtime_ns, p.stat().st_ino) for p in folder.iterdir()}
    monkeypatch.setattr(module, "write_shards", lambda *a: pytest.fail("made again"))
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


@pytest.mark.parametrize("stage", ["train tokenizer", "first split", "second split", "index"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError, DataError], ids=lambda e: e.__name__)
def test_a_failure_on_the_way_leaves_nothing(text, monkeypatch, stage, error):
    run = config(text)
    calls = []

    def failing(*args, **kwargs):
        calls.append(1)
        if stage != "second split" or len(calls) == 2:
            raise error("on the way")
        return real(*args, **kwargs)

    real = module._write_split
    owner, name = {
        "train tokenizer": (module, "train_tokenizer"),
        "index": (module.json, "dumps"),
    }.get(stage, (module, "_write_split"))
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, failing)
        with pytest.raises(DataError if error is OSError else error):
            prepared(run)
    assert calls
    assert list((text.parent / "cache").iterdir()) == []
    assert len(prepared(run)) == 4  # and the next try starts anew
    assert len(opened(run).train) > 100


def test_what_a_killed_process_left_is_not_in_the_way(text):
    # A kill leaves NAME.tmp-PID; in a container the next process often has the same PID.
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
    real = module._make

    def overtaken(run, sources, work, say):
        real(run, sources, work, say)
        shutil.copytree(work, work.with_name(work.name.split(".tmp")[0]))

    monkeypatch.setattr(module, "_make", overtaken)
    prepared(run)
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
    assert folder_of(config(copy)) == folder_of(runs["base"])  # the content counts, not the name
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
    given = folder_of(config(other)) / "tokenizer.json"  # one rare character more than the text needs

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


def test_the_cache_is_where_the_environment_says(text, monkeypatch, tmp_path):
    monkeypatch.setenv("STORYTELLER_CACHE", str(tmp_path / "elsewhere"))
    run = config(text, cache_dir=None)
    key = prepare_corpus(run, lambda line: None)
    assert [path.name for path in (tmp_path / "elsewhere").iterdir()] == [key]
    assert not (text.parent / "cache").exists()
    assert len(open_corpus(run, key).train) > 100


def test_a_cache_that_cannot_be_written_is_a_data_error(text):
    with pytest.raises(DataError, match=r"data\.cache_dir"):
        prepared(config(text, cache_dir=str(text / "below a file")))


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


def test_the_index_says_what_was_read(text):
    run = config(text)
    prepared(run)
    index = json.loads((folder_of(run) / "corpus.json").read_text())
    assert index["train"]["documents"] + index["validation"]["documents"] == len(STORIES)
    assert str(text) in index["train"]["source"]
