"""Training through DeepSpeed: every ZeRO stage, with and without expert parallelism."""

import contextlib
import io
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from storyteller_ds.config.run import RunConfig
from storyteller_ds.data.batching.micro_batch import MicroBatch
from storyteller_ds.distributed.plan import ParallelPlan
from storyteller_ds.distributed.world import World
from storyteller_ds.engines import step as steps
from storyteller_ds.engines.base import STATE_BYTES, LossScale, Owner, PendingStep, StateTensor
from storyteller_ds.engines.compiling import compiles
from storyteller_ds.engines.deepspeed import private
from storyteller_ds.engines.deepspeed.autoep import AutoEPMoE, autoep_layers
from storyteller_ds.engines.deepspeed.config import as_user_error, import_deepspeed, passed_json
from storyteller_ds.engines.deepspeed.nvme.settings import swaps_weights, with_nvme_settings
from storyteller_ds.engines.gradient_norm import SquaredGradient, squared_gradient
from storyteller_ds.engines.precision import check_same_dtype, held_dtype, run_dtype
from storyteller_ds.engines.step_clock import StepClock
from storyteller_ds.model.canonical import full_shape, is_expert, join_pieces, pieces_by_name, placed_parameters
from storyteller_ds.model.decoder import Decoder, MoEFactory
from storyteller_ds.model.init import init_parameters
from storyteller_ds.model.loss import LossModule
from storyteller_ds.model.moe.local import LocalMoE
from storyteller_ds.optim.optimizer import (
    build_optimizer,
    muon_stacks,
    parameter_groups,
    set_step,
    state_kinds,
)


class DeepSpeedEngine:
    """See Engine; needs a process group (World.connected), even for one rank.

    Args:
        run: the run config.
        ds_config: the DeepSpeed JSON as the user wrote it.
        plan: shares of the batch and of the experts.
        world: this process among the ranks.
        device: where this rank's tensors live.

    Raises:
        ConfigError: deepspeed is not installed, or refuses the JSON; or the ranks' cards need different formats.
    """

    def __init__(
        self,
        run: RunConfig,
        ds_config: Mapping[str, Any],
        plan: ParallelPlan,
        world: World,
        device: torch.device,
    ) -> None:
        check_same_dtype(run, device, world)
        self.run, self.world, self.device, self.plan = run, world, device, plan
        self.stage, self.steps = run.parallel.zero_stage or 0, 0
        self.passed_config: dict[str, Any] | None = passed_json(run, ds_config, plan, device)
        dtype = held_dtype(run, device)
        deepspeed = _start_deepspeed(device, dtype)
        self._leave_process_group = deepspeed.comm.destroy_process_group
        from storyteller_ds.engines.deepspeed.zero_state import lay_out_muon, zero_state

        # DeepSpeed's expert groups are runs of consecutive ranks.
        self.first_expert = world.rank % plan.ep_size * run.moe.num_experts // plan.ep_size
        self.decoder = Decoder(run, _moe_layers(plan))
        self.decoder.dtype = run_dtype(run, device)
        if compiles(run, device, plan.strategy):
            self.decoder.run_block.compile(is_needed=run.train.compile == "on")
        # AutoEP itself takes this rank's share of all experts.
        init_parameters(self.decoder, run.model, run.seed, 0 if plan.strategy == "autoep" else self.first_expert)
        self.loss_module = LossModule(self.decoder, run.moe, world.all_reduce_sum, world.size)
        groups = parameter_groups(self.decoder, run.optimizer, muon_stacks(self.decoder, run))
        if plan.strategy in ("expert_parallel", "stock"):
            groups = deepspeed.moe.utils.split_params_into_different_moe_groups_for_optimizer(groups)
        self.passed_config = with_nvme_settings(self.passed_config, max(p.numel() for p in self.decoder.parameters()))
        is_autoep = plan.strategy == "autoep"
        replaced = autoep_layers(self.loss_module, run.moe) if is_autoep else contextlib.nullcontext()
        # DeepSpeed prints lines about its groups; errors are raised.
        with as_user_error(), contextlib.redirect_stdout(io.StringIO()), replaced:
            if swaps_weights(self.passed_config):
                # Left to initialize(), DeepSpeed 0.19.8 mistakes fp32 weights on NVMe for bf16.
                deepspeed.zero.Init(module=self.loss_module, config_dict_or_path=self.passed_config)
            self.engine, self.optimizer, _, _ = deepspeed.initialize(
                model=self.loss_module,
                optimizer=build_optimizer(groups, run.optimizer, run_dtype(run, device)),
                config=self.passed_config,
                dist_init_required=False,
            )
        self.stacks = muon_stacks(self.decoder, run)  # AutoEP has replaced the experts' parameters
        if self.stacks:
            lay_out_muon(self.optimizer, self.stage, self.stacks, device)
        self.state = zero_state(self.optimizer, self.stage)
        if self.stage:
            private.prepare_skipping(self.optimizer, self.stage)
        self.expert_group = private.expert_group(plan.ep_size)

    def begin_step(self, micro_batches: Sequence[MicroBatch], lr: float) -> PendingStep:
        """One optimizer step over this rank's part of the global batch."""
        self.engine.train()
        clock = StepClock(self.device)
        targets = steps.count_targets(self.world, micro_batches, self.device)
        self.steps += 1
        set_step(self.optimizer, lr, self.steps)
        stats = []
        for number, batch in enumerate(micro_batches, start=1):
            token_BS, target_BS, position_BS = batch.to(self.device)
            loss_share, one = self.engine(token_BS, target_BS, targets, len(micro_batches), position_BS)
            clock.ended("forward")
            # DeepSpeed takes the mean over ranks and accumulation steps, but our loss shares must be summed.
            self.engine.backward(loss_share * (self.world.size * len(micro_batches)))
            clock.ended("backward")
            stats.append(one)
            if number < len(micro_batches):
                self.engine.step()  # counts the accumulation step
        loss = steps.mean_loss(stats, targets)
        if self.stage == 0:
            norm, gradient = self._gradient_norm()
            verdict = steps.verdict(loss, norm)
            limit = self.run.optimizer.grad_clip_norm
            steps.update(self.optimizer, norm, verdict, limit, step=self.engine.step)
            clock.ended("optimizer")
            return steps.pending(loss, norm, verdict, stats, gradient, clock)
        # DeepSpeed waits for the device at every step, because it reads the norm on the host.
        skipped, non_finite = self._finite_step(bool(loss.isfinite()))
        clock.ended("optimizer")
        return steps.known(float(loss), float(self.engine.get_global_grad_norm()), skipped, non_finite, stats, clock)

    def _finite_step(self, is_loss_finite: bool) -> tuple[bool, Literal["loss", "gradient"] | None]:
        """Take DeepSpeed's step (ZeRO-1, 2, 3), unless the loss or the gradient is not finite, in any number format.

        This checks the norm that DeepSpeed computes anyway at every step, and makes it infinite if the loss is not
        finite (private.guarded_norm). It adds no communication and no pass over the gradients: the loss was summed over
        ranks with the router's counts, and the norm by DeepSpeed, so all ranks see the same values.

        Returns:
            Whether the step was skipped; and what was not finite, unless a lower loss scale fixes it.
        """
        can_fall = private.scale_can_fall(self.optimizer)
        set_scale_back = private.remember_loss_scale(self.optimizer)
        with private.guarded_norm(self.optimizer, self.stage, is_loss_finite):
            self.engine.step()
        if self.engine.was_step_applied():
            return False, None
        if is_loss_finite and can_fall:
            return True, None
        set_scale_back()  # the scale is not at fault
        return True, "gradient" if is_loss_finite else "loss"

    def eval_step(self, batch: MicroBatch) -> Tensor:
        """[2] fp64: sum of nll (nats) and number of targets, over all ranks."""
        return steps.evaluate_batch(self.world, self.loss_module, batch, self.device)

    @property
    def loss_scale(self) -> LossScale | None:
        """See Engine."""
        if not self.engine.fp16_enabled():
            return None
        return LossScale(*private.loss_scale(self.optimizer))

    def named_state(self, owner: Owner | None = None) -> Iterator[StateTensor]:
        """Weights and moments, one whole tensor at a time, gathered if no rank has all of it."""
        self.state.prepare()
        for name, pieces in pieces_by_name(placed_parameters(self.decoder, self.first_expert)).items():
            is_spread = is_expert(name) and self.plan.ep_size > 1
            elements = sum(full_shape(piece.parameter).numel() for piece in pieces)
            size = STATE_BYTES * elements * (self.plan.ep_size if is_spread else 1)
            is_whole = len(pieces) == 1 and not is_spread
            holder = self.state.holder(pieces[0].parameter) if owner is not None and is_whole else None
            for kind in state_kinds(pieces[0].parameter, self.stacks):
                rank = None if owner is None else owner(size, holder)
                if rank is not None and rank == holder:
                    value = self.state.read_here(pieces[0].parameter, kind) if rank == self.world.rank else None
                else:
                    value = join_pieces((piece, self.state.read(piece.parameter, kind)) for piece in pieces)
                    value = self._gather_experts(value, rank) if is_spread else value
                if value is not None and rank in (None, self.world.rank):
                    yield StateTensor(kind, name, value.detach().float().cpu())

    def _gather_experts(self, mine: Tensor, rank: int | None) -> Tensor | None:
        """Gather the stack of all experts on one rank, or on all of them (None); `mine` are this rank's experts."""
        ranks = dist.get_process_group_ranks(self.expert_group)
        if rank not in (None, *ranks):
            return None  # other ranks have the same experts
        stack = mine.new_empty(len(ranks) * mine.shape[0], *mine.shape[1:])
        shares = list(stack.chunk(len(ranks)))
        if rank is None:
            dist.all_gather(shares, mine.contiguous(), group=self.expert_group)
        else:
            dist.gather(mine.contiguous(), shares if rank == self.world.rank else None, rank, self.expert_group)
        return stack

    @torch.no_grad()
    def load_named_state(
        self, read: Callable[[str, str], Tensor], steps: int, updates: int, loss_scale: LossScale | None
    ) -> None:
        """Replace all weights and moments; a rank keeps its own experts and its ZeRO partition."""
        self.steps = steps
        self.state.prepare()
        for piece in placed_parameters(self.decoder, self.first_expert):
            for kind in state_kinds(piece.parameter, self.stacks):
                value = piece.slice_of(read(kind, piece.name))
                self.state.write(piece.parameter, kind, value.contiguous().to(self.device))
        self.state.finish(updates)
        if loss_scale is not None and self.engine.fp16_enabled():
            private.set_loss_scale(self.optimizer, *loss_scale)

    def close(self) -> None:
        """Leave the process group; DeepSpeed's globals hold groups made from it, which the next one could not use."""
        self._leave_process_group()

    def _gradient_norm(self) -> tuple[Tensor, SquaredGradient]:
        """[] gradient norm over all ranks' experts (for ZeRO-0, where DeepSpeed averages it), and the squares in it."""
        expert: list[tuple[str, nn.Parameter]] = []
        shared: list[tuple[str, nn.Parameter]] = []
        for piece in placed_parameters(self.decoder):
            (expert if is_expert(piece.name) else shared).append((piece.name, piece.parameter))
        others = squared_gradient(shared)
        if not expert:
            return others.norm(), others
        squares = squared_gradient(expert).piece_P.sum()
        if self.plan.ep_size > 1:
            dist.all_reduce(squares, group=self.expert_group)
        pieces = torch.cat([squares.to(others.piece_P).reshape(1), others.piece_P])
        return (squares + others.piece_P.sum()).sqrt(), SquaredGradient(pieces, ("experts", *others.part_P))


def _moe_layers(plan: ParallelPlan) -> MoEFactory:
    """The factory for the MoE layers of a strategy."""
    if plan.strategy == "expert_parallel":
        from storyteller_ds.engines.deepspeed.expert_parallel import ExpertParallelMoE

        return partial(ExpertParallelMoE, ep_size=plan.ep_size)
    if plan.strategy == "stock":
        from storyteller_ds.engines.deepspeed.stock import StockMoE

        return partial(StockMoE, ep_size=plan.ep_size)
    return AutoEPMoE if plan.strategy == "autoep" else LocalMoE


def _start_deepspeed(device: torch.device, dtype: torch.dtype) -> Any:
    """Start DeepSpeed on the existing process group; on a CPU it compiles nothing."""
    deepspeed = import_deepspeed(device)
    # torch 2.13 warns once per rank about calls inside DeepSpeed 0.19.8; users can do nothing about it.
    warnings.filterwarnings(
        "ignore", message=".*(all_gather_into|reduce_scatter)_tensor. is deprecated", category=FutureWarning
    )
    if device.type == "cpu":
        private.use_no_compiled_collectives()
        if dtype == torch.float16:
            private.allow_fp16_on_cpu()
    deepspeed.init_distributed(dist_backend=dist.get_backend(), verbose=False)
    return deepspeed
