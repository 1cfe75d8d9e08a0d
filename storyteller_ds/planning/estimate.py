"""The estimate of one run on a number of ranks of a device: memory, messages, speed."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch

from storyteller_ds.config import LoadedConfig
from storyteller_ds.config.run import RunConfig
from storyteller_ds.distributed.plan import ParallelPlan, make_plan
from storyteller_ds.engines.memory import what_to_lower
from storyteller_ds.model import count_parameters
from storyteller_ds.planning.activations import Activations
from storyteller_ds.planning.devices import NCCL, Device
from storyteller_ds.planning.memory import BYTES, Memory, checkpoint_bytes, memory_of
from storyteller_ds.planning.messages import Messages, messages_of
from storyteller_ds.planning.speed import Speed, speed_of
from storyteller_ds.planning.weights import Group, groups_of
from storyteller_ds.planning.zero import FP32

ALLOWANCE = 0.05
"""What an allocator holds in pieces too small to use, as a fraction of the tensors. An assumption."""
_LARGEST_MICRO_BATCH = 2**16
"""Upper limit of the search."""


@dataclass(frozen=True)
class Ranks:
    """How many ranks, and where."""

    nodes: int
    per_node: int

    @property
    def number(self) -> int:
        """The total number of ranks."""
        return self.nodes * self.per_node


@dataclass(frozen=True)
class Estimate:
    """The estimate of a run config on ranks of a device.

    Args:
        loaded: the run config and the DeepSpeed JSON.
        plan: shares of the batch and of the experts.
        device: the device of every rank.
        ranks: how many, and where.
        groups: a rank's weights, in optimizer groups.
    """

    loaded: LoadedConfig
    plan: ParallelPlan
    device: Device
    ranks: Ranks
    groups: list[Group]

    @classmethod
    def of(cls, loaded: LoadedConfig, device: Device, ranks: Ranks) -> "Estimate":
        """Estimate a run; raises ConfigError if the numbers do not divide or the combination cannot run."""
        plan = make_plan(loaded.run, ranks.number, loaded)
        return cls(loaded, plan, device, ranks, groups_of(loaded.run, plan))

    @property
    def run(self) -> RunConfig:
        """The run config."""
        return self.loaded.run

    @property
    def dtype(self) -> str:
        """The number format that the run computes in."""
        wanted = self.run.precision.dtype
        if wanted != "auto":
            return wanted
        # Without ZeRO, DeepSpeed does not scale the loss (engines/precision.py).
        return "fp32" if self.device.dtype == "fp16" and self.run.parallel.zero_stage == 0 else self.device.dtype

    @cached_property
    def memory(self) -> Memory:
        """Memory of a rank's tensors."""
        return memory_of(self.run, self.loaded.deepspeed, self.plan, self.device.kind, self.dtype, self.groups)

    @property
    def other_bytes(self) -> Mapping[str, int]:
        """Memory of a rank besides tensors (bytes)."""
        own = self.memory.total + (self.memory.host if self.device.kind == "cpu" else 0)
        several = NCCL if self.ranks.number > 1 and self.device.kind == "cuda" else 0
        return {
            "allocator": round(ALLOWANCE * own),
            "context": self.device.context + several,
        }

    @property
    def needed(self) -> int:
        """Device memory that a rank needs (bytes); on a CPU this includes offloaded tensors."""
        host = self.memory.host if self.device.kind == "cpu" else 0
        return self.memory.total + host + sum(self.other_bytes.values())

    @property
    def available(self) -> int:
        """Device memory that a rank has (bytes); on CPUs the ranks of a machine share its memory."""
        return self.device.memory // (self.ranks.per_node if self.device.kind == "cpu" else 1)

    @property
    def fits(self) -> bool:
        """Whether a rank has enough memory."""
        return self.needed <= self.available

    def with_micro_batch(self, size: int) -> "Estimate":
        """The same run with micro-batches of another size, and as many of them as make up the batch."""
        rounds = max(1, self.run.train.global_batch_size // (size * self.ranks.number))
        return replace(self, plan=replace(self.plan, micro_batch_size=size, accumulation_steps=rounds))

    @cached_property
    def largest_micro_batch(self) -> int:
        """In sequences; 0 if not even one fits."""
        low, high = 0, 1
        while high <= _LARGEST_MICRO_BATCH and self.with_micro_batch(high).fits:
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.with_micro_batch(middle).fits else (low, middle)
        return low

    def that_fits(self) -> "Estimate | None":
        """This, or the same with the largest micro-batch that fits and divides the batch; None if there is none."""
        if self.fits:
            return self
        share = self.run.train.global_batch_size // self.ranks.number
        sizes = (n for n in range(min(self.largest_micro_batch, share), 0, -1) if share % n == 0)
        return next((one for n in sizes if (one := self.with_micro_batch(n)).fits), None)

    @cached_property
    def messages(self) -> Messages:
        """Messages of a rank in one step."""
        size = BYTES[self.dtype]
        held = size if self.run.parallel.zero_stage else FP32
        return messages_of(self.run, self.plan, self.groups, held, size)

    @cached_property
    def speed(self) -> Speed:
        """Speed of a step."""
        size = BYTES[self.dtype]
        activations = Activations(self.run, self.plan, self.device.kind, size, cast=False)
        stage = self.run.parallel.zero_stage
        updated = sum(group.partition if stage else group.numel for group in self.groups)
        offloaded = (self.loaded.deepspeed or {}).get("zero_optimization", {}).get("offload_optimizer") or {}
        where = offloaded.get("device") if self.device.kind != "cpu" else None
        return speed_of(
            self.run,
            self.plan,
            self.device,
            self.dtype,
            activations,
            self.messages,
            updated,
            self.ranks.per_node,
            where,
        )

    @property
    def tokens(self) -> int:
        """Tokens of the whole run."""
        return self.run.train.max_steps * self.speed.tokens

    @property
    def hours(self) -> float:
        """Hours that the whole run takes, or train.max_minutes if that is less."""
        hours = self.run.train.max_steps * self.speed.step_s / 3600
        limit = self.run.train.max_minutes
        return hours if limit is None else min(hours, limit / 60)

    @property
    def checkpoint_bytes(self) -> int:
        """Size of one checkpoint on disk."""
        return checkpoint_bytes(self.run, self.plan)

    def what_to_lower(self) -> str:
        """Settings that would help, in one line."""
        kind = torch.device("cuda" if self.device.kind == "cuda" else "cpu")
        return what_to_lower(self.run, self.loaded.deepspeed, self.plan, kind)

    def as_json(self) -> dict[str, Any]:
        """For --json, in bytes and seconds."""
        return {
            "name": self.loaded.name,
            "device": self.device.name,
            "ranks": self.ranks.number,
            "parameters": count_parameters(self.run).total,
            "zero_stage": self.run.parallel.zero_stage,
            "ep_size": self.plan.ep_size,
            "dtype": self.dtype,
            "micro_batch_size": self.plan.micro_batch_size,
            "accumulation_steps": self.plan.accumulation_steps,
            "memory": {
                "parts": dict(self.memory.parts),
                "other": dict(self.other_bytes),
                "moment": self.memory.moment,
                "host": self.memory.host,
                "needed": self.needed,
                "available": self.available,
                "fits": self.fits,
            },
            "largest_micro_batch_size": self.largest_micro_batch,
            "messages": dict(self.messages.sent),
            "speed": self.speed.as_json(),
            "tokens": self.tokens,
            "hours": self.hours,
            "checkpoint_bytes": self.checkpoint_bytes,
        }
