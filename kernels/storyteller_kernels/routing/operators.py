"""The Triton kernels of routing as torch operators with gradients, which compilers and dispatchers can see."""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from storyteller_kernels.routing.reference import Routing

_Outputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]
"""The fields of Routing, and log_z [T] fp32."""


@torch.library.custom_op("storyteller::route", mutates_args=())
def _route(x_TD: Tensor, weight_ED: Tensor, top_k: int, noise_TE: Tensor | None) -> _Outputs:
    from storyteller_kernels.routing.kernel import launch_forward

    routing, log_z_T = launch_forward(x_TD, weight_ED, top_k, noise_TE)
    return *routing, log_z_T


@_route.register_fake
def _(x_TD: Tensor, weight_ED: Tensor, top_k: int, noise_TE: Tensor | None) -> _Outputs:
    T, E = len(x_TD), len(weight_ED)
    wide, whole = (partial(x_TD.new_empty, dtype=dtype) for dtype in (torch.float32, torch.int64))
    routing = Routing(
        weight_TK=wide((T, top_k)),
        expert_TK=whole((T, top_k)),
        count_E=whole((E,)),
        row_TK=whole((T, top_k)),
        token_N=whole((T * top_k,)),
        prob_TE=wide((T, E)),
        prob_sum_E=wide((E,)),
        z_sum=wide(()),
        entropy_sum=wide(()),
    )
    return *routing, wide((T,))


@torch.library.custom_op("storyteller::route_logit_gradient", mutates_args=())
def _logit_gradient(
    dweight_TK: Tensor | None,
    dprob_TE: Tensor | None,
    dprob_sum_E: Tensor | None,
    dz_sum: Tensor | None,
    prob_TE: Tensor,
    log_z_T: Tensor,
    expert_TK: Tensor,
    weight_TK: Tensor,
) -> Tensor:
    from storyteller_kernels.routing.kernel import launch_logit_gradient

    gradients = (dweight_TK, dprob_TE, dprob_sum_E, dz_sum)
    return launch_logit_gradient(*gradients, prob_TE, log_z_T, expert_TK, weight_TK)


@_logit_gradient.register_fake
def _(*tensors: Tensor | None) -> Tensor:
    prob_TE = tensors[4]
    assert prob_TE is not None
    return torch.empty_like(prob_TE)


@torch.library.custom_op("storyteller::route_product_gradient", mutates_args=())
def _product_gradient(
    dlogit_TE: Tensor, x_TD: Tensor, weight_ED: Tensor, need_x: bool, need_weight: bool
) -> tuple[Tensor, Tensor]:
    """dx and dW; empty if not needed, since an operator must return tensors."""
    from storyteller_kernels.routing.kernel import launch_product_gradient

    dx_TD, dweight_ED = launch_product_gradient(dlogit_TE, x_TD, weight_ED, need_x, need_weight)
    return (
        x_TD.new_empty(0) if dx_TD is None else dx_TD,
        weight_ED.new_empty(0) if dweight_ED is None else dweight_ED,
    )


@_product_gradient.register_fake
def _(dlogit_TE: Tensor, x_TD: Tensor, weight_ED: Tensor, need_x: bool, need_weight: bool) -> tuple[Tensor, Tensor]:
    return (
        torch.empty_like(x_TD) if need_x else x_TD.new_empty(0),
        torch.empty_like(weight_ED) if need_weight else weight_ED.new_empty(0),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x_TD, weight_ED, _, noise_TE = inputs
    *fields, log_z_T = output
    routing = Routing(*fields)
    ctx.save_for_backward(x_TD, weight_ED, routing.prob_TE, log_z_T, routing.expert_TK, routing.weight_TK)
    ctx.noise_dtype = None if noise_TE is None else noise_TE.dtype
    ctx.mark_non_differentiable(
        *(routing.expert_TK, routing.count_E, routing.row_TK, routing.token_N, routing.entropy_sum, log_z_T)
    )
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, Tensor | None, None, Tensor | None]:
    given = Routing(*gradients[:-1])  # type: ignore[arg-type]  # a gradient for every field, or None
    differentiable = (given.weight_TK, given.prob_TE, given.prob_sum_E, given.z_sum)
    if all(gradient is None for gradient in differentiable):
        return None, None, None, None
    x_TD, weight_ED, *saved = ctx.saved_tensors
    dense = (None if gradient is None else gradient.contiguous() for gradient in differentiable)
    dlogit_TE = _logit_gradient(*dense, *saved)
    need_x, need_weight, _, need_noise = ctx.needs_input_grad
    dx_TD, dweight_ED = None, None
    if need_x or need_weight:
        dx_TD, dweight_ED = _product_gradient(dlogit_TE, x_TD, weight_ED, need_x, need_weight)
    return (
        dx_TD if need_x else None,
        dweight_ED if need_weight else None,
        None,
        dlogit_TE.to(ctx.noise_dtype) if need_noise else None,
    )


_route.register_autograd(_backward, setup_context=_setup_context)


def route(x_TD: Tensor, weight_ED: Tensor, top_k: int, noise_TE: Tensor | None) -> Routing:
    """See reference.route."""
    noise_TE = None if noise_TE is None else noise_TE.contiguous()
    *fields, _ = _route(x_TD.contiguous(), weight_ED.contiguous(), top_k, noise_TE)
    return Routing(*fields)
