"""A part of a text that a model reads, spread evenly over it."""

import math
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from storyteller_ds.config.run import RunConfig
from storyteller_ds.data.batching.loading import sequences_of
from storyteller_ds.data.batching.micro_batch import IGNORED, MicroBatch
from storyteller_ds.errors import DataError
from storyteller_ds.evaluation.interval import Estimate, ratio
from storyteller_ds.evaluation.text import EvaluatedText
from storyteller_ds.model.decoder import Decoder

_LOGITS = 1 << 24
"""At most this many in one forward pass, unless a single sequence has more."""
_SEQUENCES = 16
"""At most this many in one forward pass."""


class Sample:
    """Whole sequences, packed as in validation during training; each token sees what it would see there.

    Args:
        run: its data section says how stories are packed.
        text: in the model's tokens.
        tokens: about how many are wanted; the whole text if it has fewer.

    Attributes:
        place_T: [T] position in the stream of each predicted token, in the order of the sequences. The experts work on
            the token before it.
        story_T: [T] the story of each, counted from 0 among those that the sample has a part of.
        bytes_T: [T] UTF-8 bytes of each.

    Raises:
        DataError: no predicted token stands for any bytes.
    """

    def __init__(self, run: RunConfig, text: EvaluatedText, tokens: int) -> None:
        sequences = sequences_of(run.data, text.stream, text.tokenizer.end_of_text, text.prompts, keeps_rest=True)
        wanted = min(len(sequences), -(-tokens // run.data.sequence_length))
        self._sequences = sequences
        self._numbers = np.linspace(0, len(sequences) - 1, wanted).round().astype(np.int64)
        self._vocab_size = run.tokenizer.vocab_size
        self.place_T = sequences.target_places(self._numbers)
        self.bytes_T = text.bytes.of_each(self.place_T)
        if not self.bytes_T.sum():
            raise DataError(f"{text.name} is too short: no token of it would be predicted; give more with --data")
        story_T = text.story_of_each()[self.place_T - 1]
        self.story_T: NDArray[np.int64] = np.unique(story_T, return_inverse=True)[1]

    def batches(self, device: torch.device) -> Iterator[tuple[MicroBatch, torch.Tensor]]:
        """The sequences in order, a few at a time, each batch with a mask [B, S] of the tokens that count."""
        together = max(1, min(_SEQUENCES, _LOGITS // (self._sequences.length * self._vocab_size)))
        for first in range(0, len(self._numbers), together):
            batch = self._sequences.read(self._numbers[first : first + together]).to(device)
            yield batch, batch.target_BS != IGNORED

    @torch.no_grad()
    def nll(self, decoder: Decoder, device: torch.device) -> NDArray[np.float64]:
        """[T] -log p of each token (nats)."""
        parts = []
        for (token_BS, target_BS, position_BS), counts_BS in self.batches(device):
            logit_BSV = decoder(token_BS, position_BS=position_BS)[0]
            parts.append(nll_of(logit_BSV[counts_BS], target_BS[counts_BS]))
        return np.concatenate(parts)

    def bits_per_byte(self, nll_T: NDArray[np.float64]) -> Estimate:
        """Bits per byte of these values, or of the difference of two such arrays, with its interval over stories."""
        return ratio(np.bincount(self.story_T, nll_T) / math.log(2), np.bincount(self.story_T, self.bytes_T))


def nll_of(logit_TV: torch.Tensor, target_T: torch.Tensor) -> NDArray[np.float64]:
    """[T] -log p(target) (nats)."""
    log_p_TV = logit_TV.float().log_softmax(dim=-1)
    nll_T: NDArray[np.float64] = -log_p_TV.gather(1, target_T[:, None])[:, 0].cpu().double().numpy()
    return nll_T
