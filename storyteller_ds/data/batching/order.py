"""The order of training sequences: a function of the corpus, the seed and the position, and nothing else.

There is no state and no table of the whole permutation: position i of an epoch is computed directly, so a run can
continue from any position on any number of ranks.
"""

import hashlib
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

_ROUNDS = 6
_BLOCK = 1 << 13
"""Positions that are computed together: a few take as long as hundreds."""


class SampleOrder:
    """A fresh pseudo-random permutation of the sequences in every epoch.

    Args:
        fingerprint: fingerprint of the corpus.
        seed: seed of the run.
        sequences: number of sequences in an epoch.
    """

    def __init__(self, fingerprint: str, seed: int, sequences: int) -> None:
        self._identity = f"{fingerprint}/{seed}"
        self.sequences = sequences
        self._block = lru_cache(maxsize=2)(self._computed_block)

    def sequence_ids(self, first: int, count: int) -> NDArray[np.int64]:
        """The sequences at positions first .. first + count - 1 of the run; epochs follow one another."""
        parts = [np.empty(0, dtype=np.int64)]
        while count:
            epoch, index = divmod(first, self.sequences)
            number, offset = divmod(index, _BLOCK)
            part = self._block(epoch, number)[offset : offset + count]
            parts.append(part)
            first, count = first + len(part), count - len(part)
        return np.concatenate(parts)

    def _computed_block(self, epoch: int, number: int) -> NDArray[np.int64]:
        positions = np.arange(number * _BLOCK, min((number + 1) * _BLOCK, self.sequences), dtype=np.uint64)
        return permute(positions, self.sequences, self._keys(epoch)).astype(np.int64)

    def _keys(self, epoch: int) -> NDArray[np.uint64]:
        digest = hashlib.shake_256(f"{self._identity}/{epoch}".encode()).digest(8 * _ROUNDS)
        return np.frombuffer(digest, dtype="<u8")


def permute(position: NDArray[np.uint64], size: int, keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """A permutation of 0 .. size - 1, evaluated at the given positions.

    A balanced Feistel network (Luby and Rackoff 1988) over the next power of four, applied until the
    value falls into the range (Black and Rogaway 2002, "cycle walking"): one to four times on average.

    Args:
        position: uint64 values below size.
        size: length of the permutation.
        keys: one 64-bit key per round.
    """
    half_bits = np.uint64(max(1, ((size - 1).bit_length() + 1) // 2))
    mask = np.uint64((1 << int(half_bits)) - 1)
    value = _feistel(position, half_bits, mask, keys)
    while (outside := value >= size).any():
        value[outside] = _feistel(value[outside], half_bits, mask, keys)
    return value


def _feistel(
    value: NDArray[np.uint64], half_bits: np.uint64, mask: np.uint64, keys: NDArray[np.uint64]
) -> NDArray[np.uint64]:
    left, right = value >> half_bits, value & mask
    for key in keys:
        left, right = right, left ^ (_mix(right ^ key) & mask)
    return (left << half_bits) | right


def _mix(value: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finalizer of splitmix64 (Steele, Lea and Flood 2014); unsigned arithmetic wraps."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))
