"""The experts themselves: one small feed-forward network each, over contiguous rows.

Triton takes SwiGLU without biases, where rows and weights have one dtype, or get one from autocast. Everything
else takes the reference. On Triton `count_E` stays on the device: pass `Routing.count_E` as it is.
"""

import itertools
from typing import Any

import torch
from torch import Tensor

from storyteller_kernels.dispatch import runs_on_cpu, runs_on_triton
from storyteller_kernels.expert_mlp import cpu, reference
from storyteller_kernels.expert_mlp.reference import Activation, activate
from storyteller_kernels.permute import permute


def expert_mlp(
    x_ND: Tensor,
    count_E: Tensor | list[int],
    up_EHD: Tensor,
    down_EDI: Tensor,
    activation: Activation,
    up_bias_EH: Tensor | None = None,
    down_bias_ED: Tensor | None = None,
) -> Tensor:
    """Each row through its expert; arguments and result as `reference.expert_mlp`.

    On Triton a tensor of counts is never read by the host; a list is copied to the device.
    """
    low = _triton_operands(x_ND, up_EHD, down_EDI, activation, up_bias_EH, down_bias_ED)
    if low is None:
        return _in_plain_torch(x_ND, count_E, up_EHD, down_EDI, activation, up_bias_EH, down_bias_ED)
    from storyteller_kernels.expert_mlp import autograd

    return autograd.expert_mlp(*low, _row_ends(count_E, x_ND.device))


def expert_mlp_of_tokens(
    x_TD: Tensor,
    token_N: Tensor,
    row_TK: Tensor,
    count_E: Tensor | list[int],
    up_EHD: Tensor,
    down_EDI: Tensor,
    activation: Activation,
    up_bias_EH: Tensor | None = None,
    down_bias_ED: Tensor | None = None,
) -> Tensor:
    """expert_mlp(permute(x_TD, token_N, row_TK), ...), without the [N, D] copy where our own product runs.

    It gathers the tokens as it loads them, forward and backward. torch's grouped product cannot, and gets the copy.

    Args:
        x_TD: [T, D].
        token_N: [N] int64, token of each row.
        row_TK: [T, K] int64, row of each (token, choice).
        count_E: as the weights, biases and activation, see expert_mlp.
        up_EHD: [E, H, D].
        down_EDI: [E, D, I].
        activation: swiglu, gelu or relu.
        up_bias_EH: [E, H] or None.
        down_bias_ED: [E, D] or None.

    Returns:
        [N, D], in the dtype of the matrix product.
    """
    low = _triton_operands(x_TD, up_EHD, down_EDI, activation, up_bias_EH, down_bias_ED)
    if low is None:
        rows_ND = permute(x_TD, token_N, row_TK)
        return _in_plain_torch(rows_ND, count_E, up_EHD, down_EDI, activation, up_bias_EH, down_bias_ED)
    from storyteller_kernels.expert_mlp import autograd

    end_E = _row_ends(count_E, x_TD.device)
    if autograd.library_serves(*low):
        # Rounded by autocast before it is copied K times.
        return autograd.expert_mlp(permute(low[0], token_N, row_TK), *low[1:], end_E)
    return autograd.expert_mlp(*low, end_E, token_N, row_TK)


def triton_has(activation: Activation, has_biases: bool) -> bool:
    """Whether there are Triton kernels for such experts. On a GPU the others go one after the other in plain torch,
    and the host waits for their counts."""
    return activation == "swiglu" and not has_biases


def _triton_operands(
    x: Tensor, up_EHD: Tensor, down_EDI: Tensor, activation: Activation, *biases: Tensor | None
) -> tuple[Tensor, Tensor, Tensor] | None:
    """Rows and weights in the one dtype of the product, or None where Triton does not take the call."""
    if not triton_has(activation, any(bias is not None for bias in biases)) or not runs_on_triton(x, up_EHD, down_EDI):
        return None
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        return x.to(dtype), up_EHD.to(dtype), down_EDI.to(dtype)
    return (x, up_EHD, down_EDI) if x.dtype == up_EHD.dtype == down_EDI.dtype else None


def _in_plain_torch(
    x_ND: Tensor, count_E: Tensor | list[int], up_EHD: Tensor, down_EDI: Tensor, activation: Activation, *biases: Any
) -> Tensor:
    """Without Triton: the way for the CPU, or the reference."""
    if runs_on_cpu(x_ND, up_EHD, down_EDI):
        counts = count_E.tolist() if isinstance(count_E, Tensor) else count_E
        return cpu.expert_mlp(x_ND, counts, up_EHD, down_EDI, activation, *biases)
    return reference.expert_mlp(x_ND, count_E, up_EHD, down_EDI, activation, *biases)


def _row_ends(count_E: Tensor | list[int], device: torch.device) -> Tensor:
    """[E] int32: the row after each expert's last."""
    if isinstance(count_E, Tensor):
        return count_E.cumsum(0, dtype=torch.int32)
    return torch.tensor(list(itertools.accumulate(count_E)), dtype=torch.int32, device=device)


__all__ = ["Activation", "activate", "expert_mlp", "expert_mlp_of_tokens", "triton_has"]
