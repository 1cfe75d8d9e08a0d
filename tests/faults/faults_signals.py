"""Signals that ask a run to end, ranks that stop answering, launchers that go away."""

import os
import re
import signal
from collections.abc import Callable

from storyteller_ds.checkpoint.read import open_checkpoint
from tests.support.distributed import MarkedRun, marked_run, torchrun_command, train_command, wait_until
from tests.support.warm_machine import Run

from .case import END_S, LEFT_S, PAIR, SINGLE, STEPS, TINY, Case, Topology
from .registry import fault

SAVED = "the step is finished and saved, exit 75, one line; the same command continues bit for bit"


def _interrupted(
    case: Case, topology: Topology, send: Callable[[Run], None], name: str, code: int = 75, extra: str = ""
) -> None:
    """Send the signal while all ranks are held between steps 6 and 7, so that step 7 is the one that is saved."""
    reached, go = case.folder / "reached", case.folder / "go"
    run = case.start(topology, faults=[{"do": "hold", "step": 6, "reached": str(reached), "until": str(go)}])
    assert wait_until(lambda: reached.exists() or run.ended(), END_S)
    assert not run.ended(), run.stderr
    send(run)
    go.touch()
    case.ended(run, code, f"interrupted by {name}; saved step 7{extra}")
    case.last_good_is(7)
    case.continues_exactly(topology)


@fault("SIGTERM to every rank, between two checkpoints", SAVED, quick=True)
def _(case: Case) -> None:
    _interrupted(case, PAIR, lambda run: os.kill(run.pid, signal.SIGTERM), "SIGTERM")


@fault("SIGTERM to one rank only", SAVED)
def _(case: Case) -> None:
    _interrupted(case, PAIR, lambda run: os.kill(run.supervisor(1), signal.SIGTERM), "SIGTERM")


@fault("SIGUSR1 to one rank only (Slurm's warning)", SAVED)
def _(case: Case) -> None:
    _interrupted(case, PAIR, lambda run: os.kill(run.supervisor(1), signal.SIGUSR1), "SIGUSR1")


@fault("SIGINT from a terminal (Ctrl-C)", SAVED)
def _(case: Case) -> None:
    _interrupted(case, PAIR, lambda run: run.signal(signal.SIGINT), "SIGINT")


@fault(
    "SIGHUP from a terminal that is closed", "the step is finished and saved; the same command continues bit for bit"
)
def _(case: Case) -> None:
    # The launcher, like deepspeed's, has no handler for SIGHUP and dies of it.
    _interrupted(case, PAIR, lambda run: run.signal(signal.SIGHUP), "SIGHUP", code=-signal.SIGHUP)


@fault("SIGTERM to a single process", SAVED)
def _(case: Case) -> None:
    _interrupted(case, SINGLE, lambda run: os.kill(run.pid, signal.SIGTERM), "SIGTERM")


@fault("SIGTERM during a save", SAVED)
def _(case: Case) -> None:
    # The signal comes just before the folder of step 8 is created, so all of the save is still to come.
    run = case.train(PAIR, faults=[{"do": "at_folder", "rank": 0, "step": 8, "how": "self:SIGTERM"}])
    case.ended(run, 75, "interrupted by SIGTERM; saved step 8")
    case.last_good_is(8)
    case.continues_exactly(PAIR)


@fault("SIGTERM right after a save", SAVED)
def _(case: Case) -> None:
    injection = {"do": "at_step", "rank": 1, "step": 8, "how": "self:SIGTERM", "after": str(case.step_folder(8))}
    case.ended(case.train(PAIR, faults=[injection]), 75, "interrupted by SIGTERM; saved step 9")
    case.last_good_is(9)
    case.continues_exactly(PAIR)


@fault("SIGTERM again and again", "the second ends the run at once; the last checkpoint continues bit for bit")
def _(case: Case) -> None:
    reached = case.folder / "reached"
    hold = {"do": "hold", "step": 6, "reached": str(reached), "until": str(case.folder / "never")}
    run = case.start(PAIR, "checkpoint.asynchronous=false", faults=[hold])
    assert wait_until(lambda: reached.exists() or run.ended(), END_S)

    def ended_by_another() -> bool:
        if not run.ended():
            os.kill(run.pid, signal.SIGTERM)
        return run.ended()

    assert wait_until(ended_by_another, LEFT_S)
    assert run.code == 128 + signal.SIGTERM, run.stderr
    assert all("a second SIGTERM" in line for line in run.lines), run.stderr
    assert run.lines
    assert wait_until(lambda: not run.members(), LEFT_S)
    case.saw("exit 143")
    case.saw("no process left")
    case.last_good_is(4)
    case.continues_exactly(PAIR)


@fault("SIGSTOP of one rank", "after the time allowed each rank is named, with stacks; exit 3; continues bit for bit")
def _(case: Case) -> None:
    injection = {"do": "at_step", "rank": 1, "step": 6, "how": "self:SIGSTOP", "after": str(case.step_folder(4))}
    run = case.train(PAIR, "train.hang_timeout_minutes=0.1", faults=[injection])
    case.ended(run, 3, r"rank 0 on .* has made no progress for 0\.1 min", r"rank 1 on .* is stopped \(SIGSTOP")
    assert "all_reduce" in run.stderr, run.stderr  # where rank 0 is stuck
    case.saw("stacks")
    case.last_good_is(4)
    case.continues_exactly(PAIR)


FAREWELL = "the ranks finish the step, save and end, and report the lost rank"
IS_GONE = r"lost rank \d on .* is gone"
SAVED_STEP = r"interrupted by SIGTERM; saved step (\d+)"


@fault("kill -9 of the launcher", f"{FAREWELL}; continues bit for bit")
def _(case: Case) -> None:
    reached, go = case.folder / "reached", case.folder / "go"
    run = case.start(PAIR, faults=[{"do": "hold", "step": 6, "reached": str(reached), "until": str(go)}])
    assert wait_until(lambda: reached.exists() or run.ended(), END_S)
    os.kill(run.pid, signal.SIGKILL)
    assert wait_until(lambda: bool(run.lines), LEFT_S)  # the signal arrives before the step continues
    go.touch()
    case.ended(run, -signal.SIGKILL, IS_GONE, SAVED_STEP)
    case.last_good_is(7)
    case.continues_exactly(PAIR)


def _under_a_real_launcher(
    case: Case, command: list[str], victim: Callable[[MarkedRun], int], number: signal.Signals, *patterns: str
) -> None:
    with marked_run() as started:
        started.start([*command, "--output_dir", str(case.run_folder), "--quiet", *TINY, "train.max_steps=100000"])
        metrics = case.run_folder / "metrics.jsonl"
        typed = started.commands[0]
        begun = lambda: metrics.exists() and '"step": 6,' in metrics.read_text()  # noqa: E731
        assert wait_until(lambda: begun() or typed.poll() is not None, 4 * END_S)
        assert typed.poll() is None, typed.communicate()
        os.kill(victim(started), number)
        assert wait_until(lambda: typed.poll() is not None and not started.members(), END_S), started.members()
        stderr = typed.communicate()[1]
    assert typed.returncode != 0
    case.saw("exit code not 0")
    lines = [line for line in stderr.splitlines() if line.startswith("storyteller: ")]
    assert len(lines) == len(patterns), stderr
    for pattern in patterns:
        assert any(re.search(pattern, line) for line in lines), stderr
    case.saw(f"{len(lines)} line(s)")
    found = re.search(SAVED_STEP, stderr)
    assert found
    case.saw("the step saved")
    assert open_checkpoint(case.step_folder(int(found[1]))).step == int(found[1])
    case.saw("no process left")


@fault("kill -9 of deepspeed's launcher", f"{FAREWELL}; the deepspeed command exits with an error")
def _(case: Case) -> None:
    launcher = lambda run: run.launcher(0).pid  # noqa: E731
    _under_a_real_launcher(case, train_command(2, "zero2"), launcher, signal.SIGKILL, IS_GONE, SAVED_STEP)


@fault("SIGTERM to the deepspeed command, which leaves at once", FAREWELL)
def _(case: Case) -> None:
    command = lambda run: run.commands[0].pid  # noqa: E731
    _under_a_real_launcher(case, train_command(2, "zero2"), command, signal.SIGTERM, IS_GONE, SAVED_STEP)


@fault("SIGTERM to torchrun", "the step is finished and saved, one line")
def _(case: Case) -> None:
    command = lambda run: run.commands[0].pid  # noqa: E731
    _under_a_real_launcher(case, torchrun_command(2, "zero2"), command, signal.SIGTERM, SAVED_STEP)


for _seconds in (86_400, -86_400):

    @fault(f"the clock of rank 0 jumps by {_seconds // 86_400:+d} day", "nothing: the run is the undisturbed one")
    def _(case: Case, seconds: int = _seconds) -> None:
        injection = {"do": "clock_jump", "rank": 0, "step": 6, "seconds": seconds}
        case.ended(case.train(PAIR, "train.max_minutes=30", faults=[injection]), 0)
        case.is_exactly(case.undisturbed(PAIR))


@fault(
    "two runs in one folder", "the second is refused with exit 2 and one line; the first does not notice", quick=True
)
def _(case: Case) -> None:
    reached, go = case.folder / "reached", case.folder / "go"
    first = case.start(PAIR, faults=[{"do": "hold", "step": 6, "reached": str(reached), "until": str(go)}])
    assert wait_until(lambda: reached.exists() or first.ended(), END_S)
    case.ended(case.train(PAIR), 2, r"another run is writing to .* \(pid \d+ on .*--output_dir")
    go.touch()
    case.ended(first, 0)
    case.is_exactly(case.undisturbed(PAIR))
    assert case.step_folder(STEPS).is_dir()
