"""storyteller plan --dry_run: all of our DeepSpeed JSONs, hostfiles, and refused arguments."""

import json
import math
import sys
from pathlib import Path

import pytest

from tests.support.distributed import DS_CONFIGS, Outcome, run_command

SMALL = ["model.hidden_size=64", "model.num_layers=2", "model.intermediate_size=64", "data.sequence_length=32"]
JSONS = sorted(path.stem for path in DS_CONFIGS.glob("*.json"))


def plan(*words: object) -> Outcome:
    command = [sys.executable, "-m", "storyteller_ds", "plan", "--dry_run", *map(str, words)]
    return run_command(command, 240, {"OMP_NUM_THREADS": "1"})


@pytest.mark.parametrize("ds_config", JSONS)
def test_every_json(ds_config: str, tmp_path: Path):
    settings = [*SMALL, "train.global_batch_size=32", f"parallel.nvme_path={tmp_path}"]
    done = plan("--world_size", 4, "--ds_config", ds_config, "--json", *settings)
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["world_size"], found["disagreements"]) == (4, [])
    assert {0, 1, 3} <= {view["rank"] for view in found["ranks"]}
    assert all(view["step"] for view in found["ranks"])
    if ds_config.startswith(("zero1", "zero2")):  # their ranks hold the whole model and partition the optimizer state
        total = sum(map(math.prod, found["ranks"][0]["parameters"].values()))
        assert max(view["optimized"] for view in found["ranks"]) < total
    assert ("nvme" in ds_config) == ("memory in place of NVMe" in found["made_smaller"])


def test_the_ranks_of_a_hostfile(tmp_path: Path):
    (tmp_path / "hosts").write_text("".join(f"node{i} slots=4\n" for i in range(16)))
    settings = [*SMALL, "train.global_batch_size=64"]
    done = plan("--hostfile", tmp_path / "hosts", "--ds_config", "zero2", *settings)
    assert done.exit_code == 0, done.stderr
    assert "64 ranks on 16 machine(s) of 4: experts spread over 8 rank(s)" in done.stdout
    assert "all ranks of a group make the same calls in the same order: yes" in done.stdout
    assert "Warning" not in done.stderr
    refused = plan("--hostfile", tmp_path / "hosts", "--world_size", 63, "--ds_config", "zero2", *settings)
    assert refused.exit_code == 2
    assert "has 64 slots on 16 hosts, and --world_size is 63" in refused.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--world_size", 64, "--ds_config", "zero2", "train.global_batch_size=63"), "63"),
        (("--world_size", 64, "--ds_config", "zero2", "parallel.ep_size=3"), "ep_size"),
        (("--world_size", 64, "--ds_config", "zero3", "parallel.ep_size=8"), "zero3_autoep"),
        (("--world_size", 64), "--ds_config"),
        (("--world_size", 64, "--ds_config", "zero2", "moe.top_k=9"), "top_k"),
        (("--world_size", 64, "--ds_config", "zero2", "parallel.strategy=autoep"), "autoep"),
        (("--nodes", 3, "--gpus", 5, "--ds_config", "zero2", "train.micro_batch_size=7"), "micro_batch_size"),
    ],
)
def test_mistakes_are_found(words: tuple[object, ...], message: str):
    done = plan(*words, *([] if any("global_batch" in str(word) for word in words) else ["train.global_batch_size=64"]))
    assert done.exit_code == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
