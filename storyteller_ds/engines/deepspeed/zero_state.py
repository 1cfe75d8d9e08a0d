"""Where each ZeRO stage keeps fp32 weights and AdamW's moments, behind one interface.

All methods are called by every rank of the run in the same order; `read` gives, and `write` takes, the whole
of a parameter (of this rank's experts, where it is a stack of experts), as fp32.
"""

import contextlib
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, Protocol

import torch
import torch.distributed as dist
from deepspeed.utils import (
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
)
from torch import Tensor, nn

from storyteller_ds.optim.muon import Stack, whole_parameter, zero_partition
from storyteller_ds.optim.optimizer import start_moments

WEIGHT = "weight"


class ZeroState(Protocol):
    """Access to the training state of one engine."""

    def prepare(self) -> None:
        """Make every moment reachable; those of before the first step are zero."""

    def read(self, parameter: nn.Parameter, kind: str) -> Tensor:
        """The whole fp32 value; `kind` is "weight" or the name of a moment."""

    def holder(self, parameter: nn.Parameter) -> int | None:
        """The one rank that has the whole of a parameter's state at hand; None if that is no single rank.

        Not for experts that are spread over ranks.
        """

    def read_here(self, parameter: nn.Parameter, kind: str) -> Tensor:
        """What read gives, without a message; only on the rank that holder names, and only until the next step."""

    def write(self, parameter: nn.Parameter, kind: str, value: Tensor) -> None:
        """Replace it."""

    def finish(self, updates: int) -> None:
        """After the last write: set AdamW's step count and bring the weights of the model up to date."""


def lay_out_muon(optimizer: Any, stage: int, stacks: Mapping[nn.Parameter, Stack], device: torch.device) -> None:
    """Tell Muon where its matrices are: whole under ZeRO-0, in flat partitions under ZeRO-1 and 2."""
    if stage == 0:
        optimizer.lay_out({p: whole_parameter(p, stack) for p, stack in stacks.items()})
        return
    vectors = zip(
        optimizer.single_partition_of_fp32_groups,
        optimizer.bit16_groups,
        optimizer.real_dp_process_group,
        strict=True,
    )
    optimizer.optimizer.lay_out(
        {
            vector: zero_partition([(p, stacks[p]) for p in parameters], partial(_sum_over, group), device)
            for vector, parameters, group in vectors
            if parameters[0] in stacks
        }
    )


def _sum_over(group: dist.ProcessGroup, tensor: Tensor) -> Tensor:
    dist.all_reduce(tensor, group=group)
    return tensor


def zero_state(optimizer: Any, stage: int) -> ZeroState:
    """The access for an engine's optimizer."""
    if stage == 0:
        return _Whole(optimizer)
    return _OptimizerPartitions(optimizer) if stage < 3 else _AllPartitions(optimizer)


class _Whole:
    """ZeRO-0: a torch optimizer over the model's own fp32 parameters."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer

    def prepare(self) -> None:
        for group in self.optimizer.param_groups:
            for parameter in group["params"]:
                start_moments(self.optimizer, parameter)

    def read(self, parameter: nn.Parameter, kind: str) -> Tensor:
        value: Tensor = parameter if kind == WEIGHT else self.optimizer.state[parameter][kind]
        return value.detach()

    def holder(self, parameter: nn.Parameter) -> None:
        """All ranks have all of it."""

    read_here = read

    def write(self, parameter: nn.Parameter, kind: str, value: Tensor) -> None:
        self.read(parameter, kind).copy_(value)

    def finish(self, updates: int) -> None:
        _set_step(self.optimizer, updates)


class _OptimizerPartitions:
    """ZeRO-1 and 2: each rank holds a part of the flat fp32 weights and moments."""

    def __init__(self, zero: Any) -> None:
        self.zero = zero
        self._holders: dict[nn.Parameter, int | None] = {}

    def prepare(self) -> None:
        # DeepSpeed links fp32 state to parameters once, after the first group's first step, and so misses
        # the other groups, or all of them before any step. Create what is missing and link again.
        for flat in self.zero.single_partition_of_fp32_groups:
            start_moments(self.zero.optimizer, flat)
        self.zero._hp_optimizer_states_linked = False
        self.zero._lazy_init_hp_params_optimizer_state()

    def read(self, parameter: nn.Parameter, kind: str) -> Tensor:
        value: Tensor = (
            safe_get_full_fp32_param(parameter) if kind == WEIGHT else safe_get_full_optimizer_state(parameter, kind)
        )
        return value

    def holder(self, parameter: nn.Parameter) -> int | None:
        # The vectors of a group are cut into equal parts, so all but a few parameters lie within one of them.
        if not self._holders:
            parameters = [parameter for group in self.zero.bit16_groups for parameter in group]
            number = dist.get_rank() + 1
            found = torch.tensor([number * self._is_here(each) for each in parameters], device=parameter.device)
            dist.all_reduce(found)
            self._holders = {
                each: rank - 1 if rank else None for each, rank in zip(parameters, found.tolist(), strict=True)
            }
        return self._holders[parameter]

    def _is_here(self, parameter: Any) -> bool:
        fragment = parameter._hp_mapping
        return fragment is not None and fragment.lp_fragment_address.numel == parameter.numel()

    def read_here(self, parameter: nn.Parameter, kind: str) -> Tensor:
        fragment: Any = parameter._hp_mapping  # type: ignore[attr-defined]
        value: Tensor = fragment.get_hp_fragment(None if kind == WEIGHT else kind)
        return value.reshape(parameter.shape)

    def write(self, parameter: nn.Parameter, kind: str, value: Tensor) -> None:
        if kind == WEIGHT:
            safe_set_full_fp32_param(parameter, value)
        else:
            safe_set_full_optimizer_state(parameter, value, kind)

    def finish(self, updates: int) -> None:
        _set_step(self.zero.optimizer, updates)
        self.zero.update_lp_params()


class _AllPartitions:
    """ZeRO-3: each rank holds a part of everything, the model's own weights included; some of it on NVMe."""

    def __init__(self, zero: Any) -> None:
        self.zero = zero

    def prepare(self) -> None:
        for number, flat in enumerate(self.zero.fp32_partitioned_groups_flat):
            if "exp_avg" not in self.zero.optimizer.state[flat]:
                with self._in_memory(number):
                    start_moments(self.zero.optimizer, flat)

    def read(self, parameter: nn.Parameter, kind: str) -> Tensor:
        value: Tensor = (
            safe_get_full_fp32_param(parameter) if kind == WEIGHT else safe_get_full_optimizer_state(parameter, kind)
        )
        return value

    def holder(self, parameter: nn.Parameter) -> None:
        """Each rank has a part of everything."""

    read_here = read

    def write(self, parameter: nn.Parameter, kind: str, value: Tensor) -> None:
        # DeepSpeed's own setters read past the end of a tensor that does not divide by the ranks, and refuse
        # weights that are on NVMe.
        partition, number = self.zero._get_fp32_opt_state_partition(
            parameter, release_swap_buffers=False, optim_state_key=None if kind == WEIGHT else kind
        )
        with self._put_back(number):
            begin = self.zero._get_param_partition_rank(parameter) * partition.numel()
            mine = value.flatten()[begin : begin + partition.numel()]
            partition.detach()[: mine.numel()].copy_(mine)  # what is left is padding

    def finish(self, updates: int) -> None:
        _set_step(self.zero.optimizer, updates)
        self.zero._partition_all_parameters()
        for number in range(len(self.zero.fp16_groups)):
            with self._in_memory(number, changed=False):
                self.zero._reassign_or_swap_out_partitioned_parameters(number)
        if self.zero.persistent_parameters:
            self.zero.persistent_parameters[0].all_gather(self.zero.persistent_parameters)

    @contextlib.contextmanager
    def _in_memory(self, number: int, changed: bool = True) -> Iterator[None]:
        """A sub-group's fp32 weights and moments, fetched from NVMe where they are there."""
        if self.zero._swappable_optimizer_subgroup(number):
            self.zero._optimizer_states_and_gradient_swap_in(number)
        with self._put_back(number, changed):
            yield

    @contextlib.contextmanager
    def _put_back(self, number: int, changed: bool = True) -> Iterator[None]:
        """After the block, what was fetched from NVMe goes back there; after an error it stays there as it was."""
        swapped = self.zero._swappable_optimizer_subgroup(number)
        try:
            yield
        except BaseException:
            if swapped:
                self.zero._release_swap_buffers(number)
            raise
        if swapped and changed:
            self.zero._optimizer_states_and_gradient_swap_out(number)
        elif swapped:
            self.zero._release_swap_buffers(number)


def _set_step(optimizer: torch.optim.Optimizer, step: int) -> None:
    for state in optimizer.state.values():
        state["step"] = torch.full_like(state["step"], float(step))
