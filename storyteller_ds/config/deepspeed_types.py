"""Which keys a DeepSpeed JSON may have, and of which type their values are.

DeepSpeed itself takes "true", 1 and "false" for a boolean, each in its own way, and looks at some sections not at all.
The table is held to DeepSpeed's own config models by tests/unit/config/test_deepspeed_types.py. Nothing here imports
deepspeed.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from storyteller_ds.config.base import whole_number
from storyteller_ds.config.nearest import did_you_mean
from storyteller_ds.errors import ConfigError

AUTO = "auto"


@dataclass(frozen=True)
class Kind:
    """What a value must be."""

    accepts: Callable[[Any], bool]
    wanted: str


def _is_whole(value: Any) -> bool:
    return isinstance(whole_number(value), int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) for each in value)


FLAG = Kind(lambda value: isinstance(value, bool), "true or false")
WHOLE = Kind(_is_whole, "a whole number")
NUMBER = Kind(_is_number, "a number")
TEXT = Kind(lambda value: isinstance(value, str), "a text in quotes")
TEXTS = Kind(_are_texts, 'a list of texts, for instance ["a", "b"]')
TEXT_OR_TEXTS = Kind(lambda value: isinstance(value, str) or _are_texts(value), "a text in quotes, or a list of them")
BETAS = Kind(
    lambda value: isinstance(value, list) and len(value) == 2 and all(map(_is_number, value)),
    "two numbers, for instance [0.9, 0.95]",
)

Keys = Mapping[str, "Kind | Keys"]


def _keys(kinds: Mapping[Kind, str], **sections: Keys) -> Keys:
    return {name: kind for kind, names in kinds.items() for name in names.split()} | sections


_ZENFLOW = _keys(
    {
        NUMBER: "topk_ratio auto_ratio pt_reserved_cores_perc",
        TEXT: "select_strategy",
        WHOLE: "select_interval update_interval full_warm_up_rounds steps_per_epoch",
        FLAG: "overlap_step offload",
    }
)
_ZERO_3 = {
    WHOLE: "prefetch_bucket_size param_persistence_threshold model_persistence_threshold max_live_parameters "
    "max_reuse_distance module_granularity_threshold",
    FLAG: "gather_16bit_weights_on_model_save use_all_reduce_for_fetch_params allgather_sequential",
}
"""DeepSpeed takes these with stage3_ before them and without."""
_ZERO = {
    **_keys({kind: " ".join(f"stage3_{name} {name}" for name in names.split()) for kind, names in _ZERO_3.items()}),
    **_keys(
        {
            WHOLE: "stage reduce_bucket_size allgather_bucket_size sub_group_size zero_hpz_partition_size",
            FLAG: "contiguous_gradients reduce_scatter use_multi_rank_bucket_allreduce allgather_partitions "
            "overlap_comm compute_grad_norm load_from_fp32_weights elastic_checkpoint cpu_offload_param "
            "cpu_offload_use_pin_memory cpu_offload stage3_gather_fp16_weights_on_model_save "
            "ignore_unused_parameters legacy_stage1 round_robin_gradients parameter_alignment "
            "zero_quantized_weights zero_quantized_nontrainable_weights zero_quantized_gradients "
            "memory_efficient_linear pipeline_loading_checkpoint override_module_apply log_trace_cache_warnings "
            "enable_sanity_checks save_muon_momentum_buffer_in_memory",
        },
        offload_param=_keys(
            {TEXT: "device nvme_path", WHOLE: "buffer_count buffer_size max_in_cpu", FLAG: "pin_memory"}
        ),
        offload_optimizer=_keys(
            {
                TEXT: "device nvme_path",
                WHOLE: "buffer_count",
                FLAG: "pin_memory pipeline_read pipeline_write fast_init super_offload",
                NUMBER: "ratio cpuadam_cores_perc",
            }
        ),
        zenflow=_ZENFLOW,
        leaf_module=_keys({TEXT_OR_TEXTS: "classes names name_suffixes"}),
    ),
}
_FP16 = _keys(
    {
        FLAG: "enabled auto_cast consecutive_hysteresis fp16_master_weights_and_grads",
        NUMBER: "loss_scale",
        WHOLE: "initial_scale_power loss_scale_window hysteresis min_loss_scale",
    }
)
_BF16 = _keys(
    {FLAG: "enabled immediate_grad_update check_grad_overflow bf16_master_weights_and_grads bf16_optimizer_states"}
)
_MONITOR = _keys({FLAG: "enabled", TEXT: "output_path job_name"})
KEYS = _keys(
    {
        WHOLE: "train_batch_size train_micro_batch_size_per_gpu gradient_accumulation_steps steps_per_print seed",
        NUMBER: "gradient_clipping gradient_predivide_factor",
        FLAG: "zero_allow_untested_optimizer zero_force_ds_cpu_optimizer prescale_gradients wall_clock_breakdown "
        "memory_breakdown dump_state",
        TEXT: "communication_data_type",
    },
    zero_optimization=_ZERO,
    bf16=_BF16,
    fp16=_FP16,
    optimizer=_keys(
        {TEXT: "type"},
        params=_keys({NUMBER: "lr eps weight_decay momentum", BETAS: "betas", FLAG: "torch_adam adam_w_mode"}),
    ),
    expert_parallel=_keys({FLAG: "enabled use_grouped_mm", WHOLE: "autoep_size", TEXT: "combine_impl gate_up_impl"}),
    data_types=_keys({TEXT: "grad_accum_dtype param_dtype buffer_dtype", TEXTS: "keep_in_fp32_modules"}),
    comms_logger=_keys({FLAG: "enabled prof_all verbose debug", TEXTS: "prof_ops"}),
    flops_profiler=_keys(
        {
            FLAG: "enabled detailed",
            NUMBER: "recompute_fwd_factor",
            WHOLE: "profile_step module_depth top_modules",
            TEXT: "output_file",
        }
    ),
    aio=_keys(
        {
            WHOLE: "block_size queue_depth intra_op_parallelism",
            FLAG: "single_submit overlap_events use_gds",
        }
    ),
    csv_monitor=_MONITOR,
    tensorboard=_MONITOR,
)
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
_EXAMPLES = {
    "zero_optimization": '{"stage": 2}',
    "bf16": '{"enabled": "auto"}',
    "fp16": '{"enabled": true}',
    "expert_parallel": '{"enabled": true, "autoep_size": "auto"}',
    "optimizer": '{"type": "AdamW", "params": {"lr": "auto"}}',
    "optimizer.params": '{"lr": "auto"}',
}


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
                example = f", for instance {_EXAMPLES[name]}" if name in _EXAMPLES else ""
                raise ConfigError(f"{path}: '{name}' must be an object{example}")
            result[key] = _checked(value, kind, f"{name}.", path)
        elif not kind.accepts(value):
            raise ConfigError(f"{path}: {_refusal(name, value, kind)}")
        else:
            result[key] = whole_number(value) if kind is WHOLE else value
    return result


def _may_be_auto(name: str, kind: "Kind | Keys") -> bool:
    section = name.partition(".")[0]
    if isinstance(kind, Mapping):
        return section == "zero_optimization" and name != section
    return name in _AUTO_KEYS or section in _AUTO_SECTIONS


def _refusal(name: str, value: Any, kind: Kind) -> str:
    wanted = kind.wanted
    if isinstance(value, str) and kind in (FLAG, WHOLE, NUMBER):
        wanted += " without quotes"
    if _may_be_auto(name, kind):
        wanted += f', or "{AUTO}"'
    return f"'{name}' is {json.dumps(value):.60}; write {wanted}"
