"""The Triton kernels of RMSNorm as torch operators, with their gradients."""

from typing import Any

import torch
from torch import Tensor


@torch.library.custom_op("storyteller::rms_norm", mutates_args=())
def _rms_norm(x_TD: Tensor, residual_TD: Tensor | None, weight_D: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """y, the sum (empty without a residual), and 1 / root mean square [T] fp32."""
    from storyteller_kernels.rms_norm.kernel import launch_forward

    y_TD, sum_TD, rstd_T = launch_forward(x_TD, residual_TD, weight_D, eps)
    return y_TD, x_TD.new_empty(0) if residual_TD is None else sum_TD, rstd_T


@_rms_norm.register_fake
def _(x_TD: Tensor, residual_TD: Tensor | None, weight_D: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    rstd_T = x_TD.new_empty(x_TD.shape[0], dtype=torch.float32)
    if residual_TD is None:
        return torch.empty_like(x_TD), x_TD.new_empty(0), rstd_T
    dtype = torch.promote_types(x_TD.dtype, residual_TD.dtype)
    return torch.empty_like(x_TD, dtype=dtype), torch.empty_like(x_TD, dtype=dtype), rstd_T


@torch.library.custom_op("storyteller::rms_norm_gradient", mutates_args=())
def _rms_norm_gradient(
    dy_TD: Tensor, dsum_TD: Tensor | None, sum_TD: Tensor, weight_D: Tensor, rstd_T: Tensor
) -> tuple[Tensor, Tensor]:
    from storyteller_kernels.rms_norm.kernel import launch_backward

    return launch_backward(dy_TD, dsum_TD, sum_TD, weight_D, rstd_T)


@_rms_norm_gradient.register_fake
def _(dy_TD: Tensor, dsum_TD: Tensor | None, sum_TD: Tensor, weight_D: Tensor, rstd_T: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(sum_TD), torch.empty_like(weight_D)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x_TD, residual_TD, weight_D, _ = inputs
    _, sum_TD, rstd_T = output
    ctx.save_for_backward(x_TD if residual_TD is None else sum_TD, weight_D, rstd_T)
    ctx.dtypes = x_TD.dtype, None if residual_TD is None else residual_TD.dtype
    ctx.mark_non_differentiable(rstd_T, *[sum_TD] * (residual_TD is None))
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, dy_TD: Tensor | None, dsum_TD: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    dweight_D = None
    if dy_TD is not None:
        sum_TD, weight_D, rstd_T = ctx.saved_tensors
        dsum_TD = None if dsum_TD is None else dsum_TD.contiguous()
        dsum_TD, dweight_D = _rms_norm_gradient(dy_TD.contiguous(), dsum_TD, sum_TD, weight_D, rstd_T)
    dx, dresidual = (None if dsum_TD is None or dtype is None else dsum_TD.to(dtype) for dtype in ctx.dtypes)
    return dx, dresidual, dweight_D, None


_rms_norm.register_autograd(_backward, setup_context=_setup_context)


def rms_norm(x: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """See reference.rms_norm."""
    y_TD: Tensor
    y_TD, _, _ = _rms_norm(_rows(x), None, weight_D.contiguous(), eps)
    return y_TD.view(x.shape)


def add_rms_norm(x: Tensor, residual: Tensor, weight_D: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """See reference.add_rms_norm."""
    y_TD, sum_TD, _ = _rms_norm(_rows(x), _rows(residual), weight_D.contiguous(), eps)
    return y_TD.view(x.shape), sum_TD.view(x.shape)


def _rows(x: Tensor) -> Tensor:
    """[..., D] to [T, D], contiguous."""
    return x.reshape(-1, x.shape[-1]).contiguous()
