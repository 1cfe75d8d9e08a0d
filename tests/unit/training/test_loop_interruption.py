"""A signal in training: the step is finished and saved, and the next run continues from there."""

from storyteller_ds.errors import (
    EXIT_DONE,
    EXIT_INTERRUPTED,
)
from storyteller_ds.optim.schedule import learning_rate

from .counting_engine import CountingEngine, SignalledAt, go


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
        assert recorder.lasts == [False, False]  # what is done only at the end of a run is skipped


def test_a_signal_in_the_last_step_changes_nothing():
    engine = SignalledAt(step=3)
    with engine.interruption.in_training():
        _, (recorder,), end, error = go(engine, interruption=engine.interruption, max_steps=3)
    assert (end.step, error) == (3, None)
    assert recorder.calls[-1] == ("end", EXIT_DONE)
