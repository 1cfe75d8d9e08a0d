"""The norm of the whole gradient and of its parts."""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from storyteller_ds.model.canonical import is_expert

PARTS = ("router", "experts", "rest")
"""Parts of a model: the routers of all layers, the experts of all layers, and everything else."""
_PIECE = 2**17
"""Entries of a piece; one megabyte in fp64."""


class SquaredGradient(NamedTuple):
    """Squared norms of the pieces of a gradient, each of which belongs to one part of the model."""

    piece_P: Tensor
    """[P] squared norms, in fp64 if the device has it."""
    part_P: Sequence[str]
    """The part of each piece, one of PARTS."""

    def norm(self) -> Tensor:
        """[] norm of the whole gradient."""
        return self.piece_P.sum().sqrt()


def part_of(name: str) -> str:
    """The part of a parameter, by its canonical name."""
    if is_expert(name):
        return "experts"
    return "router" if ".router." in name else "rest"


def squared_gradient(parameters: Iterable[tuple[str, nn.Parameter]]) -> SquaredGradient:
    """Squared norms of the gradients of parameters, which are given with their canonical names.

    torch.nn.utils.clip_grad_norm_ adds in fp32, which gave 6e-6 too little for a tensor of 260,000 entries.
    """
    gradients = [(part_of(name), p.grad) for name, p in parameters if p.grad is not None]
    if not gradients:
        return SquaredGradient(torch.zeros(0, dtype=torch.float64), ())
    device = gradients[0][1].device.type
    if device == "cpu":
        # A norm in fp64 would copy the whole tensor first, which took 8 % of a step; a piece stays in the cache.
        pieces = [(part, piece) for part, g in gradients for piece in g.reshape(-1).split(_PIECE)]
        return SquaredGradient(torch.stack([_squared(piece) for _, piece in pieces]), [part for part, _ in pieces])
    dtype = torch.float32 if device == "mps" else torch.float64
    norms = [torch.linalg.vector_norm(g, dtype=dtype) for _, g in gradients]
    return SquaredGradient(torch.stack(norms).square(), [part for part, _ in gradients])


def _squared(piece: Tensor) -> Tensor:
    exact = piece.double()
    return torch.dot(exact, exact)


def part_norms(piece_P: Sequence[float], part_P: Sequence[str]) -> dict[str, float]:
    """The norm of each part of a gradient, from the values of its pieces; empty if there are none."""
    sums = dict.fromkeys((part for part in PARTS if part in part_P), 0.0)
    for squared, part in zip(piece_P, part_P, strict=True):
        sums[part] += squared
    return {part: math.sqrt(total) for part, total in sums.items()}
