"""What a rank holds under each ZeRO stage of DeepSpeed 0.19.8, and without DeepSpeed (bytes).

Taken from deepspeed/runtime/zero/stage_1_and_2.py and stage3.py, and engines/single.py. There is one class for each way
to keep weights, all with the same methods.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from storyteller_ds.config.deepspeed_types import AUTO
from storyteller_ds.optim.muon import ENTRIES_AT_ONCE
from storyteller_ds.planning.weights import HEAD, Group

FP32 = 4
NORM = 8
"""Bytes per element while DeepSpeed computes the norm of a gradient."""
_ALLREDUCED_AT_ONCE = 500_000_000
"""Elements in ZeRO-0's buffer (deepspeed/runtime/engine.py)."""
_DEFAULTS = {
    "reduce_bucket_size": 500_000_000,
    "stage3_param_persistence_threshold": 100_000,
    "stage3_max_live_parameters": 1_000_000_000,
    "stage3_prefetch_bucket_size": 50_000_000,
}


@dataclass(frozen=True)
class Kept:
    """One device without DeepSpeed; `reduction` also covers ZeRO-0.

    Args:
        groups: the weights in optimizer groups.
        blocks: number of blocks of the model.
        held: bytes per element of the model's weights.
        ranks: total number of ranks.
        accumulates: whether a step has several micro-batches.
        zero: the section zero_optimization of the DeepSpeed JSON.
        is_gloo: whether messages go through gloo, as on CPUs.
        is_deepspeed: whether DeepSpeed is used.
    """

    groups: list[Group]
    blocks: int
    held: int
    ranks: int
    accumulates: bool
    zero: Mapping[str, Any]
    is_gloo: bool = False
    is_deepspeed: bool = True

    @property
    def numel(self) -> int:
        """Elements in the weights of a rank."""
        return sum(group.numel for group in self.groups)

    @cached_property
    def by_block(self) -> dict[int, int]:
        """Block, or HEAD -> elements in its weights."""
        sizes = dict.fromkeys(range(HEAD, self.blocks), 0)
        for group in self.groups:
            for weight in group.weights:
                sizes[weight.block] += weight.numel
        return sizes

    def _setting(self, name: str) -> int:
        value = self.zero.get(name, AUTO)
        return int(_DEFAULTS[name] if value == AUTO else value)

    @property
    def _bucket(self) -> int:
        """Elements that are reduced together."""
        return self._setting("reduce_bucket_size")

    def parameters(self) -> int:
        """Weights of the model."""
        return self.numel * self.held

    def optimizer(self) -> int:
        """Moments, and fp32 weights if these are separate from the model's."""
        return sum(group.moments * group.numel for group in self.groups) * FP32

    def host(self) -> int:
        """What is in host memory instead."""
        return 0

    def gathered(self, block: int) -> int:
        """Weights gathered from other ranks while the backward pass is at a block (self.blocks: at the loss)."""
        return 0

    def gathering(self) -> int:
        """The buffer through which weights are gathered at the end of the forward pass."""
        return 0

    def gradients(self, block: int) -> int:
        """Gradients present when the backward pass reaches a block (self.blocks: at the loss)."""
        if self.accumulates:
            return self.numel * self.held
        return sum(size for number, size in self.by_block.items() if number > block) * self.held

    def of_block(self, block: int) -> int:
        """Gradients that a block produces."""
        return self.by_block[block] * self.held

    def buffers(self, block: int) -> int:
        """Buffers for messages while the backward pass is at a block."""
        return 0

    def reduction(self) -> tuple[int, int]:
        """Gradients and buffers while the last gradients are reduced."""
        is_reduced = self.is_deepspeed and self.ranks > 1
        return self.numel * FP32, min(self.numel, _ALLREDUCED_AT_ONCE) * FP32 if is_reduced else 0

    def update(self) -> tuple[int, int]:
        """Gradients, and what the optimizer holds temporarily."""
        hidden = [group for group in self.groups if group.weights[0].stack]
        return self.numel * FP32, _muon([group.numel for group in hidden], hidden)


def _muon(sizes: list[int], groups: list[Group], share: int = 1) -> int:
    """What Muon holds while it updates groups of which this rank has `sizes` elements (optim/muon.py)."""
    by_shape: dict[tuple[int, int], int] = {}
    for group in groups:
        for weight in group.weights:
            assert weight.stack is not None
            shape = weight.stack.rows, weight.stack.columns
            by_shape[shape] = by_shape.get(shape, 0) + weight.numel // share
    most = 0
    for (rows, columns), numel in by_shape.items():
        entries = min(numel, max(ENTRIES_AT_ONCE, rows * columns))
        grams = 2 * entries * min(rows, columns) // max(rows, columns)
        # The orthogonalized matrices, before and after a product, and the Gram matrices of two.
        most = max(most, 2 * entries + grams)
    return (sum(sizes) + most) * FP32 if groups else 0


class _Stage12(Kept):
    """ZeRO-1 (_Stage2: ZeRO-2): the whole model in its number format; fp32 weights and moments in partitions."""

    @property
    def _offloads(self) -> bool:
        return "offload_optimizer" in self.zero

    @property
    def _stored(self) -> int:
        """Bytes per element of the gradients that a rank keeps."""
        return self.held

    def _partitions(self) -> int:
        return sum(group.partition for group in self.groups)

    def _touched(self) -> int:
        """Elements in the buffer of rank 0's own gradients, which, as on every rank, ends with a whole weight."""
        return sum(group.touched(0) for group in self.groups)

    def _state(self) -> int:
        return sum((1 + group.moments) * group.partition for group in self.groups) * FP32

    def optimizer(self) -> int:
        return 0 if self._offloads else self._state()

    def _largest(self) -> int:
        return max(weight.numel for group in self.groups for weight in group.weights)

    def host(self) -> int:
        if not self._offloads:
            return 0
        # Gradients and new weights (in the model's format) of the partition; a buffer for the largest weight.
        return self._state() + self._partitions() * (FP32 + self.held) + self._largest() * self.held

    def buffers(self, block: int) -> int:
        """The bucket is allocated in full from the first gradient of a micro-batch on."""
        spare = self._largest() * self.held if self._offloads else 0
        bucket = self._bucket * self.held * (2 if self.zero.get("overlap_comm") is True else 1)
        return spare + (bucket if block < self.blocks else 0)

    def _own(self) -> int:
        """The gradients that a rank keeps after a reduction."""
        return 0 if self._offloads else self._touched() * self._stored

    def _copied(self) -> int:
        """A bucket with parts for several ranks is copied before it is reduced."""
        several = any(group.ranks > 1 for group in self.groups)
        return min(self._bucket, self.numel) * self.held if several else 0

    def reduction(self) -> tuple[int, int]:
        left = max(0, self.numel - self._bucket) * self.held
        return left + self._own(), self.buffers(0) + self._copied()

    def update(self) -> tuple[int, int]:
        most = 0
        for group in self.groups:
            part = group.partition
            flat = 0 if self._offloads else part * FP32  # a copy of the group's gradients, in one piece
            hidden = [group] if group.weights[0].stack else []
            most = max(most, flat + _muon([part], hidden, group.ranks))
        norm = max(group.largest_part() for group in self.groups) * NORM
        return self._own(), max(most, norm)


class _Stage2(_Stage12):
    """ZeRO-2: gradients go into the bucket as they are computed, and only a rank's own part of them stays."""

    @property
    def _stored(self) -> int:
        return FP32

    def _flushed(self, block: int) -> bool:
        """Whether the bucket has filled up before the backward pass reaches a block."""
        return sum(size for number, size in self.by_block.items() if number > block) > self._bucket

    def gradients(self, block: int) -> int:
        has_own = self.accumulates or (block < self.blocks and self._flushed(block))
        return self._own() if has_own else 0

    def reduction(self) -> tuple[int, int]:
        return self._own(), self.buffers(0) + self._copied()


class _Stage3(Kept):
    """ZeRO-3: everything is partitioned; weights are gathered where they are used."""

    @property
    def _offloads(self) -> bool:
        return "offload_optimizer" in self.zero

    def _part(self, group: Group) -> int:
        return sum(math.ceil(weight.numel / group.ranks) for weight in group.weights)

    def _partitions(self) -> int:
        return sum(self._part(group) for group in self.groups)

    def parameters(self) -> int:
        return 0 if "offload_param" in self.zero else self._partitions() * self.held

    def _state(self) -> int:
        # Even fp32 weights get a copy: DeepSpeed compares a device with a device name, and these are never equal.
        return sum((1 + group.moments) * self._part(group) for group in self.groups) * FP32

    def optimizer(self) -> int:
        return 0 if self._offloads else self._state()

    def host(self) -> int:
        total = self._partitions() * self.held if "offload_param" in self.zero else 0
        if self._offloads:
            # The gradients twice: the buffer that is filled, and what the optimizer is given.
            total += self._state() + 2 * self._partitions() * FP32
        return total

    def gathered(self, block: int) -> int:
        small = self._setting("stage3_param_persistence_threshold")
        total = persistent = 0
        for group in self.groups:
            for weight in group.weights:
                if weight.numel < small:
                    persistent += weight.numel
                elif weight.block <= block:
                    total += weight.numel
        return (persistent + min(total, self._setting("stage3_max_live_parameters"))) * self.held

    def gathering(self) -> int:
        # Each weight is copied out of the gathered buffer, which stays until the last of them is fetched
        # (AllGatherCoalescedHandle).
        return min(self.gathered(self.blocks), self._setting("stage3_prefetch_bucket_size") * self.held)

    def gradients(self, block: int) -> int:
        return 0 if self._offloads else self._partitions() * FP32

    def buffers(self, block: int) -> int:
        return self._bucket * self.held

    def reduction(self) -> tuple[int, int]:
        copied = min(self._bucket, self.numel) * self.held
        # gloo implements reduce-scatter as an all-reduce of its own copy (ProcessGroupGloo).
        return self.gradients(0), self.buffers(0) + copied * (2 if self.is_gloo else 1)

    def update(self) -> tuple[int, int]:
        most = 0
        for group in self.groups:
            part = self._part(group)
            hidden = [group] if group.weights[0].stack else []
            most = max(most, (0 if self._offloads else part * FP32) + _muon([part], hidden, group.ranks))
        norm = max(math.ceil(w.numel / group.ranks) for group in self.groups for w in group.weights) * NORM
        return self.gradients(0), max(most, norm)


def way_to_keep(stage: int | None) -> type[Kept]:
    """The class of a ZeRO stage; None: no DeepSpeed."""
    return {None: Kept, 0: Kept, 1: _Stage12, 2: _Stage2, 3: _Stage3}[stage]
