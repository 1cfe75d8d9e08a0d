"""The memory that a rank needs: a walk through one step to find the moment that needs most (bytes)."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from storyteller_ds.config.run import RunConfig
from storyteller_ds.distributed.plan import ParallelPlan
from storyteller_ds.planning.activations import Activations
from storyteller_ds.planning.weights import Group, groups_of
from storyteller_ds.planning.zero import FP32, way_to_keep

PARTS = (
    "parameters",
    "gradients",
    "optimizer state",
    "activations",
    "logits and loss",
    "communication buffers",
    "for a moment",
)
BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}


@dataclass(frozen=True)
class Memory:
    """Memory of one rank's tensors."""

    moment: str
    """The moment of a step at which the device holds most."""
    parts: Mapping[str, int]
    """Each of PARTS at that moment."""
    host: int
    """In host memory, if the JSON offloads."""

    @property
    def total(self) -> int:
        """The sum on the device."""
        return sum(self.parts.values())


def memory_of(
    run: RunConfig,
    ds_config: Mapping[str, Any] | None,
    plan: ParallelPlan,
    device: str,
    dtype: str,
    groups: list[Group] | None = None,
) -> Memory:
    """The memory of a rank.

    Args:
        run: the run config.
        ds_config: the DeepSpeed JSON, or None.
        plan: shares of the batch and of the experts.
        device: cpu, cuda or mps.
        dtype: what the run computes in there: fp32, bf16 or fp16.
        groups: the weights in optimizer groups, if already known (groups_of).
    """
    stage, size, blocks = run.parallel.zero_stage, BYTES[dtype], run.model.num_layers
    held = size if stage else FP32
    keeps = way_to_keep(stage)(
        groups or groups_of(run, plan),
        blocks,
        held,
        plan.world_size,
        plan.accumulation_steps > 1,
        _without_none((ds_config or {}).get("zero_optimization", {})),
        is_gloo=device == "cpu" and plan.world_size > 1,
        is_deepspeed=ds_config is not None,
    )
    acts = Activations(run, plan, device, size, cast=held != size)
    always = {"parameters": keeps.parameters(), "optimizer state": keeps.optimizer()}
    kept = [acts.kept(block) for block in range(blocks)]
    moments: dict[str, dict[str, int]] = {
        "at the loss": {
            "parameters": always["parameters"] + keeps.gathered(blocks),
            "gradients": keeps.gradients(blocks),
            "activations": acts.base() + sum(kept),
            "logits and loss": acts.loss_kept() + acts.loss(),
            "communication buffers": keeps.buffers(blocks),
        }
    }
    moments["when the last weights are gathered"] = {
        "parameters": always["parameters"] + keeps.gathered(blocks),
        "gradients": keeps.gradients(blocks),
        "activations": acts.base() + sum(kept),
        "communication buffers": keeps.buffers(blocks) + keeps.gathering(),
    }
    for block in reversed(range(blocks)):
        moments[f"in the backward pass of block {block}"] = {
            "parameters": always["parameters"] + keeps.gathered(block),
            "gradients": keeps.gradients(block) + keeps.of_block(block),
            "activations": acts.base() + sum(kept[: block + 1]) + acts.again(block),
            "communication buffers": keeps.buffers(block),
            "for a moment": acts.backward(block),
        }
    gradients, buffers = keeps.reduction()
    moments["when gradients are reduced"] = {"gradients": gradients, "communication buffers": buffers}
    gradients, briefly = keeps.update()
    moments["in the optimizer"] = {
        "gradients": gradients,
        "for a moment": briefly,
        "communication buffers": keeps.buffers(blocks),
    }
    moment, parts = max(moments.items(), key=lambda each: sum((always | each[1]).values()))
    return Memory(moment, dict.fromkeys(PARTS, 0) | always | parts, keeps.host())


def checkpoint_bytes(run: RunConfig, plan: ParallelPlan) -> int:
    """Size on disk of one checkpoint: weights and moments of the whole model, in fp32.

    Args:
        run: the run config.
        plan: shares of the experts; the size does not depend on the number of ranks.
    """
    whole = groups_of(run, replace(plan, ep_size=1, world_size=1))
    return sum((1 + group.moments) * group.numel for group in whole) * FP32


def _without_none(zero: Mapping[str, Any]) -> dict[str, Any]:
    """The zero_optimization section without offloads that are turned off."""
    return {
        key: value
        for key, value in zero.items()
        if not (key.startswith("offload_") and (not value or value.get("device") in (None, "none")))
    }
