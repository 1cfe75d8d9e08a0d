"""Which alerts a run sends, and that each is sent once."""

import pytest

from storyteller_ds.checkpoint.train_state import TrainState
from storyteller_ds.errors import EXIT_DONE, EXIT_INTERRUPTED, EXIT_TRAINING_STOPPED
from storyteller_ds.training.callbacks.alerts import Alerts, end_of_run


def record(step: int, **more: int) -> dict[str, int]:
    return {"step": step, "bad_steps": 0, "loss_spikes": 0, **more}


def told(*records: dict[str, int], state: TrainState | None = None) -> list[list[str]]:
    alerts = Alerts()
    alerts.start(state or TrainState())
    return [[alert.title for alert in alerts.of(one)] for one in records]


def test_a_healthy_run_is_silent():
    assert told(record(1), record(2, idle_experts=0), {"step": 2, "val_loss": 1.0}) == [[], [], []]


@pytest.mark.parametrize(
    ("count", "title"),
    [("bad_steps", "loss or gradient not finite"), ("loss_spikes", "loss spike"), ("idle_experts", "dead experts")],
)
def test_each_is_told_once_and_again_when_it_grows(count, title):
    records = [record(1, **{count: 1}), record(2, **{count: 1}), record(3, **{count: 3})]
    assert told(*records) == [[title], [], [title]]


def test_an_expert_that_was_alive_meanwhile_is_told_again():
    assert told(*(record(n, idle_experts=idle) for n, idle in enumerate((1, 0, 1)))) == [
        ["dead experts"],
        [],
        ["dead experts"],
    ]


def test_what_was_before_a_resume_is_not_told_again():
    state = TrainState(bad_steps=2, loss_spikes=1)
    assert told(record(9, bad_steps=2, loss_spikes=1), record(10, bad_steps=3, loss_spikes=1), state=state) == [
        [],
        ["loss or gradient not finite"],
    ]


@pytest.mark.parametrize(
    ("code", "title", "level"),
    [
        (EXIT_DONE, "run finished", "INFO"),
        (EXIT_INTERRUPTED, "run interrupted", "WARN"),
        (EXIT_TRAINING_STOPPED, "run stopped", "ERROR"),
    ],
)
def test_the_end(code, title, level):
    alert = end_of_run(code)
    assert (alert.title, alert.level) == (title, level)
