"""The limits of the machine, measured in the same rounds as the operations.

The best rate of a large matrix product, with torch.mm and, where our operations use it, also with oneDNN; the matrix
products of the experts alone, over perfectly balanced rows; a copy.
"""

from collections.abc import Sequence
from functools import partial

import torch
from storyteller_kernels.cpu_products import ONEDNN, onednn_is_faster
from torch import Tensor

from benchmarks.operations.case import Limit, LimitStep, Step
from benchmarks.operations.flops import expert_flops

MATRIX_PRODUCT, ONEDNN_PRODUCT, BARE_BMM, COPY = "matrix product", "oneDNN product", "bare bmm", "copy"
LARGE_BYTES = 320 * 2**20
"""A copy on a GPU moves at least this much: above 256 MB, and so far beyond its caches."""


def matrix_products(sizes: Sequence[tuple[int, int, int]], dtype: torch.dtype, device: torch.device) -> list[Limit]:
    """[m, k] times [k, n], for several (m, k, n); the best of them is the rate.

    Uses torch.mm; on a CPU where oneDNN is faster (storyteller_kernels.cpu_products), its product is a second limit.
    """
    by_torch, by_onednn = [], []
    for m, k, n in sizes:
        left, right, out = (torch.randn(s, dtype=dtype, device=device) for s in ((m, k), (k, n), (m, n)))
        label, flops = f"{m}x{k}x{n}", 2.0 * m * k * n
        by_torch.append(LimitStep(label, Step(partial(_mm, left, right, out)), flops))
        by_onednn.append(LimitStep(label, Step(partial(_onednn, left, right.t().contiguous())), flops))
    limits = [Limit(MATRIX_PRODUCT, "FLOP/s", by_torch)]
    if device.type == "cpu" and onednn_is_faster():
        limits.append(Limit(ONEDNN_PRODUCT, "FLOP/s", by_onednn))
    return limits


def bare_bmm(rows: int, D: int, I: int, E: int, dtype: torch.dtype, device: torch.device) -> Limit:
    """Forward and backward of torch.bmm for the two products of an expert, and nothing else.

    `rows` rows, the same number for every expert; no routing, no activation. The weights are laid out as bmm wants
    them, [E, D, 2I] and [E, I, D], so that no gradient has to be transposed.
    """
    each = rows // E
    pairs = []
    for width, out in ((D, 2 * I), (I, D)):
        x_ERW, weight_EWO, grad_ERO = (
            torch.randn(E, *shape, dtype=dtype, device=device) for shape in ((each, width), (width, out), (each, out))
        )
        pairs.append((x_ERW.requires_grad_(), weight_EWO.requires_grad_(), grad_ERO))
    step = Step(partial(_bmm_forward_backward, pairs))
    return Limit(BARE_BMM, "FLOP/s", [LimitStep(f"{E}x{each}", step, 3 * expert_flops(each * E, D, I))])


def copy(bytes_read: int, dtype: torch.dtype, device: torch.device) -> Limit:
    """Tensor.copy_ of a buffer of the operation's size, on a GPU at least LARGE_BYTES; reads and writes both count."""
    size = max(bytes_read, LARGE_BYTES if device.type == "cuda" else 0) // dtype.itemsize
    source = torch.randn(size, dtype=torch.float32, device=device).to(dtype)
    step = Step(partial(_copy, torch.empty_like(source), source))
    return Limit(COPY, "B/s", [LimitStep(f"{size * dtype.itemsize} B", step, 2.0 * size * dtype.itemsize)])


def _mm(left: Tensor, right: Tensor, out: Tensor, _: object) -> None:
    # Into existing memory: on a CPU, fresh pages would cost a few percent of the rate.
    torch.mm(left, right, out=out)


def _copy(target: Tensor, source: Tensor, _: object) -> None:
    target.copy_(source)


def _onednn(x_RD: Tensor, weight_HD: Tensor, _: object) -> None:
    ONEDNN.product(x_RD, weight_HD, None)


def _bmm_forward_backward(pairs: list[tuple[Tensor, Tensor, Tensor]], _: object) -> None:
    for x_ERW, weight_EWO, grad_ERO in pairs:
        x_ERW.grad = weight_EWO.grad = None
        torch.bmm(x_ERW, weight_EWO).backward(grad_ERO)
