"""expert_mlp with SwiGLU on grouped products; the contract is that of reference.py.

Two ways to the same numbers. `library`: torch's grouped product, with the elementwise passes of swiglu.py between.
Otherwise: the Triton products of kernel.py, which fuse SwiGLU and its gradient, and can gather tokens as they load.

Of what lies between the two projections only `hidden` is kept, [N, 2I]. The activation, half as large, comes
again from the pass that reads `hidden` in any case.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from storyteller_kernels.dispatch import on_device_of
from storyteller_kernels.expert_mlp import kernel, swiglu
from storyteller_kernels.permute.kernel import scatter_sum


class _ExpertMLP(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        up_EHD: Tensor,
        down_EDI: Tensor,
        end_E: Tensor,
        token_N: Tensor | None,
        row_TK: Tensor | None,
        library: bool,
        keep: bool,
    ) -> Tensor:
        hidden_NH: Tensor | None
        with on_device_of(x):
            if library:
                hidden_NH = F.grouped_mm(x, up_EHD.transpose(1, 2), offs=end_E)
                act_NI = swiglu.forward(hidden_NH)
                y_ND = F.grouped_mm(act_NI, down_EDI.transpose(1, 2), offs=end_E)
            else:
                hidden_NH, act_NI = kernel.up_swiglu(x, up_EHD, end_E, token_N, keep)
                y_ND = kernel.row_product(act_NI, down_EDI, end_E)
        if keep:
            ctx.save_for_backward(x, up_EHD, down_EDI, end_E, token_N, row_TK, hidden_NH)
            ctx.library = library
        return y_ND

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_ND: Tensor) -> tuple[Tensor | None, ...]:
        x, up_EHD, down_EDI, end_E, token_N, row_TK, hidden_NH = ctx.saved_tensors
        grad_ND = grad_ND.contiguous()
        wants_x, wants_up, wants_down = ctx.needs_input_grad[:3]
        grad_x = grad_up_EHD = grad_down_EDI = None
        with on_device_of(grad_ND):
            if ctx.library:
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
        return grad_x, grad_up_EHD, grad_down_EDI, None, None, None, None, None


def library_serves(x: Tensor, up_EHD: Tensor, down_EDI: Tensor) -> bool:
    """Whether torch's grouped product is right, and free of host synchronisation, for these operands.

    Only bf16 on sm_90: elsewhere torch reads the offsets on the host and loops, and on sm_100 it has given experts
    without rows a weight gradient that is not zero (pytorch issue 172439). It needs rows of whole 16 bytes that
    begin at such an address, and refuses to sum over no rows at all.
    """
    return (
        x.is_cuda
        and x.dtype == torch.bfloat16
        and torch.cuda.get_device_capability(x.device) == (9, 0)
        and len(x) > 0
        and all(width % 8 == 0 for width in down_EDI.shape[1:])
        and all(tensor.data_ptr() % 16 == 0 for tensor in (x, up_EHD, down_EDI))
    )


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
        row_TK: [T, K] int64, the rows of each token; with token_N only.
        library: take torch's product; None: without token_N and where library_serves.

    Returns:
        [N, D], in the dtype of x.
    """
    x, up_EHD, down_EDI = x.contiguous(), up_EHD.contiguous(), down_EDI.contiguous()
    if token_N is not None and row_TK is not None:
        token_N, row_TK = token_N.contiguous(), row_TK.contiguous()
    if library is None:
        library = token_N is None and library_serves(x, up_EHD, down_EDI)
    keep = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (x, up_EHD, down_EDI))
    arguments = (x, up_EHD, down_EDI, end_E, token_N, row_TK, library, keep)
    y_ND: Tensor = _ExpertMLP.apply(*arguments)  # type: ignore[no-untyped-call]  # torch's stub
    return y_ND
