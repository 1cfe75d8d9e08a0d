"""Which experts every token of a text goes to, as the routers decide in a forward pass."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray

from storyteller_ds.atlas.sample import Sample, nll_of
from storyteller_ds.meanwhile import LINE_EVERY_S, meanwhile
from storyteller_ds.model.decoder import Block, Decoder
from storyteller_ds.model.moe.local import LocalMoE


@dataclass(frozen=True)
class Routed:
    """Routing of T tokens in L MoE layers."""

    expert_LTK: NDArray[np.int16]
    """The chosen experts, best first."""
    weight_LTK: NDArray[np.float32]
    """Their gate weights; those of a token sum to 1."""
    nll_T: NDArray[np.float64]
    """-log p of the next token (nats)."""


@torch.no_grad()
def routed(decoder: Decoder, sample: Sample, device: torch.device, log: Callable[[str], None]) -> Routed:
    """Read a sample and record where its tokens go.

    Args:
        decoder: a mixture in eval mode, on the device.
        sample: a sample of a text.
        device: the decoder's device.
        log: gets a line from time to time.
    """
    experts, weights, nll = [], [], []
    read, tokens = 0, len(sample.place_T)
    with meanwhile(lambda: log(f"reading: {read:,} of {tokens:,} tokens"), LINE_EVERY_S):
        for (token_BS, target_BS, position_BS), counts_BS in sample.batches(device):
            logit_BSV, stats = decoder(token_BS, position_BS=position_BS)
            counts_T = counts_BS.flatten()
            expert_LTK = torch.stack([each.expert_TK for each in stats])[:, counts_T]
            kept_LTK = torch.stack([each.prob_TE for each in stats])[:, counts_T].gather(-1, expert_LTK)
            experts.append(expert_LTK.to(torch.int16).cpu().numpy())
            weights.append((kept_LTK / kept_LTK.sum(dim=-1, keepdim=True)).float().cpu().numpy())
            nll.append(nll_of(logit_BSV[counts_BS], target_BS[counts_BS]))
            read += len(nll[-1])
    return Routed(np.concatenate(experts, axis=1), np.concatenate(weights, axis=1), np.concatenate(nll))


def moe_layer(decoder: Decoder, block: int) -> LocalMoE:
    """The MoE layer of a block that has one."""
    return cast(LocalMoE, cast(Block, decoder.blocks[block]).ffn)
