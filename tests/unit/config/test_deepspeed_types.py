"""Every key of a DeepSpeed JSON takes only values of its type, and the table of keys matches DeepSpeed's own."""

import json
from collections.abc import Iterator, Mapping
from enum import Enum
from pathlib import Path
from typing import Any, get_args

import pytest

from storyteller_ds.config import load_config
from storyteller_ds.config.deepspeed import read_deepspeed_json
from storyteller_ds.config.deepspeed_types import KEYS, KINDS, Keys, Kind, checked
from storyteller_ds.errors import ConfigError

FLAG, WHOLE, NUMBER, TEXT, TEXTS, TEXT_OR_TEXTS, BETAS = KINDS.values()


def kinds(keys: Keys = KEYS, prefix: str = "") -> Iterator[tuple[str, Kind]]:
    """Full name and kind of every key."""
    for name, kind in keys.items():
        if isinstance(kind, Mapping):
            yield from kinds(kind, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", kind


NAMES = dict(kinds())


def nested(name: str, value: object) -> dict[str, Any]:
    for part in reversed(name.split(".")):
        value = {part: value}
    assert isinstance(value, dict)
    return value


def written(folder: Path, values: object) -> Path:
    path = folder / "ds.json"
    path.write_text(values if isinstance(values, str) else json.dumps(values), encoding="utf-8")
    return path


def refused(path: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        read_deepspeed_json(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message


# For each kind, values that only look right, and values that are.
WRONG: dict[Kind, list[object]] = {
    FLAG: ["true", "false", "True", "yes", "", 1, 0, 1.0, [True], {}],
    WHOLE: ["2", "1e3", "two", "", True, False, 2.5, [2], {}],
    NUMBER: ["1.0", "1e-3", "", True, False, [1.0], {}],
    TEXT: [1, 0.5, True, ["a"], {}],
    TEXTS: ["a", [1], 1, True, {}],
    TEXT_OR_TEXTS: [1, True, [1], {}],
    BETAS: ["0.9", 0.9, [0.9], [0.9, "0.95"], [0.9, True], {}],
}
RIGHT: dict[Kind, list[object]] = {
    FLAG: [True, False],
    WHOLE: [2, 2.0],
    NUMBER: [1, 0.5],
    TEXT: ["a"],
    TEXTS: [["a"]],
    TEXT_OR_TEXTS: ["a", ["a"]],
    BETAS: [[0.9, 0.95]],
}


@pytest.mark.parametrize("name", NAMES)
def test_a_value_of_another_type_is_refused_with_its_place(tmp_path, name):
    for value in WRONG[NAMES[name]]:
        message = refused(written(tmp_path, nested(name, value)))
        assert f"'{name}' is {json.dumps(value)}; write {NAMES[name].wanted}" in message
        assert ("without quotes" in message) == (isinstance(value, str) and NAMES[name] in (FLAG, WHOLE, NUMBER))
    for value in RIGHT[NAMES[name]]:
        assert checked(nested(name, value), tmp_path) == nested(name, value)


@pytest.mark.parametrize("flags", [("true", "true"), (1, 0), ("false", False), (True, "false")])
def test_what_only_looks_like_a_flag_decides_nothing(tmp_path, flags):
    # Each of these used to train in another precision than it says.
    path = written(tmp_path, {"fp16": {"enabled": flags[0]}, "bf16": {"enabled": flags[1]}})
    with pytest.raises(ConfigError, match=r"'(fp16|bf16)\.enabled' is .*write true or false"):
        load_config(ds_config=path)


def test_auto_stands_only_where_it_means_something(tmp_path):
    def takes_auto(name: str) -> bool:
        try:
            return bool(checked(nested(name, "auto"), tmp_path))
        except ConfigError:
            return False

    names = {name for name in NAMES if takes_auto(name)}
    assert {name for name in names if "." not in name} == {
        *("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping"),
        "communication_data_type",  # takes any text; DeepSpeed refuses this one
    }
    assert {"fp16.enabled", "bf16.enabled", "optimizer.params.betas", "expert_parallel.autoep_size"} <= names
    assert "zero_optimization.offload_param.nvme_path" in names
    assert not names & {"prescale_gradients", "wall_clock_breakdown", "flops_profiler.enabled", "aio.block_size"}
    assert 'or "auto"' in refused(written(tmp_path, {"fp16": {"enabled": 1}}))
    assert '"auto"' not in refused(written(tmp_path, {"prescale_gradients": 1}))


def test_whole_numbers_may_have_an_exponent_and_arrive_as_int(tmp_path):
    values = read_deepspeed_json(written(tmp_path, '{"aio": {"block_size": 1e6}, "gradient_clipping": 1.0}'))
    assert values == {"aio": {"block_size": 1_000_000}, "gradient_clipping": 1.0}
    assert type(values["aio"]["block_size"]) is int
    assert type(values["gradient_clipping"]) is float
    assert "1e+300" in refused(written(tmp_path, '{"aio": {"block_size": 1e300}}'))  # floats are not exact there


@pytest.mark.parametrize(
    "values",
    [
        {"zero_optimization": {"overlap_comm": None, "offload_optimizer": None}},
        {"flops_profiler": {"enabled": True, "output_file": None}},  # as in DeepSpeed's documentation
        {"communication_data_type": None},
    ],
)
def test_null_is_what_deepspeed_has_null_for(tmp_path, values):
    assert read_deepspeed_json(written(tmp_path, values)) == values


@pytest.mark.parametrize("name", ["fp16.enabled", "train_batch_size", "prescale_gradients", "zero_optimization.stage"])
def test_null_elsewhere_is_refused(tmp_path, name):
    assert f"'{name}' is null" in refused(written(tmp_path, nested(name, None)))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"flops_profiler": {"enabld": True}}, "did you mean 'enabled'"),  # DeepSpeed ignores these
        ({"aio": {"block": 1}}, "did you mean 'block_size'"),
        ({"optimizer": {"typ": "AdamW"}}, "did you mean 'type'"),
        ({"zero_optimization": {"offload_param": {"devise": "cpu"}}}, "did you mean 'device'"),
        ({"sparse_gradients": False}, "unknown key 'sparse_gradients'"),  # a key of older versions
    ],
)
def test_unknown_keys_in_sections_are_refused(tmp_path, values, expected):
    assert expected in refused(written(tmp_path, values))


# https://huggingface.co/docs/transformers/deepspeed, the examples for ZeRO-2 and ZeRO-3 without their scheduler.
HUGGING_FACE = """{
    "fp16": {"enabled": "auto", "loss_scale": 0, "loss_scale_window": 1000, "initial_scale_power": 16, "hysteresis": 2,
             "min_loss_scale": 1},
    "bf16": {"enabled": "auto"},
    "optimizer": {"type": "AdamW", "params": {"lr": "auto", "betas": "auto", "eps": "auto", "weight_decay": "auto"}},
    "zero_optimization": %s,
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
    "steps_per_print": 2000,
    "train_batch_size": "auto",
    "train_micro_batch_size_per_gpu": "auto",
    "wall_clock_breakdown": false
}"""
ZERO_2 = """{"stage": 2, "offload_optimizer": {"device": "cpu", "pin_memory": true}, "allgather_partitions": true,
    "allgather_bucket_size": 2e8, "overlap_comm": true, "reduce_scatter": true, "reduce_bucket_size": 2e8,
    "contiguous_gradients": true}"""
ZERO_3 = """{"stage": 3, "offload_optimizer": {"device": "cpu", "pin_memory": true},
    "offload_param": {"device": "cpu", "pin_memory": true}, "overlap_comm": true, "contiguous_gradients": true,
    "sub_group_size": 1e9, "reduce_bucket_size": "auto", "stage3_prefetch_bucket_size": "auto",
    "stage3_param_persistence_threshold": "auto", "stage3_max_live_parameters": 1e9, "stage3_max_reuse_distance": 1e9,
    "stage3_gather_16bit_weights_on_model_save": true}"""


@pytest.mark.parametrize(("zero", "stage"), [(ZERO_2, 2), (ZERO_3, 3)])
def test_hugging_faces_own_jsons_pass(tmp_path, zero, stage):
    path = written(tmp_path, HUGGING_FACE % zero)
    assert read_deepspeed_json(path) == json.loads(path.read_text())
    assert load_config(ds_config=path).run.parallel.zero_stage == stage


# --- The table matches DeepSpeed's own ---


def kind_of(annotation: Any) -> Kind | type:
    """The kind for a type in one of DeepSpeed's config models, or the model itself."""
    members = [each for each in get_args(annotation) if each is not type(None)]
    if getattr(annotation, "__origin__", None) is list or annotation is list:
        return TEXTS
    if len(members) == 2:  # int or "auto"
        return WHOLE
    (member,) = members or [annotation]
    if hasattr(member, "model_fields"):
        return member
    if issubclass(member, Enum):
        member = member.__mro__[1]
    return {bool: FLAG, int: WHOLE, float: NUMBER, str: TEXT, Path: TEXT}[member]


def own_kinds(model: Any, prefix: str) -> Iterator[tuple[str, Kind]]:
    for name, field in model.model_fields.items():
        kind = kind_of(field.annotation)
        if not isinstance(kind, Kind):
            yield from own_kinds(kind, f"{prefix}{name}.")
            continue
        for each in {name, field.alias or name}:
            yield prefix + each, TEXT_OR_TEXTS if "leaf_module" in prefix else kind


def test_keys_and_types_are_those_of_deepspeeds_models():
    pytest.importorskip("deepspeed")
    from deepspeed.comm.config import CommsLoggerConfig
    from deepspeed.monitor.config import CSVConfig, TensorBoardConfig
    from deepspeed.runtime.precision_config import DeepSpeedBF16Config, DeepSpeedFP16Config
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    models = {
        "zero_optimization": DeepSpeedZeroConfig,
        "fp16": DeepSpeedFP16Config,
        "bf16": DeepSpeedBF16Config,
        "comms_logger": CommsLoggerConfig,
        "csv_monitor": CSVConfig,
        "tensorboard": TensorBoardConfig,
    }
    for section, model in models.items():
        ours = {name: kind for name, kind in NAMES.items() if name.startswith(f"{section}.")}
        assert ours == dict(own_kinds(model, f"{section}.")), section


def test_keys_and_types_are_those_of_deepspeeds_other_sections():
    pytest.importorskip("deepspeed")
    from deepspeed.profiling.config import DeepSpeedFlopsProfilerConfig
    from deepspeed.runtime.config import DeepSpeedConfig
    from deepspeed.runtime.swap_tensor.aio_config import AIO_DEFAULT_DICT

    flops = vars(DeepSpeedFlopsProfilerConfig({}))
    for section, defaults in (("aio", AIO_DEFAULT_DICT), ("flops_profiler", flops)):
        by_type = {bool: FLAG, int: WHOLE, float: NUMBER, type(None): TEXT}
        ours = {name: kind for name, kind in NAMES.items() if name.startswith(f"{section}.")}
        assert ours == {f"{section}.{name}": by_type[type(value)] for name, value in defaults.items()}, section
    whole = vars(DeepSpeedConfig({"train_batch_size": 1}))
    for name, kind in NAMES.items():
        if kind is FLAG and "." not in name:
            assert isinstance(whole[name], bool), name
