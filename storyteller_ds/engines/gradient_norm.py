"""The norm of the gradient: of all of it, and of its parts."""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from storyteller_ds.model.canonical import is_expert

PARTS = ("router", "experts", "rest")
"""Of a model: the routers of all layers, the experts of all layers, and everything else."""
_PIECE = 2**17
"""Entries; in fp64 one megabyte."""


class SquaredGradient(NamedTuple):
    """The squares of a gradient, added up in pieces that each belong to one part of the model."""

    piece_P: Tensor
    """[P] fp64 where the device has it."""
    part_P: Sequence[str]
    """The part of each, one of PARTS."""

    def norm(self) -> Tensor:
        """[] of the whole gradient."""
        return self.piece_P.sum().sqrt()


def part_of(name: str) -> str:
    """The part of a parameter, by its canonical name."""
    if is_expert(name):
        return "experts"
    return "router" if ".router." in name else "rest"


def squared_gradient(parameters: Iterable[tuple[str, nn.Parameter]]) -> SquaredGradient:
    """The gradients of parameters with these canonical names, squared.

    torch.nn.utils.clip_grad_norm_ adds in fp32, which was 6e-6 too low for a tensor of 260,000 entries.
    """
    gradients = [(part_of(name), p.grad) for name, p in parameters if p.grad is not None]
    if not gradients:
        return SquaredGradient(torch.zeros(0, dtype=torch.float64), ())
    device = gradients[0][1].device.type
    if device == "cpu":
        # A norm in fp64 would copy the whole tensor first, which was 8 % of a step; a piece stays in the cache.
        pieces = [(part, piece) for part, g in gradients for piece in g.reshape(-1).split(_PIECE)]
        return SquaredGradient(torch.stack([_squared(piece) for _, piece in pieces]), [part for part, _ in pieces])
    dtype = torch.float32 if device == "mps" else torch.float64
    norms = [torch.linalg.vector_norm(g, dtype=dtype) for _, g in gradients]
    return SquaredGradient(torch.stack(norms).square(), [part for part, _ in gradients])


def _squared(piece: Tensor) -> Tensor:
    exact = piece.double()
    return torch.dot(exact, exact)


def part_norms(piece_P: Sequence[float], part_P: Sequence[str]) -> dict[str, float]:
    """The norm of each part of a gradient whose pieces have been read; nothing where there are none."""
    sums = dict.fromkeys((part for part in PARTS if part in part_P), 0.0)
    for squared, part in zip(piece_P, part_P, strict=True):
        sums[part] += squared
    return {part: math.sqrt(total) for part, total in sums.items()}
