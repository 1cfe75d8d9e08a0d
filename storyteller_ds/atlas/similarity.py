"""How similar the experts of a layer are, in what they compute and in their weights."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from storyteller_ds.atlas.matrix import Matrix
from storyteller_ds.atlas.routing import moe_layer
from storyteller_ds.atlas.sample import Sample
from storyteller_ds.model.decoder import Decoder
from storyteller_ds.model.moe.experts import StackedExperts

TOKENS = 1024
"""Outputs are compared on at most this many tokens."""


@dataclass(frozen=True)
class Similarity:
    """Similarity of the experts of a layer, [E, E] each, 1 on the diagonal."""

    output_cosine_EE: Matrix
    """Cosine of the outputs for the same token, mean over tokens: 1 means the same direction."""
    output_cka_EE: Matrix
    """Linear centered kernel alignment of the outputs (Kornblith et al. 2019, 1905.00414): 1 also where one expert's
    outputs are the other's rotated and scaled, 0 where they have nothing in common. With the unbiased estimate of HSIC
    (Song et al., JMLR 13, 2012), as in Nguyen et al. (2010.15327): the plain one finds much similarity by chance
    unless there are many more tokens than features."""
    weight_cosine_EE: Matrix
    """Cosine of all matrices as they are, feature by feature: near 1 for copies that have hardly been trained since.
    Two experts can compute the same with their features in a different order, and have a cosine of 0."""


@torch.no_grad()
def similarities(decoder: Decoder, blocks: list[int], sample: Sample, device: torch.device) -> dict[int, Similarity]:
    """Run every expert of a layer on the same tokens, taken from the layer's input, and compare.

    Args:
        decoder: in eval mode, on the device.
        blocks: those with experts.
        sample: of about TOKENS tokens.
        device: the decoder's device.
    """
    return {
        block: _similarity(moe_layer(decoder, block).experts, x_TD)
        for block, x_TD in _inputs(decoder, blocks, sample, device).items()
    }


def _inputs(decoder: Decoder, blocks: list[int], sample: Sample, device: torch.device) -> dict[int, Tensor]:
    """[T, D] input of each block's MoE layer, for the tokens that count."""
    seen: dict[int, list[Tensor]] = {block: [] for block in blocks}

    def note(block: int, _: nn.Module, arguments: tuple[Any, ...]) -> None:
        seen[block].append(arguments[0])

    hooks = [moe_layer(decoder, block).register_forward_pre_hook(partial(note, block)) for block in blocks]
    counted: dict[int, list[Tensor]] = {block: [] for block in blocks}
    try:
        for batch, counts_BS in sample.batches(device):
            decoder(batch.token_BS, position_BS=batch.position_BS)
            for block in blocks:
                counted[block].append(seen[block].pop()[counts_BS])
    finally:
        for hook in hooks:
            hook.remove()
    return {block: torch.cat(parts) for block, parts in counted.items()}


def _similarity(experts: StackedExperts, x_TD: Tensor) -> Similarity:
    number = len(experts.down_proj)
    x_TD = x_TD[:: -(-len(x_TD) // TOKENS)]
    rows = torch.full((number,), len(x_TD), device=x_TD.device)
    out_ETD = experts(x_TD.repeat(number, 1), rows).unflatten(0, (number, -1)).cpu().double()
    unit_ETD = nn.functional.normalize(out_ETD, dim=-1)
    cosine_EE = torch.einsum("etd,ftd->ef", unit_ETD, unit_ETD) / len(x_TD)
    weights = [weight.flatten(1) for weight in (experts.gate_up_proj, experts.down_proj)]
    flat_EN = nn.functional.normalize(torch.cat(weights, dim=1).cpu().double(), dim=1)
    return Similarity(cosine_EE.numpy(), aligned(out_ETD).numpy(), (flat_EN @ flat_EN.t()).numpy())


def aligned(out_ETD: Tensor) -> Tensor:
    """[E, E] CKA of outputs; NaN for fewer than four tokens, or an expert whose output is the same for all of them."""
    number, tokens, _ = out_ETD.shape
    if tokens < 4:
        return torch.full((number, number), torch.nan, dtype=out_ETD.dtype)
    # For each expert, the products of its outputs for every two tokens, without those of a token with itself.
    centered_ETD = out_ETD - out_ETD.mean(dim=1, keepdim=True)  # changes nothing but rounding
    kernel_ETT = torch.einsum("etd,esd->ets", centered_ETD, centered_ETD)
    kernel_ETT.diagonal(dim1=1, dim2=2).zero_()
    flat_EN, row_ET = kernel_ETT.flatten(1), kernel_ETT.sum(dim=2)
    sum_E = row_ET.sum(dim=1)
    hsic_EE = (
        flat_EN @ flat_EN.t()
        + sum_E[:, None] * sum_E / ((tokens - 1) * (tokens - 2))
        - 2 / (tokens - 2) * row_ET @ row_ET.t()
    )
    scale_E = hsic_EE.diagonal().clamp(min=0).sqrt()
    return hsic_EE / (scale_E[:, None] * scale_E)
