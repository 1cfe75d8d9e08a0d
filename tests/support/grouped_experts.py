"""Experts as on a GPU, where the host does not read the counts; on a CPU ours run one by one, using the counts."""

import torch
from storyteller_kernels import permute
from storyteller_kernels.expert_mlp.reference import Activation, activate
from torch import Tensor
from torch.nn import functional as F


def grouped_experts(
    x: Tensor,
    count_E: Tensor,
    up_EHD: Tensor,
    down_EDI: Tensor,
    activation: Activation,
    up_bias_EH: Tensor | None,
    down_bias_ED: Tensor | None,
    token_N: Tensor,
    row_TK: Tensor,
) -> Tensor:
    """See storyteller_kernels.expert_mlp; without biases, in bf16, which is all that torch's grouped product takes."""
    end_E = count_E.cumsum(0, dtype=torch.int32)
    hidden = F.grouped_mm(permute(x, token_N, row_TK).bfloat16(), up_EHD.bfloat16().transpose(1, 2), offs=end_E)
    return F.grouped_mm(activate(hidden, activation), down_EDI.bfloat16().transpose(1, 2), offs=end_E)
