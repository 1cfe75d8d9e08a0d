"""Muon: momentum whose matrices are orthogonalised before they are applied (Jordan et al. 2024).

For a hidden weight matrix W [R, C] with gradient g, in this order (kellerjordan.github.io/posts/muon):

    m = mu m + (1 - mu) g;    u = mu m + (1 - mu) g;    W = (1 - lr lambda) W - lr s NewtonSchulz(u)

with s = 0.2 sqrt(max(R, C)), which gives the update the root mean square that AdamW's usually has, so that
learning rate and weight decay are AdamW's (Liu et al. 2025, 2502.16982, eq. 4). Everything that is no hidden
matrix is AdamW's.

A matrix is what one linear map is: each expert of a stack by itself, and gate and up projection, which are
stored as one, each by itself. It has to be orthogonalised whole, but ZeRO-1 and ZeRO-2 leave a rank only a
partition of a flat vector, which cuts some matrices. So the ranks that share a vector add up the pieces of
just the cut ones: at most one matrix a rank, whatever the size of the model. Adding zeros is exact, so every
rank orthogonalises the same bits.
"""

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
    as the others, it would act with full force whatever its coefficient.

    Args:
        name: canonical name.
        shape: of the whole parameter, or of a rank's share of the experts.
        gated: whether up projections hold a gate above them (swiglu).
    """
    if not name.startswith("blocks.") or ".router." in name or not is_decayed(name):
        return None
    *stacked, rows, columns = shape
    number = 1
    for size in stacked:
        number *= size
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


class Held(NamedTuple):
    """The part of one parameter that lies in a vector on this rank; nothing, if numel is 0."""

    stack: Stack
    first: int
    """Its first entry, counted in the whole parameter."""
    start: int
    """Where that is in the vector."""
    numel: int

    def overlap(self, begin: int, end: int) -> tuple[int, int]:
        """The part of entries begin..end of the parameter that is held, as positions in the vector."""
        low, high = max(begin, self.first), min(end, self.first + self.numel)
        return (self.start + low - self.first, self.start + high - self.first) if low < high else (0, 0)


class Layout(NamedTuple):
    """The matrices in a vector, which is a whole parameter or a ZeRO partition of several."""

    parameters: Sequence[Held]
    cut: Sequence[tuple[int, int]]
    """(parameter, matrix) of the matrices of which more than one rank holds a part; the same on all ranks."""
    sum_over_holders: Callable[[Tensor], Tensor]
    """Adds a tensor up over the ranks that share the parameters, in place, and returns it."""
    device: torch.device
    """Where the matrices are multiplied and sent; the vector itself may be elsewhere."""


def whole_parameter(parameter: nn.Parameter, stack: Stack) -> Layout:
    """The layout of a parameter that this rank holds whole."""
    held = Held(stack, 0, 0, parameter.numel())
    return Layout([held], [], lambda tensor: tensor, parameter.device)


def zero_partition(
    parameters: Sequence[tuple[nn.Parameter, Stack]],
    sum_over_holders: Callable[[Tensor], Tensor],
    device: torch.device,
) -> Layout:
    """The layout of this rank's partition of a ZeRO-1/2 group; called by all ranks of the group.

    Args:
        parameters: the group's parameters, in the same order on every rank, which DeepSpeed has linked to its
            flat fp32 partition (`_hp_mapping`).
        sum_over_holders: adds up over the group's data-parallel ranks, in place.
        device: of the parameters.
    """
    held = []
    for parameter, stack in parameters:
        link: Any = parameter._hp_mapping  # type: ignore[attr-defined]  # DeepSpeed's own mark
        if link is None:
            held.append(Held(stack, 0, 0, 0))
        else:
            of_parameter, of_vector = link.lp_fragment_address, link.hp_fragment_address
            held.append(Held(stack, of_parameter.start, of_vector.start, of_parameter.numel))
    matrices = [(p, m) for p, one in enumerate(held) for m in range(one.stack.number)]
    here = [int(held[p].overlap(*_entries(held[p].stack, m)) != (0, 0)) for p, m in matrices]
    holders = sum_over_holders(torch.tensor(here, device=device)).tolist()
    cut = [where for where, number in zip(matrices, holders, strict=True) if number > 1]
    return Layout(held, cut, sum_over_holders, device)


def _entries(stack: Stack, matrix: int) -> tuple[int, int]:
    return matrix * stack.numel, (matrix + 1) * stack.numel


class Muon(torch.optim.AdamW):
    """Muon for the vectors that have a layout, AdamW for everything else.

    The momentum of a vector with a layout is its state's `exp_avg`, a vector of the same shape, so that
    whatever reads AdamW's first moment reads it too; it has no `exp_avg_sq`.

    Args:
        groups: parameter groups.
        lr: learning rate of both rules (weight units per step).
        betas: AdamW's.
        eps: AdamW's.
        momentum: mu of Muon.
        dtype: in which matrices are orthogonalised; bf16 is usual on GPUs, fp32 is reproduced by other topologies.
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
        # Fused AdamW asks a GradScaler to leave infinite gradients to it; ours have to be skipped before step().
        self._step_supports_amp_scaling = False
        self.momentum, self.dtype = momentum, dtype
        self.layouts: dict[Tensor, Layout] = {}

    def lay_out(self, layouts: Mapping[Tensor, Layout]) -> None:
        """Say which of the optimizer's vectors hold hidden matrices, and where; before the first step."""
        self.layouts.update(layouts)

    def moments(self, vector: Tensor) -> dict[str, Tensor]:
        """The state of a parameter or partition, made of zeros where there is none yet."""
        state: dict[str, Tensor] = self.state[vector]
        if "exp_avg" not in state:
            state["step"] = torch.zeros((), device=vector.device)
            state["exp_avg"] = torch.zeros_like(vector)
            if vector not in self.layouts:
                state["exp_avg_sq"] = torch.zeros_like(vector)
        return state

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
        layout, average = self.layouts[vector], self.moments(vector)["exp_avg"]
        assert vector.grad is not None
        average.lerp_(vector.grad, 1 - self.momentum)
        update_N, weight_N = vector.grad.lerp(average, self.momentum).view(-1), vector.view(-1)
        weight_N.mul_(1 - lr * weight_decay)
        for begin, end, stack, orthogonal_N in self._orthogonalised(update_N, layout):
            scale = 0.2 * max(stack.rows, stack.columns) ** 0.5
            weight_N[begin:end].add_(orthogonal_N.to(weight_N), alpha=-lr * scale)

    def _orthogonalised(self, update_N: Tensor, layout: Layout) -> Iterator[tuple[int, int, Stack, Tensor]]:
        """Begin and end in the vector, the stack they belong to, and the orthogonalised entries between them."""
        for p, m in layout.cut:
            held, entries = layout.parameters[p], _entries(layout.parameters[p].stack, m)
            begin, end = held.overlap(*entries)
            whole = torch.zeros(held.stack.numel, dtype=update_N.dtype, device=layout.device)
            first = held.first + begin - held.start - entries[0]
            whole[first : first + end - begin] = update_N[begin:end]
            layout.sum_over_holders(whole)
            if end > begin:
                yield begin, end, held.stack, self._multiply(whole, held.stack)[first : first + end - begin]
        cut = set(layout.cut)
        for p, held in enumerate(layout.parameters):
            for m, run in _runs(held, {m for q, m in cut if q == p}):
                begin, end = held.overlap(m * held.stack.numel, (m + run) * held.stack.numel)
                yield begin, end, held.stack, self._multiply(update_N[begin:end].to(layout.device), held.stack)

    def _multiply(self, matrices_N: Tensor, stack: Stack) -> Tensor:
        return newton_schulz(matrices_N.to(self.dtype).view(-1, stack.rows, stack.columns)).flatten()


def _runs(held: Held, cut: set[int]) -> Iterator[tuple[int, int]]:
    """First matrix and length of each run of matrices that are held whole."""
    start = None
    for m in range(held.stack.number + 1):
        is_whole = m < held.stack.number and m not in cut and held.overlap(*_entries(held.stack, m)) != (0, 0)
        if is_whole and start is None:
            start = m
        elif not is_whole and start is not None:
            yield start, m - start
            start = None
