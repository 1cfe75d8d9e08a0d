"""Number formats: the one in which a run computes on its device, and the one in which it holds its weights."""

import torch

from storyteller_ds.config.run import RunConfig
from storyteller_ds.distributed.world import World
from storyteller_ds.errors import ConfigError

DTYPE_NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
BF16_SINCE, _FP16_SINCE = (8, 0), (7, 0)
"""Lowest compute capabilities of NVIDIA cards whose matrix units support the format: Ampere, Volta."""
_BF16_ON_AMD = ("gfx908", "gfx90a", "gfx94", "gfx95", "gfx11", "gfx12")
"""Architectures with matrix instructions for bf16: CDNA, and RDNA from the third generation on."""


def run_dtype(run: RunConfig, device: torch.device) -> torch.dtype:
    """The format that precision.dtype means on this device.

    `auto` is the device's fastest format in which training is stable. torch's own check for bf16 support also counts
    emulation: on cards before Ampere, bf16 is slower than fp32.
    """
    wanted = run.precision.dtype
    name = _fast_format(run, device) if wanted == "auto" else wanted
    return next(dtype for dtype in DTYPE_NAMES if DTYPE_NAMES[dtype] == name)


def _fast_format(run: RunConfig, device: torch.device) -> str:
    if device.type != "cuda":
        return "fp32"
    if torch.version.hip is not None:
        architecture = torch.cuda.get_device_properties(device).gcnArchName
        return "bf16" if architecture.startswith(_BF16_ON_AMD) else "fp32"
    capability = torch.cuda.get_device_capability(device)
    if capability >= BF16_SINCE:
        return "bf16"
    # Without ZeRO, DeepSpeed does not scale the loss (distributed/plan.py).
    return "fp16" if capability >= _FP16_SINCE and run.parallel.zero_stage != 0 else "fp32"


def held_dtype(run: RunConfig, device: torch.device) -> torch.dtype:
    """The format in which DeepSpeed holds the model's weights.

    Without ZeRO there is no fp32 copy of them, so they stay fp32 themselves, as on one device.
    """
    return run_dtype(run, device) if run.parallel.zero_stage else torch.float32


def check_same_dtype(run: RunConfig, device: torch.device, world: World) -> None:
    """Check that all ranks compute in the same format; called by every rank.

    Raises:
        ConfigError: `auto` means different formats on the cards of different ranks.
    """
    names = set(world.together(lambda: DTYPE_NAMES[run_dtype(run, device)]))
    if len(names) > 1:
        raise ConfigError(
            f"precision.dtype=auto means {' and '.join(sorted(names))} on the cards of different ranks, and all must "
            "compute in one format; set precision.dtype=fp32, or one that all of them are fast at"
        )
