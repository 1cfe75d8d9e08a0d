"""What is logged about the text before a run trains, compared with the text itself."""

from pathlib import Path

from storyteller_ds.config.load import load_config
from storyteller_ds.config.run import RunConfig
from storyteller_ds.data.corpus import Corpus, open_corpus, prepare_corpus
from storyteller_ds.data.corpus_index import SplitIndex
from storyteller_ds.training.announcement import text_and_passes

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
