"""The sequences of a corpus split as tokens, targets and positions."""

import numpy as np
import torch
from numpy.typing import NDArray

from storyteller_ds.data.batching.micro_batch import IGNORED, MicroBatch
from storyteller_ds.data.batching.packing import PADDING, Packing
from storyteller_ds.data.shards import TokenStream


class Sequences:
    """A packed token stream.

    Args:
        stream: all tokens.
        packing: how the stream is packed.
        document_start: the id that every document begins with, to separate them; None: do not separate them.
        counted: [tokens] whether each token of the stream counts as a target; None: all do.
    """

    def __init__(
        self,
        stream: TokenStream,
        packing: Packing,
        document_start: int | None = None,
        counted: NDArray[np.bool_] | None = None,
    ) -> None:
        self.stream, self._packing = stream, packing
        self._document_start, self._counted = document_start, counted

    def __len__(self) -> int:
        return len(self._packing)

    @property
    def length(self) -> int:
        """S (tokens)."""
        return self._packing.length

    def read(self, numbers: NDArray[np.int64]) -> MicroBatch:
        """The sequences with these numbers; numbers beyond the last one give sequences without targets."""
        places, counts = self._places(numbers)
        # Padding positions get the separator at the beginning of the stream.
        token_BS = self.stream.take(np.maximum(places, 0))
        target_BS = np.where(counts, self.stream.take(places + 1), IGNORED)
        position_BS = None
        if self._document_start is not None:
            begins_BS = token_BS == self._document_start
            begins_BS[:, 1:] |= np.diff(places) != 1
            position_BS = torch.from_numpy(document_positions(begins_BS))
        return MicroBatch(torch.from_numpy(token_BS), torch.from_numpy(target_BS), position_BS)

    def target_places(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """The places in the stream of all targets that count in these sequences, one after the other."""
        places, counts = self._places(numbers)
        return places[counts] + 1

    def _places(self, numbers: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """[B, S] places of the input tokens, and whether the target of each counts."""
        exist = numbers < len(self)
        places = self._packing.places(np.where(exist, numbers, 0))
        places[~exist] = PADDING
        counts = places != PADDING
        if self._counted is not None:
            counts &= self._counted[places + 1]
        return places, counts


def document_positions(begins_BS: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Map [B, S] flags, true at the first token of each document, to the position of each token in its document."""
    index_S = np.arange(begins_BS.shape[1])
    return index_S - np.maximum.accumulate(np.where(begins_BS, index_S, 0), axis=1)
