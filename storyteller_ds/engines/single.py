"""One process, one device: CUDA, MPS or CPU. No DeepSpeed."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from storyteller_ds.config.run import RunConfig
from storyteller_ds.data.batching.micro_batch import MicroBatch
from storyteller_ds.distributed.world import World
from storyteller_ds.engines import step as steps
from storyteller_ds.engines.base import STATE_BYTES, LossScale, Owner, PendingStep, StateTensor
from storyteller_ds.engines.compiling import compiles
from storyteller_ds.engines.gradient_norm import squared_gradient
from storyteller_ds.engines.loss_scaling import LossScaling
from storyteller_ds.engines.precision import run_dtype
from storyteller_ds.engines.step_clock import StepClock
from storyteller_ds.model.canonical import placed_parameters
from storyteller_ds.model.decoder import Decoder
from storyteller_ds.model.init import init_parameters
from storyteller_ds.model.loss import LossModule
from storyteller_ds.optim.muon import Muon, whole_parameter
from storyteller_ds.optim.optimizer import (
    build_optimizer,
    muon_stacks,
    parameter_groups,
    set_step,
    state_kinds,
)


class SingleEngine:
    """See Engine; weights stay fp32 and are cast where they are used (docs/precision.md)."""

    def __init__(self, run: RunConfig, world: World, device: torch.device) -> None:
        self.run, self.world, self.device = run, world, device
        self.passed_config: dict[str, Any] | None = None
        self.decoder = Decoder(run)
        init_parameters(self.decoder, run.model, run.seed)
        self.decoder.to(device)
        if compiles(run, device, "local"):
            self.decoder.run_block.compile(is_needed=run.train.compile == "on")
        self.loss_module = LossModule(self.decoder, run.moe, world.all_reduce_sum, world.size)
        self.loss_module.train()
        self.stacks = muon_stacks(self.decoder, run)
        dtype = self.decoder.dtype = run_dtype(run, device)
        groups = parameter_groups(self.decoder, run.optimizer, self.stacks)
        self.optimizer = build_optimizer(groups, run.optimizer, dtype)
        if isinstance(self.optimizer, Muon):
            self.optimizer.lay_out({p: whole_parameter(p, stack) for p, stack in self.stacks.items()})
        self.steps = 0
        self.scaling = LossScaling(device) if dtype == torch.float16 else None

    def begin_step(self, micro_batches: Sequence[MicroBatch], lr: float) -> PendingStep:
        """One optimizer step over the whole global batch."""
        clock = StepClock(self.device)
        targets = steps.count_targets(self.world, micro_batches, self.device)
        scale = self.scaling.scale if self.scaling else None
        stats = []
        for batch in micro_batches:
            token_BS, target_BS, position_BS = batch.to(self.device)
            loss_share, one = self.loss_module(token_BS, target_BS, targets, len(micro_batches), position_BS)
            clock.ended("forward")
            (loss_share if scale is None else loss_share * scale).backward()
            clock.ended("backward")
            stats.append(one)
        gradient = squared_gradient(self.decoder.named_parameters())
        loss, norm = steps.mean_loss(stats, targets), gradient.norm()
        if scale is not None:
            norm, gradient = norm / scale, gradient._replace(piece_P=gradient.piece_P / scale.square())
        verdict = steps.verdict(loss, norm, scale)
        self.steps += 1
        set_step(self.optimizer, lr, self.steps)
        steps.update(self.optimizer, norm, verdict, self.run.optimizer.grad_clip_norm, scale)
        if self.scaling:
            self.scaling.after(verdict)
        self.optimizer.zero_grad(set_to_none=True)
        clock.ended("optimizer")
        return steps.pending(loss, norm, verdict, stats, gradient, clock)

    @property
    def loss_scale(self) -> LossScale | None:
        """See Engine."""
        return self.scaling.read() if self.scaling else None

    def eval_step(self, batch: MicroBatch) -> Tensor:
        """[2] fp64: sum of nll (nats) and number of targets."""
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
    def load_named_state(
        self, read: Callable[[str, str], Tensor], steps: int, updates: int, loss_scale: LossScale | None
    ) -> None:
        """Replace all weights and moments, and the loss scale."""
        self.steps = steps
        for name, parameter, *_ in placed_parameters(self.decoder):
            parameter.copy_(read("weight", name))
            state = {kind: read(kind, name).to(self.device) for kind in state_kinds(parameter, self.stacks)[1:]}
            if parameter not in self.stacks:
                state["step"] = torch.tensor(float(updates), device=self.device)
            self.optimizer.state[parameter] = state
        if loss_scale is not None and self.scaling:
            self.scaling.put_back(loss_scale)

    def close(self) -> None:
        """Nothing outlives this engine."""
