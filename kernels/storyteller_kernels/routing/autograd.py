"""The Triton kernels of routing bound to autograd."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from storyteller_kernels.routing.kernel import launch_forward, launch_logit_gradient, launch_product_gradient
from storyteller_kernels.routing.reference import Routing


class _Route(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, weight_ED: Tensor, top_k: int, noise_TE: Tensor | None) -> tuple[Tensor, ...]:
        x_TD, weight_ED = x_TD.contiguous(), weight_ED.contiguous()
        routing, log_z_T = launch_forward(x_TD, weight_ED, top_k, None if noise_TE is None else noise_TE.contiguous())
        ctx.save_for_backward(x_TD, weight_ED, routing.prob_TE, log_z_T, routing.expert_TK, routing.weight_TK)
        ctx.noise_dtype = None if noise_TE is None else noise_TE.dtype
        ctx.mark_non_differentiable(
            routing.expert_TK, routing.count_E, routing.row_TK, routing.token_N, routing.entropy_sum
        )
        ctx.set_materialize_grads(False)
        return tuple(routing)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, Tensor | None, None, Tensor | None]:
        given = Routing(*gradients)  # type: ignore[arg-type]  # a gradient for every field, or None
        differentiable = (given.weight_TK, given.prob_TE, given.prob_sum_E, given.z_sum)
        if all(gradient is None for gradient in differentiable):
            return None, None, None, None
        x_TD, weight_ED, *saved = ctx.saved_tensors
        dense = (None if gradient is None else gradient.contiguous() for gradient in differentiable)
        dlogit_TE = launch_logit_gradient(*dense, *saved)
        need_x, need_weight, _, need_noise = ctx.needs_input_grad
        dx_TD, dweight_ED = None, None
        if need_x or need_weight:
            dx_TD, dweight_ED = launch_product_gradient(dlogit_TE, x_TD, weight_ED, need_x, need_weight)
        return dx_TD, dweight_ED, None, dlogit_TE.to(ctx.noise_dtype) if need_noise else None


def route(x_TD: Tensor, weight_ED: Tensor, top_k: int, noise_TE: Tensor | None) -> Routing:
    """See reference.route."""
    return Routing(*_Route.apply(x_TD, weight_ED, top_k, noise_TE))  # type: ignore[no-untyped-call]  # torch's stub
