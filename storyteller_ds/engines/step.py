"""The parts of an optimizer step that are the same for every engine."""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from storyteller_ds.data.batches import IGNORED, MicroBatch
from storyteller_ds.distributed.world import World
from storyteller_ds.engines.base import RouterMetrics
from storyteller_ds.model.loss import LossModule, MicroBatchStats


def count_targets(world: World, micro_batches: Sequence[MicroBatch], device: torch.device) -> int:
    """Targets of an optimizer step, over all its accumulation steps and ranks."""
    here = sum(int((batch.target_BS != IGNORED).sum()) for batch in micro_batches)
    return int(world.all_reduce_sum(torch.tensor(here, dtype=torch.int64, device=device)))


def mean_loss(stats: Sequence[MicroBatchStats], targets: int) -> float:
    """Mean negative log-likelihood of the step (nats per target)."""
    return sum(s.nll_sum.item() for s in stats) / targets


def router_metrics(stats: Sequence[MicroBatchStats]) -> RouterMetrics | None:
    """Summary over the accumulation steps of an optimizer step; None without MoE layers."""
    if stats[0].count_LE.numel() == 0:
        return None
    count_LE = torch.stack([s.count_LE for s in stats]).sum(dim=0)
    load_LE = count_LE / count_LE.sum(dim=1, keepdim=True)
    spread_L = load_LE.std(dim=1, correction=0) / load_LE.mean(dim=1)

    def mean(name: str) -> float:
        return torch.stack([getattr(s, name) for s in stats]).mean().item()

    return RouterMetrics(
        expert_load=load_LE.mean(dim=0).tolist(),
        expert_load_cv=spread_L.mean().item(),
        router_entropy=mean("entropy_L"),
        dead_experts=int((count_LE == 0).sum()),
        balance_loss=mean("balance_L"),
        z_loss=mean("z_L"),
    )


LOWEST_LOSS_SCALE = 1.0
"""Below it fp16 would lose small gradients: an overflow at this scale counts as a non-finite gradient."""


def cause_of_skip(loss: float, scale_can_fall: bool) -> Literal["loss", "gradient"] | None:
    """What was not finite in a step that was skipped; None for an overflow that a lower loss scale fixes.

    Args:
        loss: mean negative log-likelihood of the global batch, the same on every rank.
        scale_can_fall: whether the loss was scaled, and by more than the least.
    """
    if not math.isfinite(loss):
        return "loss"
    return None if scale_can_fall else "gradient"


def squared_norm(parameters: Sequence[nn.Parameter]) -> Tensor:
    """[] sum of the squares of all gradients, fp64 where the device has it.

    torch.nn.utils.clip_grad_norm_ adds in fp32, which was 6e-6 too low for a tensor of 260,000 entries.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not gradients:
        return torch.zeros((), dtype=torch.float64)
    if gradients[0].device.type == "cpu":
        # A norm in fp64 would copy the whole tensor first, which was 8 % of a step; a piece stays in the cache.
        pieces = (piece.double() for g in gradients for piece in g.reshape(-1).split(_PIECE))
        return torch.stack([torch.dot(piece, piece) for piece in pieces]).sum()
    dtype = torch.float32 if gradients[0].device.type == "mps" else torch.float64
    return torch.stack([torch.linalg.vector_norm(g, dtype=dtype) for g in gradients]).square().sum()


_PIECE = 2**17
"""Entries; in fp64 one megabyte."""


def clip_gradients(module: nn.Module, limit: float, squares: Tensor | None = None) -> float:
    """Scale all gradients down so that their common norm is at most `limit` (0: no limit); the norm before.

    Args:
        module: holds the parameters.
        limit: largest norm.
        squares: the squared norm of the whole gradient, where other ranks hold a part of it.
    """
    parameters = list(module.parameters())
    norm = float((squared_norm(parameters) if squares is None else squares).sqrt())
    if limit and norm > limit:
        torch._foreach_mul_([p.grad for p in parameters if p.grad is not None], limit / (norm + 1e-6))
    return norm


@torch.no_grad()
def evaluate_batch(world: World, loss_module: LossModule, batch: MicroBatch, device: torch.device) -> Tensor:
    """[2] fp64 on the CPU: sum of nll (nats) and number of targets, over all ranks."""
    was_training = loss_module.training
    loss_module.eval()
    token_BS, target_BS, position_BS = batch.to(device)
    nll, _ = loss_module.decoder(token_BS, target_BS=target_BS, position_BS=position_BS)
    loss_module.train(was_training)
    sums = torch.stack([nll.cpu().double(), (batch.target_BS != IGNORED).sum().double()])
    return world.all_reduce_sum(sums.to(device) if device.type == "cuda" else sums).cpu()
