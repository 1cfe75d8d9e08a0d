"""Expert parallelism: each rank of a group holds a part of the experts, and routed tokens are sent to them.

The layer is a `deepspeed.moe.layer.MoE`, so DeepSpeed's engine recognises it, builds the process groups
and reduces expert gradients over the right ranks. Its inside is ours: the router of one device (model/moe/), an
all-to-all of exactly the routed tokens (no capacity, no padding, no token dropped), stacked experts.
"""

from typing import Any

import torch
import torch.distributed as dist
from deepspeed.moe.layer import MoE
from storyteller_kernels import combine, permute
from torch import Tensor, nn

from storyteller_ds.config.model import ModelConfig, MoEConfig
from storyteller_ds.engines.deepspeed import private
from storyteller_ds.model.moe.balance import RouterStats, stats_of
from storyteller_ds.model.moe.experts import StackedExperts
from storyteller_ds.model.moe.router import Router


class ExpertParallelMoE(MoE):  # type: ignore[misc]  # deepspeed has no types
    """An MoE layer whose experts are spread over `ep_size` ranks."""

    def __init__(self, model: ModelConfig, moe: MoEConfig, ep_size: int) -> None:
        super().__init__(model.hidden_size, nn.Identity(), num_experts=moe.num_experts, ep_size=ep_size)
        private.remove_gate_and_experts(self)
        self.router = Router(model, moe)
        self.experts = StackedExperts(model, self.num_local_experts)
        for parameter in self.experts.parameters():
            private.mark_as_expert(parameter, self)

    def forward(self, x_BSD: Tensor) -> tuple[Tensor, RouterStats]:
        """[B, S, D] to [B, S, D], and the router's statistics of this rank's tokens."""
        x_TD = x_BSD.flatten(0, 1)
        routing = self.router(x_TD)
        if self.ep_size == 1:
            expert_out_ND = self.experts(x_TD, routing.count_E, routing.token_N, routing.row_TK)
        else:
            routed_ND = permute(x_TD, routing.token_N, routing.row_TK)
            expert_out_ND = self._experts_of_all_ranks(routed_ND, routing.count_E)
        out_TD = combine(expert_out_ND, routing.weight_TK, routing.token_N, routing.row_TK)
        return out_TD.view_as(x_BSD), stats_of(routing)

    def _experts_of_all_ranks(self, routed_ND: Tensor, count_E: Tensor) -> Tensor:
        """Dispatch tokens to the ranks that hold their experts; the expert outputs come back in the same order."""
        group = private.expert_group(self.ep_size)
        assert group is not None, "deepspeed.initialize has run"
        # R ranks of the group, X experts on each. Tokens are in expert order, so those for one rank are contiguous.
        sent_RX = count_E.view(self.ep_size, -1)
        one_each = [1] * self.ep_size
        received_RX = _exchange(sent_RX, one_each, one_each, group)
        sent, received = sent_RX.sum(dim=1).tolist(), received_RX.sum(dim=1).tolist()
        arrived_MD = _AllToAll.apply(routed_ND, sent, received, group)  # type: ignore[no-untyped-call]  # torch's stub
        by_expert_M, by_source_M = _expert_order(received_RX)
        in_order_MD = permute(arrived_MD, by_expert_M, by_source_M[:, None])
        expert_out_MD = self.experts(in_order_MD, received_RX.sum(dim=0))
        back_MD = permute(expert_out_MD, by_source_M, by_expert_M[:, None])
        expert_out_ND: Tensor = _AllToAll.apply(back_MD, received, sent, group)  # type: ignore[no-untyped-call]  # torch's stub
        return expert_out_ND


def _expert_order(count_RX: Tensor) -> tuple[Tensor, Tensor]:
    """Permutations between arrival order (by source rank, then expert) and expert order (then source).

    Args:
        count_RX: [R, X] routed tokens that arrived from each rank for each expert here.

    Returns:
        by_expert [M]: arrival index of each routed token in expert order; by_source [M]: its inverse.
    """
    num_experts = count_RX.shape[1]
    expert_RX = torch.arange(num_experts, device=count_RX.device).expand_as(count_RX)
    expert_M = torch.repeat_interleave(expert_RX.flatten(), count_RX.flatten())
    by_expert_M = torch.argsort(expert_M, stable=True)
    by_source_M = torch.empty_like(by_expert_M)
    by_source_M[by_expert_M] = torch.arange(by_expert_M.numel(), device=by_expert_M.device)
    return by_expert_M, by_source_M


class _AllToAll(torch.autograd.Function):
    """Routed tokens to other ranks; their gradients take the same way back."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, sent: list[int], received: list[int], group: dist.ProcessGroup) -> Tensor:
        ctx.sent, ctx.received, ctx.group = sent, received, group
        return _exchange(rows, sent, received, group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        return _exchange(grad, ctx.received, ctx.sent, ctx.group), None, None, None


def _exchange(rows: Tensor, sent: list[int], received: list[int], group: dist.ProcessGroup) -> Tensor:
    """Send and receive rows: so many to and from each rank of the group, in rank order.

    A functional collective: selective activation checkpointing keeps its result, where one that fills a buffer of the
    caller's is repeated in the backward pass (model/activation_checkpointing.py).
    """
    collectives = torch.ops._c10d_functional
    moved = collectives.all_to_all_single(rows.contiguous(), received, sent, group.group_name)
    arrived: Tensor = collectives.wait_tensor(moved)
    return arrived
