"""SwiGLU in Triton: the formula, which the products of kernel.py fuse, and separate passes for torch's product."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from storyteller_kernels.dispatch import LAUNCH_OPTIONS

TILE = (4, 512)
"""Rows and columns of a program: with 4 warps 16 values per thread, two loads of 16 bytes in half precision."""


@triton.jit  # type: ignore[untyped-decorator]  # triton has no types
def value_of(gate: tl.tensor, up: tl.tensor) -> tl.tensor:
    """silu(gate) * up, in fp32."""
    sigmoid = 1.0 / (1.0 + tl.exp(-gate))
    return gate * sigmoid * up


@triton.jit  # type: ignore[untyped-decorator]  # triton has no types
def gradients_of(grad: tl.tensor, gate: tl.tensor, up: tl.tensor) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """(d gate, d up, silu(gate) * up), in fp32; the last has the same bits as value_of."""
    sigmoid = 1.0 / (1.0 + tl.exp(-gate))
    silu = gate * sigmoid
    return grad * up * sigmoid * (1.0 + gate * (1.0 - sigmoid)), grad * silu, silu * up


@triton.jit  # type: ignore[untyped-decorator]  # triton has no types
def forward_kernel(
    hidden_ptr: tl.tensor, act_ptr: tl.tensor, N: tl.tensor, I: tl.tensor, ROWS: tl.constexpr, COLS: tl.constexpr
) -> None:
    """act = silu(gate) * up, where hidden is (gate, up)."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    col = tl.program_id(1) * COLS + tl.arange(0, COLS)
    inside = (row < N)[:, None] & (col < I)[None, :]
    row64 = row.to(tl.int64)[:, None]
    gate = tl.load(hidden_ptr + row64 * (2 * I) + col[None, :], mask=inside, other=0.0).to(tl.float32)
    up = tl.load(hidden_ptr + row64 * (2 * I) + I + col[None, :], mask=inside, other=0.0).to(tl.float32)
    tl.store(act_ptr + row64 * I + col[None, :], value_of(gate, up).to(act_ptr.dtype.element_ty), mask=inside)


@triton.jit  # type: ignore[untyped-decorator]  # triton has no types
def backward_kernel(
    grad_ptr: tl.tensor,
    hidden_ptr: tl.tensor,
    grad_hidden_ptr: tl.tensor,
    act_ptr: tl.tensor,
    N: tl.tensor,
    I: tl.tensor,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
) -> None:
    """d hidden from d act, and act again."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    col = tl.program_id(1) * COLS + tl.arange(0, COLS)
    inside = (row < N)[:, None] & (col < I)[None, :]
    narrow = row.to(tl.int64)[:, None] * I + col[None, :]
    wide = row.to(tl.int64)[:, None] * (2 * I) + col[None, :]
    grad = tl.load(grad_ptr + narrow, mask=inside, other=0.0).to(tl.float32)
    gate = tl.load(hidden_ptr + wide, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(hidden_ptr + wide + I, mask=inside, other=0.0).to(tl.float32)
    grad_gate, grad_up, act = gradients_of(grad, gate, up)
    tl.store(grad_hidden_ptr + wide, grad_gate.to(grad_hidden_ptr.dtype.element_ty), mask=inside)
    tl.store(grad_hidden_ptr + wide + I, grad_up.to(grad_hidden_ptr.dtype.element_ty), mask=inside)
    tl.store(act_ptr + narrow, act.to(act_ptr.dtype.element_ty), mask=inside)


def forward(hidden_NH: Tensor) -> Tensor:
    """[N, 2I], contiguous, to [N, I]: silu(first half) * second half."""
    (rows, hidden), act_NI = hidden_NH.shape, hidden_NH.new_empty(len(hidden_NH), hidden_NH.shape[1] // 2)
    forward_kernel[_grid(act_NI)](hidden_NH, act_NI, rows, hidden // 2, *TILE, **LAUNCH_OPTIONS)
    return act_NI


def backward(grad_NI: Tensor, hidden_NH: Tensor) -> tuple[Tensor, Tensor]:
    """d hidden [N, 2I], and the activation [N, I] again; both arguments contiguous."""
    grad_hidden_NH, act_NI = torch.empty_like(hidden_NH), torch.empty_like(grad_NI)
    backward_kernel[_grid(act_NI)](grad_NI, hidden_NH, grad_hidden_NH, act_NI, *grad_NI.shape, *TILE, **LAUNCH_OPTIONS)
    return grad_hidden_NH, act_NI


def _grid(act_NI: Tensor) -> tuple[int, int]:
    return triton.cdiv(act_NI.shape[0], TILE[0]), triton.cdiv(act_NI.shape[1], TILE[1])
