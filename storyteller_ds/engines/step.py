"""The parts of an optimizer step that are the same for every engine.

On a GPU nothing here waits for a number: what the host would decide (clip or not, skip or not) is decided on the
device, and what a step came to is read later, for several steps at once (`finished`). On a CPU a number is there as
soon as it is asked for, and deciding saves passes over the gradients.
"""

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from storyteller_ds.data.batching.micro_batch import IGNORED, MicroBatch
from storyteller_ds.distributed.world import World
from storyteller_ds.engines.base import Engine, PendingStep, RouterMetrics, StepResult
from storyteller_ds.model.loss import LossModule, MicroBatchStats


def reading_is_free(device: torch.device) -> bool:
    """Whether the host may look at a number at every step: on a CPU it waits for nothing.

    On MPS it does, but torch's fused AdamW cannot skip a step there by itself.
    """
    return device.type != "cuda"


def count_targets(world: World, micro_batches: Sequence[MicroBatch], device: torch.device) -> Tensor:
    """[] int64: targets of an optimizer step, over all its accumulation steps and ranks."""
    here = sum(int((batch.target_BS != IGNORED).sum()) for batch in micro_batches)
    # Filled on the device: a copy from pageable memory would wait for it.
    targets = world.all_reduce_sum(torch.full((), here, dtype=torch.int64, device=device))
    return targets.clamp(min=1)  # in a batch of prompts alone there is none


def mean_loss(stats: Sequence[MicroBatchStats], targets: Tensor) -> Tensor:
    """[]: mean negative log-likelihood of the step (nats per target)."""
    return torch.as_tensor(sum(s.nll_sum for s in stats)) / targets


class _Verdict(NamedTuple):
    """What became of a step."""

    skipped: bool
    non_finite: Literal["loss", "gradient"] | None


VERDICTS = (_Verdict(False, None), _Verdict(True, None), _Verdict(True, "loss"), _Verdict(True, "gradient"))
"""By number: done; skipped, and a lower loss scale will do; skipped for the loss; skipped for the gradient."""
LOWEST_LOSS_SCALE = 1.0
"""Below it fp16 would lose small gradients: an overflow at this scale counts as a non-finite gradient."""


def verdict(loss: Tensor, norm: Tensor, scale: Tensor | None = None) -> Tensor:
    """[] int64, the number of a verdict: a step is done if loss and gradient are finite.

    Args:
        loss: [] mean negative log-likelihood of the global batch, the same on every rank.
        norm: [] norm of the whole gradient, likewise.
        scale: [] what the loss was multiplied by; None: nothing.
    """
    can_fall = torch.zeros_like(loss, dtype=torch.bool) if scale is None else scale > LOWEST_LOSS_SCALE
    of_gradient = torch.where(norm.isfinite(), 0, torch.where(can_fall, 1, 3))
    return torch.where(loss.isfinite(), of_gradient, 2)


def pending(loss: Tensor, norm: Tensor, verdict: Tensor, stats: Sequence[MicroBatchStats]) -> PendingStep:
    """A step with these figures."""
    return PendingStep(torch.stack([loss, norm.to(loss), verdict.to(loss)]), stats)


def known(
    loss: float,
    norm: float,
    skipped: bool,
    non_finite: Literal["loss", "gradient"] | None,
    stats: Sequence[MicroBatchStats] = (),
) -> PendingStep:
    """A step whose figures the host knows already."""
    number = VERDICTS.index(_Verdict(skipped, non_finite))
    return PendingStep(torch.tensor([loss, norm, number], dtype=torch.float64), stats)


def finished(steps: Sequence[PendingStep]) -> list[StepResult]:
    """What steps came to, read in one transfer; only the last one has the figures of its routers."""
    router = _router_figures(steps[-1].stats)
    figures = torch.stack([step.figures for step in steps])
    *rows, metrics = _read([*figures, router])
    results = []
    for loss, norm, number in rows:
        skipped, non_finite = VERDICTS[int(number)]
        results.append(StepResult(loss, norm, None, skipped, non_finite))
    if metrics:
        results[-1] = dataclasses.replace(results[-1], router=_as_metrics(metrics))
    return results


def train_step(engine: Engine, micro_batches: Sequence[MicroBatch], lr: float) -> StepResult:
    """One optimizer step, and what it came to."""
    return finished([engine.begin_step(micro_batches, lr)])[0]


def _read(tensors: Sequence[Tensor]) -> list[list[float]]:
    sizes = [tensor.numel() for tensor in tensors]
    device = tensors[-1].device
    flat = torch.cat([tensor.to(device) for tensor in tensors]).tolist()
    ends = itertools.accumulate(sizes)
    return [flat[end - size : end] for end, size in zip(ends, sizes, strict=True)]


def _router_figures(stats: Sequence[MicroBatchStats]) -> Tensor:
    """[E + 5] fp64: the fields of RouterMetrics, over the accumulation steps of a step; [0] without MoE layers."""
    if not stats or stats[0].count_LE.numel() == 0:
        return stats[0].count_LE.flatten() if stats else torch.zeros(0)
    count_LE = torch.stack([s.count_LE for s in stats]).sum(dim=0)
    load_LE = count_LE / count_LE.sum(dim=1, keepdim=True)
    spread_L = load_LE.std(dim=1, correction=0) / load_LE.mean(dim=1)

    def mean(name: str) -> Tensor:
        return torch.stack([getattr(s, name) for s in stats]).mean()

    scalars = [spread_L.mean(), mean("entropy_L"), (count_LE == 0).sum(), mean("balance_L"), mean("z_L")]
    return torch.cat([load_LE.mean(dim=0), *(one.to(load_LE.dtype).reshape(1) for one in scalars)])


def _as_metrics(figures: Sequence[float]) -> RouterMetrics:
    *load, spread, entropy, dead, balance, z = figures
    return RouterMetrics(load, spread, entropy, int(dead), balance, z)


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


def gradient_norm(module: nn.Module) -> Tensor:
    """[] norm of the whole gradient."""
    return squared_norm(list(module.parameters())).sqrt()


@torch.no_grad()
def update(
    optimizer: torch.optim.Optimizer,
    norm: Tensor,
    verdict: Tensor,
    limit: float,
    scale: Tensor | None = None,
    step: Callable[[], object] | None = None,
) -> None:
    """Clip the gradients and step, unless the verdict is to skip; then nothing changes.

    Args:
        optimizer: AdamW in torch's fused form or Muon, which both skip where their `found_inf` is 1.
        norm: [] of the whole gradient, unscaled.
        verdict: [] its number.
        limit: largest norm; 0: no limit.
        scale: [] what the gradients are still multiplied by; None: nothing.
        step: the optimizer's step; None: its own.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    gradients = [p.grad for p in parameters]
    factor = torch.where(norm > limit, limit / (norm + 1e-6), 1.0) if limit else torch.ones_like(norm)
    factor = factor if scale is None else factor / scale
    step = step or optimizer.step
    if reading_is_free(norm.device):
        if int(verdict):
            for parameter in parameters:
                parameter.grad = None  # what has no gradient is not changed
        elif float(factor) != 1:
            torch._foreach_mul_(gradients, float(factor))
        step()
        return
    if limit or scale is not None:
        torch._foreach_mul_(gradients, factor.to(gradients[0].dtype))
    optimizer.found_inf = (verdict != 0).float()  # type: ignore[attr-defined]  # as torch.amp.GradScaler does
    step()


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
