"""RMSNorm in Triton: one program normalizes whole rows, so that every value is read and written once.

T rows, D values per row, P programs. Rows are contiguous and at most `MAX_WIDTH` wide.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from storyteller_kernels.dispatch import LAUNCH_OPTIONS, on_device_of, processor_count


@triton.jit  # type: ignore[untyped-decorator]  # triton has no types
def forward_kernel(
    x_ptr: tl.tensor,
    residual_ptr: tl.tensor,
    weight_ptr: tl.tensor,
    y_ptr: tl.tensor,
    sum_ptr: tl.tensor,
    rstd_ptr: tl.tensor,
    T: tl.tensor,
    D: tl.tensor,
    eps: tl.tensor,
    ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
) -> None:
    """s = x + residual (or x), r = 1 / sqrt(mean(s^2) + eps), y = s r w; s, y [T, D] and r [T] are written.

    All in fp32, except for the same three roundings to the dtype of y as in the reference: s, s r and w.
    """
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK_D)
    mask = (row < T)[:, None] & (column < D)[None, :]
    place = row[:, None] * D + column[None, :]
    # Rows pass through the L1 cache once; the gain should stay there for every program.
    s = tl.load(x_ptr + place, mask=mask, other=0.0, eviction_policy="evict_first").to(tl.float32)
    weight = tl.load(weight_ptr + column, mask=column < D, other=0.0, eviction_policy="evict_last")
    if residual_ptr is not None:
        s += tl.load(residual_ptr + place, mask=mask, other=0.0, eviction_policy="evict_first").to(tl.float32)
        rounded = s.to(sum_ptr.dtype.element_ty)
        tl.store(sum_ptr + place, rounded, mask=mask)
        s = rounded.to(tl.float32)
    rstd = tl.rsqrt(tl.sum(s * s, axis=1) / D + eps)
    tl.store(rstd_ptr + row, rstd, mask=row < T)
    y_type = y_ptr.dtype.element_ty
    normal = (s * rstd[:, None]).to(y_type).to(tl.float32)
    y = normal * weight.to(y_type).to(tl.float32)[None, :]
    tl.store(y_ptr + place, y.to(y_type), mask=mask)


@triton.jit  # type: ignore[untyped-decorator]  # triton has no types
def backward_kernel(
    dy_ptr: tl.tensor,
    dsum_ptr: tl.tensor,
    s_ptr: tl.tensor,
    weight_ptr: tl.tensor,
    rstd_ptr: tl.tensor,
    ds_ptr: tl.tensor,
    partial_ptr: tl.tensor,
    T: tl.tensor,
    D: tl.tensor,
    ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
) -> None:
    """ds = r (w dy - n mean(w dy n)) + dsum with n = s r, and this program's part of dw = sum over rows of dy n.

    Program p takes the blocks of rows p, p + P, ... and keeps its sum of dw in registers; partial is [P, D] fp32.
    The loads of the next block are issued before the current one is processed.
    """
    column = tl.arange(0, BLOCK_D)
    y_type = dy_ptr.dtype.element_ty
    weight = tl.load(weight_ptr + column, mask=column < D, other=0.0).to(y_type).to(tl.float32)[None, :]
    dweight = tl.zeros((ROWS, BLOCK_D), tl.float32)
    first = tl.program_id(0) * ROWS
    step = tl.num_programs(0) * ROWS

    row = first.to(tl.int64) + tl.arange(0, ROWS)
    mask = (row < T)[:, None] & (column < D)[None, :]
    place = row[:, None] * D + column[None, :]
    s_next = tl.load(s_ptr + place, mask=mask, other=0.0, eviction_policy="evict_first")
    dy_next = tl.load(dy_ptr + place, mask=mask, other=0.0, eviction_policy="evict_first")
    rstd_next = tl.load(rstd_ptr + row, mask=row < T, other=0.0)
    for _ in range(first, T, step):
        s, dy, rstd = s_next.to(tl.float32), dy_next.to(tl.float32), rstd_next[:, None]
        mask_now, place_now = mask, place
        row += step
        mask = (row < T)[:, None] & (column < D)[None, :]
        place = row[:, None] * D + column[None, :]
        s_next = tl.load(s_ptr + place, mask=mask, other=0.0, eviction_policy="evict_first")
        dy_next = tl.load(dy_ptr + place, mask=mask, other=0.0, eviction_policy="evict_first")
        rstd_next = tl.load(rstd_ptr + row, mask=row < T, other=0.0)

        normal = s * rstd
        dweight += dy * normal.to(y_type).to(tl.float32)
        dnormal = dy * weight
        ds = rstd * (dnormal - normal * (tl.sum(dnormal * normal, axis=1) / D)[:, None])
        if dsum_ptr is not None:
            ds += tl.load(dsum_ptr + place_now, mask=mask_now, other=0.0).to(tl.float32)
        tl.store(ds_ptr + place_now, ds.to(ds_ptr.dtype.element_ty), mask=mask_now)

    partial = tl.sum(dweight, axis=0)
    tl.store(partial_ptr + tl.program_id(0) * D + column, partial, mask=column < D)


def launch_forward(
    x_TD: Tensor, residual_TD: Tensor | None, weight_D: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalize the rows of x, or of x + residual.

    Args:
        x_TD: [T, D], contiguous.
        residual_TD: [T, D], contiguous, or None.
        weight_D: [D], contiguous.
        eps: added to the mean square.

    Returns:
        y [T, D]; the sum s [T, D], x itself if nothing was added; 1 / root mean square of s [T] fp32.
        y and s have the dtype of x + residual.
    """
    T, D = x_TD.shape
    if residual_TD is None:
        sum_TD, y_TD = x_TD, torch.empty_like(x_TD)
    else:
        sum_TD = torch.empty_like(x_TD, dtype=torch.promote_types(x_TD.dtype, residual_TD.dtype))
        y_TD = torch.empty_like(sum_TD)
    rstd_T = torch.empty(T, dtype=torch.float32, device=x_TD.device)
    rows, block_d, warps = tile_of(D, 4096)
    if T > 0:
        with on_device_of(x_TD):
            grid = (triton.cdiv(T, rows),)
            tensors = (x_TD, residual_TD, weight_D, y_TD, sum_TD, rstd_T)
            forward_kernel[grid](*tensors, T, D, eps, rows, block_d, num_warps=warps, **LAUNCH_OPTIONS)
    return y_TD, sum_TD, rstd_T


def launch_backward(
    dy_TD: Tensor, dsum_TD: Tensor | None, sum_TD: Tensor, weight_D: Tensor, rstd_T: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of the rows that were normalized and of the gain.

    Args:
        dy_TD: [T, D] contiguous, gradient of y.
        dsum_TD: [T, D] contiguous, gradient that reaches s other than through y, or None.
        sum_TD: [T, D] contiguous, s.
        weight_D: [D], contiguous.
        rstd_T: [T] fp32, from the forward pass.

    Returns:
        ds [T, D] in the dtype of s; dw [D] in the dtype of the gain.
    """
    T, D = sum_TD.shape
    ds_TD = torch.empty_like(sum_TD)
    if T == 0:
        return ds_TD, torch.zeros_like(weight_D)
    rows, block_d, warps = tile_of(D, 2048)
    # As many as run at a time, so that there are few partial sums.
    programs = min(triton.cdiv(T, rows), processor_count(sum_TD.device) * BACKWARD_WARPS // warps)
    partial_PD = torch.empty(programs, D, dtype=torch.float32, device=sum_TD.device)
    with on_device_of(sum_TD):
        tensors = (dy_TD, dsum_TD, sum_TD, weight_D, rstd_T, ds_TD, partial_PD)
        backward_kernel[(programs,)](*tensors, T, D, rows, block_d, num_warps=warps, **LAUNCH_OPTIONS)
    return ds_TD, partial_PD.sum(0).to(weight_D.dtype)


BACKWARD_WARPS = 16
"""Warps of the backward kernel that fit on one multiprocessor: it takes 128 registers per thread on sm_90."""


def tile_of(D: int, values: int) -> tuple[int, int, int]:
    """Rows per program, padded width and warps: `values` values per program in four warps, or one row if that has more.

    In the forward pass that is 32 values per thread, 4 loads of 16 bytes each in bf16; in the backward pass 16, of
    which four copies live in registers.
    """
    block_d = triton.next_power_of_2(D)
    rows = max(1, values // block_d)
    return rows, block_d, min(16, max(1, 4 * rows * block_d // values))
