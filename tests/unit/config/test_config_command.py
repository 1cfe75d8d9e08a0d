"""storyteller config show | schema | explain | presets."""

import json

import pytest
from click.testing import CliRunner
from ruamel.yaml import YAML

from storyteller_ds.cli.main import storyteller
from storyteller_ds.config import RunConfig, load_config, parse_run_config
from storyteller_ds.config.files import preset_names
from storyteller_ds.config.load import flatten
from storyteller_ds.errors import ConfigError
from storyteller_ds.model.counts import count_parameters


def stdout(*args: str) -> str:
    result = CliRunner().invoke(storyteller, ["config", *args], catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout


def test_show_prints_a_config_that_gives_the_same_run_again(tmp_path):
    ds = tmp_path / "ds.json"
    ds.write_text('{"zero_optimization": {"stage": 1}}', encoding="utf-8")
    overrides = ["optimizer.lr=5e-4", "data.source='a: #b'", "train.sample_prompts=['x: y']"]
    text = stdout("show", "--ds_config", str(ds), *overrides)
    expected = load_config(overrides=overrides, ds_config=ds).run
    assert parse_run_config(YAML(typ="safe", pure=True).load(text), "shown") == expected
    lines = [line.strip() for line in text.splitlines()]
    assert "lr: 0.0005  # the command line" in lines
    assert "intermediate_size: 256  # preset quickstart" in lines
    assert f"zero_stage: 1  # {ds}" in lines
    assert "momentum: 0.95" in lines  # a default has no source


def test_show_takes_dashes_and_refuses_what_load_config_refuses():
    assert "max_steps: 7  # the command line" in stdout("show", "train.max-steps=7")
    with pytest.raises(ConfigError, match=r"did you mean 'train.max_steps'"):
        stdout("show", "train.max_step=7")


def test_schema_describes_every_field():
    schema = json.loads(stdout("schema"))
    assert "tokens" in schema["$defs"]["DataConfig"]["properties"]["sequence_length"]["description"]
    assert schema["additionalProperties"] is False


def test_presets_are_listed_with_a_line_each():
    heading, *lines = stdout("presets").splitlines()
    assert heading.split() == ["name", "parameters", "active", "for", "what"]
    assert [line.split()[0] for line in lines] == preset_names()
    rows = {
        name: (parameters, active, purpose) for name, parameters, active, purpose in (x.split(None, 3) for x in lines)
    }
    count = count_parameters(load_config("moe_model").run)
    assert rows["moe_model"][:2] == (f"{count.total:,}", f"{count.active:,}")
    assert "two CPU cores" in rows["quickstart"][2]


def test_a_setting_is_explained_with_all_that_there_is_to_say():
    assert " ".join(stdout("explain", "optimizer.lr").split()).startswith(
        "optimizer.lr Peak learning rate (weight units per step). takes a number, above 0 default 0.001 "
        "set by optimizer.lr=VALUE; `optimizer: {lr: VALUE}` in a YAML file; optimizer.params.lr in the DeepSpeed JSON "
        "presets "
    )
    assert "0.02 in nanochat_dense, nanochat_mixture;" in stdout("explain", "optimizer.lr")


@pytest.mark.parametrize(
    ("name", "takes", "default"),
    [
        ("seed", "a whole number, at least 0, below 9223372036854775808", "0"),
        ("parallel.ep_size", "a whole number or auto", '"auto"'),
        ("parallel.zero_stage", "a whole number, at least 0, at most 3, or null", "null"),
        ("model.dropout", "a number, at least 0, below 1", "0.0"),
        ("model.tie_embeddings", "true or false", "true"),
        ("tracking.wandb", "auto, online, offline or disabled", '"auto"'),
        ("tracking.run_name", "a text or null", "null"),
        ("data.cache_dir", "a path or null", "null"),
        ("train.sample_prompts", "a list of texts", '["Once upon a time", "One day,", "There was a little"]'),
        ("train.max-steps", "a whole number, at least 1", "1000"),
    ],
)
def test_types_bounds_and_defaults_are_the_models(name, takes, default):
    text = stdout("explain", name)
    assert f"  takes    {takes}\n" in text
    assert f"  default  {default}\n" in text


def test_every_setting_and_every_section_is_explained():
    fields = flatten(RunConfig().model_dump(mode="json"))
    explained = [line for line in stdout("explain", *RunConfig.model_fields).splitlines() if not line.startswith(" ")]
    assert explained == list(fields)
    listed = stdout("explain").splitlines()
    assert [line.split()[0] for line in listed if not line.startswith(" ")] == list(RunConfig.model_fields)


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("optimizer.lrr", "optimizer.lr"),
        ("lr", "optimizer.lr"),
        ("optmizer", "optimizer"),
        ("model.num_experts", "moe.num_experts"),
    ],
)
def test_an_unknown_setting_is_refused_with_the_nearest(name, nearest):
    with pytest.raises(ConfigError, match=rf"there is no setting '{name}'; did you mean '{nearest}'"):
        stdout("explain", name)


@pytest.mark.parametrize(("name", "advice"), [("zzz.lrx", "valid: checkpoint, data"), ("optmizer.x", "'optimizer'")])
def test_a_section_that_there_is_not_is_given_no_settings(name, advice):
    with pytest.raises(ConfigError, match=f"there is no setting '{name}'; .*{advice}"):
        stdout("explain", name)
