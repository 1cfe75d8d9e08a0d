"""What to change if a run needs too much memory."""

from collections.abc import Mapping
from typing import Any

import torch

from storyteller_ds.config.run import RunConfig
from storyteller_ds.distributed.plan import ParallelPlan


def what_to_lower(
    run: RunConfig, ds_config: Mapping[str, Any] | None, plan: ParallelPlan, device: torch.device, is_built: bool = True
) -> str:
    """Settings to save memory that this run does not use yet, most helpful first; those that change no number first.

    Args:
        run: the run config.
        ds_config: the DeepSpeed JSON, if there is one.
        plan: shares of the batch.
        device: the device whose memory ran out.
        is_built: whether the model itself did fit; otherwise a smaller batch does not help.
    """
    ways = []
    if is_built and (micro := plan.micro_batch_size) > 1:
        smaller = max(n for n in range(1, micro) if micro % n == 0)
        ways.append(f"train.micro_batch_size={smaller} (now {micro})")
    if is_built and run.model.activation_checkpointing != "block":
        ways.append("model.activation_checkpointing=block")
    if device.type == "cuda" and run.precision.dtype == "fp32":
        ways.append("precision.dtype=auto")
    zero = (ds_config or {}).get("zero_optimization", {})
    if device.type == "cuda" and "offload_optimizer" not in zero:
        name = "zero3_offload" if run.parallel.zero_stage == 3 else "zero2_offload"
        ways.append(f"--ds_config ds_configs/{name}.json (moments in the host's memory)")
    elif plan.world_size > 1 and run.parallel.zero_stage != 3:
        ways.append("--ds_config ds_configs/zero3.json (each rank holds a part of the weights)")
    ways.append("a shorter data.sequence_length or a smaller model" if is_built else "a smaller model")
    return f"lower what it needs, in this order: {', '.join(ways)}"
