"""DeepSpeed's own MoE layer, unmodified, with which ours is compared in parity tests and benchmarks.

Its router chooses as ours does if it neither drops tokens nor samples second experts: softmax over all experts, the
best two, renormalized (deepspeed.moe.sharded_moe, top2gating). Each expert is a separate module, and every rank sends
each expert's tokens padded to the largest count of all.
"""

import torch
from deepspeed.moe.layer import MoE
from storyteller_kernels import route
from torch import Tensor, nn

from storyteller_ds.config.model import ModelConfig, MoEConfig
from storyteller_ds.engines.deepspeed import private
from storyteller_ds.model.canonical import Part
from storyteller_ds.model.moe.balance import RouterStats, stats_of
from storyteller_ds.model.moe.experts import StackedExperts


class StockMoE(nn.Module):
    """`deepspeed.moe.layer.MoE` behind the interface of our MoE layers."""

    def __init__(self, model: ModelConfig, moe: MoEConfig, ep_size: int) -> None:
        super().__init__()
        self.top_k = moe.top_k
        self.layer = MoE(
            model.hidden_size,
            _Expert(model),
            num_experts=moe.num_experts,
            ep_size=ep_size,
            k=moe.top_k,
            drop_tokens=False,
            use_rts=False,
            top2_2nd_expert_sampling=False,
        )

    def forward(self, x_BSD: Tensor) -> tuple[Tensor, RouterStats]:
        """[B, S, D] to [B, S, D], and the router's statistics of this rank's tokens."""
        out_BSD, _, _ = self.layer(x_BSD)
        # Its own auxiliary loss counts only this rank's first choices, so ours are computed separately.
        routing = route(x_BSD.flatten(0, 1), private.gate_weight_of(self.layer), self.top_k)
        return out_BSD, stats_of(routing)

    def canonical_part(self, name: str) -> Part:
        """See HasCanonicalParts."""
        canonical, expert = private.stock_parameter(name.removeprefix("layer."))
        return Part(canonical, expert)


class _Expert(StackedExperts):
    """A stack of one expert, for the tokens that all ranks of the group route to it."""

    def __init__(self, model: ModelConfig) -> None:
        super().__init__(model, num_experts=1)
        # DeepSpeed makes the experts by copying; only an initialized parameter can be copied safely.
        for parameter in self.parameters():
            torch.nn.init.zeros_(parameter)

    def forward(self, x_G1CD: Tensor) -> Tensor:  # type: ignore[override]  # DeepSpeed's interface, not ours
        """[G, 1, C, D], C routed tokens (padded) from each of G ranks, to the same shape."""
        x_ND = x_G1CD.flatten(0, 2)
        return super().forward(x_ND, [x_ND.shape[0]]).view_as(x_G1CD)
