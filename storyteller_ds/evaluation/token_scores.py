"""How a model predicts every token of a text: how likely the token was, and whether it was the top prediction."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from storyteller_ds.config.run import RunConfig
from storyteller_ds.data.batching.loading import sequences_of
from storyteller_ds.data.batching.micro_batch import IGNORED
from storyteller_ds.evaluation.text import EvaluatedText
from storyteller_ds.meanwhile import LINE_EVERY_S, meanwhile
from storyteller_ds.model.decoder import Decoder

_LOGITS = 1 << 24
"""At most this many in one forward pass, unless a single sequence has more."""
_SEQUENCES = 16
"""At most this many in one forward pass."""


@dataclass(frozen=True)
class TokenScores:
    """Scores of each predicted token, in the order of the text."""

    place_T: NDArray[np.int64]
    """Its position in the stream."""

    nll_T: NDArray[np.float64]
    """-log p(token) (nats)."""
    confidence_T: NDArray[np.float32]
    """The probability of the likeliest token."""
    right_T: NDArray[np.bool_]
    """Whether that was the actual token."""


@torch.no_grad()
def score_tokens(
    decoder: Decoder, run: RunConfig, text: EvaluatedText, device: torch.device, log: Callable[[str], None]
) -> TokenScores:
    """Predict every token of a text, packed as validation during training packs it.

    Args:
        decoder: in eval mode, on the device.
        run: its data section says how stories are packed and whether stories in one sequence see each other.
        text: in the decoder's tokens.
        device: the decoder's device.
        log: receives a line from time to time.
    """
    length, tokens = run.data.sequence_length, len(text.stream) - 1
    together = max(1, min(_SEQUENCES, _LOGITS // (length * decoder.vocab_size)))
    sequences = sequences_of(run.data, text.stream, text.tokenizer.end_of_text, text.prompts, keeps_rest=True)
    nll, confidence = np.empty(tokens + 1), np.empty(tokens + 1, np.float32)
    right, is_predicted = np.empty(tokens + 1, np.bool_), np.zeros(tokens + 1, np.bool_)
    first = 0
    with meanwhile(lambda: log(f"predicting {text.name}: {first:,} of {len(sequences):,} sequences"), LINE_EVERY_S):
        for first in range(0, len(sequences), together):
            numbers = np.arange(first, min(first + together, len(sequences)))
            places = sequences.target_places(numbers)
            token_BS, target_BS, position_BS = sequences.read(numbers).to(device)
            counts_BS = target_BS != IGNORED
            target_T = target_BS[counts_BS]
            # Probabilities are computed only at positions that count.
            log_p_TV = decoder(token_BS, position_BS=position_BS)[0][counts_BS].float().log_softmax(dim=-1)
            best_T, said_T = log_p_TV.max(dim=-1)
            nll[places] = -log_p_TV.gather(1, target_T[:, None])[:, 0].cpu().numpy()
            confidence[places] = best_T.exp().cpu().numpy()
            right[places] = (said_T == target_T).cpu().numpy()
            is_predicted[places] = True
    place_T = np.flatnonzero(is_predicted)
    return TokenScores(place_T, nll[place_T], confidence[place_T], right[place_T])
