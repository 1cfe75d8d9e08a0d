"""linear on the CPU in fp32, through cpu_products.py; the contract is that of reference.py."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from storyteller_kernels.cpu_products import joined, row_blocks


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_HD: Tensor, bias_H: Tensor | None) -> Tensor:
        x_RD = x.reshape(-1, x.shape[-1]).contiguous()
        ctx.save_for_backward(x_RD, weight_HD)
        ctx.shape = x.shape
        weight_HD = weight_HD.contiguous()
        blocks = row_blocks(len(x_RD), weight_HD)
        y_RH = joined(products.product(x_RD[rows], weight_HD, bias_H) for rows, products in blocks)
        return y_RH.view(*x.shape[:-1], len(weight_HD))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x_RD, weight_HD = ctx.saved_tensors
        weight_HD = weight_HD.contiguous()
        grad_RH = grad.reshape(-1, grad.shape[-1]).contiguous()
        blocks = list(row_blocks(len(grad_RH), weight_HD))
        wants_x, wants_weight, wants_bias = ctx.needs_input_grad
        grad_x = grad_weight_HD = None
        if wants_x:
            parts = (products.input_gradient(grad_RH[rows], weight_HD) for rows, products in blocks)
            grad_x = joined(parts).view(ctx.shape)
        if wants_weight:
            grad_weight_HD = torch.empty_like(weight_HD)
            for rows, products in blocks:
                products.add_weight_gradient(grad_weight_HD, grad_RH[rows], x_RD[rows], first=rows.start == 0)
        return grad_x, grad_weight_HD, grad_RH.sum(dim=0) if wants_bias else None


def linear(x: Tensor, weight_HD: Tensor, bias_H: Tensor | None) -> Tensor:
    """See reference.linear."""
    y: Tensor = _Linear.apply(x, weight_HD, bias_H)  # type: ignore[no-untyped-call]  # torch's stub
    return y
