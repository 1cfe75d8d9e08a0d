"""Every preset passes the doctor and trains three real steps; the big ones with only two layers."""

import json
import math
import time
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

import storyteller_ds as st
from storyteller_ds.cli.main import storyteller
from storyteller_ds.config import load_config
from storyteller_ds.config.files import preset_names, preset_summary
from storyteller_ds.generation.load import load_decoder
from storyteller_ds.model import Decoder, count_parameters
from storyteller_ds.model.decoder import empty_decoder

BIG = ("base_model", "gpt2_small", "moe_model")
"""At full size they take minutes per step on a CPU, and 2 to 8 GB."""
SECONDS = 10
SMALL_RUN = {
    "train.max_steps": 3,
    "train.global_batch_size": 2,
    "train.micro_batch_size": None,
    "train.gradient_accumulation_steps": None,
    "train.eval_batches": 1,
    "train.eval_every_steps": 0,
    "train.log_every_steps": 1,
    "train.sample_prompts": ["One day"],
    "train.sample_tokens": 4,
    "schedule.warmup_steps": 1,
    "data.source": "builtin",
    "data.builtin_stories": 100,
    "data.sequence_length": 64,
    "checkpoint.every_steps": 0,
    "parallel.device": "cpu",
}
every_preset = pytest.mark.parametrize("name", preset_names())


def own_settings(name: str) -> dict[str, object]:
    """Settings with which the preset trains in seconds and without a network."""
    settings: dict[str, object] = dict(SMALL_RUN)
    if load_config(name).run.tokenizer.kind == "gpt2":
        settings["tokenizer.kind"] = "bpe"
    if name in BIG:
        settings["model.num_layers"] = 2
    return settings


@every_preset
def test_the_doctor_says_nothing_of_it(name, tmp_path):
    began = time.monotonic()
    result = CliRunner().invoke(
        storyteller, ["doctor", "--json", "--config", name, "--output_dir", str(tmp_path)], standalone_mode=False
    )
    found = json.loads(result.stdout)
    # Findings about the test machine are not the preset's fault.
    of_machine = (
        "thread_count",
        "open_files",
        "disk_too_small",
        "few_inodes",
        "too_little_memory",
        "longer_than_a_week",
        "cuda",
    )
    assert [each for each in found if each["check"] not in of_machine] == []
    assert time.monotonic() - began < 3 * SECONDS  # other tests keep the machine busy


@every_preset
def test_its_parameters_are_counted_right(name):
    run, summary = load_config(name).run, preset_summary(name)
    assert sum(p.numel() for p in empty_decoder(run).parameters()) == summary.parameters
    assert count_parameters(run) == (summary.parameters, summary.active)


@pytest.mark.parametrize("name", BIG)
def test_a_big_one_is_its_first_two_layers_and_the_rest_of_the_same(name):
    def layers(count: int) -> int:
        run = load_config(name, {"model.num_layers": count}).run
        with torch.device("meta"):
            return sum(p.numel() for p in Decoder(run).parameters())

    whole = load_config(name).run.model.num_layers
    assert layers(2) + (whole - 2) * (layers(3) - layers(2)) == preset_summary(name).parameters


@every_preset
def test_it_trains_three_steps(name, tmp_path: Path):
    run = st.train(name, own_settings(name), output_dir=tmp_path / "run")
    losses = [row["train_loss"] for row in run.metrics if "train_loss" in row]
    assert len(losses) == 3
    assert all(map(math.isfinite, losses))
    rows = load_config(name).run.tokenizer.vocab_size
    assert losses[0] == pytest.approx(math.log(rows), rel=0.15)  # before training, every token is about equally likely
    assert run.checkpoint is not None
    decoder = load_decoder(tmp_path / "run", torch.device("cpu"), print).decoder
    trained = sum(parameter.numel() for parameter in decoder.parameters())
    assert trained == count_parameters(load_config(name, own_settings(name)).run).total
    if name not in BIG:
        assert trained == preset_summary(name).parameters
