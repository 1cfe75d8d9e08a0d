"""The loss and both its gradients, one chunk of tokens at a time: all of [T, V] is never in memory at once.

The gradients are computed in the forward pass, while a chunk's logits exist, and only scaled in the backward pass
(the idea of Liger Kernel, Hsu et al. 2024, sec. 3.2): logits are computed once, and only dx and dW are kept.
Between the products there is plain torch, or on a GPU one kernel.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from storyteller_kernels.cpu_products import row_blocks
from storyteller_kernels.dispatch import runs_on_triton


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_TD: Tensor,
        weight_VD: Tensor,
        target_T: Tensor,
        ignore_index: int,
        chunk_size: int,
        wants_x: bool,
        wants_weight: bool,
        softcap: float | None,
    ) -> Tensor:
        wide = torch.promote_types(x_TD.dtype, torch.float32)
        nll_sum = x_TD.new_zeros((), dtype=wide)
        grad_TD = torch.empty_like(x_TD) if wants_x else None
        # In half precision the chunks' products would be lost in their growing sum.
        grad_VD = torch.zeros_like(weight_VD, dtype=wide) if wants_weight else None
        # Under autocast the products below would be rounded again.
        with torch.autocast(x_TD.device.type, enabled=False):
            for chunk, products in row_blocks(len(x_TD), weight_VD, most=chunk_size):
                x_CD, target_C = x_TD[chunk], target_T[chunk]
                logits_CV = products.product(x_CD, weight_VD, None)
                parts = _by_triton if runs_on_triton(logits_CV) and len(x_CD) else _loss_and_gradient
                nll, low_CV = parts(logits_CV, target_C, ignore_index, softcap, wants_x or wants_weight)
                nll_sum += nll
                if not (wants_x or wants_weight):
                    continue
                ignored_C1 = (target_C == ignore_index)[:, None]
                # An ignored token's gradient is zero, which is cheaper to set in [C, D] than in [C, V].
                if grad_TD is not None:
                    grad_TD[chunk] = products.input_gradient(low_CV, weight_VD).masked_fill_(ignored_C1, 0.0)
                if grad_VD is not None:
                    counted_CD = x_CD.masked_fill(ignored_C1, 0.0)
                    if grad_VD.dtype == low_CV.dtype:
                        products.add_weight_gradient(grad_VD, low_CV, counted_CD, first=chunk.start == 0)
                    else:
                        grad_VD += low_CV.t() @ counted_CD
        ctx.save_for_backward(grad_TD, grad_VD)
        ctx.weight_dtype = weight_VD.dtype
        return nll_sum

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        # In place, because dW may be the largest tensor of all. Autograd refuses a second backward pass.
        grad_TD, grad_VD = ctx.saved_tensors
        if grad_TD is not None:
            grad_TD.mul_(grad)
        if grad_VD is not None:
            grad_VD = grad_VD.mul_(grad).to(ctx.weight_dtype)
        return grad_TD, grad_VD, None, None, None, None, None, None


def _by_triton(*arguments: Any) -> tuple[Tensor, Tensor]:
    from storyteller_kernels.cross_entropy.kernel import loss_and_gradient

    return loss_and_gradient(*arguments)


def _loss_and_gradient(
    logits_CV: Tensor, target_C: Tensor, ignore_index: int, softcap: float | None, wants_gradient: bool
) -> tuple[Tensor, Tensor]:
    """kernel.loss_and_gradient in plain torch, in fp64 for fp64 logits; the logits are not overwritten."""
    wide = torch.promote_types(logits_CV.dtype, torch.float32)
    ignored_C1 = (target_C == ignore_index)[:, None]
    target_C1 = target_C[:, None].masked_fill(ignored_C1, 0)
    capped_CV, slope_CV = logits_CV, None
    if softcap is not None:
        squashed_CV = logits_CV.to(wide).div_(softcap).tanh_()
        capped_CV, slope_CV = squashed_CV * softcap, squashed_CV.square_().neg_().add_(1)
    log_p_CV = F.log_softmax(capped_CV, dim=1, dtype=wide)
    nll = -log_p_CV.gather(1, target_C1).masked_fill_(ignored_C1, 0.0).sum()
    if not wants_gradient:
        return nll, logits_CV
    # d loss / d logits = p - one_hot(target), computed in the memory of log p.
    grad_CV = log_p_CV.exp_()
    grad_CV.scatter_(1, target_C1, grad_CV.gather(1, target_C1) - 1.0)
    if slope_CV is not None:
        grad_CV.mul_(slope_CV)
    return nll, grad_CV.to(logits_CV.dtype)


def linear_cross_entropy(
    x_TD: Tensor,
    weight_VD: Tensor,
    target_T: Tensor,
    ignore_index: int = -100,
    chunk_size: int | None = None,
    softcap: float | None = None,
) -> Tensor:
    """See reference.linear_cross_entropy.

    Args:
        x_TD: [T, D].
        weight_VD: [V, D], in the dtype of x, or of any dtype under autocast.
        target_T: [T] int64; `ignore_index`, or in [0, V).
        ignore_index: targets of this value do not count.
        chunk_size: tokens per chunk; None: as many as make the logits of a chunk no larger than x, but at least
            MIN_CHUNK, below which the products become slow.
        softcap: logits become softcap * tanh(logits / softcap); None: unchanged.
    """
    if torch.is_autocast_enabled(x_TD.device.type):
        dtype = torch.get_autocast_dtype(x_TD.device.type)
        x_TD, weight_VD = x_TD.to(dtype), weight_VD.to(dtype)
    x_TD, weight_VD, target_T = x_TD.contiguous(), weight_VD.contiguous(), target_T.contiguous()
    if chunk_size is None:
        chunk_size = max(MIN_CHUNK, x_TD.numel() // weight_VD.shape[0])
    records = torch.is_grad_enabled()
    wants = (records and x_TD.requires_grad, records and weight_VD.requires_grad)
    arguments = (x_TD, weight_VD, target_T, ignore_index, chunk_size, *wants, softcap)
    nll_sum: Tensor = _LinearCrossEntropy.apply(*arguments)  # type: ignore[no-untyped-call]  # torch's stub
    return nll_sum


MIN_CHUNK = 512
