"""What a model says about every token of a text: how likely it was, and which one it would have said."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from storyteller_ds.config.run import RunConfig
from storyteller_ds.data.batches import IGNORED, BatchSplit, ValidationBatches
from storyteller_ds.evaluation.text import EvaluatedText
from storyteller_ds.meanwhile import LINE_EVERY_S, meanwhile
from storyteller_ds.model.decoder import Decoder

_LOGITS = 1 << 24
"""Most of them in one forward pass, unless one sequence has more."""
_SEQUENCES = 16
"""In one forward pass, at most."""


@dataclass(frozen=True)
class TokenScores:
    """Of each predicted token, in the order of the text."""

    nll_T: NDArray[np.float64]
    """-log p(token) (nats)."""
    confidence_T: NDArray[np.float32]
    """The probability of the likeliest token."""
    right_T: NDArray[np.bool_]
    """Whether that was the token."""


@torch.no_grad()
def score_tokens(
    decoder: Decoder, run: RunConfig, text: EvaluatedText, device: torch.device, log: Callable[[str], None]
) -> TokenScores:
    """Predict every token of a text, packed into windows as training's own validation packs it.

    Args:
        decoder: in eval mode, on the device.
        run: its data section says how long a window is, and whether stories in it see each other.
        text: in the decoder's tokens.
        device: of the decoder.
        log: gets a line from time to time.
    """
    length, tokens = run.data.sequence_length, len(text.stream) - 1
    together = max(1, min(_SEQUENCES, _LOGITS // (length * decoder.vocab_size)))
    start = text.tokenizer.end_of_text if run.data.document_mask else None
    batches = ValidationBatches(text.stream, text.bytes, length, BatchSplit(0, 1, together, 1), start)
    scores = TokenScores(np.empty(tokens), np.empty(tokens, np.float32), np.empty(tokens, np.bool_))
    done = 0
    with meanwhile(lambda: log(f"predicting {text.name}: {done:,} of {tokens:,} tokens"), LINE_EVERY_S):
        for batch in batches.batches(None):
            token_BS, target_BS, position_BS = batch.to(device)
            counts_BS = target_BS != IGNORED
            target_T = target_BS[counts_BS]
            # Of places that do not count no probability is computed.
            log_p_TV = decoder(token_BS, position_BS=position_BS)[0][counts_BS].float().log_softmax(dim=-1)
            best_T, said_T = log_p_TV.max(dim=-1)
            here = slice(done, done + len(target_T))
            scores.nll_T[here] = -log_p_TV.gather(1, target_T[:, None])[:, 0].cpu().numpy()
            scores.confidence_T[here] = best_T.exp().cpu().numpy()
            scores.right_T[here] = (said_T == target_T).cpu().numpy()
            done = here.stop
    return scores
