"""How the tensors of two layouts lie in each other, as data: one table serves both ways."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class View(NamedTuple):
    """A part of a tensor, which can be read and written."""

    place: tuple[int | slice, ...] = ()
    """Along the first dimensions; none: all of it."""
    transposed: bool = False
    """Whether the two dimensions of the part are exchanged."""

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
    """Of their tensor, of which this may be a part."""
    our_view: View = WHOLE
    their_view: View = WHOLE


def with_neighbours(weight: Tensor, heads: int) -> Tensor:
    """Queries' or keys' weight for a rotary embedding that turns features 2i and 2i + 1 together, as Llama's own did.

    Args:
        weight: [heads * head size, D], of one that turns i and i + head size / 2, as ours and Hugging Face's do.
        heads: query heads or key heads.
    """
    rows: Tensor = weight.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)
    return rows


def with_halves(weight: Tensor, heads: int) -> Tensor:
    """The reverse of with_neighbours."""
    rows: Tensor = weight.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2)
    return rows


def to_theirs(pieces: Sequence[Piece], read: Callable[[str], Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Their tensors, one at a time, fp32.

    Args:
        pieces: those of one of their tensors stand together.
        read: gives the canonical tensor of a name.
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
        shapes: canonical ones.
        read: gives their tensor of a name, of any floating-point dtype.
    """
    tensors = {name: torch.empty(shape) for name, shape in shapes.items()}
    for piece in pieces:
        piece.our_view.of(tensors[piece.ours]).copy_(piece.their_view.of(read(piece.theirs)))
    return tensors
