"""model.size: which settings it decides, and which keep their given values."""

from typing import get_args

import pytest

from storyteller_ds.config.load import load_config
from storyteller_ds.config.size import Size, settings_of, tuned_rate
from storyteller_ds.errors import ConfigError
from storyteller_ds.model.counts import count_parameters

VOCABULARY = "tokenizer.vocab_size=4096"


@pytest.mark.parametrize("size", get_args(Size))
def test_a_size_has_as_many_parameters_as_its_name_says(size):
    run = load_config("quickstart", [f"model.size={size}", VOCABULARY, "model.tie_embeddings=false"]).run
    millions = count_parameters(run).total / 1e6
    assert float(size.removesuffix("M")) == pytest.approx(millions, rel=0.2)
    assert run.moe.num_experts == 8


def test_it_goes_before_what_an_earlier_source_has(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("preset: quickstart\nmodel: {hidden_size: 96}\noptimizer: {lr: 0.5}\n")
    loaded = load_config(file, ["model.size=14M"])
    assert (loaded.run.model.hidden_size, loaded.run.model.num_layers) == (192, 6)
    assert loaded.sources["model.hidden_size"] == "preset model.size=14M"
    assert loaded.run.optimizer.lr == settings_of("14M", loaded.run.optimizer.kind)["optimizer.lr"]


@pytest.mark.parametrize("order", [1, -1])
def test_what_is_set_beside_it_stays(order):
    overrides = ["model.size=14M", "model.num_layers=2", "optimizer.lr=1e-5", "train.micro_batch_size=4"][::order]
    run = load_config("quickstart", overrides).run
    assert (run.model.num_layers, run.optimizer.lr, run.train.micro_batch_size) == (2, 1e-5, 4)
    assert run.model.hidden_size == 192


def test_what_is_set_after_it_stays(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("model: {size: 14M}\n")
    assert load_config(file, ["model.hidden_size=96"]).run.model.hidden_size == 96
    assert load_config(file).run.model.hidden_size == 192


def test_the_parts_of_a_batch_and_a_deepspeed_json_go_before_it():
    parts = ["model.size=14M", "train.micro_batch_size=2", "train.gradient_accumulation_steps=3"]
    assert load_config("quickstart", parts).run.train.global_batch_size == 6
    json = {"train_batch_size": 4, "optimizer": {"type": "AdamW", "params": {"lr": 0.25}}}
    run = load_config("quickstart", ["model.size=14M"], ds_config=json).run
    assert (run.train.global_batch_size, run.optimizer.lr) == (4, 0.25)


def test_rates_follow_width_and_depth():
    narrow, wide = (settings_of(size, "muon") for size in ("4M", "120M"))  # four times as wide
    deeper = (wide["model.num_layers"] / narrow["model.num_layers"]) ** 0.5
    rate, ratio = narrow["optimizer.lr"], wide["optimizer.lr"] / narrow["optimizer.lr"]
    assert ratio == pytest.approx(1 / (2 * deeper), rel=2e-3)
    embedding, output = (f"optimizer.{name}_lr_ratio" for name in ("embedding", "output"))
    assert wide["optimizer.lr"] * wide[embedding] * deeper == pytest.approx(rate * narrow[embedding], rel=2e-3)
    assert wide["optimizer.lr"] * wide[output] * deeper == pytest.approx(rate * narrow[output] / 4, rel=2e-3)
    adamw = [settings_of(size, "adamw")["optimizer.lr"] for size in ("4M", "120M")]
    assert adamw[1] * deeper == pytest.approx(adamw[0] / 4, rel=2e-3)


@pytest.mark.parametrize("kind", ["muon", "adamw"])
def test_the_size_at_which_rates_were_tuned_keeps_them(kind):
    assert settings_of("4M", kind)["optimizer.lr"] == tuned_rate(128, 4, kind) == {"muon": 1e-2, "adamw": 3e-3}[kind]


def test_an_unknown_size_is_refused():
    with pytest.raises(ConfigError, match=r"model.size='7B': .*'1M'"):
        load_config("quickstart", ["model.size=7B"])
