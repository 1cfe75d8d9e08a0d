"""Loss, perplexity and bits per byte on the validation text."""

import math

import torch

from storyteller_ds.data.batching.batches import ValidationBatches
from storyteller_ds.engines.base import Engine


def validate(engine: Engine, batches: ValidationBatches, limit: int | None) -> dict[str, float]:
    """Score the first `limit` global batches of the validation text, or all of it; called by every rank.

    Returns:
        val_tokens: number of predicted tokens; scores over different numbers are not comparable.
        val_loss: mean negative log-likelihood (nats per token).
        val_ppl: exp(val_loss).
        val_bpb: bits per UTF-8 byte of the original text; comparable between tokenizers. Separators
            between documents count in the bits but not in the bytes.
    """
    sums = torch.zeros(2, dtype=torch.float64)
    for batch in batches.batches(limit):
        sums += engine.eval_step(batch)
    nll, targets = sums.tolist()
    loss = nll / targets
    return {
        "val_tokens": int(targets),
        "val_loss": loss,
        "val_ppl": math.exp(min(loss, 700.0)),
        "val_bpb": nll / math.log(2) / batches.text_bytes(limit),
    }
