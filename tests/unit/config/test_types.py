"""A value has the type it was written with: what each type takes, and what only looks right.

The rule is described in storyteller_ds/config/base.py; for a DeepSpeed JSON see test_deepspeed_types.py.
"""

import json
import shlex
from pathlib import Path
from typing import Any, get_args

import pytest

from storyteller_ds.config import RunConfig, load_config, parse_run_config
from storyteller_ds.config.load import flatten
from storyteller_ds.errors import ConfigError


def value_of(run: RunConfig, field: str) -> Any:
    for name in field.split("."):
        run = getattr(run, name)
    return run


def loaded(way: str, folder: Path, field: str, text: str) -> RunConfig:
    """The run config with one setting, given as YAML in a file or on the command line."""
    if way == "command line":
        return load_config("tiny_test", overrides=[f"{field}={text}"]).run
    section, _, name = field.rpartition(".")
    lines = f"{section}:\n  {name}: {text}\n" if section else f"{name}: {text}\n"
    (folder / "run.yaml").write_text(f"preset: tiny_test\n{lines}", encoding="utf-8")
    return load_config(str(folder / "run.yaml")).run


both_ways = pytest.mark.parametrize("way", ["file", "command line"])

TAKEN = [
    # whole numbers, however they are written
    *(("train.max_steps", text, 1000) for text in ("1000", "1e3", "1000.0", "1E3", "+1000", "1_000", "0x3e8")),
    ("seed", "1.0", 1),
    ("seed", "9007199254740993", 2**53 + 1),  # an int that no float can represent
    ("parallel.ep_size", "2", 2),
    ("parallel.ep_size", "2.0", 2),
    ("parallel.ep_size", "auto", "auto"),
    ("parallel.ep_size", "'auto'", "auto"),
    ("model.num_kv_heads", "null", None),
    # numbers
    ("optimizer.lr", "1", 1.0),
    ("optimizer.lr", "3e-4", 3e-4),
    ("train.max_minutes", "5", 5.0),
    ("train.max_minutes", "null", None),
    # booleans
    ("model.tie_embeddings", "true", True),
    ("model.tie_embeddings", "False", False),
    # texts, and numbers where a name is expected, kept as typed
    ("tracking.run_name", "first", "first"),
    ("tracking.run_name", "12", "12"),
    ("tracking.run_name", "'12'", "12"),
    ("tracking.run_name", "1.10", "1.10"),
    ("tracking.run_name", "1e3", "1e3"),
    ("tracking.run_name", "007", "007"),
    ("tracking.run_name", "2025_01_05", "2025_01_05"),
    ("tracking.run_name", "2025-01-05", "2025-01-05"),
    ("tracking.run_name", "yes", "yes"),  # YAML 1.2
    ("tracking.run_name", "'true'", "true"),
    ("data.revision", "0" * 39 + "1", "0" * 39 + "1"),
    # paths, lists, choices
    ("data.cache_dir", "/some/where", Path("/some/where")),
    ("data.cache_dir", "2025", Path("2025")),
    ("train.sample_prompts", "[One day, 'two: three', 1.50]", ("One day", "two: three", "1.50")),
    ("train.sample_prompts", "[]", ()),
    ("tracking.wandb", "disabled", "disabled"),
]

REFUSED = [
    # a value in quotes is a text
    ("train.max_steps", "'100'", "train.max_steps='100': input should be a valid integer"),
    ("train.max_steps", '"1e3"', "train.max_steps='1e3': input should be a valid integer"),
    ("optimizer.lr", "'3e-4'", "optimizer.lr='3e-4': input should be a valid number"),
    ("parallel.ep_size", "'2'", "parallel.ep_size='2': input should be a valid integer; or "),
    ("model.tie_embeddings", "'false'", "model.tie_embeddings='false': should be true or false"),
    ("train.max_minutes", "'5'", "train.max_minutes='5': input should be a valid number"),
    # what is not a whole number
    ("train.max_steps", "1.5", "valid integer"),
    ("train.max_steps", "1e300", "valid integer"),
    ("train.max_steps", "many", "train.max_steps='many': input should be a valid integer"),
    # only true and false are booleans, and they are nothing else
    ("model.tie_embeddings", "1", "model.tie_embeddings=1: should be true or false"),
    ("model.tie_embeddings", "0", "should be true or false"),
    ("model.tie_embeddings", "1.0", "should be true or false"),
    ("model.tie_embeddings", "yes", "model.tie_embeddings='yes': should be true or false"),
    ("model.tie_embeddings", "on", "should be true or false"),
    ("train.max_steps", "true", "train.max_steps=true: input should be a valid integer"),
    ("optimizer.lr", "true", "optimizer.lr=true"),
    ("parallel.ep_size", "true", "parallel.ep_size=true"),
    ("tracking.run_name", "true", "tracking.run_name=true: should be a text; put it in quotes"),
    ("tracking.wandb", "off", "tracking.wandb='off': input should be 'auto', 'online', 'offline' or 'disabled'"),
    ("tracking.wandb", "false", "tracking.wandb=false: input should be 'auto'"),
    ("data.cache_dir", "true", "data.cache_dir=true: should be a path"),
    # null, where it is not an option
    ("train.max_steps", "null", "train.max_steps=null: input should be a valid integer"),
    ("model.tie_embeddings", "~", "model.tie_embeddings=null"),
    ("data.source", "", "data.source=null"),
    ("tracking.wandb", "null", "tracking.wandb=null"),
    # lists
    ("train.sample_prompts", "Once", "train.sample_prompts='Once': should be a list, for instance [a, b]"),
    ("train.sample_prompts", "{a: 1}", "train.sample_prompts"),
    ("train.sample_prompts", "[true]", "should be a text"),
    ("train.sample_prompts", "[[a]]", "should be a text"),
    ("train.max_steps", "[100]", "valid integer"),
    ("tracking.run_name", "[a]", "should be a text"),
    ("optimizer.lr", "{value: 1}", "optimizer.lr"),
]


@both_ways
@pytest.mark.parametrize(("field", "text", "expected"), TAKEN)
def test_what_is_meant_is_taken(tmp_path, way, field, text, expected):
    run = loaded(way, tmp_path, field, text)
    value = value_of(run, field)
    assert value == expected
    # Not a bool in place of an int, nor the parser's own number type.
    assert type(value) is type(expected) or isinstance(expected, Path)
    dumped = json.loads(json.dumps(run.model_dump(mode="json")))
    assert parse_run_config(dumped, "config.json") == run


@both_ways
@pytest.mark.parametrize(("field", "text", "expected"), REFUSED)
def test_what_only_looks_like_it_is_refused_with_its_place(tmp_path, way, field, text, expected):
    with pytest.raises(ConfigError) as caught:
        loaded(way, tmp_path, field, text)
    message = str(caught.value)
    assert expected in message
    assert message.startswith("the command line" if way == "command line" else str(tmp_path / "run.yaml"))


@pytest.mark.parametrize("text", ["My stories #2.txt", "#2", "12 # twelve"])
def test_a_name_on_the_command_line_is_not_cut_short_at_a_comment(text):
    with pytest.raises(ConfigError, match="# begins a comment in YAML; put the value in quotes: ") as caught:
        load_config("tiny_test", overrides=[f"tracking.run_name={text}"])
    # The advised argument, as a shell would pass it on.
    (advised,) = shlex.split(str(caught.value).rpartition("quotes: ")[2])
    assert load_config("tiny_test", overrides=[advised]).run.tracking.run_name == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [("a#b", "a#b"), ("'a #b'", "a #b"), ('"a #b" # c', "a #b"), ("https://a/b#c", "https://a/b#c")],
)
def test_a_name_may_have_the_sign_of_comments(text, expected):
    assert load_config("tiny_test", overrides=[f"tracking.run_name={text}"]).run.tracking.run_name == expected
    assert load_config("tiny_test", overrides=["train.sample_prompts=['a #b']"]).run.train.sample_prompts == ("a #b",)


def test_no_field_takes_a_value_of_another_type():
    # For every field: no text for a number or a flag, no number for a flag, no flag for anything else.
    def is_taken(field: str, value: object) -> bool:
        section, _, name = field.rpartition(".")
        try:
            parse_run_config({section: {name: value}} if section else {name: value}, "here")
        except ConfigError:
            return False
        return True

    flags = set()
    for field in flatten(RunConfig().model_dump(mode="json")):
        assert not any(is_taken(field, text) for text in ("1", "true")) or is_taken(field, "Rex"), field
        if is_taken(field, True) or is_taken(field, False):
            flags.add(field)
            assert not any(is_taken(field, value) for value in (1, 0, 1.0, "true", "false", "on")), field
    booleans = set()
    for section, info in RunConfig.model_fields.items():
        for name, field in getattr(info.annotation, "model_fields", {}).items():
            assert bool not in get_args(field.annotation)
            if field.annotation is bool:
                booleans.add(f"{section}.{name}")
    assert flags == booleans
    assert len(flags) > 5
