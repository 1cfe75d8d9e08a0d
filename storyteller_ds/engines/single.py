"""One process, one device: CUDA, MPS or CPU. No DeepSpeed."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from storyteller_ds.config.run import RunConfig
from storyteller_ds.data.batches import MicroBatch
from storyteller_ds.distributed.world import World
from storyteller_ds.engines import step as steps
from storyteller_ds.engines.base import STATE_BYTES, LossScale, Owner, StateTensor, StepResult
from storyteller_ds.engines.precision import autocast, run_dtype
from storyteller_ds.model.canonical import placed_parameters
from storyteller_ds.model.decoder import Decoder
from storyteller_ds.model.init import init_parameters
from storyteller_ds.model.loss import LossModule
from storyteller_ds.optim.muon import Muon, whole_parameter
from storyteller_ds.optim.optimizer import (
    build_optimizer,
    muon_stacks,
    parameter_groups,
    set_learning_rate,
    state_kinds,
)


class SingleEngine:
    """See Engine. Weights stay fp32; bf16 and fp16 are autocast around the forward pass."""

    def __init__(self, run: RunConfig, world: World, device: torch.device) -> None:
        self.run, self.world, self.device = run, world, device
        self.passed_config: dict[str, Any] | None = None
        self.decoder = Decoder(run)
        init_parameters(self.decoder, run.model, run.seed)
        self.decoder.to(device)
        self.loss_module = LossModule(self.decoder, run.moe, world.all_reduce_sum, world.size)
        self.loss_module.train()
        self.stacks = muon_stacks(self.decoder, run)
        dtype = run_dtype(run, device)
        groups = parameter_groups(self.decoder, run.optimizer, self.stacks)
        self.optimizer = build_optimizer(groups, run.optimizer, dtype)
        if isinstance(self.optimizer, Muon):
            self.optimizer.lay_out({p: whole_parameter(p, stack) for p, stack in self.stacks.items()})
        self.autocast = autocast(device, dtype)
        # The same start and growth as in ds_configs/zero2_fp16.json.
        self.scaler = torch.amp.GradScaler(
            device.type, init_scale=2.0**16, growth_interval=1000, enabled=dtype == torch.float16
        )

    def train_step(self, micro_batches: Sequence[MicroBatch], lr: float) -> StepResult:
        """One optimizer step over the whole global batch."""
        targets = steps.count_targets(self.world, micro_batches, self.device)
        stats = []
        for batch in micro_batches:
            with self.autocast:
                token_BS, target_BS, position_BS = batch.to(self.device)
                loss_share, one = self.loss_module(token_BS, target_BS, targets, len(micro_batches), position_BS)
            self.scaler.scale(loss_share).backward()
            stats.append(one)
        self.scaler.unscale_(self.optimizer)
        grad_norm = steps.clip_gradients(self.decoder, self.run.optimizer.grad_clip_norm)
        loss, scale = steps.mean_loss(stats, targets), self.scaler.get_scale()
        skipped = not math.isfinite(loss) or not math.isfinite(grad_norm)
        lower = self.scaler.is_enabled() and scale > steps.LOWEST_LOSS_SCALE
        non_finite = steps.cause_of_skip(loss, lower) if skipped else None
        if not skipped:
            set_learning_rate(self.optimizer, lr)
            self.scaler.step(self.optimizer)
        # The scale is not at fault where the loss itself is not finite; given one, the scaler keeps its count too.
        self.scaler.update(scale if non_finite and self.scaler.is_enabled() else None)
        self.optimizer.zero_grad(set_to_none=True)
        return StepResult(loss, grad_norm, steps.router_metrics(stats), skipped, non_finite)

    @property
    def loss_scale(self) -> LossScale | None:
        """See Engine."""
        if not self.scaler.is_enabled():
            return None
        return LossScale(self.scaler.get_scale(), self.scaler._get_growth_tracker())

    def eval_step(self, batch: MicroBatch) -> Tensor:
        """[2] fp64: sum of nll (nats) and number of targets."""
        with self.autocast:
            return steps.evaluate_batch(self.world, self.loss_module, batch, self.device)

    def named_state(self, owner: Owner | None = None) -> Iterator[StateTensor]:
        """Weights and moments, one tensor at a time."""
        for name, parameter, *_ in placed_parameters(self.decoder):
            state = self.optimizer.state[parameter]
            for kind in state_kinds(parameter, self.stacks):
                # Before the first step AdamW has no moments yet; they start at zero.
                value = parameter if kind == "weight" else state.get(kind, torch.zeros_like(parameter))
                if owner is None or owner(STATE_BYTES * parameter.numel(), None) == self.world.rank:
                    yield StateTensor(kind, name, value.detach().float().cpu())

    @torch.no_grad()
    def load_named_state(self, read: Callable[[str, str], Tensor], updates: int, loss_scale: LossScale | None) -> None:
        """Replace all weights and moments, and the loss scale."""
        for name, parameter, *_ in placed_parameters(self.decoder):
            parameter.copy_(read("weight", name))
            self.optimizer.state[parameter] = {
                "step": torch.tensor(float(updates), device="cpu" if parameter in self.stacks else self.device),
                **{kind: read(kind, name).to(self.device) for kind in state_kinds(parameter, self.stacks)[1:]},
            }
        if loss_scale is not None and self.scaler.is_enabled():
            self.scaler.load_state_dict(
                {
                    **self.scaler.state_dict(),
                    "scale": loss_scale.scale,
                    "_growth_tracker": loss_scale.good_steps,
                }
            )

    def close(self) -> None:
        """Nothing outlives this engine."""
