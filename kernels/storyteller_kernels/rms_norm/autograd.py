"""The Triton kernels of RMSNorm bound to autograd."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from storyteller_kernels.rms_norm.kernel import launch_backward, launch_forward


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, residual: Tensor | None, weight_D: Tensor, eps: float
    ) -> Tensor | tuple[Tensor, Tensor]:
        weight_D = weight_D.contiguous()
        residual_TD = None if residual is None else _rows(residual)
        y_TD, sum_TD, rstd_T = launch_forward(_rows(x), residual_TD, weight_D, eps)
        ctx.save_for_backward(sum_TD, weight_D, rstd_T)
        ctx.dtypes = x.dtype, None if residual is None else residual.dtype
        ctx.set_materialize_grads(False)
        return y_TD.view(x.shape) if residual is None else (y_TD.view(x.shape), sum_TD.view(x.shape))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor | None, dsum: Tensor | None = None) -> tuple[Tensor | None, ...]:
        dweight_D = None
        if dy is not None:
            sum_TD, weight_D, rstd_T = ctx.saved_tensors
            dsum_TD = None if dsum is None else _rows(dsum)
            ds_TD, dweight_D = launch_backward(_rows(dy), dsum_TD, sum_TD, weight_D, rstd_T)
            dsum = ds_TD.view(dy.shape)
        dx, dresidual = (None if dsum is None or dtype is None else dsum.to(dtype) for dtype in ctx.dtypes)
        return dx, dresidual, dweight_D, None


def rms_norm(x: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """See reference.rms_norm."""
    y: Tensor = _RMSNorm.apply(x, None, weight_D, eps)  # type: ignore[no-untyped-call]  # torch's stub
    return y


def add_rms_norm(x: Tensor, residual: Tensor, weight_D: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """See reference.add_rms_norm."""
    y, summed = _RMSNorm.apply(x, residual, weight_D, eps)  # type: ignore[no-untyped-call]  # torch's stub
    return y, summed


def _rows(x: Tensor) -> Tensor:
    """[..., D] to [T, D], contiguous."""
    return x.reshape(-1, x.shape[-1]).contiguous()
