"""What is logged before a run trains, against the text itself."""

from pathlib import Path

import pytest

from storyteller_ds.config.files import preset_names
from storyteller_ds.config.load import load_config
from storyteller_ds.config.run import RunConfig
from storyteller_ds.data.corpus import Corpus, open_corpus, prepare_corpus
from storyteller_ds.data.corpus_index import SplitIndex
from storyteller_ds.model.decoder import Decoder
from storyteller_ds.training.announcement import no_best, no_patience, only_warm_up, text_and_passes, unused_rows

STORIES = [f"Story number {i}. There was a dög called Rex{i}." for i in range(40)]


def configured(tmp_path: Path, *overrides: str) -> RunConfig:
    text = tmp_path / "stories.txt"
    text.write_text("\n\n".join(STORIES), encoding="utf-8")
    given = (f"data.source={text}", f"data.cache_dir={tmp_path / 'cache'}", "data.sequence_length=16")
    return load_config(overrides=[*given, "tokenizer.kind=char", "tokenizer.vocab_size=64", *overrides]).run


def prepared(run: RunConfig) -> Corpus:
    return open_corpus(run, prepare_corpus(run, lambda line: None))


def test_it_says_how_much_text_there_is_and_how_often_it_is_read(tmp_path):
    run = configured(tmp_path, "train.max_steps=150", "train.global_batch_size=4", f"data.validation={tmp_path / 'v'}")
    held_out = ["There was a dog.", "There was a story."]
    (tmp_path / "v").write_text("\n\n".join(held_out), encoding="utf-8")
    corpus = prepared(run)
    tokens = sum(len(story) + 1 for story in STORIES) + 1
    size = sum(len(story.encode()) for story in STORIES)
    assert 1500 <= size < 2500
    sequences = (tokens - 1) // 16
    passes = 150 * 4 / sequences
    assert text_and_passes(run, corpus, sequences) == (
        f"40 stories, {size / 1000:.1f} kB, {tokens:,} tokens; 150 steps are {passes:.2f} passes; 2 stories held out"
    )


def test_one_document_is_one_story(tmp_path):
    line = text_and_passes(run := configured(tmp_path, "data.split=none"), prepared(run), 100)
    assert line.startswith("1 story, ")
    assert line.endswith("; 1 story held out")


def test_the_two_parts_of_one_file_are_all_of_it(tmp_path):
    run = configured(tmp_path, "data.validation_fraction=0.2")
    corpus = prepared(run)
    assert corpus.train_size.documents + corpus.validation_size.documents == len(STORIES)
    assert corpus.train_size.bytes + corpus.validation_size.bytes == sum(len(s.encode()) for s in STORIES)
    assert f"{corpus.validation_size.documents} stories held out" in text_and_passes(run, corpus, 100)


def test_a_time_limit_and_unknown_tokens_are_part_of_it(tmp_path):
    run = configured(tmp_path, "train.max_minutes=5", "tokenizer.vocab_size=10")
    line = text_and_passes(run, prepared(run), 100)
    assert " passes, if they fit into train.max_minutes=5; " in line
    assert "% of their tokens unknown, which flatters val_bpb)" in line


def test_a_corpus_prepared_before_bytes_were_counted_says_the_rest(tmp_path):
    run = configured(tmp_path)
    corpus = prepared(run)
    train, validation = (SplitIndex(documents=count, shards=["x"]) for count in (38, 2))
    old = Corpus(**{**vars(corpus), "train_size": train, "validation_size": validation})
    assert text_and_passes(run, old, 100).startswith(f"38 stories, {len(corpus.train):,} tokens; ")


def test_padding_is_said_where_there_may_be_any(tmp_path):
    run = configured(tmp_path, "data.packing=pad", "data.sequence_length=100")
    corpus = prepared(run)
    stories = corpus.train_size.documents
    padding = 1 - (len(corpus.train) - 1) / (100 * stories)
    assert 0.3 < padding < 0.9
    line = text_and_passes(run, corpus, stories)
    assert line.endswith(f"; {stories} sequences (pad), {padding:.1%} of them padding")


@pytest.mark.parametrize(("tie", "tables"), [("true", 1), ("false", 2)])
def test_rows_that_no_token_uses_are_counted_and_the_number_to_set_is_right(tmp_path, tie, tables):
    run = configured(tmp_path, "tokenizer.vocab_size=5000", f"model.tie_embeddings={tie}")
    corpus = prepared(run)
    tokens = corpus.tokenizer.vocab_size
    warning = unused_rows(run, corpus.tokenizer)
    assert warning is not None
    smaller = configured(tmp_path, f"tokenizer.vocab_size={tokens}", f"model.tie_embeddings={tie}")
    saved = sum(p.numel() for p in Decoder(run).parameters()) - sum(p.numel() for p in Decoder(smaller).parameters())
    assert saved == tables * (5000 - tokens) * run.model.hidden_size
    assert f"{5000 - tokens:,} of the 5,000 rows" in warning
    assert f"{saved:,} of {sum(p.numel() for p in Decoder(run).parameters()):,} parameters" in warning
    assert f"tokenizer.vocab_size={tokens} has the same tokens" in warning
    # What it advises is true, and silent.
    again = prepared(smaller)
    assert again.tokenizer.to_json() == corpus.tokenizer.to_json()
    assert again.fingerprint == corpus.fingerprint
    assert unused_rows(smaller, again.tokenizer) is None


def test_a_vocabulary_rounded_up_is_nothing_to_warn_of(tmp_path):
    run = configured(tmp_path)
    tokenizer = prepared(run).tokenizer
    assert tokenizer.vocab_size < 64
    assert unused_rows(run, tokenizer) is None


@pytest.mark.parametrize(("warm_up", "warns"), [(0, False), (49, False), (50, True), (51, True)])
def test_a_run_that_only_warms_up_is_told(tmp_path, warm_up, warns):
    run = configured(tmp_path, "train.max_steps=50", f"schedule.warmup_steps={warm_up}")
    warning = only_warm_up(run)
    assert (warning is not None) == warns
    if warning is not None:
        assert f"schedule.warmup_steps={warm_up}, train.max_steps=50" in warning


@pytest.mark.parametrize("kind", ["constant", "cosine"])
def test_of_no_schedule_is_a_preset_warned(kind):
    for name in preset_names():
        assert only_warm_up(load_config(name, [f"schedule.kind={kind}"]).run) is None


@pytest.mark.parametrize(("patience", "every", "warns"), [(2, 0, True), (2, 40, True), (2, 33, False), (0, 0, False)])
def test_a_patience_that_cannot_end_the_run_is_warned_of(tmp_path, patience, every, warns):
    settings = (f"train.early_stop_patience={patience}", f"train.eval_every_steps={every}", "train.max_steps=100")
    warning = no_patience(configured(tmp_path, *settings))
    assert (warning is not None) == warns
    if warns:
        assert f"train.early_stop_patience={patience} has no effect" in warning
        assert f"train.eval_every_steps={every}" in warning


@pytest.mark.parametrize(
    ("every", "validated", "best", "warns"),
    [(30, 20, 1, False), (30, 45, 1, False), (30, 50, 1, True), (30, 0, 1, True), (30, 0, 0, False), (0, 0, 1, False)],
)
def test_a_best_checkpoint_that_has_no_score_is_warned_of(tmp_path, every, validated, best, warns):
    settings = (f"checkpoint.every_steps={every}", f"train.eval_every_steps={validated}", "train.max_steps=100")
    run = configured(tmp_path, *settings, f"checkpoint.keep_best={best}", "checkpoint.keep_last=2")
    scored = [s for s in range(1, 100) if every and s % every == 0 and validated and s % validated == 0]
    assert (not scored and bool(every and best)) == warns
    assert (no_best(run) is not None) == warns
