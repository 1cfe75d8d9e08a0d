"""The loop with a counting engine: what is called, when, and when it ends."""

import dataclasses
import json
import math
import signal
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from storyteller_ds.checkpoint.train_state import TrainState
from storyteller_ds.config.run import RunConfig
from storyteller_ds.data.batches import BatchSplit, TrainBatches, ValidationBatches
from storyteller_ds.data.shards import TokenStream
from storyteller_ds.data.text_bytes import SpelledBytes
from storyteller_ds.distributed.world import World
from storyteller_ds.engines.base import RouterMetrics, StepResult
from storyteller_ds.errors import (
    EXIT_DONE,
    EXIT_INTERRUPTED,
    EXIT_TRAINING_STOPPED,
    InterruptedAfterSave,
    TrainingStopped,
)
from storyteller_ds.optim.schedule import learning_rate
from storyteller_ds.training.callbacks.anomalies import Anomalies
from storyteller_ds.training.callbacks.callback import Callback
from storyteller_ds.training.interruption import Interruption
from storyteller_ds.training.loop import train, why_over

LENGTH, BATCH = 4, 2
ROUTER = RouterMetrics([0.25, 0.75], 0.5, 0.6, 0, 1.1, 0.2)


class CountingEngine:
    """Has the losses that the test gives; every step takes `seconds` of the injected clock."""

    world = World(0, 0, 1, 1)
    device = torch.device("cpu")
    loss_scale = None

    def __init__(
        self, losses=None, val_losses=(), seconds=1.0, router=None, grad_norm=1.0, whole_val_loss=None, eval_seconds=0.0
    ):
        self.losses, self.val_losses = losses, list(val_losses)
        self.seconds, self.router, self.grad_norm = seconds, router, grad_norm
        self.eval_seconds, self.whole_val_loss = eval_seconds, whole_val_loss
        """Of what a limited validation does not reach: its batches after the second."""
        self.time = 0.0
        self.first_tokens: list[int] = []
        self.rates: list[float] = []
        self.eval_batches: list[int] = [0]

    def clock(self) -> float:
        return self.time

    def train_step(self, micro_batches: Sequence[Any], lr: float) -> StepResult:
        self.time += self.seconds
        self.first_tokens.append(int(micro_batches[0].token_BS[0, 0]))
        self.rates.append(lr)
        step = len(self.rates)
        return StepResult(self.losses[step - 1] if self.losses else 1.0 / step, self.grad_norm, self.router)

    def eval_step(self, batch: Any) -> torch.Tensor:
        self.time += self.eval_seconds
        self.eval_batches[-1] += 1
        targets = int((batch.target_BS >= 0).sum())
        is_beyond = self.whole_val_loss is not None and int(batch.target_BS.max()) > 2 * BATCH * LENGTH
        loss = self.whole_val_loss if is_beyond else self.val_losses[0]
        return torch.tensor([targets * loss, targets], dtype=torch.float64)


class Recorder(Callback):
    def __init__(self, engine: CountingEngine) -> None:
        self.engine = engine
        self.calls: list[tuple[str, Any]] = []
        self.lasts: list[bool] = []
        self.states: list[TrainState] = []
        self.train: list[Any] = []
        self.eval: list[Any] = []
        self.busy: list[tuple[str, bool]] = []

    def on_busy(self, what, last):
        self.busy.append((what, last))

    def busy_with(self, state, last):
        return "saving" if last else None

    def on_start(self, state):
        self.calls.append(("start", state.step))

    def on_train(self, record):
        self.calls.append(("train", record["step"]))
        self.train.append(record)

    def on_eval(self, record):
        self.calls.append(("eval", record["step"]))
        self.eval.append(record)
        if len(self.engine.val_losses) > 1:
            self.engine.val_losses.pop(0)
        self.engine.eval_batches.append(0)

    def on_step_end(self, state, last):
        self.calls.append(("end of step", state.step))
        self.states.append(state)
        self.lasts.append(last)

    def on_interrupt(self, state):
        self.calls.append(("interrupt", state.step))
        self.interrupted = state

    def on_end(self, exit_code):
        self.calls.append(("end", exit_code))


def go(engine: CountingEngine, state=None, callbacks=1, interruption=None, **settings: Any):
    run = RunConfig.model_validate(
        {
            "data": {"sequence_length": LENGTH},
            "train": {"global_batch_size": BATCH, "eval_every_steps": 0, **settings},
            "schedule": {"warmup_steps": 2},
        }
    )
    split, stream = BatchSplit(0, 1, BATCH, 1), TokenStream([np.arange(41)])
    batches = TrainBatches(stream, "corpus", 0, LENGTH, split)
    validation = ValidationBatches(stream, SpelledBytes(stream, np.ones(41, dtype=np.int64)), LENGTH, split)
    recorders = [Recorder(engine) for _ in range(callbacks)]
    if not engine.val_losses:
        engine.val_losses = [1.0]
    error, end = None, None
    try:
        anomalies = Anomalies(run, lambda line: None, lambda: None)
        begin, clock = state or TrainState(), engine.clock
        end = train(run, engine, batches, validation, begin, [*recorders, anomalies], clock, interruption)
    except (TrainingStopped, InterruptedAfterSave) as stopped:
        error = stopped
    return run, recorders, end, error


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
        ("eval", 3),  # the last step is validated always
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
FINAL = {"final_val_loss", "final_val_ppl", "final_val_bpb"}


def test_every_validation_is_of_the_same_text_and_the_whole_one_has_names_of_its_own():
    """Two batches are easy, the rest is not: a curve of val_loss must not show where it ends."""
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


def test_a_run_that_is_continued_on_another_text_starts_to_compare_anew():
    """Also from a checkpoint that does not say which text its best loss was of."""
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
    engine = CountingEngine(val_losses=[math.log(4)], seconds=2.0, router=ROUTER, grad_norm=0.25)
    run, (recorder,), _, _ = go(engine, max_steps=2)
    line = dict(recorder.train[1])
    line.pop("memory_peak_bytes", None)
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
        "tokens_per_s": BATCH * LENGTH / 2.0,
        "step_time_s": 2.0,
        "skipped_steps": 0,
        "bad_steps": 0,
        "loss_spikes": 0,
        "rollbacks": 0,
        "undone_steps": 0,
    }
    # One byte a token, so bits per byte is bits per token.
    (scores,) = recorder.eval
    assert scores.keys() == {"step", "tokens", "val_tokens", "val_loss", "val_ppl", "val_bpb", "undone_steps"} | FINAL
    assert (scores["val_loss"], scores["val_ppl"], scores["val_bpb"]) == pytest.approx((math.log(4), 4.0, 2.0))


def test_a_resumed_loop_goes_on_where_the_other_stopped():
    whole, first, second = CountingEngine(), SignalledAt(step=4), CountingEngine()
    run, _, end, _ = go(whole, max_steps=9)
    with first.interruption.in_training():
        _, (stopped,), _, _ = go(first, interruption=first.interruption, max_steps=9)
    assert stopped.states[-1].step == 4
    _, (recorder,), resumed, _ = go(second, state=stopped.states[-1], max_steps=9)
    assert recorder.calls[0] == ("start", 4)
    assert first.first_tokens + second.first_tokens == whole.first_tokens
    assert first.rates + second.rates == whole.rates == [learning_rate(run, step) for step in range(9)]
    assert (resumed.step, resumed.samples, resumed.tokens) == (end.step, end.samples, end.tokens)


@pytest.mark.parametrize(
    ("val_losses", "patience", "last_step"),
    [
        ([3, 2, 2.5, 2.5, 1, 1], 2, 4),
        ([3, 2, 2, 1, 1, 1, 0], 2, 6),  # as good is not better
        ([3, 4], 1, 2),
        ([3, 4, 2, 4], 2, 8),  # one bad validation is forgiven, the next better one resets
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
    """What patience is about is the text of every validation: on the whole one this loss would be the best."""
    engine = CountingEngine(val_losses=[1.0, 2.0], whole_val_loss=0.1)
    settings = {"eval_every_steps": 1, "eval_batches": 2, "early_stop_patience": 1}
    run, (recorder,), end, _ = go(engine, max_steps=9, **settings)
    assert engine.eval_batches[:2] == [2, 2 + 5]
    assert [record["val_loss"] for record in recorder.eval] == [1.0, 2.0]
    assert recorder.eval[-1]["final_val_loss"] == pytest.approx((2.0 * 16 + 0.1 * 24) / TARGETS)
    assert (end.step, end.best_val_loss) == (2, 1.0)
    assert why_over(run, end) == "stopped early after 2 steps; raise train.early_stop_patience to go on"


@pytest.mark.parametrize(("minutes", "steps"), [(0.5, 3), (0.51, 4), (1e-9, 1), (100, 5)])
def test_the_time_limit_ends_after_the_step_that_reaches_it(minutes, steps):
    _, (recorder,), end, _ = go(CountingEngine(seconds=10.0), max_steps=5, max_minutes=minutes)
    assert end.step == steps
    assert recorder.lasts[-1] is True
    assert [record["step"] for record in recorder.eval] == [steps]
    assert recorder.eval[-1].keys() >= FINAL


def test_a_run_that_ends_by_time_has_decayed_and_says_why_it_ends():
    engine = CountingEngine(seconds=3.0)
    run, (recorder,), end, _ = go(engine, max_steps=1000, max_minutes=5.0)
    assert (end.step, end.elapsed_s) == (100, 300.0)
    assert engine.rates[0] == learning_rate(run, 0)
    assert engine.rates[1:] == sorted(engine.rates[1:], reverse=True)
    floor = run.optimizer.lr * run.schedule.min_lr_ratio
    assert floor <= engine.rates[-1] < 1.01 * floor
    assert [record["lr"] for record in recorder.train] == engine.rates
    assert why_over(run, end) == "stopped by train.max_minutes=5 at step 100 of 1000; raise it to go on"


def test_the_rate_has_decayed_also_where_time_runs_out_in_a_validation():
    """Ten steps take 10 of 60 s, the validation behind them, of five batches, the rest."""
    engine = CountingEngine(seconds=1.0, eval_seconds=10.0)
    run, _, end, _ = go(engine, max_steps=1000, max_minutes=1.0, eval_every_steps=10)
    assert end.step == 11
    assert engine.rates[9] > 0.9 * run.optimizer.lr
    assert engine.rates[10] == run.optimizer.lr * run.schedule.min_lr_ratio


def test_what_a_validation_takes_counts_for_whoever_continues():
    engine = SignalledAt(step=2)
    engine.eval_seconds = 10.0
    with engine.interruption.in_training():
        _, (stopped,), _, _ = go(
            engine, interruption=engine.interruption, max_steps=9, max_minutes=5.0, eval_every_steps=2
        )
    assert stopped.interrupted.elapsed_s == 52.0


def test_a_run_that_time_ends_in_its_warm_up_says_so():
    run, _, end, _ = go(CountingEngine(seconds=60.0), max_steps=9, max_minutes=1.0)
    assert why_over(run, end) == (
        "stopped by train.max_minutes=1 at step 1 of 9; raise it to go on "
        "(the warm-up was not over, schedule.warmup_steps=2)"
    )


def test_a_limit_that_steps_reach_first_changes_no_bit():
    """A step takes a second, and each of the 9 had 10."""
    plain, limited = CountingEngine(), CountingEngine()
    go(plain, max_steps=9)
    _, _, end, _ = go(limited, max_steps=9, max_minutes=1.5)
    assert limited.rates == plain.rates
    assert end.elapsed_s == 9.0


def test_time_counts_over_all_processes_of_a_run():
    whole, first, second = CountingEngine(seconds=3.0), SignalledAt(step=40, seconds=3.0), CountingEngine(seconds=3.0)
    settings = {"max_steps": 1000, "max_minutes": 5.0}
    go(whole, **settings)
    with first.interruption.in_training():
        _, (stopped,), _, _ = go(first, interruption=first.interruption, **settings)
    state = TrainState(**json.loads(json.dumps(dataclasses.asdict(stopped.states[-1]))))
    second.time = 1e6  # of another machine
    run, _, end, _ = go(second, state=state, **settings)
    assert first.rates + second.rates == whole.rates
    assert end.step == 100
    assert why_over(run, state) is None
    assert why_over(run, end) is not None


def test_without_a_limit_no_clock_gets_into_the_state():
    _, _, end, _ = go(CountingEngine(), max_steps=3)
    assert end.elapsed_s == 0.0


class OfTwoRanks(World):
    """Rank 1 of two, whose sums are what rank 0 sends."""

    def all_reduce_sum(self, tensor):
        assert int(tensor) == 0, "the other ranks add nothing"
        return tensor + 7_000_000


def test_the_clock_of_rank_0_decides_on_every_rank():
    engine = CountingEngine(seconds=1000.0)
    engine.world = OfTwoRanks(1, 1, 2, 2)
    run, _, end, _ = go(engine, max_steps=2, max_minutes=1.0)
    assert (end.step, end.elapsed_s) == (2, 7.0)
    assert engine.rates[1] == learning_rate(run, 1, 7.0)


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
        assert ("end of step", 2) not in recorder.calls  # so that no checkpoint is written of it


def test_a_validation_loss_that_is_not_finite_is_never_the_best():
    state = TrainState().after_eval(math.nan, 8)
    assert state.after_eval(2.0, 8).best_val_loss == 2.0


class SignalledAt(CountingEngine):
    """Gets a SIGTERM in the middle of a step."""

    def __init__(self, step: int, seconds: float = 1.0) -> None:
        super().__init__(seconds=seconds)
        self.step, self.interruption = step, Interruption(clock=self.clock)

    def train_step(self, micro_batches, lr):
        result = super().train_step(micro_batches, lr)
        if len(self.rates) == self.step:
            self.interruption.receive(signal.SIGTERM)
        return result


def test_a_signal_ends_the_run_after_the_step_its_validation_and_a_save():
    engine = SignalledAt(step=2)
    with engine.interruption.in_training():
        _, recorders, end, error = go(
            engine, callbacks=2, interruption=engine.interruption, max_steps=9, eval_every_steps=2
        )
    assert end is None
    assert "saved step 2" in str(error)
    for recorder in recorders:
        assert recorder.calls[-4:] == [("eval", 2), ("end of step", 2), ("interrupt", 2), ("end", EXIT_INTERRUPTED)]
        assert recorder.lasts == [False, False]  # what belongs to the end of a run alone is left out


def test_a_signal_in_the_last_step_changes_nothing():
    engine = SignalledAt(step=3)
    with engine.interruption.in_training():
        _, (recorder,), end, error = go(engine, interruption=engine.interruption, max_steps=3)
    assert (end.step, error) == (3, None)
    assert recorder.calls[-1] == ("end", EXIT_DONE)
