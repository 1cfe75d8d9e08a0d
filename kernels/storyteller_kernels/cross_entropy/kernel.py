"""The loss of a chunk of logits and its gradient, in Triton: two reads and one write, in place.

As in Liger Kernel (Hsu et al. 2024, sec. 3.2), each program has one row: it computes log sum exp in one pass over the
row, with the largest value so far (Milakov and Gimelshein 2018, 1805.02867, algorithm 3), and overwrites the logits
with p - onehot in another. All sums are fp32, in a fixed order.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from storyteller_kernels.dispatch import LAUNCH_OPTIONS, on_device_of

BLOCK = 4096
"""Most columns that a program holds at a time."""
WARPS = 8


@triton.jit  # type: ignore[untyped-decorator]  # triton has no types
def _capped(logit: tl.tensor, softcap: tl.tensor, HAS_CAP: tl.constexpr) -> tl.tensor:
    """c tanh(l / c), if there is a cap."""
    if HAS_CAP:
        logit = softcap * (2.0 * tl.sigmoid(2.0 * logit / softcap) - 1.0)
    return logit


@triton.jit  # type: ignore[untyped-decorator]  # triton has no types
def loss_kernel(
    logits_ptr: tl.tensor,
    target_ptr: tl.tensor,
    nll_ptr: tl.tensor,
    V: tl.tensor,
    ignored: tl.tensor,
    softcap: tl.tensor,
    HAS_CAP: tl.constexpr,
    GRADIENT: tl.constexpr,
    COLS: tl.constexpr,
) -> None:
    """nll[c] = -log softmax(l[c])[target[c]], 0 if the target is ignored; with GRADIENT, l becomes its gradient."""
    row = tl.program_id(0).to(tl.int64)
    target = tl.load(target_ptr + row)
    counts = target != ignored
    row_ptr = logits_ptr + row * V
    largest = -float("inf")
    total = 0.0
    for start in range(0, V, COLS):
        col = start + tl.arange(0, COLS)
        logit = _capped(tl.load(row_ptr + col, mask=col < V, other=0.0).to(tl.float32), softcap, HAS_CAP)
        logit = tl.where(col < V, logit, -float("inf"))
        larger = tl.maximum(largest, tl.max(logit, axis=0))
        total = total * tl.exp(largest - larger) + tl.sum(tl.exp(logit - larger), axis=0)
        largest = larger
    log_z = largest + tl.log(total)
    chosen = _capped(tl.load(row_ptr + tl.where(counts, target, 0)).to(tl.float32), softcap, HAS_CAP)
    tl.store(nll_ptr + row, tl.where(counts, log_z - chosen, 0.0))
    if GRADIENT:
        tl.debug_barrier()  # a warp ahead of others would overwrite a logit that they have yet to read
        for start in range(0, V, COLS):
            col = start + tl.arange(0, COLS)
            logit = _capped(tl.load(row_ptr + col, mask=col < V, other=0.0).to(tl.float32), softcap, HAS_CAP)
            gradient = tl.exp(logit - log_z) - tl.where(col == target, 1.0, 0.0)
            if HAS_CAP:
                part = logit / softcap
                gradient *= 1.0 - part * part
            gradient = tl.where(counts, gradient, 0.0)
            tl.store(row_ptr + col, gradient.to(logits_ptr.dtype.element_ty), mask=col < V)


def loss_and_gradient(
    logits_CV: Tensor, target_C: Tensor, ignore_index: int, softcap: float | None, wants_gradient: bool
) -> tuple[Tensor, Tensor]:
    """The summed loss [] fp32, and the gradient of the logits in their place.

    Args:
        logits_CV: [C, V] contiguous, C > 0; overwritten if the gradient is wanted.
        target_C: [C] int64.
        ignore_index: targets of this value do not count.
        softcap: logits become softcap * tanh(logits / softcap); None: unchanged.
        wants_gradient: whether the gradient is wanted; otherwise the logits stay.
    """
    rows, vocabulary = logits_CV.shape
    nll_C = torch.empty(rows, dtype=torch.float32, device=logits_CV.device)
    cols = min(BLOCK, triton.next_power_of_2(vocabulary))
    sizes = (vocabulary, ignore_index, softcap or 1.0, softcap is not None, wants_gradient, cols)
    with on_device_of(logits_CV):
        loss_kernel[(rows,)](logits_CV, target_C, nll_C, *sizes, num_warps=WARPS, **LAUNCH_OPTIONS)
    return nll_C.sum(), logits_CV
