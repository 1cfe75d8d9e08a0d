"""The canonical names and shapes of parameters, for every module that holds them.

Checkpoints, optimizer state and interchange use one layout: experts stacked along dimension 0,
`blocks.N.ffn.router.weight [E, D]`, `blocks.N.ffn.experts.gate_up_proj [E, H, D]` and so on. A module may
hold a parameter inside a wrapper, only some of a layer's experts, or one canonical tensor in several pieces;
such a module has a method `canonical_part` (see HasCanonicalParts).
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn


class Part(NamedTuple):
    """The piece of a canonical tensor that a parameter holds, relative to the module that owns it."""

    name: str
    """Canonical name, relative to the module."""
    expert: int = 0
    """First expert of the piece, counted among those of this rank."""
    row: int = 0
    """First row of the piece: the index along dimension 1 of a stack of experts."""


@runtime_checkable
class HasCanonicalParts(Protocol):
    """A module whose own parameter names are not the canonical ones."""

    def canonical_part(self, name: str) -> Part:
        """The piece that the parameter `name` (relative to the module) holds."""


class Placed(NamedTuple):
    """A parameter of this rank, and its place in the canonical layout."""

    name: str
    """Canonical name."""
    parameter: nn.Parameter
    first_expert: int | None
    """Canonical index of this parameter's first expert; None if dimension 0 is not experts."""
    first_row: int = 0
    """Index of its first row along dimension 1, if a stack of experts is held in pieces."""

    def slice_of(self, canonical: Tensor) -> Tensor:
        """This parameter's piece of the whole canonical tensor."""
        if self.first_expert is None:
            return canonical
        experts, *rest = full_shape(self.parameter)
        piece = canonical[self.first_expert : self.first_expert + experts]
        return piece[:, self.first_row : self.first_row + rest[0]]


def full_shape(parameter: nn.Parameter) -> torch.Size:
    """The full shape of a parameter, even if ZeRO-3 keeps only a partition of it on this rank."""
    shape: torch.Size = getattr(parameter, "ds_shape", parameter.shape)
    return shape


def canonical_name(name: str) -> str:
    """The canonical form of a module's parameter name."""
    return name.removeprefix("module.").removeprefix("decoder.")


def is_expert(name: str) -> bool:
    """Whether a canonical name is a stack of experts."""
    return ".experts." in name


def is_decayed(name: str) -> bool:
    """Whether weight decay applies: to matrices, but not to gains, scales and biases (as usual)."""
    return not (name.endswith(("bias", ".scale")) or "norm." in name)


def is_embedding(name: str) -> bool:
    """Whether a canonical name is a table indexed by token: the embedding or a value embedding."""
    return name == "embedding.weight" or name.endswith(".embedding.weight")


def placed_parameters(module: nn.Module, first_expert: int = 0) -> Iterator[Placed]:
    """Every parameter of a decoder, in module order, with its canonical name.

    Args:
        module: a Decoder, or a module that wraps one.
        first_expert: canonical index of the first expert that this rank holds.
    """
    wrappers = [(f"{prefix}.", m) for prefix, m in module.named_modules() if isinstance(m, HasCanonicalParts)]
    for name, parameter in _parameters(module):
        part = Part(name)
        for prefix, wrapper in wrappers:
            if name.startswith(prefix):
                inner = wrapper.canonical_part(name.removeprefix(prefix))
                part = inner._replace(name=prefix + inner.name)
        canonical = canonical_name(part.name)
        expert = first_expert + part.expert if is_expert(canonical) else None
        yield Placed(canonical, parameter, expert, part.row)


def _parameters(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Names and parameters; one computed by torch.nn.utils.parametrize is given by its current value."""
    for name, parameter in module.named_parameters():
        owner, is_computed, rest = name.partition(".parametrizations.")
        if not is_computed:
            yield name, parameter
        elif rest.endswith(".original0"):
            last = rest.removesuffix(".original0")
            value = getattr(module.get_submodule(owner), last)
            yield f"{owner}.{last}", nn.Parameter(value, requires_grad=False)


def pieces_by_name(placed: Iterable[Placed]) -> dict[str, list[Placed]]:
    """The pieces of each canonical tensor, by name in order of appearance, each list sorted by expert, then row."""
    pieces: dict[str, list[Placed]] = {}
    for one in placed:
        pieces.setdefault(one.name, []).append(one)
    return {name: sorted(them, key=lambda p: (p.first_expert or 0, p.first_row)) for name, them in pieces.items()}


def join_pieces(pieces: Iterable[tuple[Placed, Tensor]]) -> Tensor:
    """Join the values of one name's sorted pieces into one tensor: rows first, then experts."""
    by_expert: dict[int | None, list[Tensor]] = {}
    for place, value in pieces:
        by_expert.setdefault(place.first_expert, []).append(value)
    stacks = [rows[0] if len(rows) == 1 else torch.cat(rows, dim=1) for rows in by_expert.values()]
    return stacks[0] if len(stacks) == 1 else torch.cat(stacks)
