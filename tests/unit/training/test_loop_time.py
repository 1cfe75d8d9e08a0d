"""How a time limit ends a run, and what it does to the learning rate."""

import dataclasses
import json

import pytest

from storyteller_ds.checkpoint.train_state import TrainState
from storyteller_ds.distributed.world import World
from storyteller_ds.optim.schedule import learning_rate
from storyteller_ds.training.loop import why_over

from .counting_engine import FINAL, CountingEngine, SignalledAt, go


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
    """Ten steps take 10 of the 60 s, and the validation after them (five batches) takes the rest."""
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
    """Each of the 9 steps takes 1 s, and there are 10 s for each."""
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
    second.time = 1e6  # the clock of another machine
    run, _, end, _ = go(second, state=state, **settings)
    assert first.rates + second.rates == whole.rates
    assert end.step == 100
    assert why_over(run, state) is None
    assert why_over(run, end) is not None


def test_without_a_limit_no_clock_gets_into_the_state():
    _, _, end, _ = go(CountingEngine(), max_steps=3)
    assert end.elapsed_s == 0.0


class OfTwoRanks(World):
    """Rank 1 of two; a sum is what rank 0 contributes: 7 s in microseconds."""

    def all_reduce_sum(self, tensor):
        assert int(tensor) == 0, "the other ranks add nothing"
        return tensor + 7_000_000


def test_the_clock_of_rank_0_decides_on_every_rank():
    engine = CountingEngine(seconds=1000.0)
    engine.world = OfTwoRanks(1, 1, 2, 2)
    run, _, end, _ = go(engine, max_steps=2, max_minutes=1.0)
    assert (end.step, end.elapsed_s) == (2, 7.0)
    assert engine.rates[1] == learning_rate(run, 1, 7.0)
