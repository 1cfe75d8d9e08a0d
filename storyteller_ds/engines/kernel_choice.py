"""Which kernels a run uses, for its first log lines: the choice of the process, and the exceptions from it."""

import torch
from storyteller_kernels.dispatch import choice_for
from storyteller_kernels.rms_norm import MAX_WIDTH
from storyteller_kernels.routing import MAX_EXPERTS

from storyteller_ds.config.run import RunConfig
from storyteller_ds.distributed.strategy import Strategy
from storyteller_ds.engines.precision import DTYPE_NAMES, held_dtype, run_dtype


def kernel_choice(run: RunConfig, device: torch.device, strategy: Strategy) -> tuple[str, str | None]:
    """The kernels of a run, by the same rules as the operations themselves use (storyteller_kernels).

    Returns:
        What is used; and a warning that says why the experts are slow on this GPU, None if they are not.
    """
    chosen = choice_for(device, run_dtype(run, device))
    exceptions = []
    why_slow = _why_experts_are_slow(run, device, strategy)
    if why_slow is not None and chosen.name == "triton":
        exceptions.append("experts one after the other in plain torch")
    elif run.moe_layers and strategy == "autoep":
        exceptions.append("experts by AutoEP")
    if chosen.name == "triton":
        if run.moe_layers and run.moe.num_experts > MAX_EXPERTS:
            exceptions.append(f"router in plain torch (more than {MAX_EXPERTS} experts)")
        if run.model.norm != "rmsnorm" or run.model.hidden_size > MAX_WIDTH:
            exceptions.append("norms in plain torch")
    description = f"{chosen.name} ({chosen.reason})" + (f", but {', '.join(exceptions)}" if exceptions else "")
    return description, why_slow and f"warning: experts run one after the other on this GPU, which is slow: {why_slow}"


def _why_experts_are_slow(run: RunConfig, device: torch.device, strategy: Strategy) -> str | None:
    """Why a GPU runs the experts one after the other; None if it does not, or there are no experts."""
    if device.type != "cuda" or not run.moe_layers:
        return None
    if strategy == "autoep":
        held = held_dtype(run, device)
        return None if held == torch.bfloat16 else f"AutoEP has a grouped product for bf16, not for {DTYPE_NAMES[held]}"
    chosen = choice_for(device)
    return None if chosen.name == "triton" else chosen.reason
