"""fp16 with DeepSpeed: all ranks skip and count overflowing steps, and the run continues and can be resumed."""

import json
from pathlib import Path

from tests.support.distributed import DS_CONFIGS, TINY_RUN
from tests.support.runs import read_metrics, read_state
from tests.support.warm_machine import MainJob

STEPS = 12


def train_lines(folder: Path) -> list[dict]:
    return [line for line in read_metrics(folder) if "train_loss" in line]


def test_a_scale_that_is_far_too_high_is_brought_down_and_the_run_goes_on(main_job: MainJob, tmp_path: Path):
    config = json.loads((DS_CONFIGS / "zero2_fp16.json").read_text())
    config["fp16"]["initial_scale_power"] = 28
    ds_config = tmp_path / "ds.json"
    ds_config.write_text(json.dumps(config))
    run = (*TINY_RUN, f"train.max_steps={STEPS}", "train.eval_batches=1", "train.sample_tokens=1")
    run += ("checkpoint.every_steps=6", "tracking.wandb=disabled", "--quiet")
    run += ("--ds_config", str(ds_config))  # the last --ds_config counts
    lines = train_lines(main_job(tmp_path / "run", 2, "zero2_fp16", *run))
    skipped = [line["grad_norm"] is None for line in lines]
    assert skipped[0], "2^28 is more than fp16 can hold"
    assert not skipped[-1], "a scale was found"
    count = sum(skipped)
    assert skipped == [True] * count + [False] * (STEPS - count)
    assert lines[-1]["skipped_steps"] == count
    assert lines[-1]["loss_scale"] == 2.0 ** (28 - count)
    # Skipped steps change no weights, so they alone would move the loss little, from batch to batch.
    assert lines[-1]["train_loss"] < lines[0]["train_loss"]

    half = tmp_path / "run" / "checkpoints" / "step_00000006"
    again = train_lines(main_job(tmp_path / "again", 2, "zero2_fp16", *run, "--resume", str(half)))
    assert again == lines[6:], "scale, count and AdamW's own step count went through the checkpoint"
    ours, expected = read_state(tmp_path / "again", STEPS), read_state(tmp_path / "run", STEPS)
    assert all((ours[name] == tensor).all() for name, tensor in expected.items())
