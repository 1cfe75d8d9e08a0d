"""Stories with prompts: the model reads the prompt but is trained and scored on the story alone."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from storyteller_ds.config.load import load_config
from storyteller_ds.config.prompt_template import PromptTemplate
from storyteller_ds.config.run import RunConfig
from storyteller_ds.data.batching.batches import BatchSplit
from storyteller_ds.data.batching.loading import train_batches, validation_batches
from storyteller_ds.data.batching.micro_batch import IGNORED
from storyteller_ds.data.corpus import Corpus, open_corpus, prepare_corpus
from storyteller_ds.data.stories import Stories
from storyteller_ds.errors import ConfigError, DataError

ROWS = [
    {"genre": ["fable", "Märchen", "space"][i % 3], "words": i, "story": f"There was a bear number {i}. " * (1 + i % 4)}
    for i in range(60)
]
TEMPLATE = "Genre: {genre}, {words} words\n"
KINDS = {"bpe": 300, "char": 100, "sentencepiece": 400}


def configured(folder: Path, rows: list, *overrides: str) -> RunConfig:
    path = folder / "stories.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    given = [f"data.source={path}", f"data.cache_dir={folder / 'cache'}", "data.sequence_length=16"]
    return load_config(overrides=[*given, "train.global_batch_size=2", *overrides]).run


def prepared(run: RunConfig) -> Corpus:
    return open_corpus(run, prepare_corpus(run, lambda _: None))


def prompted(*more: str) -> list[str]:
    return [f"data.prompt={json.dumps(TEMPLATE)}", *more]


def prompt(row: dict) -> str:
    return f"Genre: {row['genre']}, {row['words']} words\n"


@pytest.mark.parametrize("packing", ["stream", "best_fit", "pad"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_targets_are_the_stories_and_nothing_else(tmp_path, kind, packing):
    settings = prompted(f"tokenizer.kind={kind}", f"tokenizer.vocab_size={KINDS[kind]}", f"data.packing={packing}")
    run = configured(tmp_path, ROWS, *settings)
    corpus = prepared(run)
    tokenizer, end = corpus.tokenizer, corpus.tokenizer.end_of_text
    stories = Stories(corpus.validation, end)
    by_text = {prompt(row) + row["story"].strip(): row for row in ROWS}
    found = [tokenizer.decode(stories.ids(1 + i)).lstrip() for i in range(len(stories))]
    # SentencePiece puts a space before each text, and so before the story too.
    rows = [by_text[text.replace("words\n ", "words\n")] for text in found]
    assert len(rows) == corpus.validation_size.documents > 0
    batches = validation_batches(run, corpus, BatchSplit(0, 1, 2, 1))
    targets = torch.cat([b.target_BS[b.target_BS != IGNORED] for b in batches.batches(None)]).tolist()
    expected = [[*tokenizer.encode(row["story"].strip()), end] for row in rows]
    assert sorted(targets) == sorted(i for ids in expected for i in ids)
    assert batches.text_bytes(None) == sum(len(row["story"].strip().encode()) for row in rows)
    # The prompt is tokenized on its own, as it is for generation.
    for number, row in enumerate(rows):
        assert stories.ids(1 + number) == tokenizer.encode(prompt(row)) + tokenizer.encode(row["story"].strip())


def test_training_has_no_target_in_a_prompt(tmp_path):
    run = configured(tmp_path, ROWS, *prompted("tokenizer.vocab_size=300", "data.packing=pad"))
    corpus = prepared(run)
    batches = train_batches(run, corpus, BatchSplit(0, 1, 2, 1))
    seen = [batches.step(n)[0] for n in range(0, batches.order.sequences - 1, 2)]
    targets = sum(int((b.target_BS != IGNORED).sum()) for b in seen)
    whole = train_batches(run, Corpus(**{**vars(corpus), "train_prompts": None}), BatchSplit(0, 1, 2, 1))
    all_tokens = sum(int((whole.step(n)[0].target_BS != IGNORED).sum()) for n in range(0, whole.order.sequences - 1, 2))
    assert (
        targets
        < all_tokens
        == targets
        + sum(
            int(((w.target_BS != IGNORED) & (b.target_BS == IGNORED)).sum())
            for b, w in zip(seen, (whole.step(n)[0] for n in range(0, whole.order.sequences - 1, 2)), strict=True)
        )
    )
    assert corpus.train_prompts is not None
    assert (corpus.train_prompts > 0).all()


def test_another_prompt_is_another_corpus(tmp_path):
    keys = {
        prepare_corpus(configured(tmp_path, ROWS, "tokenizer.vocab_size=300", *more), lambda _: None)
        for more in ([], prompted(), ["data.prompt='{genre}: '"])
    }
    assert len(keys) == 3


@pytest.mark.parametrize("row", [{"words": 3, "story": "No genre."}, {"words": 3, "story": "No genre.", "genre": None}])
def test_a_row_without_a_field_of_the_prompt_is_a_bad_row(tmp_path, row):
    rows = [*ROWS, row]
    run = configured(tmp_path, rows, *prompted("tokenizer.vocab_size=300"))
    with pytest.raises(DataError, match=r"row 61 has no text in its field 'genre', which data\.prompt has"):
        prepare_corpus(run, lambda _: None)
    run = configured(tmp_path, rows, *prompted("tokenizer.vocab_size=300", "data.bad_rows=0.1"))
    corpus = prepared(run)
    assert corpus.train_size.documents + corpus.validation_size.documents == len(ROWS)


def test_a_field_that_no_row_has_is_named(tmp_path):
    run = configured(tmp_path, ROWS, "data.prompt='{genra}: '")
    with pytest.raises(DataError, match=r"no field 'genra' for data\.prompt.*genre, words, story"):
        prepare_corpus(run, lambda _: None)


@pytest.mark.parametrize("template", ["{}", "{ }", "{a!r}", "{a:>3}", "{a", "a}"])
def test_a_template_that_is_none_is_refused(template):
    with pytest.raises(ValueError, match=r"[Bb]race|'[{}]'|expected"):
        PromptTemplate(template)
    with pytest.raises(ConfigError, match=r"data\.prompt"):
        load_config(overrides=[f"data.prompt={json.dumps(template)}"])


def test_a_prompt_needs_rows(tmp_path):
    (tmp_path / "a.txt").write_text("One.\n\nTwo.\n\n", encoding="utf-8")
    run = load_config(overrides=[f"data.source={tmp_path / 'a.txt'}", "data.prompt='Tell: '"]).run
    with pytest.raises(DataError, match=r"data\.prompt=.* is for Hugging Face datasets and tables"):
        prepare_corpus(run, lambda _: None)


def test_braces_can_be_written():
    assert PromptTemplate("{{{a}}} {b}").fill({"a": " x ", "b": 2, "c": 0}) == "{x} 2"
    assert PromptTemplate("{a} {b}").fields == ["a", "b"]


def test_a_field_may_have_any_name():
    assert PromptTemplate("{Main character}: {a.b}").fill({"Main character": "Ann", "a.b": "fox"}) == "Ann: fox"


def test_the_story_is_no_prompt_of_itself(tmp_path):
    with pytest.raises(DataError, match=r"data\.prompt has the story itself, \{story\}; leave it out"):
        prepare_corpus(configured(tmp_path, ROWS, "data.prompt='{genre} {story}'"), lambda _: None)


def test_a_prompt_that_fills_whole_sequences_leaves_them_without_targets(tmp_path):
    rows = [{**row, "genre": "very " * 40} for row in ROWS]
    run = configured(tmp_path, rows, *prompted("tokenizer.kind=char", "tokenizer.vocab_size=100"))
    corpus = prepared(run)
    batches = validation_batches(run, corpus, BatchSplit(0, 1, 2, 1))
    counts = np.array([int((b.target_BS != IGNORED).sum()) for b in batches.batches(None)])
    assert (counts == 0).any()
    assert counts.sum() == batches.targets > 0
