"""Packing: every token is a target once, documents stay whole, and bins are as full as in textbook best-fit."""

import itertools
import random

import numpy as np
import pytest

from storyteller_ds.data.batching.packing import PADDING, CutStream, WholeDocuments, best_fit

LENGTH = 7


def separators_of(sizes: list[int]) -> np.ndarray:
    """Positions of the separators for documents of these sizes, counting the separator before each document."""
    return np.cumsum([0, *sizes])


def rows(packing) -> list[list[int]]:
    return [[i for i in row if i != PADDING] for row in packing.places(np.arange(len(packing))).tolist()]


SIZES = {
    "short": [3, 4, 2, 2, 7, 1, 1, 6, 3, 3],
    "longer than a sequence": [20, 3, 14, 8, 1, 15, 7],
    "one": [4],
    "many": [random.Random(0).randrange(1, 3 * LENGTH) for _ in range(300)],
}


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_every_token_is_in_one_sequence_and_documents_are_whole(sizes, shared):
    separators = separators_of(sizes)
    packing = WholeDocuments(separators, LENGTH, shared)
    in_rows = rows(packing)
    assert sorted(itertools.chain(*in_rows)) == list(range(separators[-1]))
    document = np.searchsorted(separators, np.arange(separators[-1]), side="right") - 1
    in_how_many = [len({i for i, row in enumerate(in_rows) if any(document[p] == d for p in row)}) for d in document]
    for place, count in enumerate(in_how_many):
        assert count == -(-sizes[document[place]] // LENGTH)  # full pieces of LENGTH tokens, and the rest
    if not shared:
        assert all(len(set(document[row])) == 1 for row in in_rows)
    # Padding only follows the tokens.
    for row in packing.places(np.arange(len(packing))):
        assert (np.diff((row == PADDING).astype(int)) >= 0).all()
    # Sequences are ordered by their first document.
    assert [row[0] for row in in_rows] == sorted(row[0] for row in in_rows)


def test_any_sequences_in_any_order_are_those_of_all():
    packing = WholeDocuments(separators_of(SIZES["many"]), LENGTH, shared=True)
    everything = packing.places(np.arange(len(packing)))
    numbers = np.array([5, 0, 17, 5, len(packing) - 1])
    assert (packing.places(numbers) == everything[numbers]).all()


def textbook_best_fit(sizes: list[int], capacity: int) -> list[int]:
    """Best-fit decreasing, bin by bin; returns the fill of each bin."""
    bins: list[int] = []
    for size in sorted(sizes, reverse=True):
        fitting = [i for i, used in enumerate(bins) if used + size <= capacity]
        if fitting:
            bins[max(fitting, key=lambda i: bins[i])] += size
        else:
            bins.append(size)
    return sorted(bins)


@pytest.mark.parametrize("seed", range(20))
def test_bins_are_those_of_the_textbook(seed):
    rng = random.Random(seed)
    capacity = rng.choice([1, 2, 10, 64, 300])
    sizes = [rng.randint(1, capacity) for _ in range(rng.randint(1, 200))]
    chosen = best_fit(np.array(sizes), capacity)
    used = np.bincount(chosen, weights=sizes)
    assert used.max() <= capacity
    assert sorted(used.tolist()) == textbook_best_fit(sizes, capacity)


@pytest.mark.parametrize("tokens", [2, 7, 8, 9, 15, 16, 50])
@pytest.mark.parametrize("keeps_rest", [True, False])
def test_a_cut_stream_is_all_of_it_or_all_whole_sequences(tokens, keeps_rest):
    in_rows = rows(CutStream(tokens, LENGTH, keeps_rest))
    assert list(itertools.chain(*in_rows)) == list(range(tokens - 1 if keeps_rest else (tokens - 1) // LENGTH * LENGTH))
    assert keeps_rest or all(len(row) == LENGTH for row in in_rows)
