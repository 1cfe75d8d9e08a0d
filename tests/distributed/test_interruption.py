"""Signals under the real launchers: the run saves its current step; and signals before it trains.

Other effects of signals are tested on warm ranks, by tests/faults/faults_signals.py.

Linux only, like supervision.
"""

import os
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from storyteller_ds.errors import EXIT_INTERRUPTED
from tests.support.distributed import (
    TINY_RUN,
    MarkedRun,
    launch_command,
    marked_run,
    torchrun_command,
    train_command,
    wait_until,
)

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="supervision is for Linux")

RUN = (
    *TINY_RUN,
    "model.dropout=0.1",
    "train.eval_batches=2",
    "train.sample_tokens=5",
    "tracking.wandb=disabled",
    "--quiet",
)
ENDLESS = (*RUN, "train.max_steps=1000000")
START_S = 240
END_S = 60


def ended(run: MarkedRun) -> bool:
    return run.commands[0].poll() is not None


def last_step(folder: Path) -> int:
    metrics = folder / "metrics.jsonl"
    steps = re.findall(r'"step": (\d+),', metrics.read_text()) if metrics.exists() else []
    return int(steps[-1]) if steps else 0


def outcome(run: MarkedRun, within: float = END_S) -> tuple[int, list[str], str]:
    """Exit code of the command, our lines on stderr, and all of stderr, once no process of the run is left."""

    def nothing_left() -> bool:
        return ended(run) and not run.members()

    assert wait_until(nothing_left, within), run.members()
    stderr = run.commands[0].communicate()[1]
    return run.commands[0].returncode, re.findall(r"^storyteller: (.*)$", stderr, re.MULTILINE), stderr


def saved_steps(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def saved_by(signals: str, folder: Path) -> str:
    assert saved_steps(folder) == [f"step_{last_step(folder):08}"]
    return f"interrupted by {signals}; saved step {last_step(folder)}; run again to continue"


# Who is signaled -> launcher, process, signal, exit code of the command. DeepSpeed's launcher passes on a rank's code
# but exits with 1 if it is signaled itself, as torchrun always does. Under storyteller launch no signal reaches it.
SIGNALLED: dict[str, tuple[Callable[..., list[str]], Callable[[MarkedRun], int], signal.Signals, int]] = {
    "rank 1": (train_command, lambda run: run.training(1).pid, signal.SIGTERM, EXIT_INTERRUPTED),
    "deepspeed's launcher": (train_command, lambda run: run.launcher(0).pid, signal.SIGTERM, 1),
    "storyteller launch, Ctrl-C": (launch_command, lambda run: run.commands[0].pid, signal.SIGINT, EXIT_INTERRUPTED),
    "torchrun, Ctrl-C": (torchrun_command, lambda run: run.launcher(0).pid, signal.SIGINT, 1),
}


# The others run with `make test-faults`.
@pytest.mark.parametrize(
    "who", [who if "launch," in who else pytest.param(who, marks=pytest.mark.faults) for who in SIGNALLED]
)
def test_all_ranks_save_the_step_and_leave(who: str, tmp_path: Path):
    command, find, number, code = SIGNALLED[who]
    with marked_run() as run:
        run.start(command(2, "zero2", "--output_dir", str(tmp_path), *ENDLESS))
        assert wait_until(lambda: ended(run) or last_step(tmp_path) >= 3, START_S)
        assert not ended(run), run.commands[0].communicate()
        os.kill(find(run), number)
        seen, lines, stderr = outcome(run)
    assert seen == code, stderr
    assert lines == [saved_by(number.name, tmp_path)], stderr
    assert re.findall(r"exitcode *: (\d+)", stderr) in ([], [str(EXIT_INTERRUPTED)] * 2)  # as torchrun saw them


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_before_training_it_ends_at_once(number: signal.Signals, code: int, tmp_path: Path):
    """A signal ends the process at once while it prepares a corpus that would take minutes."""
    with marked_run() as run:
        arguments = ("--output_dir", str(tmp_path / "run"), *RUN, "data.builtin_stories=3000000")
        started = run.start(train_command(1, None, *arguments))
        assert wait_until(lambda: listens(started.pid), START_S)
        os.kill(started.pid, number)
        seen, lines, stderr = outcome(run, 20)
    assert seen == code, stderr
    assert len(lines) == 1, stderr
    assert lines[0].startswith("interrupted")
    assert not (tmp_path / "run").exists()


def listens(pid: int) -> bool:
    """Whether the process has a handler for SIGUSR1 (proc(5), SigCgt)."""
    caught = re.search(r"^SigCgt:\s*(\w+)$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return caught is not None and bool(int(caught[1], 16) >> (signal.SIGUSR1 - 1) & 1)
