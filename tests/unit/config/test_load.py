"""Merging preset, YAML file, DeepSpeed JSON and command line: which source wins, and what is refused."""

import json
from pathlib import Path

import pytest

from storyteller_ds.config import RunConfig, load_config
from storyteller_ds.config.files import preset_names, read_preset
from storyteller_ds.config.load import flatten
from storyteller_ds.errors import ConfigError


def write_yaml(folder: Path, text: str, name: str = "run.yaml") -> str:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return str(path)


def write_ds(folder: Path, values: dict) -> Path:
    path = folder / "ds.json"
    path.write_text(json.dumps(values), encoding="utf-8")
    return path


def refused(*args, **kwargs) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(*args, **kwargs)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_every_preset_is_valid_and_says_where_its_fields_come_from():
    for name in preset_names():
        loaded = load_config(name)
        resolved = flatten(loaded.run.model_dump(mode="json"))
        for field, value in flatten(read_preset(name)).items():
            assert resolved[field] == value, field
            assert loaded.sources[field] == f"preset {name}"


def test_nothing_given_means_quickstart():
    assert load_config() == load_config("quickstart")
    assert load_config().name == "quickstart"
    assert load_config().deepspeed is None


# Combinations of sources for a field that all four can set.
@pytest.mark.parametrize(
    ("yaml_text", "json_lr", "override", "expected", "said_by"),
    [
        ("preset: quickstart", None, None, 1e-2, "preset quickstart"),
        ("preset: quickstart\noptimizer: {lr: 5e-4}", None, None, 5e-4, "run.yaml"),
        ("preset: quickstart", 7e-4, None, 7e-4, "ds.json"),
        ("preset: quickstart\noptimizer: {lr: 5e-4}", "auto", None, 5e-4, "run.yaml"),
        ("preset: quickstart\noptimizer: {lr: 5e-4}", 5e-4, "9e-4", 9e-4, "the command line"),
        ("preset: quickstart", 7e-4, "9e-4", 9e-4, "the command line"),
        ("seed: 3", None, None, 1e-3, None),
        ("seed: 3", 7e-4, None, 7e-4, "ds.json"),
        ("seed: 3", None, "9e-4", 9e-4, "the command line"),
    ],
)
def test_later_sources_win(tmp_path, yaml_text, json_lr, override, expected, said_by):
    config = write_yaml(tmp_path, yaml_text)
    ds = None if json_lr is None else write_ds(tmp_path, {"optimizer": {"params": {"lr": json_lr}}})
    loaded = load_config(config, [] if override is None else [f"optimizer.lr={override}"], ds_config=ds)
    assert loaded.run.optimizer.lr == expected
    source = loaded.sources.get("optimizer.lr")
    assert source is None if said_by is None else source.endswith(said_by)
    assert loaded.name == "run"


def test_a_file_without_a_preset_builds_on_the_defaults_field_by_field(tmp_path):
    run = load_config(write_yaml(tmp_path, "model: {num_layers: 2}")).run
    assert run == RunConfig.model_validate({"model": {"num_layers": 2}})
    # Negative control: with the preset the same file gives another run.
    with_preset = load_config(write_yaml(tmp_path, "preset: quickstart\nmodel: {num_layers: 2}")).run
    assert with_preset.model.num_layers == 2
    assert with_preset.model.qk_norm
    assert with_preset != run


SHARED_FIELDS = [
    ({"train_batch_size": 8}, "train: {global_batch_size: 4}", "train.global_batch_size", "8", "4"),
    ({"train_micro_batch_size_per_gpu": 2}, "train: {micro_batch_size: 4}", "train.micro_batch_size", "2", "4"),
    (
        {"gradient_accumulation_steps": 2},
        "train: {gradient_accumulation_steps: 4}",
        "train.gradient_accumulation_steps",
        "2",
        "4",
    ),
    ({"gradient_clipping": 0.5}, "optimizer: {grad_clip_norm: 2.0}", "optimizer.grad_clip_norm", "0.5", "2.0"),
    ({"optimizer": {"params": {"lr": 0.5}}}, "optimizer: {lr: 0.25}", "optimizer.lr", "0.5", "0.25"),
    ({"optimizer": {"params": {"eps": 0.5}}}, "optimizer: {eps: 0.25}", "optimizer.eps", "0.5", "0.25"),
    (
        {"optimizer": {"params": {"weight_decay": 0.5}}},
        "optimizer: {weight_decay: 0.25}",
        "optimizer.weight_decay",
        "0.5",
        "0.25",
    ),
    ({"optimizer": {"params": {"betas": [0.5, 0.6]}}}, "optimizer: {beta2: 0.7}", "optimizer.beta2", "0.6", "0.7"),
    ({"bf16": {"enabled": True}}, "precision: {dtype: fp32}", "precision.dtype", "bf16", "fp32"),
    ({"zero_optimization": {"stage": 2}}, "parallel: {zero_stage: 1}", "parallel.zero_stage", "2", "1"),
]


@pytest.mark.parametrize(("ds", "text", "field", "ds_value", "file_value"), SHARED_FIELDS)
def test_file_and_json_that_disagree_are_refused(tmp_path, ds, text, field, ds_value, file_value):
    path = write_ds(tmp_path, ds)
    config = write_yaml(tmp_path, text)
    message = refused(config, ds_config=path)
    assert all(part in message for part in (f"{field}={file_value}", config, str(path), ds_value)), message
    # A preset gives way to the JSON silently: only the two files are the user's.
    assert flatten(load_config("quickstart", ds_config=path).run.model_dump(mode="json"))[field] == json.loads(
        ds_value if ds_value[0].isdigit() else f'"{ds_value}"'
    )


def test_file_and_json_that_agree_are_fine_and_auto_never_disagrees(tmp_path):
    config = write_yaml(tmp_path, "train: {global_batch_size: 8}\noptimizer: {lr: 0.25}\nparallel: {zero_stage: 2}")
    agreeing = {
        "train_batch_size": 8,
        "optimizer": {"params": {"lr": 0.25}},
        "zero_optimization": {"stage": 2},
    }
    assert load_config(config, ds_config=write_ds(tmp_path, agreeing)).run.train.global_batch_size == 8
    auto = {
        "train_batch_size": "auto",
        "optimizer": {"type": "auto", "params": {"lr": "auto", "betas": "auto"}},
        "gradient_clipping": "auto",
        "bf16": {"enabled": "auto"},
        "zero_optimization": {"stage": 2},
    }
    run = load_config(config, ds_config=write_ds(tmp_path, auto)).run
    assert (run.train.global_batch_size, run.optimizer.lr, run.precision.dtype) == (8, 0.25, "auto")
    assert (run.optimizer.grad_clip_norm, run.optimizer.beta1) == (1.0, 0.9)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("optmizer.lr=1", "did you mean 'optimizer'"),
        ("optimizer.lrr=1", "did you mean 'optimizer.lr'"),
        ("zzz=1", "valid: checkpoint, data, model"),
        ("model.num_experts=4", "did you mean 'moe.num_experts'"),
        ("train.lr=1", "did you mean 'optimizer.lr'"),
        ("num_experts=4", "did you mean 'moe.num_experts'"),
        ("sede=1", "did you mean 'seed'"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_name(override, expected):
    message = refused(overrides=[override])
    assert f"unknown key '{override.split('=')[0].split('.')[0]}" in message
    assert expected in message
    assert message.startswith("the command line: ")


def test_a_misspelt_section_is_refused_even_when_it_is_empty(tmp_path):
    assert "did you mean 'optimizer'" in refused(write_yaml(tmp_path, "optmizer: {lr: 1}"))
    assert "did you mean 'optimizer'" in refused(write_yaml(tmp_path, "optmizer: {}"))


def test_a_key_given_twice_is_refused_by_name(tmp_path):
    message = refused(write_yaml(tmp_path, "optimizer:\n  lr: 1e-3\n  lr: 2e-3\n"))
    assert "lr" in message
    assert "run.yaml line 3" in message
    path = tmp_path / "ds.json"
    path.write_text('{"zero_optimization": {"stage": 1, "stage": 2}}', encoding="utf-8")
    message = refused(ds_config=path)
    assert "'stage'" in message
    assert "twice" in message
    assert str(path) in message


def test_a_field_given_in_both_forms_is_refused_or_agrees(tmp_path):
    # `a.b: 1` beside `a: {b: 2}` gives the same field twice; neither value may be dropped silently.
    message = refused(write_yaml(tmp_path, "optimizer: {lr: 1e-3}\noptimizer.lr: 2e-3\n"))
    assert "optimizer.lr" in message


@pytest.mark.parametrize("text", ["3e-4", "3E-4", "3.0e-4", "0.0003", "+3e-4"])
def test_numbers_with_an_exponent_are_numbers(tmp_path, text):
    assert load_config(write_yaml(tmp_path, f"optimizer: {{lr: {text}}}")).run.optimizer.lr == 3e-4
    assert load_config(overrides=[f"optimizer.lr={text}"]).run.optimizer.lr == 3e-4


def test_overrides_take_dashes_yaml_values_and_the_last_of_two():
    run = load_config(
        overrides=["train.max-steps=7", "train.max_steps=8", 'train.sample_prompts=["a", "b"]', "data.validation=null"]
    ).run
    assert (run.train.max_steps, run.train.sample_prompts, run.data.validation) == (8, ("a", "b"), None)
    assert "not of the form section.field=value" in refused(overrides=["train.max_steps"])


def test_a_deepspeed_config_given_as_run_config_is_answered_with_the_flag(tmp_path):
    path = write_ds(tmp_path, {"train_batch_size": "auto", "zero_optimization": {"stage": 2}})
    assert refused(str(path)) == f"{path} is a DeepSpeed config; give it with --ds_config {path}"
    path.write_text(json.dumps({"optimizer": {"lr": 0.5}}))
    assert load_config(str(path)).run.optimizer.lr == 0.5  # control: JSON is YAML


def test_missing_and_unreadable_config_files_are_named(tmp_path):
    write_yaml(tmp_path, "seed: 1", "story.yaml")
    assert "did you mean 'story.yaml'" in refused(str(tmp_path / "storey.yaml"))
    assert "did you mean 'quickstart'" in refused("quikstart")
    (tmp_path / "latin.yaml").write_bytes(b"seed: 1 # caf\xe9\n")
    assert "not UTF-8 at byte 13" in refused(str(tmp_path / "latin.yaml"))
    assert "cannot be read" in refused(str(tmp_path / "story.yaml" / "x.yaml"))
    assert "run.yaml line 2" in refused(write_yaml(tmp_path, "seed: 1\nmodel: [1}\n"))
    assert "expected `section:` blocks" in refused(write_yaml(tmp_path, "- 1\n- 2\n"))
    assert load_config(write_yaml(tmp_path, "")).run == RunConfig()


RULES = [
    (["model.num_heads=3"], "num_heads=3 does not divide hidden_size=128", "1, 2, 4, 8"),
    (["model.num_kv_heads=3"], "num_kv_heads=3 does not divide num_heads=4", "1, 2, 4"),
    (["model.hidden_size=1000000000000000003"], "does not divide hidden_size=1000000000000000003", "choose one of 1"),
    (["model.hidden_size=12", "model.num_heads=4", "model.num_kv_heads=1"], "even head size", "position=learned"),
    (["moe.top_k=9"], "top_k=9 is more than num_experts=8", "lower top_k"),
    (["moe.every_n_layers=5"], "so that no layer would have experts", "moe.num_experts=0 for a dense model"),
    (["parallel.ep_size=0"], "ep_size=0 is not a number of ranks", "auto"),
    (["model.context_length=100"], "data.sequence_length=256 is longer", "shorten"),
    (["train.max_steps=0"], "train.max_steps=0", "greater than or equal to 1"),
    (["data.sequence_length=many"], "data.sequence_length='many'", "integer"),
    (["optimizer.lr=.nan"], "optimizer.lr=nan", "finite"),
    (["tokenizer.kind=words"], "tokenizer.kind='words'", "'bpe', 'char', 'sentencepiece', 'gpt2' or 'llama2c'"),
]


@pytest.mark.parametrize(("overrides", "wrong", "fix"), RULES, ids=[r[0][0] for r in RULES])
def test_a_bad_combination_is_refused_with_the_fix(overrides, wrong, fix):
    message = refused(overrides=overrides)
    assert wrong in message
    assert fix in message
    assert message.startswith("the command line: ")


def test_a_model_without_experts_may_say_anything_about_their_layers():
    run = load_config(overrides=["moe.every_n_layers=5", "moe.num_experts=0"]).run
    assert run.moe_layers == 0
    assert load_config(overrides=["moe.every_n_layers=3"]).run.moe_layers == 1
    # A checkpoint with such settings is still read, and is dense.
    assert RunConfig.model_validate({"moe": {"every_n_layers": 5}}).moe_layers == 0


def test_a_zero_stage_without_a_deepspeed_json_is_refused_with_the_fix():
    assert "--ds_config ds_configs/zero2.json" in refused(overrides=["parallel.zero_stage=2"])


# preset, JSON, overrides, ranks -> global batch, micro batch, accumulation (None: derived by the plan)
BATCHES = [
    ("quickstart", {}, [], 2, (8, None, None)),
    ("quickstart", {}, ["micro_batch_size=4", "gradient_accumulation_steps=2"], 2, (16, 4, 2)),
    ("quickstart", {"train_micro_batch_size_per_gpu": 3, "gradient_accumulation_steps": 5}, [], 2, (30, 3, 5)),
    ("quickstart", {"train_micro_batch_size_per_gpu": 3}, ["gradient_accumulation_steps=5"], 1, (15, 3, 5)),
    ("quickstart", {"train_batch_size": 8, "train_micro_batch_size_per_gpu": 4}, [], 2, (8, 4, None)),
    ("moe_model", {}, [], 2, (128, 4, None)),
    ("moe_model", {}, ["gradient_accumulation_steps=2"], 2, (128, None, 2)),
    ("moe_model", {}, ["global_batch_size=64"], 2, (64, 4, None)),
    ("nanogpt_moe", {}, ["micro_batch_size=2"], 1, (64, 2, None)),
    ("nanogpt_moe", {}, ["micro_batch_size=1e1", "gradient_accumulation_steps=1"], 4, (40, 10, 1)),
    ("nanogpt_moe", {}, ["micro_batch_size=null"], 1, (64, None, 2)),
    # If all three are given, they must agree, which the plan checks.
    ("quickstart", {}, ["global_batch_size=9", "micro_batch_size=4", "gradient_accumulation_steps=2"], 1, (9, 4, 2)),
]


@pytest.mark.parametrize(("preset", "ds", "overrides", "ranks", "expected"), BATCHES)
def test_a_preset_gives_way_to_what_follows_from_the_sizes_given(tmp_path, preset, ds, overrides, ranks, expected):
    path = write_ds(tmp_path, ds)
    loaded = load_config(preset, [f"train.{each}" for each in overrides], ds_config=path, ranks=ranks)
    train = loaded.run.train
    assert (train.global_batch_size, train.micro_batch_size, train.gradient_accumulation_steps) == expected
    if expected[0] in (16, 30, 15, 40):  # derived, and config show says so
        said = f"micro_batch_size x gradient_accumulation_steps x {ranks} rank(s)"
        assert loaded.sources["train.global_batch_size"] == said


@pytest.mark.parametrize("size", ["0", "-1", "x", "1.5", "true"])
def test_a_size_that_is_none_is_blamed_itself(size):
    message = refused(overrides=[f"train.micro_batch_size={size}", "train.gradient_accumulation_steps=2"])
    assert "train.micro_batch_size=" in message


def test_a_rule_between_fields_blames_what_set_one_of_them(tmp_path):
    config = write_yaml(tmp_path, "model: {context_length: 16}\ndata: {sequence_length: 32}\n")
    ds = write_ds(tmp_path, {"gradient_clipping": 1.0})
    assert refused(config, ["seed=1"], ds_config=ds).startswith(f"{config}: ")
    assert refused(config, ["model.context_length=8"]).startswith("the command line: ")


def test_a_preset_as_a_setting_is_answered_with_the_flag():
    assert "choose one with --config NAME" in refused(overrides=["preset=fast_train"])


@pytest.mark.parametrize(
    ("argument", "flag"),
    [("fast_train", "--config"), ("mine.yaml", "--config"), ("ds_configs/zero2.json", "--ds_config")],
)
def test_a_preset_or_a_file_without_its_flag_is_answered_with_the_flag(argument, flag):
    assert f"did you mean '{flag} {argument}'?" in refused(overrides=[argument])


def test_a_section_that_is_given_a_value_is_answered_in_plain_words():
    assert refused(overrides=["model=big"]).endswith("model='big': is a section; set its fields, each by its name")


def test_what_is_typed_is_no_file_to_fix():
    message = refused(overrides=["data.source=a\x01b"])
    assert message.startswith("the command line, data.source: not valid YAML")
    assert message.endswith("fix the YAML there")


@pytest.mark.parametrize("field", ["model.num_layers", "tokenizer.vocab_size"])
def test_a_number_that_no_model_has_is_refused_before_anything_is_built(field):
    message = refused(overrides=[f"{field}=10000000000"])  # else Rust aborts the process, or building takes hours
    assert f"{field}=10000000000: input should be less than or equal to" in message
