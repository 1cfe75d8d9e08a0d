"""Tokens, targets and positions of packed documents, compared with the documents themselves."""

import numpy as np
import pytest
import torch

from storyteller_ds.data.batching.batches import BatchSplit, TrainBatches, ValidationBatches
from storyteller_ds.data.batching.micro_batch import IGNORED
from storyteller_ds.data.batching.packing import CutStream, WholeDocuments
from storyteller_ds.data.batching.prefetch import PrefetchedBatches
from storyteller_ds.data.batching.sequences import Sequences
from storyteller_ds.data.shards import TokenStream
from storyteller_ds.data.text_bytes import TextBytes

END = 0
LENGTH = 8
rng = np.random.default_rng(0)
DOCUMENTS = [rng.integers(1, 1000, size).tolist() for size in rng.integers(1, 30, 60)]
IDS = np.array([END, *(i for document in DOCUMENTS for i in [*document, END])])
STREAM = TokenStream([IDS[:100], IDS[100:101], IDS[101:]])


def packed(kind: str, masked: bool = True, counted: np.ndarray | None = None) -> Sequences:
    if kind == "stream":
        packing = CutStream(len(IDS), LENGTH, keeps_rest=True)
    else:
        packing = WholeDocuments(np.flatnonzero(IDS == END), LENGTH, shared=kind == "best_fit")
    return Sequences(STREAM, packing, END if masked else None, counted)


KINDS = ("stream", "best_fit", "pad")


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_predicted_is_all_documents_each_from_its_own_beginning(kind):
    """The context that each token's position implies is its own document, from where that begins in the row."""
    sequences = packed(kind)
    batch = sequences.read(np.arange(len(sequences)))
    predicted = []
    for token_S, target_S, position_S in zip(*(tensor.tolist() for tensor in batch), strict=True):
        for s in range(LENGTH):
            if target_S[s] != IGNORED:
                context = token_S[s - position_S[s] : s + 1]
                predicted.append((context, target_S[s]))
    expected = []
    for document in DOCUMENTS:
        text = [END, *document, END]
        expected += [(text[: i + 1], text[i + 1]) for i in range(len(text) - 1)]
    assert len(predicted) == len(expected)
    if kind != "stream":  # in a stream, a document may begin anywhere before the sequence
        windows = [(context[(len(context) - 1) // LENGTH * LENGTH :], target) for context, target in expected]
        assert sorted(predicted) == sorted(windows)
    assert sorted(target for _, target in predicted) == sorted(IDS[1:].tolist())


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_mask_the_tokens_are_the_same(kind):
    numbers = np.arange(3)
    with_mask, without = packed(kind).read(numbers), packed(kind, masked=False).read(numbers)
    assert without.position_BS is None
    assert torch.equal(with_mask.token_BS, without.token_BS)
    assert torch.equal(with_mask.target_BS, without.target_BS)


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_that_do_not_count_are_no_targets_and_have_no_bytes(kind):
    counted = np.random.default_rng(1).integers(0, 2, len(IDS)).astype(bool)
    sizes = np.arange(1000) % 5
    split = BatchSplit(0, 1, 2, 2)
    batches = ValidationBatches(packed(kind, counted=counted), TextBytes(STREAM, sizes), split)
    for limit in (1, 3, None):
        targets = torch.cat([b.target_BS[b.target_BS != IGNORED] for b in batches.batches(limit)]).numpy()
        assert batches.text_bytes(limit) == sizes[targets].sum()
    assert sorted(targets.tolist()) == sorted(IDS[1:][counted[1:]].tolist())
    assert batches.targets == len(targets) == counted[1:].sum()
    # Control: if all tokens count, these are targets too.
    assert ValidationBatches(packed(kind), TextBytes(STREAM, sizes), split).targets == len(IDS) - 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ahead", [0, 2])
def test_ranks_threads_and_a_resume_change_no_batch(kind, ahead):
    """1, 2 and 4 ranks, with and without prefetching, from the start and from the middle of an epoch."""
    sequences, size = packed(kind), 8

    def steps(world: int, rank: int, first: int, prefetch: bool) -> list[torch.Tensor]:
        split = BatchSplit(rank, world, size // world // 2, 2)
        batches = TrainBatches(sequences, "corpus", 3, split)
        reader = PrefetchedBatches(batches, ahead, pinned=False) if prefetch else batches
        read = [torch.stack([b.target_BS for b in reader.step(first + n * size)]) for n in range(30)]
        if prefetch:
            reader.close()
        return read

    expected = steps(1, 0, 0, prefetch=False)
    assert 30 * size > len(sequences)  # reaches into the next epoch
    for world in (1, 2, 4):
        ranks = [steps(world, rank, 0, prefetch=True) for rank in range(world)]
        assert all(torch.equal(torch.cat(parts, dim=1), whole) for *parts, whole in zip(*ranks, expected, strict=True))
    resumed = steps(1, 0, 5 * size, prefetch=True)
    assert all(torch.equal(a, b) for a, b in zip(resumed, expected[5:], strict=False))
    assert not torch.equal(resumed[0], expected[0])


def test_what_was_read_ahead_of_another_position_is_not_used():
    batches = TrainBatches(packed("best_fit"), "corpus", 3, BatchSplit(0, 1, 4, 1))
    ahead = PrefetchedBatches(batches, 2, pinned=False)
    for samples in (0, 4, 0, 40, 44, 8, 12):  # positions jump, as after a rollback
        assert torch.equal(ahead.step(samples)[0].token_BS, batches.step(samples)[0].token_BS)
    ahead.close()


def test_an_error_while_reading_ahead_is_raised_where_the_batch_is_asked_for(monkeypatch):
    batches = TrainBatches(packed("stream"), "corpus", 3, BatchSplit(0, 1, 4, 1))
    ahead = PrefetchedBatches(batches, 1, pinned=False)
    monkeypatch.setattr(batches, "step", lambda samples: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        ahead.step(0)
    ahead.close()
