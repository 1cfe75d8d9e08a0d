"""Training through DeepSpeed: ZeRO stages 1 and 2, with expert parallelism."""

import contextlib
import io
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from pydantic import ValidationError
from torch import Tensor

from storyteller_ds.config.deepspeed import engine_config
from storyteller_ds.config.run import RunConfig
from storyteller_ds.data.batches import MicroBatch
from storyteller_ds.errors import ConfigError
from storyteller_ds.model.decoder import Decoder
from storyteller_ds.model.init import init_parameters
from storyteller_ds.model.layout import placed_parameters
from storyteller_ds.model.objective import Objective
from storyteller_ds.parallel import step as steps
from storyteller_ds.parallel.engine import STATE_KINDS, StateTensor, StepResult
from storyteller_ds.parallel.optimizer import build_optimizer, parameter_groups
from storyteller_ds.parallel.plan import ParallelPlan
from storyteller_ds.parallel.world import World


class DeepSpeedEngine:
    """See Engine. Needs a process group (World.connected), also for one rank.

    Args:
        run: the run config.
        ds_config: the DeepSpeed JSON as the user wrote it.
        plan: shares of the batch and of the experts.
        world: this process among the ranks.
        device: where this rank's tensors live.

    Raises:
        ConfigError: deepspeed is not installed, or refuses the JSON.
    """

    def __init__(
        self,
        run: RunConfig,
        ds_config: Mapping[str, Any],
        plan: ParallelPlan,
        world: World,
        device: torch.device,
    ) -> None:
        self.run, self.world, self.device, self.plan = run, world, device, plan
        dtype = steps.run_dtype(run.precision.dtype, device)
        self.passed_config: dict[str, Any] | None = engine_config(
            ds_config,
            run,
            micro_batch_size=plan.micro_batch_size,
            accumulation_steps=plan.accumulation_steps,
            bf16=dtype == torch.bfloat16,
        )
        deepspeed = _import_deepspeed(device)
        from storyteller_ds.parallel.expert_parallel import ExpertParallelMoE

        # DeepSpeed's expert groups are runs of consecutive ranks.
        ep_rank = world.rank % plan.ep_size
        self.first_expert = ep_rank * run.moe.num_experts // plan.ep_size
        self.decoder = Decoder(run, partial(ExpertParallelMoE, ep_size=plan.ep_size))
        init_parameters(self.decoder, run.model, run.seed, self.first_expert)
        self.objective = Objective(self.decoder, run.moe, world.all_reduce_sum, world.size)
        groups = deepspeed.moe.utils.split_params_into_different_moe_groups_for_optimizer(
            parameter_groups(self.decoder, run.optimizer)
        )
        with _as_user_error(), contextlib.redirect_stdout(io.StringIO()):
            # Silenced because DeepSpeed prints about its groups; errors still come as exceptions.
            self.engine, self.optimizer, _, _ = deepspeed.initialize(
                model=self.objective,
                optimizer=build_optimizer(groups, run.optimizer),
                config=self.passed_config,
                dist_init_required=False,
            )
        self.ep_group = deepspeed.utils.groups._get_expert_parallel_group_dict().get(f"ep_size_{plan.ep_size}")

    def train_step(self, micro_batches: Sequence[MicroBatch], lr: float) -> StepResult:
        """One optimizer step over this rank's part of the global batch."""
        self.engine.train()
        targets = steps.count_targets(self.world, micro_batches, self.device)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        stats = []
        for batch in micro_batches:
            share, one = self.engine(
                batch.token_BS.to(self.device), batch.target_BS.to(self.device), targets, len(micro_batches)
            )
            # DeepSpeed takes the mean over ranks and micro-steps; our shares are to be added up.
            self.engine.backward(share * (self.world.size * len(micro_batches)))
            self.engine.step()
            stats.append(one)
        grad_norm = float(self.engine.get_global_grad_norm())
        return StepResult(steps.mean_loss(stats, targets), grad_norm, steps.router_metrics(stats))

    def eval_step(self, batch: MicroBatch) -> Tensor:
        """[2] fp64: sum of nll (nats) and number of targets, over all ranks."""
        return steps.evaluate_batch(self.world, self.objective, batch, self.device)

    def named_state(self) -> Iterator[StateTensor]:
        """Weights and moments, one whole tensor at a time; every rank gathers each."""
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        self._link_optimizer_state()
        for name, parameter, first_expert in placed_parameters(self.decoder, self.first_expert):
            for kind in STATE_KINDS:
                if kind == "weight":
                    value = safe_get_full_fp32_param(parameter)
                else:
                    value = safe_get_full_optimizer_state(parameter, kind)
                if first_expert is not None and self.plan.ep_size > 1:
                    shares = [torch.empty_like(value) for _ in range(self.plan.ep_size)]
                    dist.all_gather(shares, value.contiguous(), group=self.ep_group)
                    value = torch.cat(shares)
                yield StateTensor(kind, name, value.detach().float().cpu())

    @torch.no_grad()
    def load_named_state(self, read: Callable[[str, str], Tensor], step: int) -> None:
        """Replace all weights and moments; a rank keeps its own experts and its ZeRO partition."""
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

        self._link_optimizer_state()
        for name, parameter, first_expert in placed_parameters(self.decoder, self.first_expert):
            for kind in STATE_KINDS:
                value = read(kind, name)
                if first_expert is not None:
                    value = value[first_expert : first_expert + parameter.shape[0]]
                value = value.to(self.device)
                if kind == "weight":
                    safe_set_full_fp32_param(parameter, value)
                else:
                    safe_set_full_optimizer_state(parameter, value, kind)
        for state in self.optimizer.optimizer.state.values():
            state["step"] = torch.tensor(float(step), device=self.device)
        self.optimizer.update_lp_params()

    def _link_optimizer_state(self) -> None:
        """Make AdamW's state of every parameter reachable.

        DeepSpeed links fp32 state to parameters once, after the first group's first step, and so misses
        the other groups, or all of them before any step. Create what is missing and link again.
        """
        zero = self.optimizer
        for flat in zero.single_partition_of_fp32_groups:
            state = zero.optimizer.state[flat]
            if "exp_avg" not in state:
                state["step"] = torch.tensor(0.0, device=flat.device)
                state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(flat), torch.zeros_like(flat)
        zero._hp_optimizer_states_linked = False
        zero._lazy_init_hp_params_optimizer_state()


def _import_deepspeed(device: torch.device) -> Any:
    """DeepSpeed, told not to compile anything on a CPU and to keep quiet on a healthy run."""
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if device.type == "cuda" else "cpu")
    try:
        import deepspeed
        import deepspeed.moe.utils
        from deepspeed.utils import logger
    except ImportError as error:
        raise ConfigError(
            f"a DeepSpeed config was given, but deepspeed cannot be imported ({error}); "
            'install it with pip install "storyteller_ds[deepspeed]", or train without --ds_config'
        ) from None
    logger.setLevel(logging.ERROR)
    # Said once per rank by torch 2.13 about a call inside DeepSpeed 0.19.8; nothing a user can act on.
    warnings.filterwarnings("ignore", message=".*all_gather_into_tensor. is deprecated", category=FutureWarning)
    if device.type == "cpu":
        # Its shared-memory collectives would be compiled for a minute at the first start; gloo does.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend=dist.get_backend(), verbose=False)
    return deepspeed


@contextlib.contextmanager
def _as_user_error() -> Iterator[None]:
    """DeepSpeed's complaints about its config as one line."""
    try:
        yield
    except ValidationError as error:
        problem = error.errors()[0]
        field = ".".join(str(part) for part in problem["loc"])
        raise ConfigError(f"DeepSpeed refuses '{field}' in its JSON: {problem['msg']}; mend it there") from None
