"""Where each ZeRO stage keeps fp32 weights and AdamW's moments, behind one interface.

All methods but `read_here` are called by every rank of the run in the same order; `read` returns, and `write` takes, a
whole parameter (this rank's experts, if it is a stack of experts) in fp32.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from deepspeed.utils import (
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
)
from torch import Tensor, nn

from storyteller_ds.engines.deepspeed import private
from storyteller_ds.engines.deepspeed.private import WEIGHT
from storyteller_ds.optim.muon import Held, Stack, start_moments, whole_parameter, zero_partition


class ZeroState:
    """ZeRO-0: a torch optimizer over the model's own fp32 parameters."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer

    def prepare(self) -> None:
        """Make every moment readable; before the first step they are zero."""
        for group in self.optimizer.param_groups:
            for parameter in group["params"]:
                start_moments(self.optimizer, parameter)

    def read(self, parameter: nn.Parameter, kind: str) -> Tensor:
        """The whole fp32 value; `kind` is "weight" or the name of a moment."""
        value: Tensor = parameter if kind == WEIGHT else self.optimizer.state[parameter][kind]
        return value.detach()

    def holder(self, parameter: nn.Parameter) -> int | None:
        """The only rank that has the whole of a parameter's state; None if there is not exactly one such rank.

        Not for experts that are spread over ranks.
        """
        return None

    def read_here(self, parameter: nn.Parameter, kind: str) -> Tensor:
        """Like read, but without communication; only on the rank that holder names, and valid until the next step."""
        return self.read(parameter, kind)

    def write(self, parameter: nn.Parameter, kind: str, value: Tensor) -> None:
        """Replace the whole fp32 value."""
        self.read(parameter, kind).copy_(value)

    def finish(self, updates: int) -> None:
        """After the last write, set AdamW's step count and update the weights of the model."""
        _set_step(self.optimizer, updates)


def lay_out_muon(optimizer: Any, stage: int, stacks: Mapping[nn.Parameter, Stack], device: torch.device) -> None:
    """Tell Muon where its matrices are: whole under ZeRO-0, in flat partitions otherwise."""
    if stage == 0:
        optimizer.lay_out({p: whole_parameter(p, stack) for p, stack in stacks.items()})
        return
    if stage == 3:
        partitions = private.sub_group_partitions(optimizer)
    else:
        partitions = (
            (part.vector, [(p, private.fragment_of(p)) for p in part.parameters], part.ranks)
            for part in private.flat_partitions(optimizer)
        )
    optimizer.optimizer.lay_out(
        {
            vector: zero_partition(
                [Held(stacks[p], *fragment) for p, fragment in fragments], partial(_sum_over, ranks), device
            )
            for vector, fragments, ranks in partitions
            if fragments[0][0] in stacks
        }
    )


def _sum_over(group: dist.ProcessGroup, tensor: Tensor) -> Tensor:
    dist.all_reduce(tensor, group=group)
    return tensor


def zero_state(optimizer: Any, stage: int) -> ZeroState:
    """Access to the state of an engine's optimizer."""
    if stage == 0:
        return ZeroState(optimizer)
    return _OptimizerPartitions(optimizer) if stage < 3 else _AllPartitions(optimizer)


class _Partitions(ZeroState):
    """What ZeRO-1, 2 and 3 have in common."""

    def __init__(self, zero: Any) -> None:
        super().__init__(zero.optimizer)
        self.zero = zero

    def read(self, parameter: nn.Parameter, kind: str) -> Tensor:
        value: Tensor = (
            safe_get_full_fp32_param(parameter) if kind == WEIGHT else safe_get_full_optimizer_state(parameter, kind)
        )
        return value


class _OptimizerPartitions(_Partitions):
    """ZeRO-1 and 2: each rank holds a part of the flat fp32 weights and moments."""

    def __init__(self, zero: Any) -> None:
        super().__init__(zero)
        self._holders: dict[nn.Parameter, int | None] = {}

    def prepare(self) -> None:
        for part in private.flat_partitions(self.zero):
            start_moments(self.optimizer, part.vector)
        private.link_moments(self.zero)

    def holder(self, parameter: nn.Parameter) -> int | None:
        # A group's vector is cut into equal parts, so all but a few parameters lie within one of them.
        if not self._holders:
            parameters = [each for part in private.flat_partitions(self.zero) for each in part.parameters]
            number = dist.get_rank() + 1
            is_here = [private.fragment_of(each).numel == each.numel() for each in parameters]
            found = torch.tensor([number * here for here in is_here], device=parameter.device)
            dist.all_reduce(found)
            self._holders = {
                each: rank - 1 if rank else None for each, rank in zip(parameters, found.tolist(), strict=True)
            }
        return self._holders[parameter]

    def read_here(self, parameter: nn.Parameter, kind: str) -> Tensor:
        return private.read_fragment(parameter, kind).reshape(parameter.shape)

    def write(self, parameter: nn.Parameter, kind: str, value: Tensor) -> None:
        if kind == WEIGHT:
            safe_set_full_fp32_param(parameter, value)
        else:
            safe_set_full_optimizer_state(parameter, value, kind)

    def finish(self, updates: int) -> None:
        _set_step(self.optimizer, updates)
        private.update_weights(self.zero)


class _AllPartitions(_Partitions):
    """ZeRO-3: each rank holds a part of everything, including the model's own weights; some of it may be on NVMe."""

    def prepare(self) -> None:
        for number, flat in enumerate(private.sub_groups(self.zero)):
            if "exp_avg" not in self.optimizer.state[flat]:
                with private.in_memory(self.zero, number, changed=True):
                    start_moments(self.optimizer, flat)

    def write(self, parameter: nn.Parameter, kind: str, value: Tensor) -> None:
        private.write_partition(self.zero, parameter, kind, value)

    def finish(self, updates: int) -> None:
        _set_step(self.optimizer, updates)
        private.update_partitioned_weights(self.zero)


def _set_step(optimizer: torch.optim.Optimizer, step: int) -> None:
    for state in optimizer.state.values():
        if "step" in state:
            state["step"] = torch.full_like(state["step"], float(step))
