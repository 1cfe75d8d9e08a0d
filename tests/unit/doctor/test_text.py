"""Checks of the text, on real files: prepared text, and samples of text that is not prepared."""

from pathlib import Path

import pytest

from storyteller_ds.config.run import RunConfig
from storyteller_ds.data.corpus import Corpus, open_corpus, prepare_corpus
from storyteller_ds.doctor.finding import Finding
from storyteller_ds.doctor.leaks import leaked
from storyteller_ds.doctor.text_facts import Sample, facts_of_corpus
from storyteller_ds.model.decoder import Decoder
from tests.support.doctored import found_by, subject_of, with_text

STORIES = [f"Story number {i}. There was a dög called Rex{i}." for i in range(40)]
DISTINCT = [f"{a} {b} {c} went to the {b} {a} and saw a {c} {b}" for a in "ABCDEF" for b in "uvwxyz" for c in "12345"]


def settings(tmp_path: Path, *overrides: str) -> tuple[str, ...]:
    text = tmp_path / "stories.txt"
    text.write_text("\n\n".join(STORIES), encoding="utf-8")
    given = (f"data.source={text}", f"data.cache_dir={tmp_path / 'cache'}", "data.sequence_length=16")
    return (*given, "tokenizer.kind=char", "tokenizer.vocab_size=64", *overrides)


def prepared(run: RunConfig) -> Corpus:
    return open_corpus(run, prepare_corpus(run, lambda line: None))


def unused_rows(corpus: Corpus, tmp_path: Path, *overrides: str) -> Finding | None:
    subject = subject_of(tmp_path, *settings(tmp_path, *overrides), text=facts_of_corpus(corpus, 100))
    return found_by(subject, "unused_rows")


@pytest.mark.parametrize(("tie", "tables"), [("true", 1), ("false", 2)])
def test_rows_that_no_token_uses_are_counted_and_the_number_to_set_is_right(tmp_path, tie, tables):
    given = ("tokenizer.vocab_size=5000", f"model.tie_embeddings={tie}")
    run = subject_of(tmp_path, *settings(tmp_path, *given)).run
    corpus = prepared(run)
    tokens = corpus.tokenizer.vocab_size
    finding = unused_rows(corpus, tmp_path, *given)
    assert finding is not None
    less = (f"tokenizer.vocab_size={tokens}", f"model.tie_embeddings={tie}")
    smaller = subject_of(tmp_path, *settings(tmp_path, *less)).run
    saved = sum(p.numel() for p in Decoder(run).parameters()) - sum(p.numel() for p in Decoder(smaller).parameters())
    assert saved == tables * (5000 - tokens) * run.model.hidden_size
    assert f"{5000 - tokens:,} of the 5,000 rows" in finding.evidence
    assert f"{saved:,} of {sum(p.numel() for p in Decoder(run).parameters()):,} parameters" in finding.evidence
    assert f"tokenizer.vocab_size={tokens} has the same tokens" in finding.fix
    # The advice holds, and following it leaves no finding.
    again = prepared(smaller)
    assert again.tokenizer.to_json() == corpus.tokenizer.to_json()
    assert again.fingerprint == corpus.fingerprint
    assert unused_rows(again, tmp_path, *less) is None


def test_a_vocabulary_rounded_up_is_nothing_to_warn_of(tmp_path):
    corpus = prepared(subject_of(tmp_path, *settings(tmp_path)).run)
    assert corpus.tokenizer.vocab_size < 64
    assert unused_rows(corpus, tmp_path) is None


def one_word_changed(story: str) -> str:
    return story.replace(" saw ", " met ")


def by_brute_force(train: list[str], validation: list[str]) -> tuple[int, int]:
    """The numbers of exact and near duplicates, by sets of three words in a row, as cleaning defines them."""

    def shingles(story: str) -> set[tuple[str, ...]]:
        words = story.lower().replace(".", " ").split()
        return {tuple(words[i : i + 3]) for i in range(len(words) - 2)}

    exact = [any(shingles(v) == shingles(t) and v.lower() == t.lower() for t in train) for v in validation]
    near = [
        any(len(shingles(v) & shingles(t)) >= 0.5 * len(shingles(v) | shingles(t)) for t in train) for v in validation
    ]
    return sum(exact), sum(n and not e for e, n in zip(exact, near, strict=True))


def test_leaks_are_those_of_brute_force():
    train, rest = DISTINCT[:120], DISTINCT[120:]
    validation = [train[3], train[50].upper(), one_word_changed(train[70]), *rest[:20]]
    found = leaked(train, validation)
    assert (found.exact, found.near) == by_brute_force(train, validation)
    assert found.exact == 2
    assert found.near >= 1
    assert found.looked_at == len(validation)
    far = [f"nothing like it number{i} was ever told by{i} anybody{i} here" for i in range(30)]
    assert leaked(train, far)[:2] == (0, 0)
    assert leaked(train, [])[:2] == leaked([], validation)[:2] == (0, 0)


def test_training_stories_beyond_the_time_limit_are_not_claimed_to_be_compared(monkeypatch, tmp_path):
    monkeypatch.setattr("storyteller_ds.doctor.leaks._SECONDS", 0.0)
    train = [f"a{i} b{i} c{i} d{i} e{i}" for i in range(1200)]
    assert leaked(train, [train[0], train[1100]]) == (1, 0, 2, 500)
    finding = on_stories(tmp_path, train, [train[0], train[1100]], "validation_in_training")
    assert finding is not None
    assert "1 are among the first 500 training stories word for word" in finding.evidence


def on_stories(tmp_path: Path, train: list[str], validation: list[str], check: str) -> Finding | None:
    subject = subject_of(tmp_path, *settings(tmp_path))
    sampled = {"train": Sample(tuple(train), True), "validation": Sample(tuple(validation), True)}
    return found_by(with_text(subject, **sampled), check)


FAR = [f"a{i} b{i} c{i} d{i} e{i}" for i in range(200)]


def test_validation_text_that_is_trained_on_is_found(tmp_path):
    finding = on_stories(tmp_path, FAR, FAR[:30], "validation_in_training")
    assert finding is not None
    assert finding.severity == "warning"
    assert "of 30 validation stories 30 are" in finding.evidence
    assert "storyteller preprocess" in finding.fix
    assert on_stories(tmp_path, FAR[:150], FAR[150:], "validation_in_training") is None


def test_one_of_two_hundred_is_a_note(tmp_path):
    finding = on_stories(tmp_path, FAR[:1], FAR, "validation_in_training")
    assert finding is not None
    assert finding.severity == "note"


@pytest.mark.parametrize(("repeated", "is_found"), [(20, False), (60, True)])
def test_repetitions_are_found(tmp_path, repeated, is_found):
    finding = on_stories(tmp_path, [*FAR[: 200 - repeated], *[FAR[0]] * repeated], [], "repeated_stories")
    assert (finding is not None) == is_found
    assert finding is None or (finding.severity == "warning" and "(30%)" in finding.evidence)


@pytest.mark.parametrize("broken", ["caf\ufffd", "itâ€™s"])
def test_garbled_text_is_found(tmp_path, broken):
    finding = on_stories(tmp_path, [*FAR[:150], *[broken] * 10], [], "broken_characters")
    assert finding is not None
    assert "10 of the first 160" in finding.evidence
    assert "data.encoding=windows-1252" in finding.fix
    assert on_stories(tmp_path, [*FAR, broken, "café, it’s"], [], "broken_characters") is None
