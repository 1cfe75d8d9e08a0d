"""Which keys a DeepSpeed JSON may have, and of which type their values are.

DeepSpeed itself takes "true", 1 and "false" for a boolean, each in its own way, and does not check some sections.
deepspeed_keys.json is the table of all keys; tests/unit/config/test_deepspeed_types.py compares it with DeepSpeed's own
config models. Nothing here imports deepspeed.
"""

import json
from collections.abc import Callable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

from storyteller_ds.config.base import whole_number
from storyteller_ds.config.nearest import did_you_mean
from storyteller_ds.errors import ConfigError

AUTO = "auto"


class Kind(NamedTuple):
    """What a value must be."""

    accepts: Callable[[Any], bool]
    wanted: str


def _is_whole(value: Any) -> bool:
    return isinstance(whole_number(value), int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) for each in value)


KINDS = {
    "flag": Kind(lambda value: isinstance(value, bool), "true or false"),
    "whole": Kind(_is_whole, "a whole number"),
    "number": Kind(_is_number, "a number"),
    "text": Kind(lambda value: isinstance(value, str), "a text in quotes"),
    "texts": Kind(_are_texts, 'a list of texts, for instance ["a", "b"]'),
    "text or texts": Kind(
        lambda value: isinstance(value, str) or _are_texts(value), "a text in quotes, or a list of them"
    ),
    "betas": Kind(
        lambda value: isinstance(value, list) and len(value) == 2 and all(map(_is_number, value)),
        "two numbers, for instance [0.9, 0.95]",
    ),
}
"""By their names in deepspeed_keys.json."""

Keys = Mapping[str, "Kind | Keys"]


def _keys(names: Mapping[str, Any]) -> Keys:
    return {key: KINDS[kind] if isinstance(kind, str) else _keys(kind) for key, kind in names.items()}


KEYS = _keys(json.loads(files(__package__).joinpath("deepspeed_keys.json").read_text(encoding="utf-8")))
"""All keys; a section's are in a table of its own."""
_AUTO_SECTIONS = ("zero_optimization", "bf16", "fp16", "optimizer", "expert_parallel")
_AUTO_KEYS = (
    *("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping"),
    "data_types.keep_in_fp32_modules",
)
"""Where "auto" may stand: in these sections, and for these keys."""
_NULL = (
    *("communication_data_type", "grad_accum_dtype", "param_dtype", "buffer_dtype", "output_file", "nvme_path"),
    *("overlap_comm", "cpu_offload", "cpu_offload_param", "cpu_offload_use_pin_memory", "steps_per_epoch"),
    *("offload_param", "offload_optimizer", "zenflow"),
)
"""What may be null, as DeepSpeed's own default of it is."""


def checked(config: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The JSON with whole numbers as int (1e9 is 1000000000), if all keys are known and all values of their type.

    Raises:
        ConfigError: one is not; the message names the file and the key.
    """
    return _checked(config, KEYS, "", path)


def _checked(values: Mapping[str, Any], keys: Keys, prefix: str, path: Path) -> dict[str, Any]:
    result = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if key not in keys:
            raise ConfigError(f"{path}: unknown key '{name}'{did_you_mean(key, keys)}")
        kind = keys[key]
        if (value is None and key in _NULL) or (value == AUTO and _may_be_auto(name, kind)):
            result[key] = value
        elif isinstance(kind, Mapping):
            if not isinstance(value, dict):
                raise ConfigError(f"{path}: '{name}' must be an object, with keys such as {', '.join(list(kind)[:3])}")
            result[key] = _checked(value, kind, f"{name}.", path)
        elif not kind.accepts(value):
            raise ConfigError(f"{path}: {_refusal(name, value, kind)}")
        else:
            result[key] = whole_number(value) if kind is KINDS["whole"] else value
    return result


def _may_be_auto(name: str, kind: "Kind | Keys") -> bool:
    section = name.partition(".")[0]
    if isinstance(kind, Mapping):
        return section == "zero_optimization" and name != section
    return name in _AUTO_KEYS or section in _AUTO_SECTIONS


def _refusal(name: str, value: Any, kind: Kind) -> str:
    wanted = kind.wanted
    if isinstance(value, str) and kind in (KINDS["flag"], KINDS["whole"], KINDS["number"]):
        wanted += " without quotes"
    if _may_be_auto(name, kind):
        wanted += f', or "{AUTO}"'
    return f"'{name}' is {json.dumps(value):.60}; write {wanted}"
