"""The MoE layer with all experts on this device."""

from storyteller_kernels import Routing, combine
from torch import Tensor, nn

from storyteller_ds.config.model import ModelConfig, MoEConfig
from storyteller_ds.model.moe.balance import RouterStats, stats_of
from storyteller_ds.model.moe.experts import StackedExperts
from storyteller_ds.model.moe.router import Router


class LocalMoE(nn.Module):
    """Route, dispatch (sort tokens by expert), run the experts, combine."""

    def __init__(self, model: ModelConfig, moe: MoEConfig) -> None:
        super().__init__()
        self.router = Router(model, moe)
        self.experts = StackedExperts(model, moe.num_experts)

    def forward(self, x_BSD: Tensor) -> tuple[Tensor, RouterStats]:
        """[B, S, D] to [B, S, D], and the router's statistics."""
        x_TD = x_BSD.flatten(0, 1)
        routing: Routing = self.router(x_TD)
        expert_out_ND = self.experts(x_TD, routing.count_E, routing.token_N, routing.row_TK)
        out_TD = combine(expert_out_ND, routing.weight_TK, routing.token_N, routing.row_TK)
        return out_TD.view_as(x_BSD), stats_of(routing)
