"""From the sequences of a corpus to the batches of each rank."""

from collections.abc import Iterator
from typing import NamedTuple, Protocol

import numpy as np

from storyteller_ds.data.batching.micro_batch import MicroBatch
from storyteller_ds.data.batching.order import SampleOrder
from storyteller_ds.data.batching.sequences import Sequences
from storyteller_ds.data.text_bytes import TextBytes
from storyteller_ds.errors import DataError

_SEQUENCES_AT_ONCE = 1 << 12
"""Sequences whose bytes are looked up together."""


class BatchSplit(NamedTuple):
    """This rank's part of every global batch."""

    rank: int
    world_size: int
    micro_batch_size: int
    """Sequences per rank and forward pass."""
    accumulation_steps: int
    """Micro-batches per rank and optimizer step."""

    @property
    def global_batch_size(self) -> int:
        """Sequences per optimizer step over all ranks."""
        return self.world_size * self.micro_batch_size * self.accumulation_steps

    def positions(self, number: int) -> range:
        """Positions in the global batch of this rank's micro-batch `number`; over all ranks they are contiguous."""
        start = (number * self.world_size + self.rank) * self.micro_batch_size
        return range(start, start + self.micro_batch_size)


class Batches(Protocol):
    """Training batches of one rank."""

    def step(self, samples_seen: int) -> list[MicroBatch]:
        """This rank's micro-batches of the optimizer step that begins after samples_seen sequences."""
        ...


class TrainBatches:
    """The training batches of one rank.

    Args:
        sequences: sequences of the training text.
        fingerprint: fingerprint of the corpus.
        seed: seed of the run.
        split: this rank's part of a batch.

    Raises:
        DataError: the corpus is smaller than one global batch.
    """

    def __init__(self, sequences: Sequences, fingerprint: str, seed: int, split: BatchSplit) -> None:
        if len(sequences) < split.global_batch_size:
            raise DataError(
                f"the training corpus has {len(sequences.stream)} tokens, {len(sequences)} sequences of "
                f"{sequences.length}; one batch takes {split.global_batch_size}: use more text, or lower "
                "data.sequence_length or train.global_batch_size (if it was not given, what it is the product of: "
                "train.micro_batch_size, train.gradient_accumulation_steps, ranks)"
            )
        self._sequences, self._split = sequences, split
        self.samples_of_a_step = split.global_batch_size
        """Sequences per optimizer step over all ranks."""
        self.order = SampleOrder(fingerprint, seed, len(sequences))

    def step(self, samples_seen: int) -> list[MicroBatch]:
        """See Batches."""
        ids = self.order.sequence_ids(samples_seen, self._split.global_batch_size)
        return [
            self._sequences.read(ids[self._split.positions(number)]) for number in range(self._split.accumulation_steps)
        ]


class ValidationBatches:
    """All validation sequences in order; the last batch is padded with sequences without targets.

    Args:
        sequences: sequences of the validation text.
        text: the bytes behind its tokens.
        split: this rank's part of a batch.

    Raises:
        DataError: there are no targets.
    """

    def __init__(self, sequences: Sequences, text: TextBytes, split: BatchSplit) -> None:
        self._sequences, self._text, self._split = sequences, text, split
        self.targets = sum(map(len, self._target_places(None)))
        """Number of tokens that are predicted in a validation on the whole text."""
        if self.targets == 0:
            raise DataError("the validation text is empty; give a longer one in data.validation")

    def text_bytes(self, limit: int | None) -> int:
        """UTF-8 bytes of the text that is predicted in the first `limit` global batches; None: in all of them."""
        return sum(map(self._text.at, self._target_places(limit)))

    def batches(self, limit: int | None) -> Iterator[MicroBatch]:
        """This rank's micro-batches of the first `limit` global batches; None: all of them."""
        size = self._split.global_batch_size
        total = -(-len(self._sequences) // size)
        for batch in range(total if limit is None else min(limit, total)):
            ids = np.arange(batch * size, (batch + 1) * size)
            for number in range(self._split.accumulation_steps):
                yield self._sequences.read(ids[self._split.positions(number)])

    def _target_places(self, limit: int | None) -> Iterator[np.ndarray[tuple[int], np.dtype[np.int64]]]:
        end = len(self._sequences)
        if limit is not None:
            end = min(end, limit * self._split.global_batch_size)
        for start in range(0, end, _SEQUENCES_AT_ONCE):
            yield self._sequences.target_places(np.arange(start, min(end, start + _SEQUENCES_AT_ONCE)))
