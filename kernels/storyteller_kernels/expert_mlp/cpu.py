"""expert_mlp on the CPU: a loop over the experts' slices in one autograd function.

The contract is that of reference.py. This saves elementwise work and copies: the gradients of the weights are written
where they belong, and between the two projections only the input of the activation is kept, and read once for its
gradient.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from storyteller_kernels.cpu_products import Products, window_around
from storyteller_kernels.expert_mlp.reference import Activation, activate


class _Slice(NamedTuple):
    """An expert's rows, and the window of rows to multiply, which may be larger (cpu_products.window_around)."""

    expert: int
    rows: slice
    window: slice
    products: Products

    @property
    def inside(self) -> slice:
        """The expert's rows, counted within the window."""
        return slice(self.rows.start - self.window.start, self.rows.stop - self.window.start)


class _Passed(NamedTuple):
    """What the backward pass needs from the forward pass."""

    slices: list[_Slice]
    counts: list[int]
    activation: Activation
    hidden: list[Tensor]
    """The input of the activation for each slice; empty unless it is kept."""


def _forward(
    x_ND: Tensor,
    up_EHD: Tensor,
    down_EDI: Tensor,
    up_bias_EH: Tensor | None,
    down_bias_ED: Tensor | None,
    counts: list[int],
    activation: Activation,
    keep: bool,
) -> tuple[Tensor, _Passed]:
    passed = _Passed(_slices(counts, down_EDI), counts, activation, [])
    y_ND = torch.empty_like(x_ND)
    for each in passed.slices:
        e, rows, window, products = each
        hidden_WH = products.product(x_ND[window], up_EHD[e], None if up_bias_EH is None else up_bias_EH[e])
        act_WI = activate(hidden_WH, activation)
        y_WD = products.product(act_WI, down_EDI[e], None if down_bias_ED is None else down_bias_ED[e])
        y_ND[rows] = y_WD[each.inside]
        if keep:
            passed.hidden.append(hidden_WH)
    return y_ND, passed


def _backward(
    grad_ND: Tensor, x_ND: Tensor, up_EHD: Tensor, down_EDI: Tensor, passed: _Passed, wants: Sequence[bool]
) -> tuple[Tensor | None, ...]:
    """The gradients of x, up, down and the two biases; None if not wanted."""
    wants_x, wants_up, wants_down, wants_up_bias, wants_down_bias = wants
    grad_x_ND = torch.empty_like(x_ND) if wants_x else None
    grad_up_EHD = _unwritten_like(up_EHD, passed.counts) if wants_up else None
    grad_down_EDI = _unwritten_like(down_EDI, passed.counts) if wants_down else None
    grad_up_bias_EH = up_EHD.new_zeros(up_EHD.shape[:2]) if wants_up_bias else None
    grad_down_bias_ED = down_EDI.new_zeros(down_EDI.shape[:2]) if wants_down_bias else None
    for each, hidden_WH in zip(passed.slices, passed.hidden, strict=True):
        e, rows, window, products = each
        grad_WD = grad_ND[window]
        grad_act_WI = products.input_gradient(grad_WD, down_EDI[e])
        grad_hidden_WH, act_WI = _activation_gradient(grad_act_WI, hidden_WH, passed.activation)
        # The gradients of the weights sum over the rows: the neighbors' rows must not count.
        _clear_outside(grad_hidden_WH, each.inside)
        _clear_outside(act_WI, each.inside)
        if grad_down_EDI is not None:
            products.add_weight_gradient(grad_down_EDI[e], grad_WD, act_WI, first=True)
        if grad_up_EHD is not None:
            products.add_weight_gradient(grad_up_EHD[e], grad_hidden_WH, x_ND[window], first=True)
        if grad_down_bias_ED is not None:
            torch.sum(grad_ND[rows], dim=0, out=grad_down_bias_ED[e])
        if grad_up_bias_EH is not None:
            torch.sum(grad_hidden_WH, dim=0, out=grad_up_bias_EH[e])
        if grad_x_ND is not None:
            grad_x_ND[rows] = products.input_gradient(grad_hidden_WH, up_EHD[e])[each.inside]
    return grad_x_ND, grad_up_EHD, grad_down_EDI, grad_up_bias_EH, grad_down_bias_ED


class _ExpertMLP(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        y_ND, passed = _forward(*arguments)
        if arguments[-1]:  # keep
            ctx.save_for_backward(*arguments[:3], *passed.hidden)
            ctx.passed = passed._replace(hidden=[])
        return y_ND

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_ND: Tensor) -> tuple[Tensor | None, ...]:
        x_ND, up_EHD, down_EDI, *hidden = ctx.saved_tensors
        passed = ctx.passed._replace(hidden=hidden)
        wants = ctx.needs_input_grad[:5]
        return *_backward(grad_ND.contiguous(), x_ND, up_EHD, down_EDI, passed, wants), None, None, None


def _slices(counts: list[int], down_EDI: Tensor) -> list[_Slice]:
    """The slices of the experts that have rows."""
    slices, start, total = [], 0, sum(counts)
    for e, count in enumerate(counts):
        if count:
            rows = slice(start, start + count)
            # Chosen by the smaller of the two weights.
            slices.append(_Slice(e, rows, *window_around(rows, total, down_EDI[e])))
        start += count
    return slices


def _clear_outside(tensor_W: Tensor, inside: slice) -> None:
    tensor_W[: inside.start].zero_()
    tensor_W[inside.stop :].zero_()


def _unwritten_like(weight: Tensor, counts: list[int]) -> Tensor:
    """Memory for the gradient of stacked weights: uninitialized, but zero for experts without rows."""
    grad = torch.empty_like(weight)
    for e, count in enumerate(counts):
        if count == 0:
            grad[e].zero_()
    return grad


def _activation_gradient(grad_act: Tensor, hidden: Tensor, activation: Activation) -> tuple[Tensor, Tensor]:
    """The gradient of `hidden`, and the activation again; `grad_act` may be overwritten."""
    if activation == "gelu":
        grad_hidden: Tensor = torch.ops.aten.gelu_backward(grad_act, hidden, approximate="tanh")
        return grad_hidden, activate(hidden, activation)
    if activation == "relu":
        return torch.ops.aten.threshold_backward(grad_act, hidden, 0), activate(hidden, activation)
    if activation == "relu2":
        positive = F.relu(hidden)
        return grad_act.mul_(positive).mul_(2), positive.square_()
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
    count_E: Tensor | list[int],
    up_EHD: Tensor,
    down_EDI: Tensor,
    activation: Activation,
    up_bias_EH: Tensor | None = None,
    down_bias_ED: Tensor | None = None,
) -> Tensor:
    """See reference.expert_mlp."""
    counts = count_E.tolist() if isinstance(count_E, Tensor) else count_E
    x_ND, up_EHD, down_EDI = x_ND.contiguous(), up_EHD.contiguous(), down_EDI.contiguous()
    tensors = (x_ND, up_EHD, down_EDI, up_bias_EH, down_bias_ED)
    keep = torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)
    y_ND: Tensor = _ExpertMLP.apply(*tensors, counts, activation, keep)  # type: ignore[no-untyped-call]  # torch's stub
    return y_ND


@torch.library.custom_op("storyteller::plain_experts", mutates_args=())
def _experts(
    x_ND: Tensor,
    up_EHD: Tensor,
    down_EDI: Tensor,
    up_bias_EH: Tensor | None,
    down_bias_ED: Tensor | None,
    count_E: Tensor,
    activation: str,
) -> Tensor:
    operands = (x_ND, up_EHD, down_EDI, up_bias_EH, down_bias_ED)
    return _forward(*operands, count_E.tolist(), activation, keep=False)[0]  # type: ignore[arg-type]  # an Activation


@_experts.register_fake
def _(x_ND: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(x_ND)


@torch.library.custom_op("storyteller::plain_experts_gradient", mutates_args=())
def _experts_gradient(
    grad_ND: Tensor,
    x_ND: Tensor,
    up_EHD: Tensor,
    down_EDI: Tensor,
    up_bias_EH: Tensor | None,
    down_bias_ED: Tensor | None,
    count_E: Tensor,
    activation: str,
    wants: list[bool],
) -> list[Tensor]:
    """The gradients of the five operands; empty if not wanted."""
    operands = (x_ND, up_EHD, down_EDI, up_bias_EH, down_bias_ED)
    _, passed = _forward(*operands, count_E.tolist(), activation, keep=True)  # type: ignore[arg-type]  # an Activation
    gradients = _backward(grad_ND, x_ND, up_EHD, down_EDI, passed, wants)
    return [grad_ND.new_empty(0) if gradient is None else gradient for gradient in gradients]


@_experts_gradient.register_fake
def _(
    grad_ND: Tensor,
    x_ND: Tensor,
    up_EHD: Tensor,
    down_EDI: Tensor,
    up_bias_EH: Tensor | None,
    down_bias_ED: Tensor | None,
    count_E: Tensor,
    activation: str,
    wants: list[bool],
) -> list[Tensor]:
    operands = (x_ND, up_EHD, down_EDI, up_bias_EH, down_bias_ED)
    return [
        torch.empty_like(operand) if wanted and operand is not None else grad_ND.new_empty(0)
        for operand, wanted in zip(operands, wants, strict=True)
    ]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.activation = inputs
    ctx.save_for_backward(*tensors)


def _gradients(ctx: Any, grad_ND: Tensor) -> tuple[Tensor | None, ...]:
    wants = list(ctx.needs_input_grad[:5])
    gradients = _experts_gradient(grad_ND.contiguous(), *ctx.saved_tensors, ctx.activation, wants)
    return *(gradient if wanted else None for gradient, wanted in zip(gradients, wants, strict=True)), None, None


_experts.register_autograd(_gradients, setup_context=_setup_context)


def compilable_expert_mlp(
    x_ND: Tensor,
    count_E: Tensor | list[int],
    up_EHD: Tensor,
    down_EDI: Tensor,
    activation: Activation,
    up_bias_EH: Tensor | None = None,
    down_bias_ED: Tensor | None = None,
) -> Tensor:
    """The same as an operator that a compiler does not trace, since it could not follow the counts.

    Only the operands of the forward pass are kept.
    """
    assert isinstance(count_E, Tensor), "what is compiled knows no number"
    operands = (x_ND.contiguous(), up_EHD.contiguous(), down_EDI.contiguous(), up_bias_EH, down_bias_ED)
    y_ND: Tensor = _experts(*operands, count_E, activation)
    return y_ND
