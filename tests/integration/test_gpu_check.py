"""launch/gpu_check.sh on the CPU with small sizes, so that no part of it first runs on a GPU."""

import json
import sys
from pathlib import Path

from tests.support.distributed import Outcome, run_command

REPOSITORY = Path(__file__).parents[2]


def check(out: Path, *arguments: str) -> Outcome:
    command = ["sh", str(REPOSITORY / "launch" / "gpu_check.sh"), "--device", "cpu", "--quick", "--out", str(out)]
    return run_command([*command, *arguments], 240, env={"PYTHON": sys.executable})


def test_parts_leave_their_records(tmp_path: Path):
    outcome = check(tmp_path, "--parts", "environment,parity,training,decoding")
    assert outcome.exit_code == 0, outcome.stdout
    records = {path.stem: json.loads(path.read_text()) for path in tmp_path.glob("*.json")}
    assert records.keys() == {"environment", "parity", "training", "decoding"}
    assert records["parity"]["passed"]
    trained = records["training"]["tiny_test"]
    assert trained["launches_per_step"] > 100
    assert trained["loss"][-1] < trained["loss"][0]
    assert records["decoding"]["tiny_test"]["tokens"] == 32
    assert [line.split()[0] for line in outcome.stdout.splitlines()] == [
        "environment",
        "parity",
        "training",
        "decoding",
    ]


def test_a_part_that_fails_costs_the_others_nothing(tmp_path: Path):
    # The decoding part fails: there is no model to decode with.
    outcome = check(tmp_path, "--parts", "decoding,environment")
    assert outcome.exit_code == 1
    assert "decoding" in outcome.stdout
    assert "exit code 1" in outcome.stdout
    assert "FileNotFoundError" in outcome.stdout
    assert (tmp_path / "environment.json").exists()


def test_an_unknown_part_is_refused(tmp_path: Path):
    outcome = check(tmp_path, "--parts", "decode")
    assert outcome.exit_code == 2
    assert "no part is called decode; there are environment, tests" in outcome.stderr
