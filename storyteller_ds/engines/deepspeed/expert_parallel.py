"""Expert parallelism: each rank of a group holds a share of the experts, and rows travel to them.

The layer is a `deepspeed.moe.layer.MoE`, so DeepSpeed's engine recognises it, builds the process groups
and reduces expert gradients over the right ranks. Its inside is ours: routing as on one device, an
all-to-all of exactly the routed rows (no capacity, nothing padded, nothing dropped), stacked experts.
"""

from typing import Any

import torch
import torch.distributed as dist
from deepspeed.moe.layer import MoE
from storyteller_kernels import combine, permute
from torch import Tensor, nn

from storyteller_ds.config.model import ModelConfig, MoEConfig
from storyteller_ds.engines.deepspeed import private
from storyteller_ds.model.moe import Router, RouterStats, StackedExperts, stats_of


class ExpertParallelMoE(MoE):  # type: ignore[misc]  # deepspeed has no types
    """A mixture layer whose experts are spread over `ep_size` ranks."""

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
            answer_ND = self.experts(x_TD, routing.count_E, routing.token_N, routing.row_TK)
        else:
            rows_ND = permute(x_TD, routing.token_N, routing.row_TK)
            answer_ND = self._ask_other_ranks(rows_ND, routing.count_E)
        out_TD = combine(answer_ND, routing.weight_TK, routing.token_N, routing.row_TK)
        return out_TD.view_as(x_BSD), stats_of(routing)

    def _ask_other_ranks(self, rows_ND: Tensor, count_E: Tensor) -> Tensor:
        """Send rows to the ranks that hold their experts; return the answers in the order of the rows."""
        group = private.expert_group_of(self)
        # R ranks of the group, X experts on each. Rows are in expert order, so a rank's are contiguous.
        sent_RX = count_E.view(self.ep_size, -1)
        one_each = [1] * self.ep_size
        received_RX = _exchange(sent_RX, one_each, one_each, group)
        sent, received = sent_RX.sum(dim=1).tolist(), received_RX.sum(dim=1).tolist()
        arrived_MD = _AllToAll.apply(rows_ND, sent, received, group)  # type: ignore[no-untyped-call]  # torch's stub
        by_expert_M, by_source_M = _expert_order(received_RX)
        rows_MD = permute(arrived_MD, by_expert_M, by_source_M[:, None])
        answer_MD = self.experts(rows_MD, received_RX.sum(dim=0))
        back_MD = permute(answer_MD, by_source_M, by_expert_M[:, None])
        answer_ND: Tensor = _AllToAll.apply(back_MD, received, sent, group)  # type: ignore[no-untyped-call]  # torch's stub
        return answer_ND


def _expert_order(count_RX: Tensor) -> tuple[Tensor, Tensor]:
    """Permutations between arrival order (by source rank, then expert) and expert order (then source).

    Args:
        count_RX: [R, X] rows that arrived from each rank for each expert here.

    Returns:
        by_expert [M]: arrival index of each row in expert order; by_source [M]: its inverse.
    """
    num_experts = count_RX.shape[1]
    expert_RX = torch.arange(num_experts, device=count_RX.device).expand_as(count_RX)
    expert_M = torch.repeat_interleave(expert_RX.flatten(), count_RX.flatten())
    by_expert_M = torch.argsort(expert_M, stable=True)
    by_source_M = torch.empty_like(by_expert_M)
    by_source_M[by_expert_M] = torch.arange(by_expert_M.numel(), device=by_expert_M.device)
    return by_expert_M, by_source_M


class _AllToAll(torch.autograd.Function):
    """Rows to other ranks; the gradient travels the same way back."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, sent: list[int], received: list[int], group: dist.ProcessGroup) -> Tensor:
        ctx.sent, ctx.received, ctx.group = sent, received, group
        return _exchange(rows, sent, received, group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        return _exchange(grad, ctx.received, ctx.sent, ctx.group), None, None, None


def _exchange(rows: Tensor, sent: list[int], received: list[int], group: dist.ProcessGroup) -> Tensor:
    """Rows to and from the ranks of the group, so many each, in rank order.

    A functional collective: selective activation checkpointing keeps its result, where one that fills a buffer of the
    caller's is repeated in the backward pass (model/activation_checkpointing.py).
    """
    collectives = torch.ops._c10d_functional
    moved = collectives.all_to_all_single(rows.contiguous(), received, sent, group.group_name)
    arrived: Tensor = collectives.wait_tensor(moved)
    return arrived
