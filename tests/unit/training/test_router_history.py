"""Experts that stay without tokens and loads that shift, over several logged steps."""

import itertools

import pytest

from storyteller_ds.engines.base import RouterMetrics
from storyteller_ds.training.router_history import IDLE_STEPS, RouterHistory


def layers(*loads: list[float]) -> list[RouterMetrics]:
    return [RouterMetrics(load, 0.0, 0.0, 0, 1.0, 0.0, 1.0, 0.0) for load in loads]


def steps_of(history: RouterHistory, first: int = 1):
    """history.record() with consecutive step numbers."""
    numbers = itertools.count(first)
    return lambda routers: history.record(routers, next(numbers))


def test_drift_is_the_part_that_went_elsewhere():
    record = steps_of(RouterHistory())
    assert record(layers([0.5, 0.5], [1.0, 0.0])) == {}
    assert record(layers([0.5, 0.5], [0.0, 1.0])) == {"router_drift": 0.5, "layer_router_drift": [0.0, 1.0]}
    assert record(layers([0.7, 0.3], [0.0, 1.0]))["layer_router_drift"] == pytest.approx([0.2, 0.0])


def test_an_expert_is_idle_when_none_of_so_many_steps_gave_it_a_token():
    record = steps_of(RouterHistory())
    for _ in range(IDLE_STEPS - 1):
        assert "idle_experts" not in record(layers([1.0, 0.0, 0.0], [0.5, 0.5, 0.0]))
    first = record(layers([1.0, 0.0, 0.0], [0.5, 0.5, 0.0]))
    assert (first["idle_experts"], first["layer_idle_experts"]) == (3, [2, 1])
    assert record(layers([0.5, 1e-9, 0.5], [1.0, 0.0, 0.0]))["layer_idle_experts"] == [0, 1]
    for _ in range(IDLE_STEPS - 1):
        last = record(layers([1.0, 0.0, 0.0], [1.0, 0.0, 0.0]))
    assert last["layer_idle_experts"] == [0, 2]  # a token counts while its step is among the last IDLE_STEPS
    assert record(layers([1.0, 0.0, 0.0], [1.0, 0.0, 0.0]))["layer_idle_experts"] == [2, 2]


def test_a_resumed_run_knows_what_was_before():
    whole, loads = RouterHistory(), [[0.5, 0.5], [0.9, 0.1]]
    for step in range(IDLE_STEPS):
        whole.record(layers(loads[step % 2]), step)
    earlier = [{"step": step, "layer_expert_load": [loads[step % 2]]} for step in range(IDLE_STEPS)]
    resumed = RouterHistory([{"val_loss": 1.0}, *earlier, {"layer_expert_load": None}])
    assert resumed.record(layers([1.0, 0.0]), IDLE_STEPS) == whole.record(layers([1.0, 0.0]), IDLE_STEPS)


@pytest.mark.parametrize(
    "loads",
    [[[None, None]], [[0.5, 0.5], [0.5, 0.5]], [[0.2, 0.3, 0.5]], [0.5, 0.5], [["a", "b"]], "rubbish", {}, 3, []],
)
def test_what_a_file_has_in_place_of_loads_is_passed_over(loads):
    history = RouterHistory([{"step": 1, "layer_expert_load": loads}])
    assert history.record(layers([0.5, 0.5]), 2) == {}


def test_steps_that_were_undone_are_forgotten():
    history, straight = RouterHistory(), RouterHistory()
    for step, loads in enumerate(([0.5, 0.5], [0.9, 0.1], [0.1, 0.9]), start=1):
        history.record(layers(loads), step)
    straight.record(layers([0.5, 0.5]), 1)
    assert history.record(layers([0.7, 0.3]), 2) == straight.record(layers([0.7, 0.3]), 2) != {}
