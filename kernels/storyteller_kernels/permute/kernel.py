"""Rows to expert order and back, in Triton.

Every output row is written by one program, and a token's K rows are added in order: no atomics, the same bits
every time. Row offsets are 64-bit, since N * D may exceed 2^31.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from storyteller_kernels.dispatch import LAUNCH_OPTIONS, on_device_of

WARPS = 4
BLOCK = 4096
"""Elements of a tile: with 4 warps 32 per thread, which is four loads of 16 bytes in a half-precision dtype."""


@triton.jit  # type: ignore[untyped-decorator]  # triton has no types
def gather_kernel(
    x_ptr: tl.tensor,
    token_ptr: tl.tensor,
    out_ptr: tl.tensor,
    N: tl.tensor,
    D: tl.tensor,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
) -> None:
    """out[n] = x[token[n]]."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    col = tl.program_id(1) * COLS + tl.arange(0, COLS)
    token = tl.load(token_ptr + row, mask=row < N, other=0)
    inside = (row < N)[:, None] & (col < D)[None, :]
    value = tl.load(x_ptr + token[:, None] * D + col[None, :], mask=inside)
    tl.store(out_ptr + row.to(tl.int64)[:, None] * D + col[None, :], value, mask=inside)


@triton.jit  # type: ignore[untyped-decorator]  # triton has no types
def scatter_sum_kernel(
    y_ptr: tl.tensor,
    weight_ptr: tl.tensor,
    row_ptr: tl.tensor,
    out_ptr: tl.tensor,
    T: tl.tensor,
    D: tl.tensor,
    K: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
) -> None:
    """out[t] = sum_k weight[t, k] * y[row[t, k]], added in fp32; without weights, all are 1."""
    token = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    col = tl.program_id(1) * COLS + tl.arange(0, COLS)
    inside = (token < T)[:, None] & (col < D)[None, :]
    total = tl.zeros((ROWS, COLS), dtype=tl.float32)
    for k in tl.static_range(K):
        row = tl.load(row_ptr + token * K + k, mask=token < T, other=0)
        value = tl.load(y_ptr + row[:, None] * D + col[None, :], mask=inside, other=0.0).to(tl.float32)
        if weight_ptr is not None:
            value *= tl.load(weight_ptr + token * K + k, mask=token < T, other=0.0)[:, None]
        total += value
    tl.store(out_ptr + token[:, None] * D + col[None, :], total.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit  # type: ignore[untyped-decorator]  # triton has no types
def combine_backward_kernel(
    grad_ptr: tl.tensor,
    y_ptr: tl.tensor,
    weight_ptr: tl.tensor,
    row_ptr: tl.tensor,
    grad_y_ptr: tl.tensor,
    grad_weight_ptr: tl.tensor,
    T: tl.tensor,
    D: tl.tensor,
    K: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
) -> None:
    """dy[row[t, k]] = weight[t, k] * dout[t] and dweight[t, k] = <dout[t], y[row[t, k]]>, the latter in fp32.

    By token and not by row, so that dout is read from memory once: its other K - 1 reads hit the cache.
    """
    token = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    for k in tl.static_range(K):
        row = tl.load(row_ptr + token * K + k, mask=token < T, other=0)
        weight = tl.load(weight_ptr + token * K + k, mask=token < T, other=0.0)
        partial = tl.zeros((ROWS, COLS), dtype=tl.float32)
        for first in range(0, D, COLS):
            col = first + tl.arange(0, COLS)
            inside = (token < T)[:, None] & (col < D)[None, :]
            grad = tl.load(grad_ptr + token[:, None] * D + col[None, :], mask=inside, other=0.0).to(tl.float32)
            place = row[:, None] * D + col[None, :]
            partial += grad * tl.load(y_ptr + place, mask=inside, other=0.0).to(tl.float32)
            tl.store(grad_y_ptr + place, (grad * weight[:, None]).to(grad_y_ptr.dtype.element_ty), mask=inside)
        tl.store(grad_weight_ptr + token * K + k, tl.sum(partial, axis=1), mask=token < T)


def gather(x_TD: Tensor, token_N: Tensor) -> Tensor:
    """[N, D] in the dtype of x: row n is x[token_N[n]].

    Args:
        x_TD: [T, D], contiguous.
        token_N: [N] int64, contiguous.
    """
    out_ND = x_TD.new_empty(token_N.numel(), x_TD.shape[1])
    rows, cols = _tile(x_TD.shape[1])
    grid = (triton.cdiv(token_N.numel(), rows), triton.cdiv(x_TD.shape[1], cols))
    sizes = (token_N.numel(), x_TD.shape[1], rows, cols)
    with on_device_of(x_TD):
        gather_kernel[grid](x_TD, token_N, out_ND, *sizes, num_warps=WARPS, **LAUNCH_OPTIONS)
    return out_ND


def scatter_sum(y_ND: Tensor, weight_TK: Tensor | None, row_TK: Tensor) -> Tensor:
    """[T, D] in the dtype of y: sum over k, in fp32, of weight_TK[t, k] * y_ND[row_TK[t, k]].

    Args:
        y_ND: [N, D], contiguous.
        weight_TK: [T, K] fp32, contiguous; None: all 1.
        row_TK: [T, K] int64, contiguous.
    """
    (tokens, top_k), width = row_TK.shape, y_ND.shape[1]
    out_TD = y_ND.new_empty(tokens, width)
    rows, cols = _tile(width)
    grid, sizes = (triton.cdiv(tokens, rows), triton.cdiv(width, cols)), (tokens, width, top_k, rows, cols)
    with on_device_of(y_ND):
        scatter_sum_kernel[grid](y_ND, weight_TK, row_TK, out_TD, *sizes, num_warps=WARPS, **LAUNCH_OPTIONS)
    return out_TD


def combine_backward(
    grad_TD: Tensor, y_ND: Tensor, weight_TK: Tensor, _token_N: Tensor, row_TK: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of the weighted sum with respect to y ([N, D], its dtype) and the weights ([T, K] fp32).

    It goes by token and, unlike the reference, does not need token_N.

    Args:
        grad_TD: [T, D], contiguous.
        y_ND: [N, D], contiguous.
        weight_TK: [T, K] fp32, contiguous.
        row_TK: [T, K] int64, contiguous.
    """
    tokens, top_k = row_TK.shape
    grad_y_ND, grad_weight_TK = torch.empty_like(y_ND), torch.empty_like(weight_TK)
    rows, cols = _tile(y_ND.shape[1])
    tensors = (grad_TD, y_ND, weight_TK, row_TK, grad_y_ND, grad_weight_TK)
    sizes = (tokens, y_ND.shape[1], top_k, rows, cols)
    with on_device_of(y_ND):
        combine_backward_kernel[(triton.cdiv(tokens, rows),)](*tensors, *sizes, num_warps=WARPS, **LAUNCH_OPTIONS)
    return grad_y_ND, grad_weight_TK


def _tile(width: int) -> tuple[int, int]:
    """Rows and columns of a tile of BLOCK elements, with whole rows if they fit."""
    cols = min(triton.next_power_of_2(width), BLOCK // 2)
    return BLOCK // cols, cols
