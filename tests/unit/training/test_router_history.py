"""Experts that stay without tokens and loads that move, over several logged steps."""

import pytest

from storyteller_ds.engines.base import RouterMetrics
from storyteller_ds.training.router_history import IDLE_STEPS, RouterHistory


def layers(*loads: list[float]) -> list[RouterMetrics]:
    return [RouterMetrics(load, 0.0, 0.0, 0, 1.0, 0.0, 1.0, 0.0) for load in loads]


def test_drift_is_the_part_that_went_elsewhere():
    history = RouterHistory()
    assert history.record(layers([0.5, 0.5], [1.0, 0.0])) == {}
    assert history.record(layers([0.5, 0.5], [0.0, 1.0])) == {"router_drift": 0.5, "layer_router_drift": [0.0, 1.0]}
    assert history.record(layers([0.7, 0.3], [0.0, 1.0]))["layer_router_drift"] == pytest.approx([0.2, 0.0])


def test_an_expert_is_idle_when_none_of_so_many_steps_gave_it_a_token():
    history = RouterHistory()
    for _ in range(IDLE_STEPS - 1):
        assert "idle_experts" not in history.record(layers([1.0, 0.0, 0.0], [0.5, 0.5, 0.0]))
    first = history.record(layers([1.0, 0.0, 0.0], [0.5, 0.5, 0.0]))
    assert (first["idle_experts"], first["layer_idle_experts"]) == (3, [2, 1])
    assert history.record(layers([0.5, 1e-9, 0.5], [1.0, 0.0, 0.0]))["layer_idle_experts"] == [0, 1]
    for _ in range(IDLE_STEPS - 1):
        last = history.record(layers([1.0, 0.0, 0.0], [1.0, 0.0, 0.0]))
    assert last["layer_idle_experts"] == [0, 2]  # a token long ago still counts, until it is too long ago
    assert history.record(layers([1.0, 0.0, 0.0], [1.0, 0.0, 0.0]))["layer_idle_experts"] == [2, 2]


def test_a_resumed_run_knows_what_was_before():
    whole, loads = RouterHistory(), [[0.5, 0.5], [0.9, 0.1]]
    for step in range(IDLE_STEPS):
        whole.record(layers(loads[step % 2]))
    earlier = [{"layer_expert_load": [loads[step % 2]]} for step in range(IDLE_STEPS)]
    resumed = RouterHistory([{"val_loss": 1.0}, *earlier, {"layer_expert_load": None}])
    assert resumed.record(layers([1.0, 0.0])) == whole.record(layers([1.0, 0.0]))


@pytest.mark.parametrize(
    "loads",
    [[[None, None]], [[0.5, 0.5], [0.5, 0.5]], [[0.2, 0.3, 0.5]], [0.5, 0.5], [["a", "b"]], "rubbish", {}, 3, []],
)
def test_what_a_file_has_in_place_of_loads_is_passed_over(loads):
    history = RouterHistory([{"layer_expert_load": loads}])
    assert history.record(layers([0.5, 0.5])) == {}
