"""What the DeepSpeed JSON decides about the run, and the JSON that DeepSpeed gets.

A setting has one place. The run config describes the run; the JSON owns ZeRO and everything about
memory and communication. Where DeepSpeed insists on a value that the run config has too (batch sizes,
clipping, precision, the optimizer), the JSON has "auto", as with Hugging Face's Trainer, or gives a value,
which then counts as if it stood in the run config. Nothing here imports deepspeed.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from storyteller_ds.config.deepspeed_types import AUTO, checked
from storyteller_ds.config.files import nearest_sibling, read_json
from storyteller_ds.config.nearest import nearest
from storyteller_ds.config.run import RunConfig
from storyteller_ds.errors import ConfigError
from storyteller_ds.redaction import WHAT_TO_DO_ABOUT_IT, secret_within
from storyteller_ds.untrusted import parse_json
from storyteller_ds.user_paths import expand_home, given_path

OURS = Path(__file__).parents[1] / "ds_configs"
"""The DeepSpeed configs that come with the package; in the repository a link to the folder ds_configs."""
IN_PYTHON = Path("ds_config")
"""Name in messages of a DeepSpeed config that is not a file."""

# JSON key -> run config field, for everything that both of them can set.
_SHARED = {
    "train_batch_size": "train.global_batch_size",
    "train_micro_batch_size_per_gpu": "train.micro_batch_size",
    "gradient_accumulation_steps": "train.gradient_accumulation_steps",
    "gradient_clipping": "optimizer.grad_clip_norm",
    "optimizer.params.lr": "optimizer.lr",
    "optimizer.params.eps": "optimizer.eps",
    "optimizer.params.momentum": "optimizer.momentum",
    "optimizer.params.weight_decay": "optimizer.weight_decay",
    "zero_optimization.stage": "parallel.zero_stage",
    "expert_parallel.autoep_size": "parallel.ep_size",
}
_OWNED_BY_US = {
    "scheduler": "schedule.kind",
    "wandb": "tracking.wandb",
    # DeepSpeed's own works only for models that call deepspeed.checkpointing.
    "activation_checkpointing": "model.activation_checkpointing",
}
JSON_KEYS = {field: key for key, field in _SHARED.items()} | {
    "optimizer.kind": "optimizer.type",
    "optimizer.beta1": "optimizer.params.betas",
    "optimizer.beta2": "optimizer.params.betas",
    "precision.dtype": "bf16.enabled or fp16.enabled",
    "parallel.strategy": "expert_parallel.enabled",
}
"""Run config field -> the key of a DeepSpeed JSON that can set it, too."""


def file_or_name(given: str | os.PathLike[str] | Mapping[str, Any]) -> Path:
    """The path of a DeepSpeed config in messages: as it was given."""
    return IN_PYTHON if isinstance(given, Mapping) else given_path(given, "ds_config")


def read_deepspeed_json(path: Path, content: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """A DeepSpeed JSON, of which every key is known and every value has the type of its key.

    Args:
        path: of the file. Where there is none, the name of one of ours is enough: zero2, or ds_configs/zero2.json.
        content: what would be in the file; None: read it.

    Raises:
        ConfigError: missing file, bad JSON, a key that is unknown or belongs to the run config, or a value of
            another type.
    """
    if content is None:
        config = read_json(_ours(path) or path, "DeepSpeed config", _where_they_are)
    else:
        config = parse_json(json.dumps(content), str(path))
    if name := secret_within(config):  # before any other message shows a part of it
        raise ConfigError(f"{path} holds the value of {name}; {WHAT_TO_DO_ABOUT_IT.format(name=name)}")
    for key in config:
        if key in _OWNED_BY_US:
            raise ConfigError(f"{path}: '{key}' belongs to the run config; remove it and set {_OWNED_BY_US[key]}")
    config = checked(config, path)
    _check_contradictions(config, path)
    return config


def _check_contradictions(config: Mapping[str, Any], path: Path) -> None:
    """Refuse what DeepSpeed would take and then ignore, or fail on much later."""
    stage = _lookup(config, "zero_optimization.stage")
    stage = 0 if stage in (None, AUTO) else stage
    if _lookup(config, "bf16.enabled") is True and _lookup(config, "fp16.enabled") is True:
        raise ConfigError(f"{path}: bf16.enabled and fp16.enabled are both true; keep one of them")
    for kind in ("optimizer", "param"):
        device = _lookup(config, f"zero_optimization.offload_{kind}.device")
        lowest = 3 if kind == "param" or device == "nvme" else 1
        if device not in (None, "none", AUTO) and stage < lowest:
            raise ConfigError(
                f"{path}: offload_{kind} to {device} needs ZeRO stage {lowest} or more, and the stage is {stage}; "
                "remove it or raise zero_optimization.stage"
            )
    if stage in (1, 2):
        for key in ("contiguous_gradients", "reduce_scatter"):
            if _lookup(config, f"zero_optimization.{key}") is False:
                raise ConfigError(
                    f"{path}: zero_optimization.{key}=false does not work with MoE layers under ZeRO-{stage}; remove it"
                )


def _ours(path: Path) -> Path | None:
    """The file of the package that this path names, if nothing else lies there."""
    named = path.suffix in ("", ".json") and path.parent in (Path(), Path(OURS.name))
    file = OURS / f"{path.stem}.json"
    return file if named and not path.exists() and file.exists() else None


def _where_they_are(missing: Path) -> str:
    """The file that was probably meant: of those in its folder, or of those of the package."""
    if hint := nearest_sibling(missing):
        return hint
    ours = sorted(path.stem for path in OURS.glob("*.json"))
    name = nearest(missing.stem, ours)
    return f"; did you mean '{name}'?" if name else f"; give the path of a JSON file, or one of: {', '.join(ours)}"


def run_values(config: Mapping[str, Any]) -> dict[str, Any]:
    """The run config fields that the JSON decides: dotted field -> value. "auto" decides nothing."""
    values: dict[str, Any] = {}
    for key, field in _SHARED.items():
        value = _lookup(config, key)
        if value not in (None, AUTO):
            values[field] = value
    values.setdefault("parallel.zero_stage", 0)

    kind = _lookup(config, "optimizer.type")
    if kind not in (None, AUTO):
        values["optimizer.kind"] = str(kind).lower()
    betas = _lookup(config, "optimizer.params.betas")
    if isinstance(betas, list):
        values["optimizer.beta1"], values["optimizer.beta2"] = betas
    bf16, fp16 = _lookup(config, "bf16.enabled"), _lookup(config, "fp16.enabled")
    if fp16 is True:
        values["precision.dtype"] = "fp16"
    elif isinstance(bf16, bool):
        values["precision.dtype"] = "bf16" if bf16 else "fp32"
    if _lookup(config, "expert_parallel.enabled") is True:
        values["parallel.strategy"] = "autoep"
    return values


def with_nvme_path(config: Mapping[str, Any], run: RunConfig) -> dict[str, Any]:
    """The JSON with parallel.nvme_path where nvme_path is "auto" or missing, and `~` in any as the home folder.

    Raises:
        ConfigError: it is needed and not given.
    """
    zero = dict(config.get("zero_optimization", {}))
    for section in ("offload_optimizer", "offload_param"):
        settings = zero.get(section)
        if isinstance(settings, dict) and settings.get("device") == "nvme" and settings.get("nvme_path", AUTO) == AUTO:
            if run.parallel.nvme_path is None:
                raise ConfigError(
                    f"the DeepSpeed JSON swaps to nvme ({section}) and leaves the folder to the run config; "
                    "add parallel.nvme_path=FOLDER, on a fast local disk"
                )
            settings = {**settings, "nvme_path": run.parallel.nvme_path}
        if isinstance(settings, dict) and isinstance(path := settings.get("nvme_path"), str):
            zero[section] = {**settings, "nvme_path": str(expand_home(path))}
    return {**config, "zero_optimization": zero} if zero else dict(config)


def _lookup(config: Mapping[str, Any], dotted: str) -> Any:
    value: Any = config
    for key in dotted.split("."):
        if not isinstance(value, Mapping):
            return None
        value = value.get(key)
    return value
