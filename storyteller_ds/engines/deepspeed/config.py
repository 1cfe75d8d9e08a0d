"""The JSON that DeepSpeed gets for a run, and DeepSpeed's own check of it before anything starts."""

import contextlib
import logging
import os
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from pydantic import ValidationError

from storyteller_ds.config.deepspeed import with_nvme_path
from storyteller_ds.config.deepspeed_types import AUTO
from storyteller_ds.config.run import RunConfig
from storyteller_ds.distributed.plan import ParallelPlan
from storyteller_ds.engines.precision import held_dtype
from storyteller_ds.errors import ConfigError
from storyteller_ds.validation_errors import first_problem

_AUTOEP_PATTERNS = {
    "moe_layer_pattern": r"decoder\.blocks\.\d+\.ffn\.moe",
    "router_pattern": "router",
    "num_experts_attr": "num_experts",
}
"""How AutoEP identifies modules whose names differ from its defaults; see engines/deepspeed/autoep.py."""


def passed_json(
    run: RunConfig, ds_config: Mapping[str, Any], plan: ParallelPlan, device: torch.device
) -> dict[str, Any]:
    """The JSON that DeepSpeed gets: the user's, with everything filled in that run, plan and device determine.

    The optimizer is not in it but passed to DeepSpeed as an object; one from the JSON would be compiled at startup.
    """
    given = with_nvme_path(ds_config, run)
    stage, dtype = run.parallel.zero_stage, held_dtype(run, device)
    passed = {
        "steps_per_print": 1_000_000_000,
        "zero_allow_untested_optimizer": True,
        # torch's fused AdamW is as vectorized as DeepSpeed's CPU one, and nothing has to be compiled.
        "zero_force_ds_cpu_optimizer": False,
        **{key: value for key, value in given.items() if key not in ("optimizer", "expert_parallel")},
        "zero_optimization": {**_without_auto(given.get("zero_optimization", {})), "stage": stage},
        "train_batch_size": run.train.global_batch_size,
        "train_micro_batch_size_per_gpu": plan.micro_batch_size,
        "gradient_accumulation_steps": plan.accumulation_steps,
        # Without ZeRO, DeepSpeed would average the norms of different experts, so our engine clips by itself.
        "gradient_clipping": run.optimizer.grad_clip_norm if stage else 0.0,
        "bf16": {**given.get("bf16", {}), "enabled": dtype == torch.bfloat16},
        "fp16": {**given.get("fp16", {}), "enabled": dtype == torch.float16},
    }
    if dtype != torch.float32 and stage in (2, 3):
        passed["data_types"] = {"grad_accum_dtype": "fp32", **given.get("data_types", {})}
    if plan.strategy == "autoep":
        passed["expert_parallel"] = {
            **_AUTOEP_PATTERNS,
            "enabled": True,
            "autoep_size": plan.ep_size,
            # torch's grouped product supports only bf16 on CUDA.
            "use_grouped_mm": device.type == "cuda" and dtype == torch.bfloat16,
            **_without_auto(given.get("expert_parallel", {})),
        }
    return passed


def _without_auto(section: Mapping[str, Any]) -> dict[str, Any]:
    """A section without its "auto" values (bucket sizes and the like), so that DeepSpeed's own defaults apply."""
    return {key: value for key, value in section.items() if value != AUTO}


def check_json(passed: Mapping[str, Any]) -> None:
    """Check the JSON with DeepSpeed's own config model.

    Raises:
        ConfigError: DeepSpeed refuses a key or a value.
    """
    from deepspeed.runtime.config import DeepSpeedConfig

    # DeepSpeed assumes a single rank here.
    batch = passed["train_micro_batch_size_per_gpu"] * passed["gradient_accumulation_steps"]
    with as_user_error():
        DeepSpeedConfig({**passed, "train_batch_size": batch})


@contextlib.contextmanager
def as_user_error() -> Iterator[None]:
    """Raise DeepSpeed's errors about its config as one-line ConfigErrors."""
    try:
        yield
    except ValidationError as error:
        raise ConfigError(f"DeepSpeed refuses its JSON: {first_problem(error)}; fix it there") from None
    except (AssertionError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else "no reason given"
        raise ConfigError(f"DeepSpeed refuses its JSON: {reason}; fix it there") from error


def import_deepspeed(device: torch.device) -> Any:
    """Import DeepSpeed, and have it log errors only.

    Raises:
        ConfigError: it is not installed, its installation is broken, or DS_ACCELERATOR names another device.
    """
    own = "cuda" if device.type == "cuda" else "cpu"
    accelerator = os.environ.setdefault("DS_ACCELERATOR", own)
    if accelerator != own:
        raise ConfigError(
            f"DS_ACCELERATOR={accelerator} has DeepSpeed use another device than the run ({device.type}); unset it, or "
            f"set parallel.device={accelerator}"
        )
    try:
        import deepspeed
        import deepspeed.moe.utils
        from deepspeed.utils import logger
    except ImportError as error:
        raise ConfigError(
            f"a DeepSpeed config was given, but deepspeed cannot be imported ({error}); "
            "install it with pip install deepspeed==0.19.8 (Linux), or train without --ds_config"
        ) from None
    logger.setLevel(logging.ERROR)
    return deepspeed
