"""Permute and combine: tokens to expert order, and expert outputs back. Data movement, bound by the bytes moved."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from storyteller_kernels.permute import combine, permute, reference
from torch import Tensor

from benchmarks.operations.case import DTYPE_NAMES, Candidate, Case, Direction, Implementation, Named, Role, Size, leaf
from benchmarks.operations.goals import Goal
from benchmarks.operations.limits import COPY, copy
from benchmarks.operations.moe_problem import MoEShape
from benchmarks.operations.ops import moe_layer
from benchmarks.operations.peers.torch_layers import compiled

Move = Callable[[Named, Named], Tensor]
"""From (what moves: x, and weight if there is one; index: token_N, row_TK) to rows [N, D] or tokens [T, D]."""
Mover = tuple[str, Role, Callable[[], Move]]

GOALS: dict[Size, list[Goal]] = {}
"""It has no goals of its own: those of the whole layer are in moe_layer."""


def cases(size: Size, device: torch.device) -> Iterator[Case]:
    """Both with the sizes of the whole layer's case; K different experts per token, drawn at random."""
    shape, dtype = moe_layer.SHAPES[size]
    generator = torch.Generator(device).manual_seed(0)
    expert_TK = torch.rand(shape.T, shape.E, generator=generator, device=device).argsort(dim=1)[:, : shape.K]
    order_N = expert_TK.flatten().argsort(stable=True)
    row_TK = order_N.argsort().view(shape.T, shape.K)
    weight_TK = torch.rand(shape.T, shape.K, generator=generator, device=device)
    index = {"token_N": order_N // shape.K, "row_TK": row_TK}
    rows_ND = torch.randn(shape.rows, shape.D, generator=generator, device=device).to(dtype)
    yield _case("permute", shape, {"x": rows_ND[: shape.T]}, index, _permutes(size))
    yield _case("combine", shape, {"x": rows_ND, "weight": weight_TK}, index, _combines(size))


def bytes_moved(operation: str, shape: MoEShape, itemsize: int) -> dict[Direction, int]:
    """The minimum number of bytes to move, as counted in the operation's README."""
    tokens, rows, N = shape.T * shape.D * itemsize, shape.rows * shape.D * itemsize, shape.rows
    if operation == "permute":
        return {"forward": tokens + rows + 8 * N, "backward": tokens + rows + 8 * N}
    return {"forward": rows + tokens + 12 * N, "backward": tokens + 2 * rows + 16 * N}


def _permute_by(function: Callable[..., Any]) -> Move:
    """Adapt a function with the signature of our permute."""
    return lambda of, index: function(of["x"], index["token_N"], index["row_TK"])


def _combine_by(function: Callable[..., Any]) -> Move:
    """Adapt a function with the signature of our combine."""
    return lambda of, index: function(of["x"], of["weight"], index["token_N"], index["row_TK"])


def _reference_permute(x_TD: Tensor, token_N: Tensor, _: Tensor) -> Tensor:
    return reference.gather(x_TD, token_N)


def _reference_combine(y_ND: Tensor, weight_TK: Tensor, _: Tensor, row_TK: Tensor) -> Tensor:
    return reference.scatter_sum(y_ND, weight_TK, row_TK)


def _permutes(size: Size) -> list[Mover]:
    movers: list[Mover] = [
        ("ours", "ours", lambda: _permute_by(permute)),
        ("reference", "baseline", lambda: _permute_by(_reference_permute)),
        ("torch index_select", "peer", lambda: lambda of, index: of["x"].index_select(0, index["token_N"])),
    ]
    if size != "tiny":
        movers.append(("torch.compile of the reference", "peer", lambda: _permute_by(compiled(_reference_permute))))
    return movers


def _combines(size: Size) -> list[Mover]:
    movers: list[Mover] = [
        ("ours", "ours", lambda: _combine_by(combine)),
        ("reference", "baseline", lambda: _combine_by(_reference_combine)),
        ("torch index_add", "peer", lambda: _combine_by(_index_add)),
    ]
    if size != "tiny":
        movers.append(("torch.compile of the reference", "peer", lambda: _combine_by(compiled(_reference_combine))))
    return movers


def _index_add(y_ND: Tensor, weight_TK: Tensor, token_N: Tensor, row_TK: Tensor) -> Tensor:
    weight_N = torch.empty_like(weight_TK.flatten()).scatter(0, row_TK.flatten(), weight_TK.flatten())
    out_TD = y_ND.new_zeros(len(weight_TK), y_ND.shape[1])
    return out_TD.index_add(0, token_N, y_ND * weight_N[:, None].to(y_ND.dtype))


def _case(operation: str, shape: MoEShape, moved: Named, index: Named, movers: list[Mover]) -> Case:
    dtype, device = moved["x"].dtype, moved["x"].device

    def build(make: Callable[[], Move], exact: bool = False) -> Candidate:
        leaves = {name: leaf(tensor, torch.float64 if exact else None) for name, tensor in moved.items()}
        move = make()
        return Candidate(lambda: {"out": move(leaves, index)}, leaves)

    definition = _permute_by(_exact_permute) if operation == "permute" else _combine_by(_exact_combine)
    T, D, _, E, K = shape
    work = bytes_moved(operation, shape, dtype.itemsize)
    return Case(
        op="permute",
        name=f"{operation} T={T} D={D} E={E} K={K} {DTYPE_NAMES[dtype]}",
        shape={"T": T, "D": D, "E": E, "K": K, "dtype": DTYPE_NAMES[dtype]},
        directions=["forward", "backward"],
        reference=lambda: build(lambda: definition, exact=True),
        implementations=[Implementation(name, role, partial(build, make)) for name, role, make in movers],
        limits=[copy(shape.rows * D * dtype.itemsize, dtype, device)],
        work={direction: {COPY: float(moved)} for direction, moved in work.items()},
        dtype=dtype,
        device=device,
        # The weight, its product, the sum.
        roundings=(3, 3),
        rounds=50 if device.type == "cuda" else 15,
    )


def _exact_permute(x_TD: Tensor, token_N: Tensor, _row_TK: Tensor) -> Tensor:
    return x_TD[token_N]


def _exact_combine(y_ND: Tensor, weight_TK: Tensor, _token_N: Tensor, row_TK: Tensor) -> Tensor:
    return (y_ND[row_TK] * weight_TK[:, :, None]).sum(dim=1)
