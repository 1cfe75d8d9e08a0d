"""The parts of an optimizer step that are the same for every engine.

On a GPU nothing here waits for a value: whether to clip and whether to skip is decided on the device, and the results
are read later, for several steps at once (`finished`). On a CPU values are available at once, and deciding on the host
saves passes over the gradients.
"""

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from storyteller_ds.data.batching.micro_batch import IGNORED, MicroBatch
from storyteller_ds.distributed.world import World
from storyteller_ds.engines.base import Engine, PendingStep, RouterMetrics, StepResult
from storyteller_ds.engines.gradient_norm import SquaredGradient, part_norms
from storyteller_ds.engines.step_clock import StepClock
from storyteller_ds.model.loss import LossModule, MicroBatchStats


def reading_is_free(device: torch.device) -> bool:
    """Whether the host may read values at every step: on a CPU it never waits for them.

    On MPS it does wait, but there torch's fused AdamW cannot skip a step by itself.
    """
    return device.type != "cuda"


def count_targets(world: World, micro_batches: Sequence[MicroBatch], device: torch.device) -> Tensor:
    """[] int64: targets of an optimizer step, over all its accumulation steps and ranks."""
    here = sum(int((batch.target_BS != IGNORED).sum()) for batch in micro_batches)
    # Filled on the device: a copy from pageable memory would wait for the device.
    targets = world.all_reduce_sum(torch.full((), here, dtype=torch.int64, device=device))
    return targets.clamp(min=1)  # a batch of nothing but prompts has no targets


def mean_loss(stats: Sequence[MicroBatchStats], targets: Tensor) -> Tensor:
    """[]: mean negative log-likelihood of the step (nats per target)."""
    return torch.as_tensor(sum(s.nll_sum for s in stats)) / targets


class _Verdict(NamedTuple):
    """The outcome of a step."""

    skipped: bool
    non_finite: Literal["loss", "gradient"] | None


VERDICTS = (_Verdict(False, None), _Verdict(True, None), _Verdict(True, "loss"), _Verdict(True, "gradient"))
"""By index: done; skipped, but a lower loss scale will help; skipped for the loss; skipped for the gradient."""
LOWEST_LOSS_SCALE = 1.0
"""Below it fp16 would lose small gradients: an overflow at this scale counts as a non-finite gradient."""


def verdict(loss: Tensor, norm: Tensor, scale: Tensor | None = None) -> Tensor:
    """[] int64, an index in VERDICTS: a step is done if loss and gradient are finite.

    Args:
        loss: [] mean negative log-likelihood of the global batch, the same on every rank.
        norm: [] norm of the whole gradient, likewise.
        scale: [] factor by which the loss was multiplied; None: not scaled.
    """
    can_fall = torch.zeros_like(loss, dtype=torch.bool) if scale is None else scale > LOWEST_LOSS_SCALE
    of_gradient = torch.where(norm.isfinite(), 0, torch.where(can_fall, 1, 3))
    return torch.where(loss.isfinite(), of_gradient, 2)


def pending(
    loss: Tensor,
    norm: Tensor,
    verdict: Tensor,
    stats: Sequence[MicroBatchStats],
    gradient: SquaredGradient,
    clock: StepClock,
) -> PendingStep:
    """A pending step with these values."""
    return PendingStep(torch.stack([loss, norm.to(loss), verdict.to(loss)]), stats, gradient, clock)


def known(
    loss: float,
    norm: float,
    skipped: bool,
    non_finite: Literal["loss", "gradient"] | None,
    stats: Sequence[MicroBatchStats] = (),
    clock: StepClock | None = None,
) -> PendingStep:
    """A pending step whose values the host already knows."""
    number = VERDICTS.index(_Verdict(skipped, non_finite))
    return PendingStep(torch.tensor([loss, norm, number], dtype=torch.float64), stats, clock=clock)


def finished(steps: Sequence[PendingStep]) -> list[StepResult]:
    """The results of steps, read in one transfer; only the last one has router metrics and part norms."""
    last = steps[-1]
    pieces, part_P = (torch.zeros(0), ()) if last.gradient is None else last.gradient
    figures = torch.stack([step.figures for step in steps])
    *rows, piece_P, metrics = _read([*figures, pieces, _router_figures(last.stats)])
    results = []
    for step, (loss, norm, number) in zip(steps, rows, strict=True):
        skipped, non_finite = VERDICTS[int(number)]
        seconds = {} if step.clock is None else step.clock.seconds()
        results.append(StepResult(loss, norm, None, skipped, non_finite, seconds=seconds))
    results[-1] = dataclasses.replace(results[-1], part_norms=part_norms(piece_P, part_P))
    if metrics:
        layers = _as_metrics(metrics, len(last.stats[0].count_LE))
        whole = dataclasses.replace(layers[-1], dead_experts=sum(layer.dead_experts for layer in layers[:-1]))
        results[-1] = dataclasses.replace(results[-1], router=whole, router_layers=layers[:-1])
    return results


def train_step(engine: Engine, micro_batches: Sequence[MicroBatch], lr: float) -> StepResult:
    """Run one optimizer step and return its result."""
    return finished([engine.begin_step(micro_batches, lr)])[0]


def _read(tensors: Sequence[Tensor]) -> list[list[float]]:
    sizes = [tensor.numel() for tensor in tensors]
    device = tensors[-1].device
    flat = torch.cat([tensor.to(device) for tensor in tensors]).tolist()
    ends = itertools.accumulate(sizes)
    return [flat[end - size : end] for end, size in zip(ends, sizes, strict=True)]


def _router_figures(stats: Sequence[MicroBatchStats]) -> Tensor:
    """[(L + 1) * (E + 7)] fp64: the fields of RouterMetrics of each layer, and their means; [0] without MoE layers.

    Each is over all accumulation steps of a step.
    """
    if not stats or stats[0].count_LE.numel() == 0:
        return stats[0].count_LE.flatten() if stats else torch.zeros(0)
    count_LE = torch.stack([s.count_LE for s in stats]).sum(dim=0)
    load_LE = count_LE / count_LE.sum(dim=1, keepdim=True)
    mean_L = load_LE.mean(dim=1)
    spread_L, peak_L = load_LE.std(dim=1, correction=0) / mean_L, load_LE.amax(dim=1) / mean_L
    dead_L = (count_LE == 0).sum(dim=1)

    def mean(name: str) -> Tensor:
        return torch.stack([getattr(s, name) for s in stats]).mean(dim=0)

    entropy_L, balance_L, z_L, margin_L = (mean(f"{name}_L") for name in ("entropy", "balance", "z", "margin"))
    columns = [spread_L, entropy_L, dead_L, balance_L, z_L, peak_L, margin_L]
    table_LC = torch.cat([load_LE, *(column_L.to(load_LE)[:, None] for column_L in columns)], dim=1)
    return torch.cat([table_LC, table_LC.mean(dim=0, keepdim=True)]).flatten()


def _as_metrics(figures: Sequence[float], layers: int) -> list[RouterMetrics]:
    """The metrics of each layer, then of all layers."""
    rows, size = [], len(figures) // (layers + 1)
    for first in range(0, len(figures), size):
        *load, spread, entropy, dead, balance, z, peak, margin = figures[first : first + size]
        rows.append(RouterMetrics(load, spread, entropy, int(dead), balance, z, peak, margin))
    return rows


@torch.no_grad()
def update(
    optimizer: torch.optim.Optimizer,
    norm: Tensor,
    verdict: Tensor,
    limit: float,
    scale: Tensor | None = None,
    step: Callable[[], object] | None = None,
) -> None:
    """Clip the gradients and step; if the verdict is to skip, change nothing.

    Args:
        optimizer: torch's fused AdamW or Muon; both skip if their `found_inf` is 1.
        norm: [] norm of the whole gradient, unscaled.
        verdict: [] index in VERDICTS.
        limit: largest norm; 0: no limit.
        scale: [] factor by which the gradients are still multiplied; None: not scaled.
        step: called to take the step; None: optimizer.step.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    gradients = [p.grad for p in parameters]
    factor = torch.where(norm > limit, limit / (norm + 1e-6), 1.0) if limit else torch.ones_like(norm)
    factor = factor if scale is None else factor / scale
    step = step or optimizer.step
    if reading_is_free(norm.device):
        if int(verdict):
            for parameter in parameters:
                parameter.grad = None  # parameters without a gradient are not changed
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
    place = device if device.type == "cuda" else torch.device("cpu")  # MPS has no fp64
    sums = torch.stack([one.to(place).double() for one in (nll, (target_BS != IGNORED).sum())])
    return world.all_reduce_sum(sums).cpu()
