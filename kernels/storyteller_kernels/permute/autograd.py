"""permute and combine on the Triton kernels; the contract is that of reference.py."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from storyteller_kernels.dispatch import on_device_of
from storyteller_kernels.permute import kernel


class _Permute(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, token_N: Tensor, row_TK: Tensor) -> Tensor:
        ctx.save_for_backward(row_TK)
        with on_device_of(x_TD):
            return kernel.gather(x_TD.contiguous(), token_N.contiguous())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_ND: Tensor) -> tuple[Tensor, None, None]:
        (row_TK,) = ctx.saved_tensors
        with on_device_of(grad_ND):
            return kernel.scatter_sum(grad_ND.contiguous(), None, row_TK.contiguous()), None, None


class _Combine(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y_ND: Tensor, weight_TK: Tensor, row_TK: Tensor) -> Tensor:
        y_ND, weight_TK, row_TK = y_ND.contiguous(), weight_TK.contiguous(), row_TK.contiguous()
        ctx.save_for_backward(y_ND, weight_TK, row_TK)
        with on_device_of(y_ND):
            return kernel.scatter_sum(y_ND, weight_TK, row_TK)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_TD: Tensor) -> tuple[Tensor, Tensor, None]:
        with on_device_of(grad_TD):
            return *kernel.combine_backward(grad_TD.contiguous(), *ctx.saved_tensors), None


def permute(x_TD: Tensor, token_N: Tensor, row_TK: Tensor) -> Tensor:
    """See reference.permute."""
    rows_ND: Tensor = _Permute.apply(x_TD, token_N, row_TK)  # type: ignore[no-untyped-call]  # torch's stub
    return rows_ND


def combine(y_ND: Tensor, weight_TK: Tensor, row_TK: Tensor) -> Tensor:
    """See reference.combine; the kernel needs no token_N."""
    out_TD: Tensor = _Combine.apply(y_ND, weight_TK, row_TK)  # type: ignore[no-untyped-call]  # torch's stub
    return out_TD
