"""What a person reads while training runs."""

import io

import pytest
from rich.console import Console

from storyteller_ds.train.progress import SECONDS_BETWEEN_LINES, PlainProgress, TerminalProgress
from storyteller_ds.train.state import TrainState

EVAL = {"step": 4, "val_loss": 1.23456, "val_ppl": 3.4368, "val_bpb": 0.56789}


def record(step: int, **more: float) -> dict[str, float]:
    return {"step": step, "train_loss": 2.34567, "lr": 0.00123, "tokens_per_s": 12345.6, **more}


def test_plain_lines_come_seconds_apart_and_at_the_end():
    said, now = [], [100.0]
    progress = PlainProgress(said.append, 40, lambda: now[0])
    for step in range(1, 41):
        progress.on_train(record(step))
        now[0] += 1.0
    steps = [int(line.split("/")[0].removeprefix("step ")) for line in said]
    assert SECONDS_BETWEEN_LINES == 10.0
    assert steps == [1, 11, 21, 31, 40]
    assert said[0] == "step 1/40  loss 2.346  lr 1.23e-03  12,346 tok/s"


def test_plain_lines_tell_balance_and_validation():
    said: list[str] = []
    progress = PlainProgress(said.append, 9, lambda: 0.0)
    progress.on_train(record(1, expert_load_cv=0.456))
    progress.on_eval(EVAL)
    assert said[0].endswith("load cv 0.46")
    assert said[1] == "step 4  val loss 1.2346  perplexity 3.44  bits per byte 0.5679"


def test_the_last_validation_tells_the_whole_text_apart():
    said: list[str] = []
    progress = PlainProgress(said.append, 9, lambda: 0.0)
    progress.on_eval({**EVAL, "final_val_loss": 1.4, "final_val_ppl": 4.055, "final_val_bpb": 0.6})
    progress.on_eval({**EVAL, **{f"final_{name}": value for name, value in EVAL.items()}})
    line = "step 4  val loss 1.2346  perplexity 3.44  bits per byte 0.5679"
    assert said == [f"{line}; on the whole text: val loss 1.4000  perplexity 4.05  bits per byte 0.6000", line]


@pytest.mark.parametrize("resumed_at", [0, 3])
def test_the_bar_stands_where_the_run_does(resumed_at):
    out = io.StringIO()
    progress = TerminalProgress(Console(file=out, force_terminal=True, width=120), 9)
    progress.on_start(TrainState(step=resumed_at))
    assert progress.bar.tasks[0].completed == resumed_at
    progress.on_train(record(resumed_at + 1))
    progress.on_eval(EVAL)
    progress.on_end(0)
    assert progress.bar.finished is False
    assert progress.bar.tasks[0].completed == resumed_at + 1
    assert "val loss 1.2346" in out.getvalue()
    assert f"{resumed_at + 1}/9" in out.getvalue()
