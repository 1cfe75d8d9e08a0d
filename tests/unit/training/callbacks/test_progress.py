"""What a person reads while training runs."""

import io
import re

import pytest
from rich.console import Console

from storyteller_ds.checkpoint.train_state import TrainState
from storyteller_ds.config.training import TrainConfig
from storyteller_ds.errors import EXIT_DONE
from storyteller_ds.training.callbacks.pace import RECENT_STEPS, Pace
from storyteller_ds.training.callbacks.progress import SECONDS_BETWEEN_LINES, PlainProgress, TerminalProgress

EVAL = {"step": 4, "val_loss": 1.23456, "val_ppl": 3.4368, "val_bpb": 0.56789}


def record(step: int, **more: float) -> dict[str, float]:
    return {"step": step, "train_loss": 2.34567, "lr": 0.00123, "tokens_per_s": 12345.6, "step_time_s": 1.0, **more}


def pace(max_steps: int, clock=lambda: 0.0, **more: float) -> Pace:
    return Pace(TrainConfig(max_steps=max_steps, **more), clock)


def test_plain_lines_come_seconds_apart_and_at_the_end():
    logged, now = [], [100.0]
    progress = PlainProgress(logged.append, 40, pace(40, lambda: now[0]), lambda: now[0])
    progress.on_start(TrainState())
    for step in range(1, 41):
        now[0] += 1.0
        progress.on_train(record(step))
    steps = [int(line.split("/")[0].removeprefix("step ")) for line in logged]
    assert SECONDS_BETWEEN_LINES == 10.0
    assert steps == [1, 11, 21, 31, 40]
    assert logged[0] == "step 1/40  loss 2.346  lr 1.23e-03  12,346 tok/s  elapsed 0:00:01, left 0:00:39"
    assert logged[2].endswith("elapsed 0:00:21, left 0:00:19")
    assert logged[-1].endswith("elapsed 0:00:40, left 0:00:00")


def test_plain_lines_tell_balance_and_validation():
    logged: list[str] = []
    progress = PlainProgress(logged.append, 9, pace(9), lambda: 0.0)
    progress.on_train(record(1, expert_load_cv=0.456))
    progress.on_eval(EVAL)
    assert "  expert imbalance 0.46  " in logged[0]
    assert logged[1] == "step 4  val loss 1.2346  perplexity 3.44  bits per byte 0.5679"


def test_plain_lines_say_what_the_end_takes_its_time_for():
    logged: list[str] = []
    progress = PlainProgress(logged.append, 9, pace(9), lambda: 0.0)
    progress.on_busy("validating", False)
    assert logged == []
    progress.on_busy("validating on the whole text", True)
    assert logged == ["validating on the whole text ..."]


@pytest.mark.parametrize(("max_minutes", "left"), [(None, "2:40:00"), (30.0, "0:29:00"), (300.0, "2:40:00")])
def test_the_earlier_limit_ends_the_run(max_minutes, left):
    now = [0.0]
    looked_at = pace(1000, lambda: now[0], max_minutes=max_minutes)
    looked_at.start(TrainState())
    now[0] = 60.0
    looked_at.look(record(40, step_time_s=10.0))
    assert str(looked_at) == f"elapsed 0:01:00, left {left}"


def test_time_that_was_trained_before_counts_against_the_limit():
    now = [1000.0]
    looked_at = pace(1000, lambda: now[0], max_minutes=30.0)
    looked_at.start(TrainState(step=100, elapsed_s=600.0))
    now[0] += 60.0
    looked_at.look(record(101, step_time_s=100.0))
    assert str(looked_at) == "elapsed 0:01:00, left 0:19:00"


def test_what_is_left_follows_the_recent_steps_and_the_clock():
    now = [0.0]
    looked_at = pace(1000, lambda: now[0])
    assert str(looked_at) == "elapsed 0:00:00"
    looked_at.look(record(1, step_time_s=500.0))  # compiling
    for step in range(2, 12):
        looked_at.look(record(step, step_time_s=1.0))
    assert str(looked_at) == "elapsed 0:00:00, left 0:16:29"
    now[0] = 100.0
    assert str(looked_at) == "elapsed 0:01:40, left 0:14:49"  # a slow step
    for step in range(12, 12 + RECENT_STEPS):
        looked_at.look(record(step, step_time_s=10.0))  # from now on the machine is shared
    assert str(looked_at).endswith("left 2:39:50")
    looked_at.finish()
    now[0] = 3700.0
    assert str(looked_at) == "elapsed 1:01:40"


@pytest.mark.parametrize("resumed_at", [0, 3])
def test_the_bar_stands_where_the_run_does(resumed_at):
    out = io.StringIO()
    progress = TerminalProgress(Console(file=out, force_terminal=True, width=140), 9, pace(9))
    progress.on_start(TrainState(step=resumed_at))
    assert progress.bar.tasks[0].completed == resumed_at
    progress.on_train(record(resumed_at + 1))
    progress.on_eval(EVAL)
    progress.on_end(0)
    assert progress.bar.finished is False
    assert progress.bar.tasks[0].completed == resumed_at + 1
    assert "val loss 1.2346" in out.getvalue()
    assert f"{resumed_at + 1}/9" in out.getvalue()


def shown(width: int, *busy: tuple[str, bool]) -> list[str]:
    """The successive states of the bar."""
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=width, no_color=True, _environ={"TERM": "xterm"})
    progress = TerminalProgress(console, 2000, pace(2000))
    progress.on_start(TrainState())
    progress.on_train(record(20, expert_load_cv=0.456))
    for what, last in busy:
        progress.on_busy(what, last)
    progress.on_end(0)
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out.getvalue()).replace("\r", "\n").split("\n")


def test_the_bar_says_what_the_run_is_busy_with():
    lines = shown(140, ("validating", False), ("training", False), ("generating 3 stories", True), ("saving", True))
    order = list(dict.fromkeys(re.split("  +", line)[0] for line in lines if "2000" in line))
    assert order == ["training", "validating", "generating 3 stories", "saving", "done"]
    assert "elapsed 0:00:00, left 0:33:00" in next(line for line in lines if line.startswith("validating"))
    assert "left" not in next(line for line in lines if line.startswith("saving"))


@pytest.mark.parametrize("width", [80, 140])
def test_the_bar_fits_and_shows_time_and_loss(width):
    line = next(line for line in shown(width, ("validating", False)) if line.startswith("validating"))
    assert len(line.rstrip()) <= width
    assert "elapsed 0:00:00, left 0:33:00" in line
    assert "20/2000" in line
    assert "loss" in line
    assert ("expert imbalance 0.46" in line) == (width == 140)


def test_what_a_callback_prints_goes_to_stdout_where_that_is_a_file(capsys):
    screen = io.StringIO()
    progress = TerminalProgress(Console(file=screen, force_terminal=True), 3, pace(3))
    progress.on_start(TrainState())
    print("a callback's line")
    progress.on_end(EXIT_DONE)
    assert capsys.readouterr().out == "a callback's line\n"
    assert "a callback's line" not in screen.getvalue()
