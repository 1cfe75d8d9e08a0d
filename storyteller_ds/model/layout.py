"""The canonical names and shapes of parameters, whatever module holds them.

Checkpoints, optimizer state and interchange speak of one layout: experts stacked along dimension 0,
`blocks.N.ffn.router.weight [E, D]`, `blocks.N.ffn.experts.gate_up_proj [E, H, D]` and so on. A module may
hold a parameter inside a wrapper, or only some of a layer's experts; this is the one place that knows.
"""

from collections.abc import Iterator
from typing import NamedTuple

from torch import nn


class Placed(NamedTuple):
    """A parameter here, and what it is in the canonical layout."""

    name: str
    """Canonical name."""
    parameter: nn.Parameter
    first_expert: int | None
    """Canonical index of this parameter's first expert; None where dimension 0 is not experts."""


def canonical_name(name: str) -> str:
    """The canonical form of a module's parameter name."""
    return name.removeprefix("module.").removeprefix("decoder.")


def is_expert(name: str) -> bool:
    """Whether a canonical name is a stack of experts."""
    return ".experts." in name


def is_decayed(name: str) -> bool:
    """Whether weight decay applies: to matrices, not to gains and biases (Loshchilov and Hutter's usual form)."""
    return not (name.endswith("bias") or "norm." in name)


def placed_parameters(module: nn.Module, first_expert: int = 0) -> Iterator[Placed]:
    """Every parameter of a decoder, in module order, with its canonical name.

    Args:
        module: a Decoder, or a module that wraps one.
        first_expert: canonical index of the first expert that this rank holds.
    """
    for name, parameter in module.named_parameters():
        canonical = canonical_name(name)
        yield Placed(canonical, parameter, first_expert if is_expert(canonical) else None)
