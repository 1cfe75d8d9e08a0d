"""Muon: momentum updates whose matrices are orthogonalized before they are applied (Jordan et al. 2024).

For a hidden weight matrix W [R, C] with gradient g, in this order (kellerjordan.github.io/posts/muon):

    m = mu m + (1 - mu) g;    u = mu m + (1 - mu) g;    W = (1 - lr lambda) W - lr s orthogonal(u)

with s = 0.2 sqrt(max(R, C)), which gives the update the root mean square that AdamW's usually has, so that AdamW's
learning rate and weight decay can be used (Liu et al. 2025, 2502.16982, eq. 4). AdamW updates every parameter that is
not a hidden matrix.

Each linear map is a separate matrix: each expert of a stack, and the gate and up projections, which are stored as one
tensor. A matrix must be orthogonalized as a whole, but ZeRO leaves each rank only a partition of a flat vector, which
cuts some matrices. So the ranks that share a vector add up the pieces of the cut matrices alone: under ZeRO-1 and 2, at
most one matrix per rank for a model of any size; under ZeRO-3, which partitions every parameter by itself, a few per
parameter. Adding zeros is exact, so every rank orthogonalizes the same bits.

A matrix without a gradient in this step, such as that of an expert that no token chose, is decayed but not moved. The
size of an update does not depend on the size of the momentum, so whatever momentum an expert has left would move it at
full speed for hundreds of steps.

Matrices of the same shape are multiplied together, however many parameters they come from.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Self, TypeVar

import torch
from torch import Tensor, nn

from storyteller_ds.model.canonical import is_decayed, is_embedding

T = TypeVar("T")

_COEFFICIENTS = (
    (7.7110, -22.1136, 16.2484),
    (3.2155, -2.4114, 0.5013),
    (2.2185, -1.5941, 0.4108),
)
"""a, b and c of each iteration a s + b s^3 + c s^5, optimal for the range to which the previous ones map [0.02, 1]."""
_EPS = 1e-7
ENTRIES_AT_ONCE = 2**26
"""Most entries that are sent or multiplied at once; bounds a step's memory besides its gradients and updates."""
_MARGIN = 1.01
"""In half precision a matrix is divided by its norm times this factor. Its products are rounded, and above 1 the
polynomials grow without bound: for a matrix of rank 1, such as that of an expert with one token, to many times 1."""


class Stack(NamedTuple):
    """The matrices [rows, columns] that a parameter holds, one after the other."""

    number: int
    rows: int
    columns: int

    @property
    def numel(self) -> int:
        """Entries of one matrix."""
        return self.rows * self.columns


def hidden_matrices(name: str, shape: torch.Size, intermediate_size: int) -> Stack | None:
    """The matrices that Muon updates in a parameter; None: AdamW updates it.

    AdamW updates embeddings, the output projection, gains and biases, as Muon's authors advise, and the router,
    on which practice differs (Moonlight orthogonalizes it). The router is an output layer over experts. Raising
    the logits of all experts together changes no choice, so only the z-loss acts in that direction; scaled to
    the length of the other directions, it would act with full force whatever its coefficient.

    Args:
        name: canonical name.
        shape: shape of the whole parameter, or of a rank's share of the experts.
        intermediate_size: rows of an up projection, and of the gate that may be stored above it.
    """
    if not name.startswith("blocks.") or ".router." in name or is_embedding(name) or not is_decayed(name):
        return None
    rows = intermediate_size if "gate_up_proj" in name else shape[-2]
    return Stack(math.prod(shape[:-1]) // rows, rows, shape[-1])


def orthogonalized(x_NRC: Tensor, dtype: torch.dtype) -> Tensor:
    """Bring the singular values of each matrix near 1: U S V^T becomes U f(S) V^T.

    f is a composition of three minimax polynomials (Polar Express, Amsel et al. 2025, 2505.16932, Algorithm 1), applied
    to S divided by its Frobenius norm; f(s) is between 0.9 and 1.1 for s above 0.02. They train as well as the five
    Newton-Schulz iterations of Jordan et al. (docs/experiments.md). A matrix of zeros stays zero.

    Args:
        x_NRC: [N, R, C], fp32: small gradients would be lost in fp16.
        dtype: dtype of the matrix products.

    Returns:
        [N, R, C], in dtype.
    """
    is_tall = x_NRC.shape[1] > x_NRC.shape[2]
    if is_tall:
        x_NRC = x_NRC.mT
    norm_N11 = torch.linalg.matrix_norm(x_NRC, keepdim=True) * (_MARGIN if dtype.itemsize < 4 else 1.0)
    x_NRC = (x_NRC / norm_N11.clamp(min=_EPS)).to(dtype)
    for a, b, c in _COEFFICIENTS:
        gram_NRR = x_NRC @ x_NRC.mT
        gram_NRR = torch.baddbmm(gram_NRR, gram_NRR, gram_NRR, beta=b, alpha=c)
        x_NRC = torch.baddbmm(x_NRC, gram_NRR, x_NRC, beta=a)
    return x_NRC.mT if is_tall else x_NRC


class Piece(NamedTuple):
    """A range of a vector that holds whole matrices or part of one."""

    stack: Stack
    begin: int
    end: int
    offset: int
    """Position of the first entry in its matrix."""


class Held(NamedTuple):
    """The part of a parameter that lies in a vector on this rank; empty if numel is 0."""

    stack: Stack
    first: int
    """Index of its first entry in the whole parameter."""
    start: int
    """Index of that entry in the vector."""
    numel: int

    def part_of(self, first_matrix: int, last_matrix: int) -> Piece:
        """The held part of the matrices from the first up to, but not including, the last; may be empty."""
        begin, end = first_matrix * self.stack.numel, last_matrix * self.stack.numel
        low, high = max(begin, self.first), min(end, self.first + self.numel)
        if low >= high:
            return Piece(self.stack, 0, 0, 0)
        return Piece(self.stack, self.start + low - self.first, self.start + high - self.first, low - begin)


class Layout(NamedTuple):
    """The matrices in a vector, which is a whole parameter or a ZeRO partition of several."""

    whole: Sequence[Piece]
    """Runs of matrices that lie entirely in this vector."""
    cut: Sequence[Piece]
    """This rank's part of each matrix that is split over several ranks; the same matrices on all ranks."""
    sum_over_holders: Callable[[Tensor], Tensor]
    """Sums a tensor over the ranks that share the parameters, in place, and returns it."""
    device: torch.device
    """Where the matrices are multiplied and sent; the vector itself may be elsewhere."""


def whole_parameter(parameter: nn.Parameter, stack: Stack) -> Layout:
    """The layout of a parameter that this rank holds whole."""
    return Layout([Piece(stack, 0, parameter.numel(), 0)], [], lambda tensor: tensor, parameter.device)


def zero_partition(held: Sequence[Held], sum_over_holders: Callable[[Tensor], Tensor], device: torch.device) -> Layout:
    """The layout of this rank's partition of a ZeRO parameter group; called by all ranks of the group.

    Args:
        held: the partition's part of each of the group's parameters, in the same order on every rank.
        sum_over_holders: sums over the group's data-parallel ranks, in place.
        device: device of the parameters.
    """
    whole, single = [], []
    for one in held:
        first, last = -(-one.first // one.stack.numel), (one.first + one.numel) // one.stack.numel
        if first < last:
            whole.append(one.part_of(first, last))
        single += [one.part_of(m, m + 1) for m in range(one.stack.number)]
    cut_here = [int(0 < piece.end - piece.begin < piece.stack.numel) for piece in single]
    is_cut = sum_over_holders(torch.tensor(cut_here, device=device)).tolist()
    return Layout(whole, [piece for piece, cut in zip(single, is_cut, strict=True) if cut], sum_over_holders, device)


class Muon(torch.optim.AdamW):
    """Muon for the vectors that have a layout, AdamW for everything else.

    The momentum of a vector with a layout is stored as `exp_avg` in its state, a vector of the same shape, like AdamW's
    first moment; there is no `exp_avg_sq`.

    Args:
        groups: parameter groups.
        lr: learning rate of both rules (weight units per step).
        betas: AdamW's.
        eps: AdamW's.
        momentum: mu of Muon.
        dtype: dtype of Muon's matrix products.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        lr: float,
        betas: tuple[float, float],
        eps: float,
        momentum: float,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(groups, lr=lr, betas=betas, eps=eps, fused=True)
        self.momentum, self.dtype = momentum, dtype
        self.layouts: dict[Tensor, Layout] = {}

    def lay_out(self, layouts: Mapping[Tensor, Layout]) -> None:
        """Set which of the optimizer's vectors hold hidden matrices, and where; call before the first step."""
        self.layouts.update(layouts)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # torch's returns the closure's loss
        """Update the groups in `param_groups`; ZeRO leaves only one there at a time."""
        groups = self.param_groups
        hidden = [(v, g) for g in groups for v in g["params"] if v in self.layouts and v.grad is not None]
        # As in torch's fused AdamW: on the device, where the host has not waited for it; 1 if nothing may change.
        found_inf: Tensor | None = getattr(self, "found_inf", None)
        forbidden = None if found_inf is None else found_inf > 0
        for vector, group in hidden:
            self._add_gradient(vector, group, forbidden)
        due = [(v, g) for v, g in hidden if g["number"] % g["period"] == 0]
        for matrices in _batched(each for vector, group in due for each in self._matrices(vector, group)):
            orthogonal_NRC = orthogonalized(torch.cat([m.update_NRC for m in matrices]), self.dtype)
            for one, x_NRC in zip(matrices, orthogonal_NRC.split([len(m.update_NRC) for m in matrices]), strict=True):
                one.apply(x_NRC, forbidden)
        rest = [{**group, "params": [p for p in group["params"] if p not in self.layouts]} for group in groups]
        self.param_groups = [group for group in rest if group["params"]]
        try:
            super().step()
        finally:
            self.param_groups = groups

    def _add_gradient(self, vector: Tensor, group: Mapping[str, Any], forbidden: Tensor | None) -> None:
        """Update the momentum of a vector and apply weight decay."""
        assert vector.grad is not None
        average = start_moments(self, vector)["exp_avg"]
        new, kept = 1 - self.momentum, 1 - group["lr"] * group["weight_decay"]
        if forbidden is None:
            average.lerp_(vector.grad, new)
            vector.mul_(kept)
        else:
            vector.grad.masked_fill_(forbidden, 0.0)  # 0 times inf or NaN is not 0
            average.lerp_(vector.grad, torch.where(forbidden, 0.0, new))
            vector.mul_(torch.where(forbidden, 1.0, kept))

    def _matrices(self, vector: Tensor, group: Mapping[str, Any]) -> Iterator["_Matrices"]:
        """The matrices of a vector, all of them whole."""
        assert vector.grad is not None
        layout, rate = self.layouts[vector], group["lr"] * group["period"]
        gradient_N, weight_N = vector.grad.view(-1), vector.view(-1)
        update_N = vector.grad.lerp(self.state[vector]["exp_avg"], self.momentum).view(-1)
        for piece, matrix_N in _joined(update_N, gradient_N, layout):
            if piece.begin < piece.end:
                yield _Matrices.of(piece, matrix_N, weight_N, rate)
        for piece in layout.whole:
            by_matrix = (-1, piece.stack.numel)
            moves_N1 = gradient_N[piece.begin : piece.end].view(by_matrix).any(dim=1, keepdim=True)
            update_NM = update_N[piece.begin : piece.end].view(by_matrix).mul_(moves_N1)
            yield _Matrices.of(piece, update_NM.to(layout.device), weight_N, rate)


class _Matrices(NamedTuple):
    """Matrices of one shape, and where their orthogonalized entries go."""

    update_NRC: Tensor
    weight_N: Tensor
    """The entries of the parameter on this rank."""
    offset: int
    """Position of the first of these entries in the matrices."""
    rate: float

    @classmethod
    def of(cls, piece: Piece, matrix_N: Tensor, weight_N: Tensor, lr: float) -> Self:
        stack = piece.stack
        x_NRC = matrix_N.view(-1, stack.rows, stack.columns)
        rate = lr * 0.2 * max(stack.rows, stack.columns) ** 0.5
        return cls(x_NRC, weight_N[piece.begin : piece.end], piece.offset, rate)

    def apply(self, x_NRC: Tensor, forbidden: Tensor | None) -> None:
        x_N = x_NRC.flatten()[self.offset : self.offset + len(self.weight_N)].to(self.weight_N)
        self.weight_N.add_(x_N if forbidden is None else x_N.masked_fill(forbidden, 0.0), alpha=-self.rate)


def _joined(update_N: Tensor, gradient_N: Tensor, layout: Layout) -> Iterator[tuple[Piece, Tensor]]:
    """The cut matrices, summed over the ranks that hold parts of them; called by all these ranks.

    Each matrix is followed by one more number, which stays 0 if no rank has a gradient for the matrix.
    """
    for pieces in _at_most(layout.cut, lambda piece: piece.stack.numel):
        sizes = [piece.stack.numel + 1 for piece in pieces]
        whole_N = torch.zeros(sum(sizes), dtype=update_N.dtype, device=layout.device)
        for piece, matrix_N in zip(pieces, whole_N.split(sizes), strict=True):
            matrix_N[piece.offset : piece.offset + piece.end - piece.begin] = update_N[piece.begin : piece.end]
            matrix_N[-1] = gradient_N[piece.begin : piece.end].any()
        for piece, matrix_N in zip(pieces, layout.sum_over_holders(whole_N).split(sizes), strict=True):
            yield piece, matrix_N[:-1].mul_(matrix_N[-1] > 0)


def _batched(all_matrices: Iterable[_Matrices]) -> Iterator[list[_Matrices]]:
    """Batches of matrices of the same shape."""
    by_shape: dict[tuple[torch.Size, torch.device], list[_Matrices]] = {}
    for one in all_matrices:
        by_shape.setdefault((one.update_NRC.shape[1:], one.update_NRC.device), []).append(one)
    for same in by_shape.values():
        yield from _at_most(same, lambda one: one.update_NRC.numel())


def _at_most(items: Iterable[T], entries: Callable[[T], int]) -> Iterator[list[T]]:
    """Runs of items with at most ENTRIES_AT_ONCE entries in total; a single item may have more."""
    run: list[T] = []
    total = 0
    for item in items:
        if run and total + entries(item) > ENTRIES_AT_ONCE:
            yield run
            run, total = [], 0
        run.append(item)
        total += entries(item)
    if run:
        yield run


def start_moments(optimizer: torch.optim.Optimizer, vector: Tensor) -> dict[str, Tensor]:
    """The AdamW or Muon state of a parameter or partition; zeros are created if there is none yet."""
    state: dict[str, Tensor] = optimizer.state[vector]
    if "exp_avg" not in state:
        is_hidden = isinstance(optimizer, Muon) and vector in optimizer.layouts
        state["exp_avg"] = torch.zeros_like(vector)
        if not is_hidden:
            state["exp_avg_sq"] = torch.zeros_like(vector)
            state["step"] = torch.zeros((), device=vector.device)
    return state
