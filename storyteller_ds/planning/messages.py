"""The bytes that a rank hands to each collective in one optimizer step."""

from collections.abc import Mapping
from dataclasses import dataclass

from storyteller_ds.config.run import RunConfig
from storyteller_ds.distributed.plan import ParallelPlan
from storyteller_ds.planning.weights import Group
from storyteller_ds.planning.zero import FP32

COLLECTIVES = ("all-reduce", "reduce-scatter", "all-gather", "all-to-all")


@dataclass(frozen=True)
class Messages:
    """Messages of one rank in one step."""

    sent: Mapping[str, int]
    """Collective -> bytes that are reduced, that a gather collects from all ranks, or that are exchanged."""
    groups: Mapping[str, int]
    """Collective -> number of ranks that take part."""

    def on_the_wire(self, name: str) -> float:
        """Bytes that leave a rank with the algorithms that move least (rings)."""
        ranks = self.groups[name]
        rounds = 2 if name == "all-reduce" else 1
        return rounds * (ranks - 1) / ranks * self.sent[name]


def messages_of(run: RunConfig, plan: ParallelPlan, groups: list[Group], held: int, size: int) -> Messages:
    """What ranks exchange in a step.

    Args:
        run: the run config.
        plan: shares of the batch and of the experts.
        groups: the weights in optimizer groups.
        held: bytes per element of the model's weights and gradients.
        size: bytes per element of the activations.
    """
    sent = dict.fromkeys(COLLECTIVES, 0)
    stage, rounds = run.parallel.zero_stage, plan.accumulation_steps
    spread = [group for group in groups if group.ranks > 1]
    shared = sum(group.numel for group in spread)
    if stage in (0, 1):
        sent["all-reduce"] = shared * held  # DeepSpeed reduces over all ranks in ZeRO-1 and 2 too, bucket by bucket
    if stage == 2:
        sent["all-reduce"] = shared * held * rounds
    if stage in (1, 2):
        sent["all-gather"] = sum(group.partition * group.ranks for group in spread) * held
    if stage == 3:
        sent["reduce-scatter"] = shared * held * rounds
        # Weights gathered in the forward pass stay until the backward pass has used them.
        sent["all-gather"] = shared * held * rounds
        sent["all-reduce"] = sum(weight.cut(group.ranks) for group in spread for weight in group.weights) * FP32
    if plan.ep_size > 1:
        tokens = plan.micro_batch_size * run.data.sequence_length * run.moe.top_k * rounds
        # Dispatch and combine, forward and backward; once more if blocks are recomputed.
        ways = 6 if run.model.activation_checkpointing == "block" else 4
        sent["all-to-all"] = tokens * run.model.hidden_size * size * ways * run.moe_layers
    ranks = dict.fromkeys(COLLECTIVES, plan.world_size) | {"all-to-all": plan.ep_size}
    return Messages(sent, ranks)
