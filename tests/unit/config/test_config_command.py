"""storyteller config show | schema | presets."""

import json

import pytest
from click.testing import CliRunner
from ruamel.yaml import YAML

from storyteller_ds.cli.main import storyteller
from storyteller_ds.config import load_config, parse_run_config
from storyteller_ds.config.files import preset_names
from storyteller_ds.errors import ConfigError


def stdout(*args: str) -> str:
    result = CliRunner().invoke(storyteller, ["config", *args], catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout


def test_show_prints_a_config_that_gives_the_same_run_again(tmp_path):
    ds = tmp_path / "ds.json"
    ds.write_text('{"zero_optimization": {"stage": 1}}', encoding="utf-8")
    overrides = ["optimizer.lr=5e-4", "data.source='a: #b'", "train.sample_prompts=['x: y']"]
    text = stdout("show", "--ds_config", str(ds), *overrides)
    expected = load_config(None, ds, overrides).run
    assert parse_run_config(YAML(typ="safe", pure=True).load(text), "shown") == expected
    lines = [line.strip() for line in text.splitlines()]
    assert "lr: 0.0005  # the command line" in lines
    assert "num_kv_heads: 2  # preset quickstart" in lines
    assert f"zero_stage: 1  # {ds}" in lines
    assert "eps: 1e-08" in lines  # a default has no source


def test_show_takes_dashes_and_refuses_what_load_config_refuses():
    assert "max_steps: 7  # the command line" in stdout("show", "train.max-steps=7")
    with pytest.raises(ConfigError, match=r"did you mean 'train.max_steps'"):
        stdout("show", "train.max_step=7")


def test_schema_describes_every_field():
    schema = json.loads(stdout("schema"))
    assert "tokens" in schema["$defs"]["DataConfig"]["properties"]["sequence_length"]["description"]
    assert schema["additionalProperties"] is False


def test_presets_are_listed():
    assert stdout("presets").split() == preset_names()
