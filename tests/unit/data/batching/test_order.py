"""The order of training sequences is a permutation in every epoch and never changes."""

import itertools

import numpy as np
import pytest

from storyteller_ds.data.batching import order as order_module
from storyteller_ds.data.batching.order import SampleOrder

GOLDEN_10 = [5, 1, 8, 0, 9, 3, 4, 6, 2, 7, 6, 3, 7, 0, 2, 5, 8, 1, 9, 4]
GOLDEN_1000003 = [443393, 160012, 305343, 984318]
SIZES = [1, 2, 3, 4, 5, 7, 16, 17, 64, 1000, 4097, 65537]


@pytest.mark.parametrize("size", SIZES)
def test_every_epoch_is_a_permutation(size):
    order = SampleOrder("corpus", 0, size)
    for epoch in (0, 1, 1000):
        assert sorted(order.sequence_ids(epoch * size, size).tolist()) == list(range(size))


def test_a_position_beyond_the_first_epoch_belongs_to_the_next():
    # Negative control for the bijection: a window across the epoch boundary is not a permutation.
    order = SampleOrder("corpus", 0, 64)
    assert len(set(order.sequence_ids(32, 64).tolist())) < 64


@pytest.mark.parametrize("size", [3, 7, 64])
def test_any_slice_agrees_with_the_whole(size):
    order = SampleOrder("corpus", 5, size)
    whole = order.sequence_ids(0, 4 * size).tolist()
    for first, count in itertools.product(range(3 * size), (0, 1, 2, size - 1, size, size + 1)):
        assert order.sequence_ids(first, count).tolist() == whole[first : first + count]
    assert SampleOrder("corpus", 5, size).sequence_ids(size - 1, size).tolist() == whole[size - 1 : 2 * size - 1]


def test_epochs_seeds_and_corpora_have_orders_of_their_own():
    base = SampleOrder("corpus", 0, 1000)
    others = [
        base.sequence_ids(1000, 1000).tolist(),
        SampleOrder("corpus", 1, 1000).sequence_ids(0, 1000).tolist(),
        SampleOrder("other", 0, 1000).sequence_ids(0, 1000).tolist(),
        list(range(1000)),
    ]
    first = base.sequence_ids(0, 1000).tolist()
    for other in others:
        # Two independent permutations agree in about one position.
        assert sum(a == b for a, b in zip(first, other, strict=True)) < 8
    assert SampleOrder("corpus", 0, 1000).sequence_ids(0, 1000).tolist() == first


@pytest.mark.parametrize("size", [3, 7, 20])
def test_one_sequence_is_as_often_in_any_place(size):
    epochs = 2000
    order = SampleOrder("uniform", 3, size)
    table = np.array(order.sequence_ids(0, epochs * size).tolist()).reshape(epochs, size)
    for sequence in (0, size - 1):
        counts = np.bincount(np.argwhere(table == sequence)[:, 1], minlength=size)
        expected = epochs / size
        chi_square = float(((counts - expected) ** 2 / expected).sum())
        # The mean is size - 1 and the variance 2 (size - 1); allow five standard deviations above the mean.
        assert chi_square < size - 1 + 5 * (2 * (size - 1)) ** 0.5, counts


def test_neighbors_in_the_corpus_are_not_neighbors_in_the_order():
    ids = np.array(SampleOrder("corpus", 0, 4097).sequence_ids(0, 4097).tolist())
    assert (np.abs(np.diff(ids)) == 1).sum() < 12  # about two are expected by chance
    correlation = np.corrcoef(ids, np.arange(4097))[0, 1]
    assert abs(correlation) < 5 / 4097**0.5


def test_the_order_is_frozen():
    # A checkpoint's cursor is a position in this order, so the order must never change between versions.
    assert SampleOrder("golden", 7, 10).sequence_ids(0, 20).tolist() == GOLDEN_10
    assert SampleOrder("golden", 7, 1_000_003).sequence_ids(5, 4).tolist() == GOLDEN_1000003


def test_blocks_join_within_and_between_epochs():
    size = 2 * order_module._BLOCK + 100
    order = SampleOrder("corpus", 0, size)
    epochs = [order.sequence_ids(n * size, size).tolist() for n in range(2)]
    assert all(sorted(epoch) == list(range(size)) for epoch in epochs)
    for first in (order_module._BLOCK - 3, 2 * order_module._BLOCK - 1, size - 2):
        assert order.sequence_ids(first, 7).tolist() == (epochs[0] + epochs[1])[first : first + 7]
