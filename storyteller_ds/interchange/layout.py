"""How the tensors of two layouts map to each other, as data: one table serves both directions."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class View(NamedTuple):
    """A part of a tensor, which can be read and written."""

    place: tuple[int | slice, ...] = ()
    """Index along the first dimensions; empty: all of it."""
    transposed: bool = False
    """Whether the two dimensions of the part are swapped."""

    def of(self, tensor: Tensor) -> Tensor:
        """The part, which shares the tensor's memory."""
        part = tensor[self.place] if self.place else tensor
        return part.t() if self.transposed else part


WHOLE = View()


class Piece(NamedTuple):
    """Numbers that both layouts have."""

    ours: str
    """Canonical name."""
    theirs: str
    shape: tuple[int, ...]
    """Shape of their whole tensor; the piece may be only a part of it."""
    our_view: View = WHOLE
    their_view: View = WHOLE


def with_neighbors(weight: Tensor, heads: int) -> Tensor:
    """Query or key weight for a rotary embedding that rotates features 2i and 2i + 1 together, as the original Llama.

    Args:
        weight: [heads * head size, D], for one that rotates i and i + head size / 2, as ours and Hugging Face's do.
        heads: number of query heads or key heads.
    """
    rows: Tensor = weight.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)
    return rows


def with_halves(weight: Tensor, heads: int) -> Tensor:
    """The reverse of with_neighbors."""
    rows: Tensor = weight.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2)
    return rows


def to_theirs(pieces: Sequence[Piece], read: Callable[[str], Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Their tensors, one at a time, fp32.

    Args:
        pieces: pieces of the same tensor of theirs must be adjacent.
        read: returns the canonical tensor of a name.
    """
    for start, piece in enumerate(pieces):
        if start and pieces[start - 1].theirs == piece.theirs:
            continue
        tensor = torch.empty(piece.shape)
        for part in pieces[start:]:
            if part.theirs != piece.theirs:
                break
            part.their_view.of(tensor).copy_(part.our_view.of(read(part.ours)))
        yield piece.theirs, tensor


def to_ours(
    pieces: Sequence[Piece], shapes: Mapping[str, tuple[int, ...]], read: Callable[[str], Tensor]
) -> dict[str, Tensor]:
    """All canonical tensors, fp32.

    Args:
        pieces: together they fill every canonical tensor.
        shapes: shapes of the canonical tensors.
        read: returns their tensor of a name, in any floating-point dtype.
    """
    tensors = {name: torch.empty(shape) for name, shape in shapes.items()}
    for piece in pieces:
        piece.our_view.of(tensors[piece.ours]).copy_(piece.their_view.of(read(piece.theirs)))
    return tensors
