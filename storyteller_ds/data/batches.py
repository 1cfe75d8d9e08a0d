"""From a stream of tokens to the batches of each rank.

Documents are packed: the stream is cut every sequence_length tokens, also within documents.
A sequence's targets are its tokens moved by one, so every token of the stream is a target once.
Each document begins with the end-of-text token, which is the last target of the one before it.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from storyteller_ds.data.order import SampleOrder
from storyteller_ds.data.shards import TokenStream
from storyteller_ds.data.text_bytes import TextBytes
from storyteller_ds.errors import DataError

IGNORED = -100
"""Target id of a position that does not count."""


class MicroBatch(NamedTuple):
    """One rank's sequences of one forward pass."""

    token_BS: Tensor
    """[B, S] int64."""
    target_BS: Tensor
    """[B, S] int64: the next token of each, IGNORED where there is none."""
    position_BS: Tensor | None = None
    """[B, S] int64: the position of each token in its document or, where that begins earlier, in the sequence; None:
    documents are not told apart."""

    def to(self, device: torch.device) -> "MicroBatch":
        """The same on a device."""

        def moved(tensor: Tensor) -> Tensor:
            # From pinned memory a GPU copies while the host goes on.
            return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)

        position_BS = None if self.position_BS is None else moved(self.position_BS)
        return MicroBatch(moved(self.token_BS), moved(self.target_BS), position_BS)


class BatchSplit(NamedTuple):
    """Which part of every global batch is this rank's."""

    rank: int
    world_size: int
    micro_batch_size: int
    """Sequences of one rank in one forward pass."""
    accumulation_steps: int
    """Micro-batches of one rank in an optimizer step."""

    @property
    def global_batch_size(self) -> int:
        """Sequences per optimizer step over all ranks."""
        return self.world_size * self.micro_batch_size * self.accumulation_steps

    def positions(self, number: int) -> range:
        """Positions within the global batch of this rank's micro-batch `number`; those of all ranks are contiguous."""
        start = (number * self.world_size + self.rank) * self.micro_batch_size
        return range(start, start + self.micro_batch_size)


class TrainBatches:
    """The training batches of one rank.

    Args:
        stream: all training tokens.
        fingerprint: of the corpus.
        seed: of the run.
        sequence_length: S (tokens).
        split: which part of a batch is this rank's.
        document_start: the id that every document begins with, to tell them apart; None: do not.

    Raises:
        DataError: the corpus is smaller than one global batch.
    """

    def __init__(
        self,
        stream: TokenStream,
        fingerprint: str,
        seed: int,
        sequence_length: int,
        split: BatchSplit,
        document_start: int | None = None,
    ) -> None:
        sequences = (len(stream) - 1) // sequence_length
        if sequences < split.global_batch_size:
            raise DataError(
                f"the training corpus has {len(stream)} tokens, {sequences} sequences of {sequence_length}; one "
                f"batch takes {split.global_batch_size}: use more text, or lower data.sequence_length or "
                "train.global_batch_size (if it was not given, what it is the product of: train.micro_batch_size, "
                "train.gradient_accumulation_steps, ranks)"
            )
        self._stream, self._length, self._split = stream, sequence_length, split
        self._document_start = document_start
        self.order = SampleOrder(fingerprint, seed, sequences)

    def step(self, samples_seen: int) -> list[MicroBatch]:
        """This rank's micro-batches of the optimizer step that begins after samples_seen sequences."""
        ids = self.order.sequence_ids(samples_seen, self._split.global_batch_size)
        return [
            self._batch([ids[i] for i in self._split.positions(number)])
            for number in range(self._split.accumulation_steps)
        ]

    def _batch(self, ids: list[int]) -> MicroBatch:
        rows = [self._stream.read(i * self._length, (i + 1) * self._length + 1) for i in ids]
        return _shifted(np.stack(rows), self._document_start)


class ValidationBatches:
    """All validation tokens in order, each a target exactly once; the last batch is filled up with IGNORED.

    Args:
        stream: all validation tokens.
        text: the bytes behind them.
        sequence_length: S (tokens).
        split: which part of a batch is this rank's.
        document_start: see TrainBatches.

    Raises:
        DataError: there are fewer than two tokens.
    """

    def __init__(
        self,
        stream: TokenStream,
        text: TextBytes,
        sequence_length: int,
        split: BatchSplit,
        document_start: int | None = None,
    ) -> None:
        if len(stream) < 2:
            raise DataError("the validation text is empty; give a longer one in data.validation")
        self._stream, self._text, self._length, self._split = stream, text, sequence_length, split
        self._document_start = document_start
        self._sequences = -(-(len(stream) - 1) // sequence_length)

    @property
    def targets(self) -> int:
        """Tokens that a validation on all of the text predicts."""
        return len(self._stream) - 1

    def text_bytes(self, limit: int | None) -> int:
        """UTF-8 bytes of the text that the first `limit` global batches predict; None: all of it."""
        end = len(self._stream)
        if limit is not None:
            end = min(end, limit * self._split.global_batch_size * self._length + 1)
        return self._text.between(1, end)

    def batches(self, limit: int | None) -> Iterator[MicroBatch]:
        """This rank's micro-batches of the first `limit` global batches; None: all of them."""
        size = self._split.global_batch_size
        total = -(-self._sequences // size)
        for batch in range(total if limit is None else min(limit, total)):
            for number in range(self._split.accumulation_steps):
                positions = self._split.positions(number)
                yield self._batch([batch * size + position for position in positions])

    def _batch(self, ids: list[int]) -> MicroBatch:
        rows = np.full((len(ids), self._length + 1), IGNORED, dtype=np.int64)
        for row, i in zip(rows, ids, strict=True):
            window = self._stream.read(i * self._length, (i + 1) * self._length + 1)
            row[: len(window)] = window
        return _shifted(rows, self._document_start)


def _shifted(row_BL: NDArray[np.int64], document_start: int | None) -> MicroBatch:
    """[B, S + 1] ids to tokens and targets; where a target is IGNORED the token may be any."""
    row = torch.from_numpy(row_BL)
    token_BS = row[:, :-1].clamp(min=0)
    position_BS = None if document_start is None else document_positions(token_BS == document_start)
    return MicroBatch(token_BS, row[:, 1:].contiguous(), position_BS)


def document_positions(begins_BS: Tensor) -> Tensor:
    """[B, S] bool, true at the first token of each document, to the position of each token in its document."""
    index_S = torch.arange(begins_BS.shape[1])
    return index_S - torch.where(begins_BS, index_S, 0).cummax(dim=1).values
