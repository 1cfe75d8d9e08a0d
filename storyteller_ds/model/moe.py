"""The mixture-of-experts layer on one device, and the parts that every strategy shares."""

from typing import NamedTuple

import torch
from storyteller_kernels import Routing, combine, expert_mlp, expert_mlp_of_tokens, route
from torch import Tensor, nn
from torch.nn import functional as F

from storyteller_ds.config.model import ModelConfig, MoEConfig
from storyteller_ds.model.feed_forward import up_width


class RouterStats(NamedTuple):
    """What the losses and the metrics need from one router; see Routing for the fields."""

    expert_TK: Tensor
    prob_TE: Tensor
    count_E: Tensor
    prob_sum_E: Tensor
    z_sum: Tensor
    entropy_sum: Tensor


class Router(nn.Module):
    """Decides which experts a token goes to. Logits and all after them are fp32, whatever x and the weight are."""

    def __init__(self, model: ModelConfig, moe: MoEConfig) -> None:
        super().__init__()
        self.top_k = moe.top_k
        self.weight = nn.Parameter(torch.empty(moe.num_experts, model.hidden_size))
        if moe.noisy_gating:
            self.noise_weight = nn.Parameter(torch.empty(moe.num_experts, model.hidden_size))
        else:
            self.register_parameter("noise_weight", None)

    def forward(self, x_TD: Tensor) -> Routing:
        """[T, D] to the routing of its tokens."""
        noise_TE = None
        if self.noise_weight is not None and self.training:
            with torch.autocast(x_TD.device.type, enabled=False):
                scale_TE = F.softplus(x_TD.float() @ self.noise_weight.float().t())
            noise_TE = torch.randn_like(scale_TE) * scale_TE
        return route(x_TD, self.weight, self.top_k, noise_TE)


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
        """Rows in expert order to their answers, [N, D].

        Args:
            x: the rows [N, D]; with token_N and row_TK (see Routing) the tokens [T, D].
            count_E: [E] rows of each expert here.
            token_N: [N] int64, token of each row.
            row_TK: [T, K] int64, row of each (token, choice).
        """
        weights = (self.gate_up_proj, self.down_proj, self.activation, self.gate_up_bias, self.down_bias)
        if token_N is None or row_TK is None:
            return expert_mlp(x, count_E, *weights)
        return expert_mlp_of_tokens(x, token_N, row_TK, count_E, *weights)


class LocalMoE(nn.Module):
    """All experts on this device: route, sort tokens by expert, run the experts, put tokens back."""

    def __init__(self, model: ModelConfig, moe: MoEConfig) -> None:
        super().__init__()
        self.router = Router(model, moe)
        self.experts = StackedExperts(model, moe.num_experts)

    def forward(self, x_BSD: Tensor) -> tuple[Tensor, RouterStats]:
        """[B, S, D] to [B, S, D], and the router's statistics."""
        x_TD = x_BSD.flatten(0, 1)
        routing: Routing = self.router(x_TD)
        answer_ND = self.experts(x_TD, routing.count_E, routing.token_N, routing.row_TK)
        out_TD = combine(answer_ND, routing.weight_TK, routing.token_N, routing.row_TK)
        return out_TD.view_as(x_BSD), stats_of(routing)


def stats_of(routing: Routing) -> RouterStats:
    """The statistics that leave the layer."""
    return RouterStats(**{name: getattr(routing, name) for name in RouterStats._fields})
