"""The training loop with a counting engine: what it calls and when, and when it ends."""

import dataclasses
import math

import pytest

from storyteller_ds.checkpoint.train_state import TrainState
from storyteller_ds.errors import (
    EXIT_DONE,
    EXIT_TRAINING_STOPPED,
)
from storyteller_ds.optim.schedule import learning_rate
from storyteller_ds.training.loop import why_over

from .counting_engine import BATCH, FINAL, LENGTH, ROUTER, CountingEngine, go


def test_callbacks_are_called_in_order():
    _, (recorder, *_), end, _ = go(CountingEngine(), max_steps=3, eval_every_steps=2)
    assert recorder.calls == [
        ("start", 0),
        ("train", 1),
        ("end of step", 1),
        ("train", 2),
        ("eval", 2),
        ("end of step", 2),
        ("train", 3),
        ("eval", 3),  # the last step is always validated
        ("end of step", 3),
        ("end", EXIT_DONE),
    ]
    assert recorder.lasts == [False, False, True]
    assert (end.step, end.samples, end.tokens) == (3, 3 * BATCH, 3 * BATCH * LENGTH)


def test_all_callbacks_hear_the_same():
    _, recorders, _, _ = go(CountingEngine(), max_steps=2, callbacks=3)
    assert recorders[0].calls == recorders[1].calls == recorders[2].calls


@pytest.mark.parametrize(
    ("every", "steps", "expected"), [(0, 5, [5]), (1, 3, [1, 2, 3]), (3, 7, [3, 6, 7]), (3, 6, [3, 6])]
)
def test_validation_cadence(every, steps, expected):
    _, (recorder,), _, _ = go(CountingEngine(), max_steps=steps, eval_every_steps=every)
    assert [record["step"] for record in recorder.eval] == expected


TARGETS = 40


def test_every_validation_is_of_the_same_text_and_the_whole_one_has_names_of_its_own():
    """val_loss always covers the same two easy batches, even at the end, where the harder whole text is validated."""
    engine = CountingEngine(val_losses=[1.0], whole_val_loss=3.0)
    _, (recorder,), end, _ = go(engine, max_steps=3, eval_every_steps=1, eval_batches=2)
    assert engine.eval_batches[:3] == [2, 2, 2 + 5]
    assert [record["val_loss"] for record in recorder.eval] == [1.0, 1.0, 1.0]
    assert [record["val_tokens"] for record in recorder.eval] == [2 * BATCH * LENGTH] * 3
    assert (end.best_val_loss, end.best_val_tokens) == (1.0, 2 * BATCH * LENGTH)
    assert not FINAL & (recorder.eval[0].keys() | recorder.eval[1].keys())
    mean = (1.0 * 16 + 3.0 * 24) / TARGETS
    final = [recorder.eval[2][name] for name in sorted(FINAL)]
    assert final == pytest.approx([mean / math.log(2), mean, math.exp(mean)])


@pytest.mark.parametrize("eval_batches", [None, 5, 9])
def test_what_was_the_whole_text_is_not_validated_again(eval_batches):
    engine = CountingEngine(val_losses=[2.0])
    _, (recorder,), _, _ = go(engine, max_steps=2, eval_every_steps=1, eval_batches=eval_batches)
    assert engine.eval_batches[:2] == [5, 5]
    last = recorder.eval[-1]
    assert last["val_tokens"] == TARGETS
    assert all(last[name] == last[name.removeprefix("final_")] for name in FINAL)
    assert not FINAL & recorder.eval[0].keys()


def test_a_whole_text_whose_loss_is_not_finite_stops_the_run():
    engine = CountingEngine(val_losses=[1.0], whole_val_loss=math.nan)
    _, (recorder,), end, error = go(engine, max_steps=2, eval_every_steps=1, eval_batches=2)
    assert end is None
    assert "the validation loss of step 2 is nan" in str(error)
    assert recorder.calls[-1] == ("end", EXIT_TRAINING_STOPPED)


def test_a_run_that_is_continued_on_another_text_compares_from_the_beginning():
    """Also if the checkpoint does not say which text its best loss was computed on."""
    best = TrainState(step=2, samples=4, best_val_loss=1.0, best_val_tokens=16, evals_since_best=1)
    settings = {"max_steps": 9, "eval_every_steps": 1, "early_stop_patience": 2}
    for state, eval_batches, last_step in (
        (best, 2, 3),
        (best, 3, 5),
        (dataclasses.replace(best, best_val_tokens=None), 2, 5),
    ):
        _, _, end, _ = go(CountingEngine(val_losses=[1.5]), state=state, eval_batches=eval_batches, **settings)
        assert end.step == last_step
        assert end.best_val_loss == (1.0 if last_step == 3 else 1.5)


def test_callbacks_hear_what_the_run_is_busy_with():
    _, (recorder,), _, _ = go(CountingEngine(), max_steps=3, eval_every_steps=2, eval_batches=2)
    assert recorder.busy == [
        ("training", False),
        ("training", False),
        ("validating", False),
        ("training", False),
        ("validating", True),
        ("validating on the whole text", True),
        ("saving", True),
    ]


def test_log_cadence():
    _, (recorder,), _, _ = go(CountingEngine(), max_steps=7, log_every_steps=3)
    assert [record["step"] for record in recorder.train] == [3, 6]


def test_train_and_eval_lines_say_what_the_contract_names():
    engine = CountingEngine(val_losses=[math.log(4)], seconds=2.0, has_router=True, grad_norm=0.25)
    run, (recorder,), _, _ = go(engine, max_steps=2)
    line = dict(recorder.train[1])
    for of_this_machine in ("memory_bytes", "memory_peak_bytes", "host_memory_bytes", "cpu_percent"):
        line.pop(of_this_machine, None)
    layers = {name.removeprefix("layer_"): line.pop(name) for name in sorted(line) if name.startswith("layer_")}
    assert layers == {name: [line[name]] for name in layers}  # there is one layer
    assert layers.keys() == {*(field.name for field in dataclasses.fields(ROUTER)), "router_drift"}
    assert line == {
        "step": 2,
        "tokens": 2 * BATCH * LENGTH,
        "train_loss": 0.5,
        "lr": learning_rate(run, 1),
        "grad_norm": 0.25,
        "expert_load": [0.25, 0.75],
        "expert_load_cv": 0.5,
        "router_entropy": 0.6,
        "dead_experts": 0,
        "balance_loss": 1.1,
        "z_loss": 0.2,
        "expert_load_max_over_mean": 1.5,
        "router_margin": 0.3,
        "router_drift": 0.0,
        "tokens_per_s": BATCH * LENGTH / 2.0,
        "tokens_per_s_per_device": BATCH * LENGTH / 2.0,
        "step_time_s": 2.0,
        "data_wait": 0.0,
        "skipped_steps": 0,
        "bad_steps": 0,
        "loss_spikes": 0,
        "rollbacks": 0,
        "undone_steps": 0,
    }
    # One byte per token, so bits per byte are bits per token.
    (scores,) = recorder.eval
    assert scores.keys() == {"step", "tokens", "val_tokens", "val_loss", "val_ppl", "val_bpb", "undone_steps"} | FINAL
    assert (scores["val_loss"], scores["val_ppl"], scores["val_bpb"]) == pytest.approx((math.log(4), 4.0, 2.0))


@pytest.mark.parametrize(
    ("val_losses", "patience", "last_step"),
    [
        ([3, 2, 2.5, 2.5, 1, 1], 2, 4),
        ([3, 2, 2, 1, 1, 1, 0], 2, 6),  # an equal loss is not better
        ([3, 4], 1, 2),
        ([3, 4, 2, 4], 2, 8),  # one bad validation is tolerated, the next better one resets
        ([3, 4, 5, 6], 0, 8),  # 0: never
        ([8, 7, 6, 5, 4, 3, 2, 1], 1, 8),
    ],
)
def test_early_stop_comes_exactly_after_patience(val_losses, patience, last_step):
    if val_losses == [3, 4, 2, 4]:
        val_losses = [3, 4, 2, 4, 1, 4, 0.5, 4]
    engine = CountingEngine(val_losses=[*map(float, val_losses)])
    _, (recorder,), end, _ = go(engine, max_steps=8, eval_every_steps=1, early_stop_patience=patience)
    assert end.step == last_step
    assert recorder.lasts == [False] * (last_step - 1) + [True]
    assert recorder.calls[-1] == ("end", EXIT_DONE)
    assert end.best_val_loss == min(val_losses[:last_step])


def test_an_early_stop_is_validated_on_the_whole_text_too():
    """Patience counts losses on the text of every validation, although the loss on the whole text would be the best."""
    engine = CountingEngine(val_losses=[1.0, 2.0], whole_val_loss=0.1)
    settings = {"eval_every_steps": 1, "eval_batches": 2, "early_stop_patience": 1}
    run, (recorder,), end, _ = go(engine, max_steps=9, **settings)
    assert engine.eval_batches[:2] == [2, 2 + 5]
    assert [record["val_loss"] for record in recorder.eval] == [1.0, 2.0]
    assert recorder.eval[-1]["final_val_loss"] == pytest.approx((2.0 * 16 + 0.1 * 24) / TARGETS)
    assert (end.step, end.best_val_loss) == (2, 1.0)
    assert why_over(run, end) == "stopped early after 2 steps; raise train.early_stop_patience to go on"


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_validation_loss_that_is_not_finite_stops_the_run_and_tells_the_callbacks(bad):
    engine = CountingEngine(val_losses=[bad])
    _, recorders, end, error = go(engine, max_steps=3, callbacks=2, eval_every_steps=2)
    assert end is None
    assert f"the validation loss of step 2 is {bad}" in str(error)
    assert "lower optimizer.lr" in str(error)
    assert "\n" not in str(error)
    assert error.exit_code == EXIT_TRAINING_STOPPED == 3
    for recorder in recorders:
        assert recorder.calls[-1] == ("end", EXIT_TRAINING_STOPPED)
        assert ("end of step", 2) not in recorder.calls  # so that no checkpoint of it is written


def test_a_validation_loss_that_is_not_finite_is_never_the_best():
    state = TrainState().after_eval(math.nan, 8)
    assert state.after_eval(2.0, 8).best_val_loss == 2.0
