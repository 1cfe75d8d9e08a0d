"""The experts themselves: one small feed-forward network each, over contiguous rows.

Triton takes rows and weights that have one dtype or get one from autocast; everything else goes to the CPU
implementation or the reference. On Triton `count_E` stays on the device: pass `Routing.count_E` as it is.
"""

import itertools

import torch
from torch import Tensor

from storyteller_kernels.dispatch import runs_on_cpu, runs_on_triton
from storyteller_kernels.expert_mlp import cpu, grouped, operators, reference
from storyteller_kernels.expert_mlp.reference import Activation, activate
from storyteller_kernels.permute import permute


def expert_mlp(
    x: Tensor,
    count_E: Tensor | list[int],
    up_EHD: Tensor,
    down_EDI: Tensor,
    activation: Activation,
    up_bias_EH: Tensor | None = None,
    down_bias_ED: Tensor | None = None,
    token_N: Tensor | None = None,
    row_TK: Tensor | None = None,
) -> Tensor:
    """Apply its expert to each row of x or, with token_N and row_TK, of permute(x, token_N, row_TK).

    With SwiGLU and without biases, our own Triton products gather the tokens as they load them, forward and backward;
    otherwise, and for torch's grouped product, a [N, D] copy is made. On Triton the host never reads a tensor of
    counts; a list is copied to the device.

    Args:
        x: [N, D] rows in expert order; with token_N and row_TK [T, D] tokens.
        count_E: see `reference.expert_mlp`, also for the weights, biases and activation.
        up_EHD: [E, H, D].
        down_EDI: [E, D, I].
        activation: swiglu, gelu, relu or relu2.
        up_bias_EH: [E, H] or None.
        down_bias_ED: [E, D] or None.
        token_N: [N] int64, token of each row.
        row_TK: [T, K] int64, row of each (token, choice).

    Returns:
        [N, D], in the dtype of the matrix product.
    """
    low = _triton_operands(x, up_EHD, down_EDI, up_bias_EH, down_bias_ED)
    if low is None:
        if token_N is not None and row_TK is not None:
            x = permute(x, token_N, row_TK)
        plain = cpu.expert_mlp if runs_on_cpu(x, up_EHD, down_EDI) else reference.expert_mlp
        if torch.compiler.is_compiling():
            plain = cpu.compilable_expert_mlp
        return plain(x, count_E, up_EHD, down_EDI, activation, up_bias_EH, down_bias_ED)
    # Rounded by autocast before it is copied K times.
    x, up_EHD, down_EDI, up_bias_EH, down_bias_ED = low
    end_E = _row_ends(count_E, x.device)
    has_kernels = activation == "swiglu" and up_bias_EH is None and down_bias_ED is None
    if has_kernels and token_N is not None and not operators.library_serves(x, up_EHD, down_EDI):
        return operators.expert_mlp(x, up_EHD, down_EDI, end_E, token_N, row_TK)
    if token_N is not None and row_TK is not None:
        x = permute(x, token_N, row_TK)
    if has_kernels:
        return operators.expert_mlp(x, up_EHD, down_EDI, end_E)
    return grouped.expert_mlp(x, up_EHD, down_EDI, end_E, activation, up_bias_EH, down_bias_ED)


_Operands = tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]
"""Rows, up, down and the two biases."""


def _triton_operands(*operands: *_Operands) -> _Operands | None:
    """The operands in the dtype of the product, or None if Triton does not take the call."""
    given = [tensor for tensor in operands if tensor is not None]
    if not runs_on_triton(*given):
        return None
    device = given[0].device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        x, up_EHD, down_EDI, *biases = operands
        up_bias_EH, down_bias_ED = (None if bias is None else bias.to(dtype) for bias in biases)
        return x.to(dtype), up_EHD.to(dtype), down_EDI.to(dtype), up_bias_EH, down_bias_ED
    return operands if len({tensor.dtype for tensor in given}) == 1 else None


def _row_ends(count_E: Tensor | list[int], device: torch.device) -> Tensor:
    """[E] int32: the row after each expert's last."""
    if isinstance(count_E, Tensor):
        return count_E.cumsum(0, dtype=torch.int32)
    # From pinned memory, so that the host need not wait until the device has it.
    ends = torch.tensor(list(itertools.accumulate(count_E)), dtype=torch.int32, pin_memory=device.type == "cuda")
    return ends.to(device, non_blocking=True)


__all__ = ["Activation", "activate", "expert_mlp"]
