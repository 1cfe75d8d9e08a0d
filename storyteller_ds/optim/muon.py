"""Muon: momentum whose matrices are orthogonalised before they are applied (Jordan et al. 2024).

For a hidden weight matrix W [R, C] with gradient g, in this order (kellerjordan.github.io/posts/muon):

    m = mu m + (1 - mu) g;    u = mu m + (1 - mu) g;    W = (1 - lr lambda) W - lr s NewtonSchulz(u)

with s = 0.2 sqrt(max(R, C)), which gives the update the root mean square that AdamW's usually has, so that
learning rate and weight decay are AdamW's (Liu et al. 2025, 2502.16982, eq. 4). Every parameter that is no hidden
matrix is updated by AdamW.

Each linear map is a matrix of its own: each expert of a stack, and gate and up projection, which are stored as
one tensor. It has to be orthogonalised whole, but ZeRO-1 and ZeRO-2 leave a rank only a
partition of a flat vector, which cuts some matrices. So the ranks that share a vector add up the pieces of
just the cut ones: at most one matrix a rank for a model of any size. Adding zeros is exact, so every
rank orthogonalises the same bits.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from storyteller_ds.model.canonical import is_decayed

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5
_EPS = 1e-7


class Stack(NamedTuple):
    """How many matrices [rows, columns] a parameter holds, one after the other."""

    number: int
    rows: int
    columns: int

    @property
    def numel(self) -> int:
        """Entries of one matrix."""
        return self.rows * self.columns


def hidden_matrices(name: str, shape: torch.Size, gated: bool) -> Stack | None:
    """The matrices that Muon sees in a parameter; None: it is AdamW's.

    AdamW keeps embeddings and output projection, gains and biases, as Muon's authors advise, and the router,
    on which practice differs (Moonlight orthogonalises it). It is an output layer over experts. Raising the
    logits of all experts together changes no choice, so in that direction only the z-loss acts; made as long
    as the others, it would act with full force for any coefficient.

    Args:
        name: canonical name.
        shape: of the whole parameter, or of a rank's share of the experts.
        gated: whether up projections hold a gate above them (swiglu).
    """
    if not name.startswith("blocks.") or ".router." in name or not is_decayed(name):
        return None
    *stacked, rows, columns = shape
    number = math.prod(stacked)
    if gated and "gate_up_proj" in name:
        number, rows = 2 * number, rows // 2
    return Stack(number, rows, columns)


def newton_schulz(x_NRC: Tensor) -> Tensor:
    """Each matrix with its singular values brought near 1: U f(S) V^T of U S V^T.

    f is the fifth iterate of 3.4445 s - 4.7750 s^3 + 2.0315 s^5 (Jordan et al. 2024), started at S over its
    Frobenius norm; f(s) is between 0.7 and 1.2 for s above 0.01 or so. A matrix of zeros stays zero.

    Args:
        x_NRC: [N, R, C], in the dtype in which it is to be computed.

    Returns:
        [N, R, C], same dtype.
    """
    a, b, c = _COEFFICIENTS
    is_tall = x_NRC.shape[1] > x_NRC.shape[2]
    if is_tall:
        x_NRC = x_NRC.mT
    x_NRC = x_NRC / torch.linalg.matrix_norm(x_NRC, keepdim=True).clamp(min=_EPS)
    for _ in range(_ITERATIONS):
        gram_NRR = x_NRC @ x_NRC.mT
        gram_NRR = torch.baddbmm(gram_NRR, gram_NRR, gram_NRR, beta=b, alpha=c)
        x_NRC = torch.baddbmm(x_NRC, gram_NRR, x_NRC, beta=a)
    return x_NRC.mT if is_tall else x_NRC


class Piece(NamedTuple):
    """Entries of a vector that are matrices, or a part of one."""

    stack: Stack
    begin: int
    end: int
    offset: int
    """Of the first entry in its matrix."""


class Held(NamedTuple):
    """The part of one parameter that lies in a vector on this rank; nothing, if numel is 0."""

    stack: Stack
    first: int
    """Its first entry, counted in the whole parameter."""
    start: int
    """Where that is in the vector."""
    numel: int

    def part_of(self, first_matrix: int, last_matrix: int) -> Piece:
        """What is held of the matrices before the last; an empty piece, if nothing is."""
        begin, end = first_matrix * self.stack.numel, last_matrix * self.stack.numel
        low, high = max(begin, self.first), min(end, self.first + self.numel)
        if low >= high:
            return Piece(self.stack, 0, 0, 0)
        return Piece(self.stack, self.start + low - self.first, self.start + high - self.first, low - begin)


class Layout(NamedTuple):
    """The matrices in a vector, which is a whole parameter or a ZeRO partition of several."""

    whole: Sequence[Piece]
    """Runs of matrices that lie in this vector."""
    cut: Sequence[Piece]
    """What lies here of each matrix of which several ranks hold a part; the same matrices on all ranks."""
    sum_over_holders: Callable[[Tensor], Tensor]
    """Adds a tensor up over the ranks that share the parameters, in place, and returns it."""
    device: torch.device
    """Where the matrices are multiplied and sent; the vector itself may be elsewhere."""


def whole_parameter(parameter: nn.Parameter, stack: Stack) -> Layout:
    """The layout of a parameter that this rank holds whole."""
    return Layout([Piece(stack, 0, parameter.numel(), 0)], [], lambda tensor: tensor, parameter.device)


def zero_partition(held: Sequence[Held], sum_over_holders: Callable[[Tensor], Tensor], device: torch.device) -> Layout:
    """The layout of this rank's partition of a ZeRO-1/2 group; called by all ranks of the group.

    Args:
        held: what the partition has of each of the group's parameters, in the same order on every rank.
        sum_over_holders: adds up over the group's data-parallel ranks, in place.
        device: of the parameters.
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

    The momentum of a vector with a layout is its state's `exp_avg`, a vector of the same shape, as AdamW's first
    moment is; it has no `exp_avg_sq`.

    Args:
        groups: parameter groups.
        lr: learning rate of both rules (weight units per step).
        betas: AdamW's.
        eps: AdamW's.
        momentum: mu of Muon.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        lr: float,
        betas: tuple[float, float],
        eps: float,
        momentum: float,
    ) -> None:
        super().__init__(groups, lr=lr, betas=betas, eps=eps, fused=True)
        # Fused AdamW asks a GradScaler to leave infinite gradients to it; ours have to be skipped before step().
        self._step_supports_amp_scaling = False
        self.momentum = momentum
        self.layouts: dict[Tensor, Layout] = {}

    def lay_out(self, layouts: Mapping[Tensor, Layout]) -> None:
        """Set which of the optimizer's vectors hold hidden matrices, and where; before the first step."""
        self.layouts.update(layouts)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # torch's returns the closure's loss
        """Update the groups of `param_groups`, of which ZeRO leaves one at a time."""
        groups = self.param_groups
        for group in groups:
            for vector in group["params"]:
                if vector in self.layouts and vector.grad is not None:
                    self._orthogonal_step(vector, group["lr"], group["weight_decay"])
        rest = [{**group, "params": [p for p in group["params"] if p not in self.layouts]} for group in groups]
        self.param_groups = [group for group in rest if group["params"]]
        try:
            super().step()
        finally:
            self.param_groups = groups

    def _orthogonal_step(self, vector: Tensor, lr: float, weight_decay: float) -> None:
        layout, average = self.layouts[vector], start_moments(self, vector)["exp_avg"]
        assert vector.grad is not None
        average.lerp_(vector.grad, 1 - self.momentum)
        update_N, weight_N = vector.grad.lerp(average, self.momentum).view(-1), vector.view(-1)
        weight_N.mul_(1 - lr * weight_decay)
        for (stack, begin, end, _), orthogonal_N in self._orthogonalised(update_N, layout):
            scale = 0.2 * max(stack.rows, stack.columns) ** 0.5
            weight_N[begin:end].add_(orthogonal_N.to(weight_N), alpha=-lr * scale)

    def _orthogonalised(self, update_N: Tensor, layout: Layout) -> Iterator[tuple[Piece, Tensor]]:
        """Each piece that is here, with its orthogonalised entries."""
        for piece in layout.cut:
            mine = slice(piece.offset, piece.offset + piece.end - piece.begin)
            matrix = torch.zeros(piece.stack.numel, dtype=update_N.dtype, device=layout.device)
            matrix[mine] = update_N[piece.begin : piece.end]
            layout.sum_over_holders(matrix)
            if piece.begin < piece.end:
                yield piece, self._multiply(matrix, piece.stack)[mine]
        for piece in layout.whole:
            yield piece, self._multiply(update_N[piece.begin : piece.end].to(layout.device), piece.stack)

    def _multiply(self, matrices_N: Tensor, stack: Stack) -> Tensor:
        # In fp32: bf16, which is usual on GPUs, is not reproduced by other topologies.
        return newton_schulz(matrices_N.float().view(-1, stack.rows, stack.columns)).flatten()


def start_moments(optimizer: torch.optim.Optimizer, vector: Tensor) -> dict[str, Tensor]:
    """The state of a parameter or partition of AdamW's or Muon's, made of zeros where there is none yet."""
    state: dict[str, Tensor] = optimizer.state[vector]
    if "exp_avg" not in state:
        state["step"] = torch.zeros((), device=vector.device)
        state["exp_avg"] = torch.zeros_like(vector)
        if not isinstance(optimizer, Muon) or vector not in optimizer.layouts:
            state["exp_avg_sq"] = torch.zeros_like(vector)
    return state
