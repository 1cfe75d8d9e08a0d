"""A feed-forward network per expert, each over its own contiguous slice of rows."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Activation = Literal["swiglu", "gelu", "relu", "relu2"]


def expert_mlp(
    x_ND: Tensor,
    count_E: Tensor | list[int],
    up_EHD: Tensor,
    down_EDI: Tensor,
    activation: Activation,
    up_bias_EH: Tensor | None = None,
    down_bias_ED: Tensor | None = None,
) -> Tensor:
    """y = down(act(up(x))) with the weights of the row's expert.

    With swiglu, H = 2 I: the first half of `up` is the gate and act(g, u) = silu(g) * u (Shazeer 2020);
    otherwise H = I. An expert without rows still takes part, so its gradient is zero and not None.

    Args:
        x_ND: [N, D] rows in expert order.
        count_E: [E] rows of each expert; their sum is N. A tensor on a GPU costs a synchronization here, which
            the Triton path does not need.
        up_EHD: [E, H, D] stacked weights.
        down_EDI: [E, D, I] stacked weights.
        activation: swiglu, gelu (tanh form, as GPT-2), relu, or relu2, its square (So et al. 2021, 2109.08668).
        up_bias_EH: [E, H] or None.
        down_bias_ED: [E, D] or None.

    Returns:
        [N, D], in the dtype of the matrix product.
    """
    # unbind, not indexing: its gradient is one stack, while indexing would make E full-size tensors.
    up, down = up_EHD.unbind(0), down_EDI.unbind(0)
    up_bias = up_bias_EH.unbind(0) if up_bias_EH is not None else [None] * len(up)
    down_bias = down_bias_ED.unbind(0) if down_bias_ED is not None else [None] * len(up)
    counts = count_E.tolist() if isinstance(count_E, Tensor) else count_E
    outputs = []
    for e, x_RD in enumerate(x_ND.split(counts)):
        hidden_RH = F.linear(x_RD, up[e], up_bias[e])
        outputs.append(F.linear(activate(hidden_RH, activation), down[e], down_bias[e]))
    return torch.cat(outputs)


def activate(hidden: Tensor, activation: Activation) -> Tensor:
    """The non-linearity between the two projections: [..., H] to [..., I]."""
    if activation == "swiglu":
        gate, up = hidden.chunk(2, dim=-1)
        return F.silu(gate) * up
    if activation == "gelu":
        return F.gelu(hidden, approximate="tanh")
    return F.relu(hidden).square() if activation == "relu2" else F.relu(hidden)
