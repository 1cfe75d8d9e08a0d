"""Expert parallelism under ZeRO-3, by DeepSpeed's AutoEP.

AutoEP finds MoE layers by the names of their modules and replaces each with its own layer, whose experts ZeRO-3 may
partition over the ranks that hold the same ones. That layer's router computes in the activations' dtype, leaves the
order of ties undefined and computes no router losses, so we replace it with ours (model/moe/router.py).
"""

from contextlib import AbstractContextManager
from typing import Any

from storyteller_kernels import Routing, route
from torch import Tensor, nn

from storyteller_ds.config.model import ModelConfig, MoEConfig
from storyteller_ds.engines.deepspeed import private
from storyteller_ds.model.canonical import Part
from storyteller_ds.model.moe.balance import RouterStats, stats_of
from storyteller_ds.model.moe.local import LocalMoE


class AutoEPMoE(nn.Module):
    """Holds the layer that AutoEP replaces, and returns its router's statistics."""

    def __init__(self, model: ModelConfig, moe: MoEConfig) -> None:
        super().__init__()
        self.rows = model.intermediate_size
        self.moe: nn.Module = LocalMoE(model, moe)

    def forward(self, x_BSD: Tensor) -> tuple[Tensor, RouterStats]:
        """[B, S, D] to [B, S, D], and the router's statistics of this rank's tokens."""
        return self.moe(x_BSD), self.moe.router.take_stats()  # type: ignore[union-attr, operator]  # _Router

    def canonical_part(self, name: str) -> Part:
        """See HasCanonicalParts; AutoEP stores gate (w1) and up (w3) separately."""
        replaced = {
            "router.gate.weight": Part("router.weight"),
            "experts.w1": Part("experts.gate_up_proj"),
            "experts.w3": Part("experts.gate_up_proj", row=self.rows),
            "experts.w2": Part("experts.down_proj"),
        }
        inside = name.removeprefix("moe.")
        return replaced.get(inside, Part(inside))


def autoep_layers(model: nn.Module, moe: MoEConfig) -> AbstractContextManager[None]:
    """Context in which AutoEP finds what it needs to replace the MoE layers of `model`, and uses our router."""
    return private.autoep_router(_Router, model, moe.num_experts, moe.top_k)


class _Router(nn.Module):
    """AutoEP's interface over our routing: fp32 logits, ties to the lower index."""

    def __init__(self, *, dim: int, num_experts: int, top_k: int, **_: Any) -> None:
        super().__init__()
        self.gate = _Gate(dim, num_experts, top_k)
        self.stats: RouterStats | None = None

    def forward(self, x_TD: Tensor, expert_bias: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """[T, D] to gate weights [T, K], experts [T, K] and routed tokens of each expert [E] int32."""
        routing = Routing(*self.gate(x_TD))
        self.stats = stats_of(routing)
        return routing.weight_TK, routing.expert_TK, routing.count_E.int()

    def take_stats(self) -> RouterStats:
        """The statistics of the last forward pass; returned only once, so that its graph is not kept alive."""
        stats, self.stats = self.stats, None
        assert stats is not None, "the layer has not run"
        return stats


class _Gate(nn.Linear):
    """Owns the router's weight: ZeRO-3 gathers it for the forward pass of the module that owns it."""

    def __init__(self, dim: int, num_experts: int, top_k: int) -> None:
        super().__init__(dim, num_experts, bias=False)
        self.top_k = top_k

    def forward(self, x_TD: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        """[T, D] to the fields of its Routing; a plain tuple, because ZeRO-3 hooks rebuild their outputs."""
        return tuple(route(x_TD, self.weight, self.top_k))
