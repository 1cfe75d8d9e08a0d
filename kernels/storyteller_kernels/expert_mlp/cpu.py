"""expert_mlp on the CPU: a loop over the experts' slices in one autograd function.

The contract is that of reference.py. What this saves is elementwise work and copies: the weights' gradients are
written where they belong, and of what lies between the two projections only the input of the activation is kept,
and read once for its gradient.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from storyteller_kernels.cpu_products import add_weight_gradient, concatenated, input_gradient, product, row_blocks
from storyteller_kernels.expert_mlp.reference import Activation, activate


class _Segment(NamedTuple):
    """Rows of one expert that one library multiplies."""

    expert: int
    rows: slice
    onednn: bool
    first: bool
    """Of its expert."""


class _ExpertMLP(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_ND: Tensor,
        up_EHD: Tensor,
        down_EDI: Tensor,
        up_bias_EH: Tensor | None,
        down_bias_ED: Tensor | None,
        counts: list[int],
        activation: Activation,
        keep: bool,
    ) -> Tensor:
        segments = _segments(counts, down_EDI)
        hidden, outputs = [], []
        for e, rows, onednn, _ in segments:
            hidden_RH = product(x_ND[rows], up_EHD[e], None if up_bias_EH is None else up_bias_EH[e], onednn)
            act_RI = activate(hidden_RH, activation)
            outputs.append(product(act_RI, down_EDI[e], None if down_bias_ED is None else down_bias_ED[e], onednn))
            if keep:
                hidden.append(hidden_RH)
        if keep:
            ctx.save_for_backward(x_ND, up_EHD, down_EDI, *hidden)
            ctx.segments, ctx.counts, ctx.activation = segments, counts, activation
        return concatenated(outputs, x_ND, x_ND.shape[1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_ND: Tensor) -> tuple[Tensor | None, ...]:
        x_ND, up_EHD, down_EDI, *hidden = ctx.saved_tensors
        grad_ND = grad_ND.contiguous()
        wants_x, wants_up, wants_down, wants_up_bias, wants_down_bias = ctx.needs_input_grad[:5]
        grads_x = []
        grad_up_EHD = _unwritten_like(up_EHD, ctx.counts) if wants_up else None
        grad_down_EDI = _unwritten_like(down_EDI, ctx.counts) if wants_down else None
        grad_up_bias_EH = up_EHD.new_zeros(up_EHD.shape[:2]) if wants_up_bias else None
        grad_down_bias_ED = down_EDI.new_zeros(down_EDI.shape[:2]) if wants_down_bias else None
        for (e, rows, onednn, first), hidden_RH in zip(ctx.segments, hidden, strict=True):
            grad_RD = grad_ND[rows]
            grad_act_RI = input_gradient(grad_RD, down_EDI[e], onednn)
            grad_hidden_RH, act_RI = _activation_gradient(grad_act_RI, hidden_RH, ctx.activation)
            if grad_down_EDI is not None:
                add_weight_gradient(grad_down_EDI[e], grad_RD, act_RI, onednn, first)
            if grad_up_EHD is not None:
                add_weight_gradient(grad_up_EHD[e], grad_hidden_RH, x_ND[rows], onednn, first)
            if grad_down_bias_ED is not None:
                grad_down_bias_ED[e] += grad_RD.sum(dim=0)
            if grad_up_bias_EH is not None:
                grad_up_bias_EH[e] += grad_hidden_RH.sum(dim=0)
            if wants_x:
                grads_x.append(input_gradient(grad_hidden_RH, up_EHD[e], onednn))
        grad_x_ND = concatenated(grads_x, x_ND, x_ND.shape[1]) if wants_x else None
        return grad_x_ND, grad_up_EHD, grad_down_EDI, grad_up_bias_EH, grad_down_bias_ED, None, None, None


def _segments(counts: list[int], down_EDI: Tensor) -> list[_Segment]:
    segments, start = [], 0
    for e, count in enumerate(counts):
        # By the smaller of the two weights.
        for i, (rows, onednn) in enumerate(row_blocks(count, down_EDI[e])):
            segments.append(_Segment(e, slice(start + rows.start, start + rows.stop), onednn, first=i == 0))
        start += count
    return segments


def _unwritten_like(weight: Tensor, counts: list[int]) -> Tensor:
    """Memory for the gradient of stacked weights: unset, but zero for experts without rows."""
    grad = torch.empty_like(weight)
    for e, count in enumerate(counts):
        if count == 0:
            grad[e].zero_()
    return grad


def _activation_gradient(grad_act: Tensor, hidden: Tensor, activation: Activation) -> tuple[Tensor, Tensor]:
    """The gradient of `hidden`, and the activation once more; `grad_act` is overwritten."""
    if activation == "gelu":
        grad_hidden: Tensor = torch.ops.aten.gelu_backward(grad_act, hidden, approximate="tanh")
        return grad_hidden, activate(hidden, activation)
    if activation == "relu":
        return torch.ops.aten.threshold_backward(grad_act, hidden, 0), activate(hidden, activation)
    gate, up = hidden.chunk(2, dim=-1)
    act = F.silu(gate)
    grad_hidden = torch.empty_like(hidden)
    grad_gate, grad_up = grad_hidden.chunk(2, dim=-1)
    torch.mul(grad_act, act, out=grad_up)
    act.mul_(up)
    torch.ops.aten.silu_backward.grad_input(grad_act.mul_(up), gate, grad_input=grad_gate)
    return grad_hidden, act


def expert_mlp(
    x_ND: Tensor,
    counts: list[int],
    up_EHD: Tensor,
    down_EDI: Tensor,
    activation: Activation,
    up_bias_EH: Tensor | None = None,
    down_bias_ED: Tensor | None = None,
) -> Tensor:
    """See reference.expert_mlp; the counts as a list."""
    x_ND, up_EHD, down_EDI = x_ND.contiguous(), up_EHD.contiguous(), down_EDI.contiguous()
    tensors = (x_ND, up_EHD, down_EDI, up_bias_EH, down_bias_ED)
    keep = torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)
    y_ND: Tensor = _ExpertMLP.apply(*tensors, counts, activation, keep)  # type: ignore[no-untyped-call]  # torch's stub
    return y_ND
