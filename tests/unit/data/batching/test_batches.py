"""Batches hold the same sequences on any number of ranks, and every token is where it belongs."""

import itertools

import numpy as np
import pytest
import torch

from storyteller_ds.config.data import TokenizerConfig
from storyteller_ds.data.batching.batches import BatchSplit, TrainBatches, ValidationBatches
from storyteller_ds.data.batching.micro_batch import IGNORED
from storyteller_ds.data.shards import TokenStream
from storyteller_ds.data.text_bytes import TextBytes
from storyteller_ds.data.tokenizers.choose import train_tokenizer
from storyteller_ds.errors import DataError
from tests.support.cut_stream import cut

LENGTH = 5
GLOBAL_BATCH = 8
ONE_RANK = BatchSplit(0, 1, GLOBAL_BATCH, 1)
# Every token id is its own position, so a sequence is identified by its content.
TOKENS = 203


def stream(tokens: int = TOKENS) -> TokenStream:
    ids = np.arange(tokens)
    return TokenStream([ids[:60], ids[60:61], ids[61:]])


NO_TEXT = TextBytes(TokenStream([np.zeros(1, dtype=np.int64)]))
"""For tests that do not count bytes."""


def train_rows(world: int, accumulation: int, samples_seen: int) -> list[list[tuple[int, ...]]]:
    """The sequences of all ranks for each accumulation step."""
    steps: list[list[tuple[int, ...]]] = [[] for _ in range(accumulation)]
    for rank in range(world):
        split = BatchSplit(rank, world, GLOBAL_BATCH // world // accumulation, accumulation)
        assert split.global_batch_size == GLOBAL_BATCH
        batches = TrainBatches(cut(stream(), LENGTH), "corpus", 1, split).step(samples_seen)
        assert len(batches) == accumulation
        for of_all_ranks, batch in zip(steps, batches, strict=True):
            assert batch.token_BS.dtype == batch.target_BS.dtype == torch.int64
            assert torch.equal(batch.target_BS, batch.token_BS + 1)
            of_all_ranks += [tuple(row) for row in batch.token_BS.tolist()]
    return steps


@pytest.mark.parametrize("samples_seen", [0, 8, 37])  # 40 sequences: the last batch crosses into the next epoch
def test_any_topology_reads_the_same_batch(samples_seen):
    order = TrainBatches(cut(stream(), LENGTH), "corpus", 1, ONE_RANK).order
    expected = [tuple(range(i * LENGTH, (i + 1) * LENGTH)) for i in order.sequence_ids(samples_seen, GLOBAL_BATCH)]
    for world, accumulation in itertools.product((1, 2, 4), (1, 2)):
        steps = train_rows(world, accumulation, samples_seen)
        assert [row for step in steps for row in step] == expected
        # An accumulation step holds the same sequences however many ranks share it.
        assert steps == train_rows(1, accumulation, samples_seen)
    assert train_rows(1, 1, samples_seen) != train_rows(1, 1, samples_seen + 1)


def test_documents_are_told_apart_by_what_they_begin_with():
    starts = {3, 10, 11, 17}
    ids = np.array([0 if i in starts else i + 1 for i in range(41)])
    expected = {}
    for i in range(40):
        begin = max([i // LENGTH * LENGTH, *(s for s in starts if s <= i)])  # the sequence may begin later
        expected[i // LENGTH, i % LENGTH] = i - begin
    train = TrainBatches(cut(TokenStream([ids]), LENGTH, document_start=0), "c", 0, ONE_RANK)
    for number, position_S in zip(train.order.sequence_ids(0, 8), train.step(0)[0].position_BS, strict=True):
        assert position_S.tolist() == [expected[number, s] for s in range(LENGTH)]
    validation = ValidationBatches(cut(TokenStream([ids]), LENGTH, True, 0), NO_TEXT, ONE_RANK)
    for number, position_S in enumerate(next(validation.batches(None)).position_BS):
        assert position_S.tolist() == [expected[number, s] for s in range(LENGTH)]
    assert cut(stream(), LENGTH).read(np.arange(2)).position_BS is None


def test_an_epoch_trains_on_every_whole_sequence_once():
    batches = TrainBatches(cut(stream(), LENGTH), "corpus", 1, ONE_RANK)
    seen = [row[0] for first in range(0, 40, 8) for b in batches.step(first) for row in b.token_BS.tolist()]
    assert sorted(seen) == list(range(0, 200, LENGTH))
    assert batches.order.sequences == (TOKENS - 1) // LENGTH


def test_a_corpus_that_just_fills_a_batch_is_enough_and_one_token_less_is_not():
    enough = GLOBAL_BATCH * LENGTH + 1
    assert len(TrainBatches(cut(stream(enough), LENGTH), "c", 0, ONE_RANK).step(0)) == 1
    with pytest.raises(DataError) as caught:
        TrainBatches(cut(stream(enough - 1), LENGTH), "c", 0, ONE_RANK)
    message = str(caught.value)
    assert f"{enough - 1} tokens, 7 sequences of {LENGTH}" in message
    assert "takes 8" in message
    assert "lower data.sequence_length or train.global_batch_size (if it was not given" in message
    assert "train.micro_batch_size" in message


@pytest.mark.parametrize(("world", "accumulation"), list(itertools.product((1, 2, 4), (1, 2))))
@pytest.mark.parametrize("tokens", [2, 6, 7, 41, 42, TOKENS])
def test_every_validation_token_is_a_target_once(world, accumulation, tokens):
    targets: list[int] = []
    for rank in range(world):
        split = BatchSplit(rank, world, GLOBAL_BATCH // world // accumulation, accumulation)
        validation = ValidationBatches(cut(stream_of(tokens), LENGTH, keeps_rest=True), NO_TEXT, split)
        for batch in validation.batches(None):
            assert batch.token_BS.shape == (split.micro_batch_size, LENGTH)
            assert batch.token_BS.min() >= 0
            counted = batch.target_BS != IGNORED
            # A target that counts is the token after its input token.
            assert torch.equal(batch.target_BS[counted], batch.token_BS[counted] + 1)
            targets += batch.target_BS[counted].tolist()
    assert sorted(targets) == list(range(1, tokens))


def stream_of(tokens: int) -> TokenStream:
    return TokenStream([np.arange(tokens)])


@pytest.mark.parametrize("limit", [1, 2, 5, 6, 100, None])
def test_the_bytes_of_a_limited_validation_are_those_of_its_targets(limit):
    sizes = np.arange(TOKENS, dtype=np.int64) ** 2 % 7
    for text in (TextBytes(stream(), sizes), TextBytes(TokenStream([sizes[:90], sizes[90:]]))):
        validation = ValidationBatches(cut(stream(), LENGTH, keeps_rest=True), text, ONE_RANK)
        targets = torch.cat([b.target_BS[b.target_BS != IGNORED] for b in validation.batches(limit)])
        assert validation.text_bytes(limit) == sizes[targets.numpy()].sum()


def test_ranks_make_the_same_number_of_validation_passes():
    sequences = cut(stream(7), LENGTH, keeps_rest=True)
    counts = {len(list(ValidationBatches(sequences, NO_TEXT, BatchSplit(r, 4, 1, 2)).batches(None))) for r in range(4)}
    assert counts == {2}


def test_the_validation_bytes_are_those_of_the_text():
    documents = ["Once upon a time\nthere was a café.", "Zwölf Bären 🐻🐻 sagten: „Hallo“!", "日本語の話"]
    tokenizer = train_tokenizer(TokenizerConfig(vocab_size=280), documents)
    ids = [tokenizer.end_of_text]
    for document in documents:
        ids += [*tokenizer.encode(document), tokenizer.end_of_text]
    stream = TokenStream([np.array(ids)])
    text = TextBytes(stream, tokenizer.token_bytes(tokenizer.vocab_size))
    validation = ValidationBatches(cut(stream, LENGTH, keeps_rest=True), text, ONE_RANK)
    assert validation.text_bytes(None) == sum(len(document.encode()) for document in documents)


def test_validation_without_a_target_is_refused():
    with pytest.raises(DataError, match=r"data\.validation"):
        ValidationBatches(cut(stream_of(1), LENGTH, keeps_rest=True), NO_TEXT, ONE_RANK)
