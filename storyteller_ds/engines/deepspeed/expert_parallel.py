"""Expert parallelism: each rank of a group holds a part of the experts, and routed tokens are sent to them.

The layer is a `deepspeed.moe.layer.MoE`, so DeepSpeed's engine recognizes it, builds the process groups
and reduces expert gradients over the right ranks. Its contents are ours: the same router as on one device (model/moe/),
an all-to-all of exactly the routed tokens (no capacity, no padding, no dropped tokens), and stacked experts.
"""

from typing import Any

import torch
import torch.distributed._functional_collectives  # registers the gradients of the operations below
from deepspeed.moe.layer import MoE
from storyteller_kernels import Routing, combine, permute
from storyteller_kernels.dispatch import constant
from torch import Tensor, nn
from torch import _check as assume

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
            expert_out_ND = self._experts_of_all_ranks(x_TD, routing)
        out_TD = combine(expert_out_ND, routing.weight_TK, routing.token_N, routing.row_TK)
        return out_TD.view_as(x_BSD), stats_of(routing)

    def _experts_of_all_ranks(self, x_TD: Tensor, routing: Routing) -> Tensor:
        """Dispatch routed tokens to the ranks that hold their experts; returns the outputs [N, D] in expert order."""
        group = _group_name(self.ep_size)
        # R ranks of the group, X experts on each.
        sent_RX = routing.count_E.view(self.ep_size, -1)
        one_each = [1] * self.ep_size
        counts = _begin_exchange(sent_RX, one_each, one_each, group)
        # Overlaps with the exchange of counts. In expert order, so that the rows for one rank are contiguous.
        routed_ND = permute(x_TD, routing.token_N, routing.row_TK)
        received_RX = _arrived(counts)
        # The only values that the host waits for in this layer: the next two exchanges need sizes.
        counts_of_ranks = torch.stack([sent_RX, received_RX]).tolist()
        sent, received = [[sum(counts_X) for counts_X in counts_RX] for counts_RX in counts_of_ranks]
        arrived_MD = _all_to_all(routed_ND, sent, received, group)
        by_expert_M, by_source_M = _expert_order(received_RX, sum(received))
        in_order_MD = permute(arrived_MD, by_expert_M, by_source_M[:, None])
        is_compiling = torch.compiler.is_compiling()
        count_X = received_RX.sum(dim=0) if is_compiling else list(map(sum, zip(*counts_of_ranks[1], strict=True)))
        expert_out_MD = self.experts(in_order_MD, count_X)
        back_MD = permute(expert_out_MD, by_source_M, by_expert_M[:, None])
        return _all_to_all(back_MD, received, sent, group)


@constant
def _group_name(ep_size: int) -> str:
    """Name of this rank's expert-parallel group, whose ranks hold one set of experts together."""
    group = private.expert_group(ep_size)
    assert group is not None, "deepspeed.initialize has run"
    return group.group_name


def _expert_order(count_RX: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """Permutations between arrival order (by source rank, then expert) and expert order (by expert, then source).

    Both orders are sequences of the same blocks, so a row's new place is its old one plus the shift of its block.

    Args:
        count_RX: [R, X] routed tokens that arrived from each rank for each expert here.
        rows: their sum M.

    Returns:
        by_expert [M]: arrival index of each routed token in expert order; by_source [M]: its inverse.
    """
    count_XR = count_RX.t().contiguous()
    arrival_RX = (count_RX.flatten().cumsum(0) - count_RX.flatten()).view_as(count_RX)
    place_XR = (count_XR.flatten().cumsum(0) - count_XR.flatten()).view_as(count_XR)
    move_RX = place_XR.t() - arrival_RX
    row_M = torch.arange(rows, device=count_RX.device)

    def moved(move: Tensor, count: Tensor) -> Tensor:
        return row_M + torch.repeat_interleave(move.flatten(), count.flatten(), output_size=rows)

    return moved(-move_RX.t(), count_XR), moved(move_RX, count_RX)


def _all_to_all(rows: Tensor, sent: list[int], received: list[int], group: str) -> Tensor:
    """_exchange with a gradient."""
    if torch.compiler.is_compiling():
        # The number of rows is not known yet; the compiler knows the gradients of these operations.
        for count in (*sent, *received):
            assume(count >= 0)
        return _exchange(rows, sent, received, group)
    moved: Tensor = _AllToAll.apply(rows, sent, received, group)  # type: ignore[no-untyped-call]  # torch's stub
    return moved


class _AllToAll(torch.autograd.Function):
    """Sends routed tokens to other ranks; their gradients take the same way back."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, sent: list[int], received: list[int], group: str) -> Tensor:
        ctx.sent, ctx.received, ctx.group = sent, received, group
        return _exchange(rows, sent, received, group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        return _exchange(grad, ctx.received, ctx.sent, ctx.group), None, None, None


def _exchange(rows: Tensor, sent: list[int], received: list[int], group: str) -> Tensor:
    """Send and receive the given numbers of rows to and from each rank of the named group, in rank order."""
    return _arrived(_begin_exchange(rows, sent, received, group))


def _begin_exchange(rows: Tensor, sent: list[int], received: list[int], group: str) -> Tensor:
    """Start an _exchange without waiting for its result, for which see _arrived.

    A functional collective: selective activation checkpointing keeps its result, while a collective that fills a buffer
    of the caller's is repeated in the backward pass (model/activation_checkpointing.py).
    """
    collectives = torch.ops._c10d_functional
    moving: Tensor = collectives.all_to_all_single(rows.contiguous(), received, sent, group)
    return moving


def _arrived(moving: Tensor) -> Tensor:
    """Wait for the rows of an exchange."""
    arrived: Tensor = torch.ops._c10d_functional.wait_tensor(moving)
    return arrived
