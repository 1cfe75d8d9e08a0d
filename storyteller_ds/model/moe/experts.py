"""The experts of a layer, stacked: one feed-forward network each."""

import torch
from storyteller_kernels import expert_mlp
from torch import Tensor, nn

from storyteller_ds.config.model import ModelConfig
from storyteller_ds.model.feed_forward import up_width


class StackedExperts(nn.Module):
    """The weights of all experts of a layer, or of one rank's share, stacked along dimension 0."""

    def __init__(self, model: ModelConfig, num_experts: int) -> None:
        super().__init__()
        self.activation = model.activation
        self.gate_up_proj = nn.Parameter(torch.empty(num_experts, up_width(model), model.hidden_size))
        self.down_proj = nn.Parameter(torch.empty(num_experts, model.hidden_size, model.intermediate_size))
        if model.bias:
            self.gate_up_bias = nn.Parameter(torch.empty(num_experts, up_width(model)))
            self.down_bias = nn.Parameter(torch.empty(num_experts, model.hidden_size))
        else:
            self.register_parameter("gate_up_bias", None)
            self.register_parameter("down_bias", None)

    def forward(
        self, x: Tensor, count_E: Tensor | list[int], token_N: Tensor | None = None, row_TK: Tensor | None = None
    ) -> Tensor:
        """Compute the expert outputs [N, D] of rows in expert order.

        Args:
            x: the routed tokens in expert order [N, D] or, with token_N and row_TK (see Routing), the tokens [T, D].
            count_E: [E] number of rows of each expert on this rank.
            token_N: [N] int64, token of each row.
            row_TK: [T, K] int64, row of each (token, choice).
        """
        up, down, up_bias, down_bias = (
            None if weight is None else weight.to(x.dtype)
            for weight in (self.gate_up_proj, self.down_proj, self.gate_up_bias, self.down_bias)
        )
        return expert_mlp(x, count_E, up, down, self.activation, up_bias, down_bias, token_N, row_TK)
