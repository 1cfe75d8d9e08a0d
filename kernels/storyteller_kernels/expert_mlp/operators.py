"""expert_mlp with SwiGLU on grouped products, as a torch operator; the contract is that of reference.py.

There are two ways to the same numbers. `library`: torch's grouped product, with the elementwise passes of swiglu.py in
between. Otherwise: the Triton products of kernel.py, which fuse SwiGLU and its gradient and can gather tokens as they
load.

Between the two projections only `hidden`, [N, 2I], is kept. The activation, half as large, is recomputed by the pass
that reads `hidden` anyway.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from storyteller_kernels.dispatch import constant, on_device_of


@torch.library.custom_op("storyteller::swiglu_experts", mutates_args=())
def _experts(
    x: Tensor,
    up_EHD: Tensor,
    down_EDI: Tensor,
    end_E: Tensor,
    token_N: Tensor | None,
    row_TK: Tensor | None,
    library: bool | None,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    """y [N, D], and hidden [N, 2I], which is empty unless it is to be kept."""
    from storyteller_kernels.expert_mlp import kernel, swiglu

    with on_device_of(x):
        hidden_NH: Tensor | None
        if takes_library(library, x, up_EHD, down_EDI):
            hidden_NH = F.grouped_mm(x, up_EHD.transpose(1, 2), offs=end_E)
            act_NI = swiglu.forward(hidden_NH)
            y_ND = F.grouped_mm(act_NI, down_EDI.transpose(1, 2), offs=end_E)
        else:
            hidden_NH, act_NI = kernel.up_swiglu(x, up_EHD, end_E, token_N, keep)
            y_ND = kernel.row_product(act_NI, down_EDI, end_E)
    return y_ND, hidden_NH if keep and hidden_NH is not None else x.new_empty(0)


@_experts.register_fake
def _(
    x: Tensor,
    up_EHD: Tensor,
    down_EDI: Tensor,
    end_E: Tensor,
    token_N: Tensor | None,
    row_TK: Tensor | None,
    library: bool | None,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    rows = x.shape[0] if token_N is None else token_N.shape[0]
    hidden = x.new_empty(rows, up_EHD.shape[1]) if keep else x.new_empty(0)
    return x.new_empty(rows, down_EDI.shape[1]), hidden


@torch.library.custom_op("storyteller::swiglu_experts_gradient", mutates_args=())
def _experts_gradient(
    grad_ND: Tensor,
    x: Tensor,
    up_EHD: Tensor,
    down_EDI: Tensor,
    end_E: Tensor,
    token_N: Tensor | None,
    row_TK: Tensor | None,
    hidden_NH: Tensor,
    library: bool | None,
    wants_x: bool,
    wants_up: bool,
    wants_down: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of x, up and down; empty if not wanted."""
    from storyteller_kernels.expert_mlp import kernel, swiglu
    from storyteller_kernels.permute.kernel import scatter_sum

    grad_x = grad_up_EHD = grad_down_EDI = x.new_empty(0)
    with on_device_of(grad_ND):
        if takes_library(library, x, up_EHD, down_EDI):
            grad_act_NI = F.grouped_mm(grad_ND, down_EDI, offs=end_E)
            grad_hidden_NH, act_NI = swiglu.backward(grad_act_NI, hidden_NH)
            if wants_down:
                grad_down_EDI = F.grouped_mm(grad_ND.t(), act_NI, offs=end_E)
            if wants_up:
                grad_up_EHD = F.grouped_mm(grad_hidden_NH.t(), x, offs=end_E)
            if wants_x:
                grad_x = F.grouped_mm(grad_hidden_NH, up_EHD, offs=end_E)
        else:
            grad_hidden_NH, act_NI = kernel.down_swiglu_backward(grad_ND, down_EDI, end_E, hidden_NH)
            if wants_down:
                grad_down_EDI = kernel.weight_gradient(grad_ND, act_NI, end_E, None)
            if wants_up:
                grad_up_EHD = kernel.weight_gradient(grad_hidden_NH, x, end_E, token_N)
            if wants_x:
                grad_x = kernel.row_product(grad_hidden_NH, up_EHD.transpose(1, 2), end_E)
                if row_TK is not None:
                    grad_x = scatter_sum(grad_x, None, row_TK)
    # Distinct tensors, as the results of an operator must be.
    return tuple(  # type: ignore[return-value]  # three of them
        grad if wanted else x.new_empty(0)
        for grad, wanted in ((grad_x, wants_x), (grad_up_EHD, wants_up), (grad_down_EDI, wants_down))
    )


@_experts_gradient.register_fake
def _(
    grad_ND: Tensor,
    x: Tensor,
    up_EHD: Tensor,
    down_EDI: Tensor,
    end_E: Tensor,
    token_N: Tensor | None,
    row_TK: Tensor | None,
    hidden_NH: Tensor,
    library: bool | None,
    wants_x: bool,
    wants_up: bool,
    wants_down: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    return tuple(  # type: ignore[return-value]  # three of them
        torch.empty_like(like) if wanted else x.new_empty(0)
        for like, wanted in ((x, wants_x), (up_EHD, wants_up), (down_EDI, wants_down))
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.library, _ = inputs
    _, hidden_NH = output
    ctx.save_for_backward(*tensors, hidden_NH)
    ctx.mark_non_differentiable(hidden_NH)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad_ND: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    none: tuple[None, ...] = (None,) * 8
    if grad_ND is None:
        return none
    wants = ctx.needs_input_grad[:3]
    gradients = _experts_gradient(grad_ND.contiguous(), *ctx.saved_tensors, ctx.library, *wants)
    return *(grad if wanted else None for grad, wanted in zip(gradients, wants, strict=True)), *none[3:]


_experts.register_autograd(_backward, setup_context=_setup_context)


def takes_library(library: bool | None, *operands: Tensor) -> bool:
    """Whether expert_mlp uses torch's grouped product for these operands, given its `library`.

    Decided when the operator runs, since a compiler knows neither addresses nor, under expert parallelism, how many
    rows there will be.
    """
    return library_serves(*operands) if library is None else library


def library_serves(rows: Tensor, *others: Tensor) -> bool:
    """Whether torch's grouped product is right, and free of host synchronization, for rows and weights or other rows.

    Only bf16 on sm_90: elsewhere torch reads the offsets on the host and loops, and on sm_100 it has given experts
    without rows a nonzero weight gradient (pytorch issue 172439). It needs rows whose size and address are multiples of
    16 bytes, and refuses to sum over no rows at all.
    """
    return (
        rows.is_cuda
        and rows.dtype == torch.bfloat16
        and _is_sm90()
        and len(rows) > 0
        and all(width % 8 == 0 for tensor in (rows, *others) for width in tensor.shape[1:])
        # Tensors made by a compiler are aligned.
        and (torch.compiler.is_compiling() or all(tensor.data_ptr() % 16 == 0 for tensor in (rows, *others)))
    )


@constant
def _is_sm90() -> bool:
    """Whether the current device, of which a process has only one, is an sm_90."""
    return torch.cuda.get_device_capability() == (9, 0)


def expert_mlp(
    x: Tensor,
    up_EHD: Tensor,
    down_EDI: Tensor,
    end_E: Tensor,
    token_N: Tensor | None = None,
    row_TK: Tensor | None = None,
    library: bool | None = None,
) -> Tensor:
    """SwiGLU experts without biases; see reference.expert_mlp for the rest.

    Args:
        x: [N, D]; with token_N [T, D], and row n is x[token_N[n]].
        up_EHD: [E, 2I, D], in the dtype of x.
        down_EDI: [E, D, I], in the dtype of x.
        end_E: [E] int32, the row after each expert's last, on the device of x.
        token_N: [N] int64, or None. Not for torch's product, which cannot gather.
        row_TK: [T, K] int64, the rows of each token; only with token_N.
        library: whether to use torch's product; None: see takes_library.

    Returns:
        [N, D], in the dtype of x.
    """
    x, up_EHD, down_EDI = x.contiguous(), up_EHD.contiguous(), down_EDI.contiguous()
    if token_N is not None and row_TK is not None:
        token_N, row_TK, library = token_N.contiguous(), row_TK.contiguous(), False
    keep = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (x, up_EHD, down_EDI))
    y_ND: Tensor
    y_ND, _ = _experts(x, up_EHD, down_EDI, end_E, token_N, row_TK, library, keep)
    return y_ND
