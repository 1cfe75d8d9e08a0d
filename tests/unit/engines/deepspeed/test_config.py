"""The JSON that DeepSpeed is given, and how its own config model reads it."""

from json import dumps
from pathlib import Path

import pytest
import torch

from storyteller_ds.config import load_config
from storyteller_ds.distributed.plan import make_plan
from storyteller_ds.engines.deepspeed.config import check_json, import_deepspeed, passed_json
from storyteller_ds.errors import ConfigError
from tests.support.distributed import DS_CONFIGS

CPU = torch.device("cpu")


def passed(ds_config: Path, world_size: int = 2, *overrides: str) -> dict:
    loaded = load_config(overrides=["parallel.nvme_path=/fast/disk", *overrides], ds_config=ds_config)
    assert loaded.deepspeed is not None
    return passed_json(loaded.run, loaded.deepspeed, make_plan(loaded.run, world_size), CPU)


def written(folder: Path, values: object) -> Path:
    path = folder / "ds.json"
    path.write_text(dumps(values), encoding="utf-8")
    return path


@pytest.mark.parametrize("path", sorted(DS_CONFIGS.glob("*.json")), ids=lambda p: p.stem)
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_deepspeed_accepts_every_json_of_ours(path, world_size):
    result = passed(path, world_size)
    check_json(result)
    assert result["train_batch_size"] == 8
    assert result["train_micro_batch_size_per_gpu"] == 8 // world_size
    assert "'auto'" not in str(result)


def test_the_folder_for_nvme_comes_from_the_run_config(tmp_path):
    result = passed(DS_CONFIGS / "zero3_nvme.json")
    assert result["zero_optimization"]["offload_optimizer"]["nvme_path"] == "/fast/disk"
    assert result["zero_optimization"]["offload_param"]["nvme_path"] == "/fast/disk"
    with pytest.raises(ConfigError, match=r"parallel\.nvme_path=FOLDER"):
        passed(DS_CONFIGS / "zero3_nvme.json", 2, "parallel.nvme_path=null")
    without = written(tmp_path, {"zero_optimization": {"stage": 3, "offload_param": {"device": "nvme"}}})
    assert passed(without)["zero_optimization"]["offload_param"]["nvme_path"] == "/fast/disk"


def test_every_auto_is_filled_in_and_the_rest_is_passed_on(tmp_path):
    zero = {"stage": 2, "overlap_comm": True, "reduce_bucket_size": 1234, "allgather_bucket_size": "auto"}
    values = {
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "bf16": {"enabled": "auto"},
        "optimizer": {"type": "AdamW", "params": {"lr": "auto", "betas": "auto"}},
        "zero_optimization": zero,
        "aio": {"block_size": 99},
        "steps_per_print": 5,
    }
    overrides = ("train.global_batch_size=24", "train.micro_batch_size=3", "optimizer.grad_clip_norm=0.25")
    result = passed(written(tmp_path, values), 2, *overrides, "precision.dtype=bf16")
    assert result == {
        "train_batch_size": 24,
        "train_micro_batch_size_per_gpu": 3,
        "gradient_accumulation_steps": 4,
        "gradient_clipping": 0.25,
        "bf16": {"enabled": True},
        "fp16": {"enabled": False},
        "data_types": {"grad_accum_dtype": "fp32"},
        # Here "auto" means DeepSpeed's default: the key is left out.
        "zero_optimization": {"stage": 2, "overlap_comm": True, "reduce_bucket_size": 1234},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "aio": {"block_size": 99},
        "steps_per_print": 5,
    }


def test_the_json_of_the_user_is_kept_as_it_was(tmp_path):
    zero = {"stage": 2, "allgather_bucket_size": "auto"}
    loaded = load_config(ds_config=written(tmp_path, {"zero_optimization": zero}))
    passed_json(loaded.run, loaded.deepspeed, make_plan(loaded.run, 2), CPU)
    assert loaded.deepspeed["zero_optimization"] == zero


def test_the_command_line_overrules_the_json_in_what_deepspeed_gets(tmp_path):
    path = written(tmp_path, {"zero_optimization": {"stage": 2}, "gradient_clipping": 1.0})
    result = passed(path, 2, "parallel.zero_stage=1", "optimizer.grad_clip_norm=0.5")
    assert result["zero_optimization"] == {"stage": 1}
    assert result["gradient_clipping"] == 0.5


def test_without_zero_clipping_is_ours(tmp_path):
    path = written(tmp_path, {"zero_optimization": {"stage": 0}, "gradient_clipping": 1.0})
    assert load_config(ds_config=path).run.optimizer.grad_clip_norm == 1.0
    assert passed(path)["gradient_clipping"] == 0.0


def test_deepspeed_reads_what_we_mean():
    from deepspeed.runtime.config import DeepSpeedConfig

    result = passed(DS_CONFIGS / "zero3_autoep.json", 1)
    config = DeepSpeedConfig(result)
    assert config.zero_optimization_stage == 3
    assert config.expert_parallel_config.enabled
    assert config.expert_parallel_config.autoep_size == 1
    assert config.gradient_clipping == 1.0
    offload = DeepSpeedConfig(passed(DS_CONFIGS / "zero3_offload.json", 1)).zero_config
    assert offload.offload_optimizer.device == "cpu"
    assert offload.offload_param.device == "cpu"
    fp16 = DeepSpeedConfig(passed(DS_CONFIGS / "zero2_fp16.json", 1)).float16_config
    assert fp16.enabled
    assert fp16.loss_scale == 0, "dynamic"


@pytest.mark.parametrize(
    ("json", "field"),
    [
        ('{"zero_optimization": {"stage": 2, "reduce_bucket": 5}}', "zero_optimization"),
        ('{"zero_optimization": {"stage": 3, "offload_param": {"device": "floppy"}}}', "offload_param.device"),
        ('{"zero_optimization": {"stage": 2, "reduce_bucket_size": -1}}', "reduce_bucket_size"),
        ('{"zero_optimization": {"stage": 2}, "fp16": {"enabled": true, "loss_scale": "big"}}', "loss_scale"),
    ],
)
def test_what_deepspeed_refuses_is_one_line_with_the_field(tmp_path, json, field):
    path = tmp_path / "ds.json"
    path.write_text(json, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        check_json(passed(path))
    assert field.split(".")[-1] in str(caught.value) or "reduce_bucket" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("strategy", "patterns"), [("autoep", True), ("local", False)])
def test_autoep_is_told_about_the_model_only_where_it_is_used(strategy, patterns):
    ds_config = DS_CONFIGS / ("zero3_autoep.json" if patterns else "zero3.json")
    assert ("expert_parallel" in passed(ds_config, 2, f"parallel.strategy={strategy}")) == patterns


def test_an_accelerator_that_is_not_the_device_is_refused(monkeypatch):
    monkeypatch.setenv("DS_ACCELERATOR", "cuda")
    with pytest.raises(ConfigError, match=r"DS_ACCELERATOR=cuda .* \(cpu\); unset it, or set parallel.device=cuda"):
        import_deepspeed(CPU)
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    assert import_deepspeed(CPU) is not None
