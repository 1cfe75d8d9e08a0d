"""The DeepSpeed JSON: what it may contain, and which settings of the run it decides."""

import json
from pathlib import Path

import pytest

from storyteller_ds.config import load_config
from storyteller_ds.config.deepspeed import run_values
from storyteller_ds.errors import ConfigError

REPOSITORY = Path(__file__).parents[3]


def written(folder: Path, values: object) -> Path:
    path = folder / "ds.json"
    path.write_text(json.dumps(values), encoding="utf-8")
    return path


def refused(path: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(ds_config=path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("path", sorted((REPOSITORY / "ds_configs").glob("*.json")), ids=lambda p: p.name)
def test_our_own_jsons_are_accepted(path):
    loaded = load_config(ds_config=path)
    assert loaded.run.parallel.zero_stage == json.loads(path.read_text())["zero_optimization"]["stage"]
    assert loaded.sources["parallel.zero_stage"] == str(path)


@pytest.mark.parametrize(
    ("key", "fix"),
    [
        ("scheduler", "schedule.kind"),
        ("activation_checkpointing", "model.activation_checkpointing"),
        ("wandb", "tracking.wandb"),
        ("zero_optimisation", "did you mean 'zero_optimization'"),
        ("train_batchsize", "did you mean 'train_batch_size'"),
    ],
)
def test_a_key_that_is_unknown_or_ours_is_refused_with_the_fix(tmp_path, key, fix):
    path = written(tmp_path, {key: {}})
    message = refused(path)
    assert f"'{key}'" in message
    assert fix in message
    assert str(path) in message


@pytest.mark.parametrize("text", ["", "[1]", "{", '{"a": 1,}', '"x"'])
def test_what_is_no_json_object_is_refused(tmp_path, text):
    path = tmp_path / "ds.json"
    path.write_text(text, encoding="utf-8")
    assert str(path) in refused(path)


def test_a_missing_json_is_refused_with_the_nearest(tmp_path):
    written(tmp_path, {})
    assert "did you mean 'ds.json'" in refused(tmp_path / "dss.json")


@pytest.mark.parametrize("name", ["zero2", "zero2.json", "ds_configs/zero2.json", "ds_configs/zero2"])
def test_a_json_of_the_package_is_found_by_name_from_any_folder(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    loaded = load_config(ds_config=name)
    assert loaded.deepspeed == json.loads((REPOSITORY / "ds_configs" / "zero2.json").read_text())
    assert loaded.named("parallel.zero_stage") == f"parallel.zero_stage=2 (zero_optimization.stage in {name})"
    # A file of that name takes precedence.
    Path(name).parent.mkdir(exist_ok=True)
    Path(name).write_text('{"zero_optimization": {"stage": 1}}', encoding="utf-8")
    assert load_config(ds_config=name).run.parallel.zero_stage == 1


def test_a_json_that_is_none_is_refused_with_the_nearest_or_those_there_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for other in ("Makefile", "LICENSE", "package.json"):  # none of these is meant
        (tmp_path / other).write_text("{}", encoding="utf-8")
    assert refused(Path("zero_2")) == "DeepSpeed config zero_2 does not exist; did you mean 'zero2'?"
    message = refused(Path("qqqqqqqq"))
    assert "Makefile" not in message
    assert all(path.stem in message for path in (REPOSITORY / "ds_configs").glob("*.json"))
    assert "did you mean 'zero2'" in refused(Path("elsewhere/zero2.json"))


def test_a_mapping_is_checked_like_a_file():
    mapping = {"zero_optimization": {"stage": 2}, "gradient_clipping": 0.5}
    loaded = load_config(ds_config=mapping)
    assert (loaded.run.parallel.zero_stage, loaded.run.optimizer.grad_clip_norm) == (2, 0.5)
    assert "ds_config: " in refused({"zero_optimisation": {}})


def test_a_missing_file_is_not_answered_with_the_files_there_are(tmp_path):
    (tmp_path / "other.yaml").write_text("seed: 1", encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_config(str(tmp_path / "zzzzzzz.yaml"))
    assert str(caught.value) == f"config {tmp_path / 'zzzzzzz.yaml'} does not exist; check the path"


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"zero_optimization": 2}, "zero_optimization"),
        ({"zero_optimization": None}, "zero_optimization"),
        ({"bf16": True}, "bf16"),
        ({"optimizer": "AdamW"}, "optimizer"),
        ({"optimizer": {"type": "AdamW", "params": {"learning_rate": 1e-3}}}, "learning_rate"),
        ({"optimizer": {"params": {"betas": [0.9]}}}, "betas"),
    ],
    ids=str,
)
def test_a_value_of_the_wrong_form_is_refused_and_not_ignored(tmp_path, values, field):
    assert field in refused(written(tmp_path, values))


def test_optimizers_that_we_do_not_have_are_refused(tmp_path):
    assert load_config(ds_config=written(tmp_path, {"optimizer": {"type": "AdamW"}})).run.optimizer.kind == "adamw"
    assert "optimizer.kind='onebitadam'" in refused(written(tmp_path, {"optimizer": {"type": "OneBitAdam"}}))


def test_run_values_are_what_the_json_decides():
    assert run_values({}) == {"parallel.zero_stage": 0}
    assert run_values({"bf16": {"enabled": False}, "gradient_clipping": 0}) == {
        "parallel.zero_stage": 0,
        "precision.dtype": "fp32",
        "optimizer.grad_clip_norm": 0,
    }


def test_autoep_and_fp16_in_the_json_are_choices_of_the_run(tmp_path):
    autoep = {"zero_optimization": {"stage": 3}, "expert_parallel": {"enabled": True, "autoep_size": 4}}
    run = load_config(ds_config=written(tmp_path, autoep)).run
    assert (run.parallel.strategy, run.parallel.ep_size) == ("autoep", 4)
    fp16 = {"fp16": {"enabled": True}, "bf16": {"enabled": "auto"}, "zero_optimization": {"stage": 2}}
    assert load_config(ds_config=written(tmp_path, fp16)).run.precision.dtype == "fp16"


@pytest.mark.parametrize(
    ("values", "fix"),
    [
        ({"bf16": {"enabled": True}, "fp16": {"enabled": True}}, "keep one of them"),
        ({"zero_optimization": {"stage": 2, "offload_param": {"device": "cpu"}}}, "to cpu needs ZeRO stage 3"),
        ({"zero_optimization": {"stage": 0, "offload_optimizer": {"device": "cpu"}}}, "to cpu needs ZeRO stage 1"),
        ({"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "nvme"}}}, "to nvme needs ZeRO stage 3"),
        ({"zero_optimization": {"stage": 2, "contiguous_gradients": False}}, "remove it"),
        ({"zero_optimization": {"stage": 1, "reduce_scatter": False}}, "remove it"),
        ({"expert_parallel": {"enabled": True, "autoep_sise": 2}}, "did you mean 'autoep_size'"),
    ],
    ids=str,
)
def test_contradictions_are_refused_with_the_fix(tmp_path, values, fix):
    path = written(tmp_path, values)
    message = refused(path)
    assert fix in message
    assert str(path) in message


def test_a_stage_that_is_no_number_is_refused_as_the_key_that_was_written(tmp_path):
    zero = {"stage": "two", "offload_optimizer": {"device": "cpu"}}
    assert "'zero_optimization.stage' is \"two\"" in refused(written(tmp_path, {"zero_optimization": zero}))


def test_a_value_that_the_run_config_refuses_is_named_by_its_key(tmp_path):
    path = written(tmp_path, {"zero_optimization": {"stage": 7}})
    assert refused(path).startswith(f"{path}, 'zero_optimization.stage': parallel.zero_stage=7: ")
    path = written(tmp_path, {"train_batch_size": 0})
    assert refused(path).startswith(f"{path}, 'train_batch_size': train.global_batch_size=0: ")
