"""The experts themselves: one small feed-forward network each, over contiguous rows.

Triton takes SwiGLU without biases, where rows and weights have one dtype, or get one from autocast. Everything
else takes the reference. On Triton `count_E` stays on the device: pass `Routing.count_E` as it is.
"""

import itertools

import torch
from torch import Tensor

from storyteller_kernels.dispatch import runs_on_cpu, runs_on_triton
from storyteller_kernels.expert_mlp import cpu, reference
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
    """Each row through its expert; with token_N and row_TK that of permute(x, token_N, row_TK).

    Our own Triton products gather the tokens as they load them, forward and backward; torch's grouped product cannot,
    and gets a [N, D] copy. On Triton a tensor of counts is never read by the host; a list is copied to the device.

    Args:
        x: [N, D] rows in expert order; with token_N and row_TK [T, D] tokens.
        count_E: as the weights, biases and activation, see `reference.expert_mlp`.
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
    low = _triton_operands(x, up_EHD, down_EDI, activation, up_bias_EH, down_bias_ED)
    if low is not None:
        from storyteller_kernels.expert_mlp import autograd

        end_E = _row_ends(count_E, x.device)
        if token_N is not None and row_TK is not None and autograd.library_serves(*low):
            # Rounded by autocast before it is copied K times.
            return autograd.expert_mlp(permute(low[0], token_N, row_TK), *low[1:], end_E)
        return autograd.expert_mlp(*low, end_E, token_N, row_TK)
    if token_N is not None and row_TK is not None:
        x = permute(x, token_N, row_TK)
    plain = cpu.expert_mlp if runs_on_cpu(x, up_EHD, down_EDI) else reference.expert_mlp
    return plain(x, count_E, up_EHD, down_EDI, activation, up_bias_EH, down_bias_ED)


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


def _row_ends(count_E: Tensor | list[int], device: torch.device) -> Tensor:
    """[E] int32: the row after each expert's last."""
    if isinstance(count_E, Tensor):
        return count_E.cumsum(0, dtype=torch.int32)
    return torch.tensor(list(itertools.accumulate(count_E)), dtype=torch.int32, device=device)


__all__ = ["Activation", "activate", "expert_mlp", "triton_has"]
