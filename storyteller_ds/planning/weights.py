"""The weights that one rank updates, in the groups in which the optimizer gets them."""

import math
from typing import NamedTuple

from storyteller_ds.config.run import RunConfig
from storyteller_ds.distributed.plan import ParallelPlan
from storyteller_ds.model.canonical import is_expert, placed_parameters
from storyteller_ds.model.decoder import empty_decoder
from storyteller_ds.optim.muon import Stack
from storyteller_ds.optim.optimizer import muon_stacks, parameter_groups

HEAD = -1
"""Stands for the block of weights that are in no block: embedding, final norm, output projection."""


class Weight(NamedTuple):
    """One parameter, or the part of it that a rank holds before ZeRO partitions it."""

    name: str
    numel: int
    stack: Stack | None
    """Its matrices, if Muon updates it."""

    @property
    def block(self) -> int:
        """Number of the block it is in, or HEAD."""
        return int(self.name.split(".")[1]) if self.name.startswith("blocks.") else HEAD

    def cut(self, ranks: int) -> int:
        """Elements of the matrices that ZeRO-3 splits between ranks, which Muon adds up to update them."""
        if self.stack is None:
            return 0
        matrix, part = self.stack.rows * self.stack.columns, math.ceil(self.numel / ranks)
        ends = (rank * part for rank in range(1, ranks) if rank * part < self.numel)
        return matrix * len({end // matrix for end in ends if end % matrix})


class Group(NamedTuple):
    """Weights with the same settings, which ZeRO-1 and 2 put into one flat vector."""

    weights: tuple[Weight, ...]
    ranks: int
    """Ranks that share the group: all, or for experts those that hold the same experts."""

    @property
    def numel(self) -> int:
        """Elements of all its weights."""
        return sum(weight.numel for weight in self.weights)

    @property
    def partition(self) -> int:
        """Elements of each rank's part of the flat vector, which DeepSpeed pads to a multiple of two per rank."""
        return 2 * math.ceil(self.numel / (2 * self.ranks))

    @property
    def moments(self) -> int:
        """Moments per weight: AdamW keeps two, Muon one."""
        return 1 if self.weights[0].stack else 2

    def touched(self, rank: int) -> int:
        """Elements of all weights that lie at least partly in this rank's partition: their gradients stay."""
        begin, end = rank * self.partition, (rank + 1) * self.partition
        total = offset = 0
        for weight in self.weights:
            if offset < end and offset + weight.numel > begin:
                total += weight.numel
            offset += weight.numel
        return total

    def largest_part(self) -> int:
        """Elements of the largest piece of one weight in a partition."""
        return min(self.partition, max(weight.numel for weight in self.weights))


def groups_of(run: RunConfig, plan: ParallelPlan) -> list[Group]:
    """The groups of a rank, in the optimizer's order; experts have their own groups if they are spread over ranks."""
    decoder = empty_decoder(run)
    names = {placed.parameter: placed.name for placed in placed_parameters(decoder)}
    stacks = muon_stacks(decoder, run)
    spreads = plan.strategy != "local"
    groups = []
    for group in parameter_groups(decoder, run.optimizer, stacks):
        for experts in (False, True):
            share = plan.ep_size if experts else 1
            chosen = [p for p in group["params"] if (spreads and is_expert(names[p])) == experts]
            weights = tuple(Weight(names[p], p.numel() // share, _share(stacks.get(p), share)) for p in chosen)
            if weights:
                groups.append(Group(weights, plan.world_size // share))
    return groups


def _share(stack: Stack | None, ranks: int) -> Stack | None:
    return None if stack is None else stack._replace(number=stack.number // ranks)
