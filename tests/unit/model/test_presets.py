"""The presets load, split over ranks, and have the sizes that their comments and README state."""

import re
from importlib.resources import files
from pathlib import Path

import pytest
import torch

from storyteller_ds.config.files import preset_names
from storyteller_ds.config.load import load_config
from storyteller_ds.config.run import RunConfig
from storyteller_ds.distributed.plan import make_plan
from storyteller_ds.model.counts import count_parameters

ZERO2 = Path(__file__).resolve().parents[3] / "ds_configs" / "zero2.json"

PRESETS = files("storyteller_ds.presets")
COUNT_LINE = re.compile(r"# parameters: ([\d,]+) total, ([\d,]+) active per token")

# Number of parameters that a preset's name promises, or the true one where older READMEs claimed the impossible.
NAMED_SIZE = {
    "tiny_test": 3e6,
    "fast_train": 10e6,
    "min_model": 50e6,
    "gpt2_small": 124e6,
    "base_model": 350e6,
    "moe_model": 500e6,
    "storyllm": 30e6,
    "basic": 10e6,
    "nanogpt_moe": 55e6,
    "nanogpt_dense": 10e6,
    "tok105": 1e6,
    "nanochat_dense": 1.84e6,
    "quickstart_dense": 1.57e6,
    "nanochat_mixture": 4.46e6,
}
MIXTURES = {"quickstart", "nanochat_mixture", "tiny_test", "fast_train", "moe_model", "nanogpt_moe"}

every_preset = pytest.mark.parametrize("name", preset_names())


def preset(name: str, *overrides: str) -> RunConfig:
    return load_config(name, overrides=overrides).run


def number(text: str) -> int:
    return int(text.replace(",", ""))


def test_the_presets_are_these():
    assert set(preset_names()) == set(NAMED_SIZE) | {"quickstart"}


@every_preset
def test_comments_say_what_it_is_for_and_the_true_counts(name):
    purpose, counts, *_ = PRESETS.joinpath(f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    assert re.fullmatch(r"# .+\.", purpose)
    match = COUNT_LINE.fullmatch(counts)
    assert match, counts
    assert tuple(map(number, match.groups())) == count_parameters(preset(name))


@pytest.mark.parametrize(("name", "size"), NAMED_SIZE.items())
def test_total_is_within_15_percent_of_the_name(name, size):
    assert count_parameters(preset(name)).total == pytest.approx(size, rel=0.15)


@every_preset
@pytest.mark.parametrize("world_size", [1, 2, 4, 8])
def test_global_batch_splits_over_ranks(name, world_size):
    run = load_config(name, ds_config=ZERO2 if world_size > 1 else None).run
    plan = make_plan(run, world_size)
    assert world_size * plan.micro_batch_size * plan.accumulation_steps == run.train.global_batch_size


@every_preset
def test_moe_presets_are_8_experts_top_2_and_the_others_dense(name):
    moe = preset(name).moe
    assert (moe.num_experts, moe.top_k if moe.num_experts else 2) == (8 if name in MIXTURES else 0, 2)


@every_preset
def test_training_reaches_every_position_and_the_end_of_warmup(name):
    run = preset(name)
    assert run.data.sequence_length == run.context_length
    assert run.schedule.warmup_steps < run.train.max_steps


def test_gpt2_small_is_gpt2():
    transformers = pytest.importorskip("transformers")
    with torch.device("meta"):
        gpt2 = transformers.GPT2LMHeadModel(transformers.GPT2Config())
    run = preset("gpt2_small")
    assert count_parameters(run).total == sum(p.numel() for p in gpt2.parameters()) == 124_439_808
    assert run.model.norm_eps == gpt2.config.layer_norm_epsilon
    assert run.model.dropout == gpt2.config.resid_pdrop == gpt2.config.embd_pdrop == gpt2.config.attn_pdrop


def test_nanogpt_dense_differs_from_its_twin_in_the_experts_only():
    sparse, dense = preset("nanogpt_moe").model_dump(), preset("nanogpt_dense").model_dump()
    assert sparse.pop("moe") != dense.pop("moe")
    assert sparse == dense


def test_basic_has_the_memory_of_its_readme():
    weights = 4 * count_parameters(preset("basic")).total
    assert weights == pytest.approx(40e6, rel=0.01)
    assert 4 * count_parameters(preset("basic", "tokenizer.vocab_size=50257")).total == pytest.approx(77e6, rel=0.01)


def test_moe_model_could_not_have_100m_active():
    run = preset("moe_model")
    # A lower bound for 2 of 8 experts: no embedding, no attention.
    assert 500e6 * run.moe.top_k / run.moe.num_experts > 100e6
    assert count_parameters(run).active == pytest.approx(171e6, rel=0.01)


def test_storyllm_learning_rate_falls():
    run = preset("storyllm")
    assert run.optimizer.lr * run.schedule.min_lr_ratio == pytest.approx(1e-4)


def readme_row(run: RunConfig) -> tuple[str, ...]:
    """The columns between name and purpose, as the README writes them."""
    count = count_parameters(run)
    return (
        f"{count.total:,}",
        f"{count.active:,}",
        f"{run.model.num_layers} x {run.model.hidden_size}",
        f"{run.moe.num_experts}, top-{run.moe.top_k}" if run.moe.num_experts else "dense",
        f"{run.context_length:,}",
        f"{run.tokenizer.vocab_size:,}",
    )


def test_readme_table_is_true():
    lines = PRESETS.joinpath("README.md").read_text(encoding="utf-8").splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("| name |")) + 2
    table = {}
    for line in lines[start : lines.index("", start)]:
        name, *columns, _purpose = (cell.strip() for cell in line.strip("|").split("|"))
        assert name not in table
        table[name] = tuple(columns)
    assert table == {name: readme_row(preset(name)) for name in preset_names()}
