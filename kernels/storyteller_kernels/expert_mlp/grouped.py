"""expert_mlp with any activation, and with biases, on grouped products; the contract is that of reference.py.

Between the products there is plain torch. SwiGLU without biases has its own kernels (operators.py).
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from storyteller_kernels.dispatch import on_device_of
from storyteller_kernels.expert_mlp.operators import takes_library
from storyteller_kernels.expert_mlp.reference import Activation, activate


@torch.library.custom_op("storyteller::grouped_product", mutates_args=())
def _product(x_NC: Tensor, weight_EOC: Tensor, end_E: Tensor, library: bool | None) -> Tensor:
    """[N, O]: each row times the transposed matrix of its expert, by torch's grouped product or by ours."""
    from storyteller_kernels.expert_mlp import kernel

    with on_device_of(x_NC):
        if takes_library(library, x_NC, weight_EOC):
            return F.grouped_mm(x_NC, weight_EOC.transpose(1, 2), offs=end_E)
        return kernel.row_product(x_NC, weight_EOC, end_E)


@_product.register_fake
def _(x_NC: Tensor, weight_EOC: Tensor, end_E: Tensor, library: bool | None) -> Tensor:
    return x_NC.new_empty(x_NC.shape[0], weight_EOC.shape[1])


@torch.library.custom_op("storyteller::grouped_weight_gradient", mutates_args=())
def _weight_gradient(grad_NO: Tensor, x_NC: Tensor, end_E: Tensor, library: bool | None) -> Tensor:
    """[E, O, C]: the sum over each expert's rows of grad x^T."""
    from storyteller_kernels.expert_mlp import kernel

    with on_device_of(grad_NO):
        if takes_library(library, x_NC, grad_NO):
            return F.grouped_mm(grad_NO.t(), x_NC, offs=end_E)
        return kernel.weight_gradient(grad_NO, x_NC, end_E, None)


@_weight_gradient.register_fake
def _(grad_NO: Tensor, x_NC: Tensor, end_E: Tensor, library: bool | None) -> Tensor:
    return grad_NO.new_empty(end_E.shape[0], grad_NO.shape[1], x_NC.shape[1])


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.library = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, grad_NO: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
    x_NC, weight_EOC, end_E = ctx.saved_tensors
    grad_NO = grad_NO.contiguous()
    wants_x, wants_weight = ctx.needs_input_grad[:2]
    grad_x = _product(grad_NO, weight_EOC.transpose(1, 2), end_E, ctx.library) if wants_x else None
    grad_weight = _weight_gradient(grad_NO, x_NC, end_E, ctx.library) if wants_weight else None
    return grad_x, grad_weight, None, None


_product.register_autograd(_backward, setup_context=_setup_context)


def expert_mlp(
    x_ND: Tensor,
    up_EHD: Tensor,
    down_EDI: Tensor,
    end_E: Tensor,
    activation: Activation,
    up_bias_EH: Tensor | None,
    down_bias_ED: Tensor | None,
    library: bool | None = None,
) -> Tensor:
    """expert_mlp on grouped products; see reference.expert_mlp for the rest.

    Args:
        x_ND: [N, D].
        up_EHD: [E, H, D], like all weights and biases in the dtype of x.
        down_EDI: [E, D, I].
        end_E: [E] int32, the row after each expert's last, on the device of x.
        activation: activation of the hidden rows.
        up_bias_EH: [E, H] or None.
        down_bias_ED: [E, D] or None.
        library: whether to use torch's grouped product; None: see takes_library.

    Returns:
        [N, D], in the dtype of x.
    """

    def linear(x_NC: Tensor, weight_EOC: Tensor, bias_EO: Tensor | None) -> Tensor:
        y_NO = _product(x_NC.contiguous(), weight_EOC.contiguous(), end_E, library)
        return y_NO if bias_EO is None else torch.addmm(y_NO, _one_hot(end_E, x_NC), bias_EO)

    return linear(activate(linear(x_ND, up_EHD, up_bias_EH), activation), down_EDI, down_bias_ED)


def _one_hot(end_E: Tensor, x_NC: Tensor) -> Tensor:
    """[N, E] in the dtype of x: 1 for the expert of a row.

    So the gradient of a bias, a sum over rows, is also a product, with a fixed order; that of indexing would use
    atomics.
    """
    row_N1 = torch.arange(len(x_NC), device=x_NC.device)[:, None]
    start_E = F.pad(end_E[:-1], (1, 0))
    return ((start_E <= row_N1) & (row_N1 < end_E)).to(x_NC.dtype)
