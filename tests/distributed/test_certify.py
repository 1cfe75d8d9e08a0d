"""storyteller certify: passes, fails on a wrong gradient, and leaves nothing behind."""

import contextlib
import json
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.distributed import MarkedRun, marked_run, run_command, wait_until

TIMEOUT_S = 240


def command(*arguments: str) -> list[str]:
    return [str(Path(sys.executable).parent / "storyteller"), "certify", *arguments]


FAULTY = """
from storyteller_ds.certify import run

def faulty_rank(*arguments):
    from storyteller_ds.certify import rank

    class Faulty(rank._Measurements):
        '''Rank 0's gradients are 1 % too large, as a wrong factor in a reduction would make them.

        Not with a rank's experts alone: AdamW does not notice a constant factor on a whole tensor.
        '''

        def on_start(self, state):
            super().on_start(state)
            if self.trainer.run.parallel.zero_stage is not None and self.trainer.world.is_main:
                self.in_training.callback(self.trainer.engine.decoder.register_forward_hook(self.scale).remove)

        def scale(self, decoder, inputs, output):
            output[0].register_hook(lambda gradient: gradient * 1.01)

    rank._Measurements = Faulty
    rank.run_rank(*arguments)

if __name__ == "__main__":
    from storyteller_ds.cli.main import main
    run.run_rank = faulty_rank
    main()
"""


def test_rows_pass_and_the_exchange_sends_what_is_routed():
    outcome = run_command(command("--only", "zero1,ep4", "--json"), TIMEOUT_S)
    assert outcome.exit_code == 0, outcome.stderr
    document = json.loads(outcome.stdout)
    assert document["passed"] is True
    single, ep4, zero1 = document["rows"]
    assert (single["name"], single["outcome"]) == ("single", "reference")
    for row in (ep4, zero1):
        assert row["outcome"] == "passed", row["problem"]
        quantities = {name: value for name, value in row["difference"].items() if name != "by_weight"}
        assert quantities.keys() == {"loss", "grad_norm", "router", "weights", "logits"}
        assert max(quantities.values()) <= 1e-5
        assert "blocks.1.ffn.experts.down_proj" in row["difference"]["by_weight"]
        assert 1 <= row["traffic"]["sent_over_routed"] <= 1.02
        assert row["step_time_s"] > 0
        assert row["peak_memory_bytes"] > 2**20
    # The compared run really trains.
    steps = [record for record in single["records"] if "train_loss" in record]
    assert steps[-1]["train_loss"] < steps[0]["train_loss"]
    assert min(step["grad_norm"] for step in steps) > 0.25, "every step is clipped"


def test_a_wrong_gradient_scale_is_found(tmp_path: Path):
    page = tmp_path / "certificate.md"
    script = tmp_path / "faulty.py"
    script.write_text(FAULTY)
    outcome = run_command([sys.executable, str(script), "certify", "--only", "zero2", "--output", str(page)], TIMEOUT_S)
    assert outcome.exit_code == 1, outcome.stderr
    assert "first tensor that differs: embedding.weight" in outcome.stdout
    assert outcome.stderr.splitlines()[-1] == "storyteller: not certified: zero2 (see above)"
    assert "0 of 1 rows passed" in page.read_text()


def test_an_unknown_row_is_refused():
    outcome = run_command(command("--only", "single,zer2"), TIMEOUT_S)
    assert outcome.exit_code == 2
    assert outcome.stderr == "storyteller: --only zer2: there is no such row; did you mean 'zero2'?\n"
    assert outcome.stdout == ""


def ranks_of(run: MarkedRun) -> list[int]:
    """The processes that lead their own process group, except the command itself."""
    found = []
    for member in run.members():
        with contextlib.suppress(ProcessLookupError):
            if member.pid != run.commands[0].pid and os.getpgid(member.pid) == member.pid:
                found.append(member.pid)
    return found


@pytest.fixture
def running() -> Iterator[MarkedRun]:
    """storyteller certify on a four-rank row, with all ranks just started."""
    # A killed command cannot clean up. Not tmp_path: the path of a socket in it would be too long.
    with tempfile.TemporaryDirectory() as temporary, marked_run() as run:
        process = run.start(command("--only", "ep4"), {"TMPDIR": temporary})
        assert wait_until(lambda: len(ranks_of(run)) == 4 or process.poll() is not None, TIMEOUT_S)
        assert process.poll() is None, process.communicate()
        yield run


def test_a_killed_rank_fails_its_row(running: MarkedRun):
    os.kill(ranks_of(running)[1], signal.SIGKILL)
    stdout, _ = running.commands[0].communicate(timeout=TIMEOUT_S)
    assert running.commands[0].returncode == 1
    assert "was ended by SIGKILL" in stdout
    assert wait_until(lambda: not running.members(), TIMEOUT_S)


def test_no_rank_outlives_the_command(running: MarkedRun):
    running.commands[0].kill()
    assert wait_until(lambda: not running.members(), TIMEOUT_S)
