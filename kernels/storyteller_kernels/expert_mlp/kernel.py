"""Grouped matrix products over stacked experts, with SwiGLU in their epilogues, in Triton.

N rows in expert order, D and I values per row, E experts; H = 2 I, first the gate and then the up half. `end_ptr`
holds the row after each expert's last, [E] int32 on the device: a program finds its expert by itself, and the host
never waits for the counts. The host launches as many tiles of rows as there could be; those beyond the last expert's
return at once. Sums are fp32, without atomics and in a fixed order.

Rounding is that of the plain composition: gate, up and the gradient of the activation are rounded to the dtype of the
tensors before the next step, so the fused kernels agree with the library product followed by the elementwise ones.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from storyteller_kernels.dispatch import LAUNCH_OPTIONS, processor_count
from storyteller_kernels.expert_mlp.swiglu import gradients_of, value_of


class Tile(NamedTuple):
    """Block sizes of a matrix product, in elements, and how it is run."""

    rows: int
    cols: int
    depth: int
    warps: int
    stages: int


TILES = {
    # 96 KiB of shared memory: fits every device from sm_80 on, including those with 99 KiB per block.
    torch.bfloat16: Tile(rows=128, cols=128, depth=64, warps=8, stages=3),
    torch.float16: Tile(rows=128, cols=128, depth=64, warps=8, stages=3),
    # True fp32 and not TF32, so without tensor cores.
    torch.float32: Tile(rows=64, cols=64, depth=32, warps=4, stages=2),
}
GROUP = tl.constexpr(8)
"""Tiles of rows that are processed together, so that their tiles of weights are found in the L2 cache."""


@triton.jit  # type: ignore[untyped-decorator]  # triton has no types
def _place(row_tiles: tl.tensor, col_tiles: tl.tensor) -> tuple[tl.tensor, tl.tensor]:
    """This program's tile of rows and tile of columns: GROUP tiles of rows, column by column."""
    group = tl.program_id(0) // (GROUP * col_tiles)
    height = tl.minimum(row_tiles - group * GROUP, GROUP)
    within = tl.program_id(0) % (GROUP * col_tiles)
    return group * GROUP + within % height, within // height


@triton.jit  # type: ignore[untyped-decorator]  # triton has no types
def _expert_of(
    tile: tl.tensor, end_ptr: tl.tensor, E: tl.constexpr, PADDED_E: tl.constexpr, ROWS: tl.constexpr
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """The expert of a tile of rows, the tile's first row and the row after the expert's last.

    The expert is at least E if there is no such tile.
    """
    e = tl.arange(0, PADDED_E)
    end = tl.load(end_ptr + e, mask=e < E, other=0)
    start = tl.load(end_ptr + e - 1, mask=(e > 0) & (e < E), other=0)
    tiles = (end - start + ROWS - 1) // ROWS
    last_tile = tl.cumsum(tiles, 0)
    expert = tl.sum((last_tile <= tile).to(tl.int32), 0)
    mine = e == expert
    first_row = tl.sum(tl.where(mine, start + (tile - last_tile + tiles) * ROWS, 0), 0)
    return expert, first_row, tl.sum(tl.where(mine, end, 0), 0)


@triton.jit  # type: ignore[untyped-decorator]  # triton has no types
def _product(
    a_ptr: tl.tensor,
    a_row: tl.tensor,
    a_inside: tl.tensor,
    w_ptr: tl.tensor,
    w_col: tl.tensor,
    w_inside: tl.tensor,
    w_depth_stride: tl.tensor,
    depth: tl.tensor,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    DEPTH: tl.constexpr,
) -> tl.tensor:
    """One tile of A W^T in fp32.

    Args:
        a_ptr: A, rows contiguous; a_row [ROWS]: offset of each row; a_inside [ROWS]: whether it exists.
        w_ptr: an expert's W; w_col [COLS]: offset of each of its outputs; w_inside [COLS]: whether it exists.
        w_depth_stride: stride from one element of the contracted dimension to the next.
        depth: length of the contracted dimension.
    """
    total = tl.zeros((ROWS, COLS), dtype=tl.float32)
    for first in range(0, depth, DEPTH):
        d = first + tl.arange(0, DEPTH)
        a = tl.load(a_ptr + a_row[:, None] + d[None, :], mask=a_inside[:, None] & (d < depth)[None, :], other=0.0)
        w = tl.load(
            w_ptr + w_col[None, :] + d[:, None] * w_depth_stride,
            mask=(d < depth)[:, None] & w_inside[None, :],
            other=0.0,
        )
        total = tl.dot(a, w, total, input_precision="ieee")
    return total


@triton.jit  # type: ignore[untyped-decorator]  # triton has no types
def row_product_kernel(
    a_ptr: tl.tensor,
    w_ptr: tl.tensor,
    end_ptr: tl.tensor,
    out_ptr: tl.tensor,
    O: tl.tensor,
    C: tl.tensor,
    row_tiles: tl.tensor,
    w_stride_e: tl.tensor,
    w_stride_o: tl.tensor,
    w_stride_c: tl.tensor,
    E: tl.constexpr,
    PADDED_E: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    DEPTH: tl.constexpr,
) -> None:
    """out[n] = W[expert of n] a[n]."""
    row_tile, col_tile = _place(row_tiles, tl.cdiv(O, COLS))
    expert, first_row, end_row = _expert_of(row_tile, end_ptr, E, PADDED_E, ROWS)
    if expert >= E:
        return
    row = first_row + tl.arange(0, ROWS)
    col = col_tile * COLS + tl.arange(0, COLS)
    row64 = row.to(tl.int64)
    w_ptr = w_ptr + expert.to(tl.int64) * w_stride_e
    total = _product(
        a_ptr, row64 * C, row < end_row, w_ptr, col * w_stride_o, col < O, w_stride_c, C, ROWS, COLS, DEPTH
    )
    inside = (row < end_row)[:, None] & (col < O)[None, :]
    tl.store(out_ptr + row64[:, None] * O + col[None, :], total.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit  # type: ignore[untyped-decorator]  # triton has no types
def up_swiglu_kernel(
    x_ptr: tl.tensor,
    token_ptr: tl.tensor,
    up_ptr: tl.tensor,
    end_ptr: tl.tensor,
    hidden_ptr: tl.tensor,
    act_ptr: tl.tensor,
    I: tl.tensor,
    D: tl.tensor,
    row_tiles: tl.tensor,
    E: tl.constexpr,
    PADDED_E: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    DEPTH: tl.constexpr,
) -> None:
    """act[n] = silu(gate) * up with (gate, up) = W[expert of n] x[n]; both are also stored if `hidden` is given.

    With `token`, [N] int64, x has one row per token, and x[n] above stands for x[token[n]].
    """
    row_tile, col_tile = _place(row_tiles, tl.cdiv(I, COLS))
    expert, first_row, end_row = _expert_of(row_tile, end_ptr, E, PADDED_E, ROWS)
    if expert >= E:
        return
    row = first_row + tl.arange(0, ROWS)
    col = col_tile * COLS + tl.arange(0, COLS)
    row64 = row.to(tl.int64)
    source = row64 if token_ptr is None else tl.load(token_ptr + row, mask=row < end_row, other=0)
    w_ptr = up_ptr + expert.to(tl.int64) * (2 * I * D)
    gate_total = tl.zeros((ROWS, COLS), dtype=tl.float32)
    up_total = tl.zeros((ROWS, COLS), dtype=tl.float32)
    for first in range(0, D, DEPTH):
        d = first + tl.arange(0, DEPTH)
        x_inside = (row < end_row)[:, None] & (d < D)[None, :]
        w_inside = (d < D)[:, None] & (col < I)[None, :]
        x = tl.load(x_ptr + source[:, None] * D + d[None, :], mask=x_inside, other=0.0)
        w = w_ptr + col[None, :] * D + d[:, None]
        gate_total = tl.dot(x, tl.load(w, mask=w_inside, other=0.0), gate_total, input_precision="ieee")
        up_total = tl.dot(x, tl.load(w + I * D, mask=w_inside, other=0.0), up_total, input_precision="ieee")
    gate = gate_total.to(act_ptr.dtype.element_ty)
    up = up_total.to(act_ptr.dtype.element_ty)
    act = value_of(gate.to(tl.float32), up.to(tl.float32))
    inside = (row < end_row)[:, None] & (col < I)[None, :]
    tl.store(act_ptr + row64[:, None] * I + col[None, :], act.to(act_ptr.dtype.element_ty), mask=inside)
    if hidden_ptr is not None:
        hidden = hidden_ptr + row64[:, None] * (2 * I) + col[None, :]
        tl.store(hidden, gate, mask=inside)
        tl.store(hidden + I, up, mask=inside)


@triton.jit  # type: ignore[untyped-decorator]  # triton has no types
def down_swiglu_backward_kernel(
    grad_ptr: tl.tensor,
    down_ptr: tl.tensor,
    end_ptr: tl.tensor,
    hidden_ptr: tl.tensor,
    grad_hidden_ptr: tl.tensor,
    act_ptr: tl.tensor,
    I: tl.tensor,
    D: tl.tensor,
    row_tiles: tl.tensor,
    E: tl.constexpr,
    PADDED_E: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    DEPTH: tl.constexpr,
) -> None:
    """Back through the down product and SwiGLU in one: d hidden, and the activation again, which was not kept."""
    row_tile, col_tile = _place(row_tiles, tl.cdiv(I, COLS))
    expert, first_row, end_row = _expert_of(row_tile, end_ptr, E, PADDED_E, ROWS)
    if expert >= E:
        return
    row = first_row + tl.arange(0, ROWS)
    col = col_tile * COLS + tl.arange(0, COLS)
    row64 = row.to(tl.int64)
    w_ptr = down_ptr + expert.to(tl.int64) * (D * I)
    total = _product(grad_ptr, row64 * D, row < end_row, w_ptr, col, col < I, I, D, ROWS, COLS, DEPTH)
    inside = (row < end_row)[:, None] & (col < I)[None, :]
    place = row64[:, None] * (2 * I) + col[None, :]
    gate = tl.load(hidden_ptr + place, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(hidden_ptr + place + I, mask=inside, other=0.0).to(tl.float32)
    grad = total.to(act_ptr.dtype.element_ty).to(tl.float32)
    grad_gate, grad_up, act = gradients_of(grad, gate, up)
    tl.store(grad_hidden_ptr + place, grad_gate.to(grad_hidden_ptr.dtype.element_ty), mask=inside)
    tl.store(grad_hidden_ptr + place + I, grad_up.to(grad_hidden_ptr.dtype.element_ty), mask=inside)
    tl.store(act_ptr + row64[:, None] * I + col[None, :], act.to(act_ptr.dtype.element_ty), mask=inside)


@triton.jit  # type: ignore[untyped-decorator]  # triton has no types
def weight_gradient_kernel(
    grad_ptr: tl.tensor,
    x_ptr: tl.tensor,
    token_ptr: tl.tensor,
    end_ptr: tl.tensor,
    out_ptr: tl.tensor,
    O: tl.tensor,
    C: tl.tensor,
    E: tl.constexpr,
    SPLITS: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    DEPTH: tl.constexpr,
) -> None:
    """out[s, e] = sum of grad[n] x[n]^T over the s-th of SPLITS parts of expert e's rows n; zero without rows.

    ROWS tile O, COLS tile C.
    """
    col_tiles = tl.cdiv(C, COLS)
    tiles = tl.cdiv(O, ROWS) * col_tiles
    expert = tl.program_id(0) // tiles
    o = tl.program_id(0) % tiles // col_tiles * ROWS + tl.arange(0, ROWS)
    c = tl.program_id(0) % col_tiles * COLS + tl.arange(0, COLS)
    split = tl.program_id(1)
    start_row = tl.load(end_ptr + expert - 1, mask=expert > 0, other=0)
    end_row = tl.load(end_ptr + expert)
    part = tl.cdiv(tl.cdiv(end_row - start_row, SPLITS), DEPTH) * DEPTH
    start_row += split * part
    end_row = tl.minimum(start_row + part, end_row)
    total = tl.zeros((ROWS, COLS), dtype=tl.float32)
    for first in range(start_row, end_row, DEPTH):
        row = first + tl.arange(0, DEPTH)
        row64 = row.to(tl.int64)
        source = row64 if token_ptr is None else tl.load(token_ptr + row, mask=row < end_row, other=0)
        grad = tl.load(
            grad_ptr + row64[None, :] * O + o[:, None],
            mask=(row < end_row)[None, :] & (o < O)[:, None],
            other=0.0,
        )
        x = tl.load(
            x_ptr + source[:, None] * C + c[None, :],
            mask=(row < end_row)[:, None] & (c < C)[None, :],
            other=0.0,
        )
        total = tl.dot(grad, x, total, input_precision="ieee")
    place = out_ptr + (split * E + expert).to(tl.int64) * O * C + o[:, None] * C + c[None, :]
    tl.store(place, total.to(out_ptr.dtype.element_ty), mask=(o < O)[:, None] & (c < C)[None, :])


def row_product(a_NC: Tensor, w_EOC: Tensor, end_E: Tensor) -> Tensor:
    """[N, O]: each row times the transposed matrix of its expert.

    Args:
        a_NC: [N, C], contiguous.
        w_EOC: [E, O, C], any strides, in the dtype of a.
        end_E: [E] int32, the row after each expert's last.
    """
    (rows, depth), cols = a_NC.shape, w_EOC.shape[1]
    out_NO = a_NC.new_empty(rows, cols)
    tile = TILES[a_NC.dtype]
    row_tiles, grid = _row_grid(rows, cols, w_EOC, tile)
    row_product_kernel[grid](
        a_NC, w_EOC, end_E, out_NO, cols, depth, row_tiles, *w_EOC.stride(), **_of_experts(w_EOC), **_blocks(tile)
    )
    return out_NO


def up_swiglu(
    x_ND: Tensor, up_EHD: Tensor, end_E: Tensor, token_N: Tensor | None, keep_hidden: bool
) -> tuple[Tensor | None, Tensor]:
    """The up product and SwiGLU in one: hidden [N, 2I], None unless kept, and its activation [N, I].

    Args:
        x_ND: [N, D], contiguous; with token_N [T, D].
        up_EHD: [E, 2I, D], contiguous, in the dtype of x.
        end_E: [E] int32, the row after each expert's last.
        token_N: [N] int64, the row of x for each row, or None.
        keep_hidden: whether a backward pass will follow.
    """
    hidden, width = up_EHD.shape[1:]
    rows = x_ND.shape[0] if token_N is None else token_N.numel()
    hidden_NH = x_ND.new_empty(rows, hidden) if keep_hidden else None
    act_NI = x_ND.new_empty(rows, hidden // 2)
    tile = _half_as_wide(TILES[x_ND.dtype])
    row_tiles, grid = _row_grid(rows, hidden // 2, up_EHD, tile)
    tensors, sizes = (x_ND, token_N, up_EHD, end_E, hidden_NH, act_NI), (hidden // 2, width, row_tiles)
    up_swiglu_kernel[grid](*tensors, *sizes, **_of_experts(up_EHD), **_blocks(tile))
    return hidden_NH, act_NI


def down_swiglu_backward(grad_ND: Tensor, down_EDI: Tensor, end_E: Tensor, hidden_NH: Tensor) -> tuple[Tensor, Tensor]:
    """Back through the down product and SwiGLU in one: d hidden [N, 2I], and the activation [N, I] again.

    Args:
        grad_ND: [N, D], contiguous.
        down_EDI: [E, D, I], contiguous, in the dtype of grad.
        end_E: [E] int32, the row after each expert's last.
        hidden_NH: [N, 2I] from the forward pass.
    """
    width, inner = down_EDI.shape[1:]
    grad_hidden_NH, act_NI = torch.empty_like(hidden_NH), hidden_NH.new_empty(len(hidden_NH), inner)
    tile = _half_as_wide(TILES[grad_ND.dtype])
    row_tiles, grid = _row_grid(len(hidden_NH), inner, down_EDI, tile)
    tensors, sizes = (grad_ND, down_EDI, end_E, hidden_NH, grad_hidden_NH, act_NI), (inner, width, row_tiles)
    down_swiglu_backward_kernel[grid](*tensors, *sizes, **_of_experts(down_EDI), **_blocks(tile))
    return grad_hidden_NH, act_NI


def weight_gradient(grad_NO: Tensor, x_NC: Tensor, end_E: Tensor, token_N: Tensor | None) -> Tensor:
    """[E, O, C]: the sum over each expert's rows of grad x^T.

    Args:
        grad_NO: [N, O], contiguous.
        x_NC: [N, C], contiguous; with token_N [T, C].
        end_E: [E] int32, the row after each expert's last.
        token_N: [N] int64, the row of x for each row, or None.
    """
    experts, out, cols = end_E.numel(), grad_NO.shape[1], x_NC.shape[1]
    tile = TILES[grad_NO.dtype]
    programs = experts * triton.cdiv(out, tile.rows) * triton.cdiv(cols, tile.cols)
    splits = _splits(len(grad_NO) // experts, programs, tile, grad_NO.device)
    # The sums of several parts are added in fp32.
    dtype = grad_NO.dtype if splits == 1 else torch.float32
    out_SEOC = torch.empty(splits, experts, out, cols, dtype=dtype, device=grad_NO.device)
    weight_gradient_kernel[(programs, splits)](
        grad_NO, x_NC, token_N, end_E, out_SEOC, out, cols, experts, splits, **_blocks(tile)
    )
    return out_SEOC[0] if splits == 1 else out_SEOC.sum(0).to(grad_NO.dtype)


MOST_SPLITS = 8
SPLIT_BLOCKS = 4
"""Fewest blocks of DEPTH rows of an average expert in a part."""


def _splits(rows_of_expert: int, programs: int, tile: Tile, device: torch.device) -> int:
    """Number of parts of an expert's rows, so that small experts also keep all multiprocessors busy."""
    wanted: int = triton.cdiv(2 * processor_count(device), programs)
    return max(1, min(MOST_SPLITS, wanted, rows_of_expert // (SPLIT_BLOCKS * tile.depth)))


def _row_grid(rows: int, cols: int, w_EOC: Tensor, tile: Tile) -> tuple[int, tuple[int]]:
    """The most tiles of rows there can be, with one of each expert's partly filled, and the grid of programs."""
    row_tiles = rows // tile.rows + w_EOC.shape[0]
    return row_tiles, (row_tiles * triton.cdiv(cols, tile.cols),)


def _of_experts(w_EOC: Tensor) -> dict[str, int]:
    return {"E": w_EOC.shape[0], "PADDED_E": triton.next_power_of_2(w_EOC.shape[0])}


def _blocks(tile: Tile) -> dict[str, int]:
    return LAUNCH_OPTIONS | {
        "ROWS": tile.rows,
        "COLS": tile.cols,
        "DEPTH": tile.depth,
        "num_warps": tile.warps,
        "num_stages": tile.stages,
    }


def _half_as_wide(tile: Tile) -> Tile:
    """For a program that holds more than one tile of values at a time and would otherwise spill registers."""
    return tile._replace(cols=tile.cols // 2)
