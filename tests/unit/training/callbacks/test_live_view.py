"""What is shown below the progress bar."""

import io

import pytest
from rich.console import Console

from storyteller_ds.training.callbacks.live_view import BARS, Curve, LiveView, bars


def shown(view: LiveView, width: int = 100, height: int = 30, encoding: str = "utf-8") -> list[str]:
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    console = Console(
        file=file, width=width, height=height, force_terminal=True, color_system=None, legacy_windows=False
    )
    console.print(view)
    file.flush()
    return file.buffer.getvalue().decode(encoding).splitlines()


def view_of(losses: list[float | None], **record: object) -> LiveView:
    view = LiveView()
    for loss in losses:
        view.look({"train_loss": loss, **record})
    return view


ROUTERS = {"expert_load": [0.5, 0.25, 0.25, 0.0], "expert_load_max_over_mean": 2.0, "router_margin": 0.125}


def test_curve_and_experts():
    loss, experts = shown(view_of([8.0, 6.0, None, 4.0, 1.0], **ROUTERS, idle_experts=1))
    assert loss == "loss    █▆▄▁  8.000 to 1.000"
    assert experts == "experts █▅▅·  busiest 2.00 x its share  margin 0.12  1 without tokens"


def test_a_dense_model_has_only_a_curve_and_a_run_of_one_step_none():
    assert len(shown(view_of([2.0, 1.0]))) == 1
    assert shown(view_of([2.0])) == []
    assert shown(LiveView()) == []


@pytest.mark.parametrize("width", [20, 60, 100, 300])
def test_no_line_is_wider_than_the_terminal(width):
    lines = shown(view_of([1 / n for n in range(1, 2000)], **ROUTERS), width)
    assert len(lines) == (1 if width == 20 else 2)  # a curve needs some room
    assert all(len(line) <= width for line in lines)


def test_a_small_terminal_or_one_without_unicode_has_none():
    view = view_of([2.0, 1.0], **ROUTERS)
    assert shown(view, height=5) == []
    assert shown(view, encoding="ascii") == []


def test_loads_that_are_no_numbers_are_shown_as_none():
    assert "·█" in shown(view_of([2.0, 1.0], expert_load=[None, 1.0]))[1]


@pytest.mark.parametrize("count", [1, 7, 512, 513, 5000])
def test_a_curve_of_any_length_goes_from_the_first_to_the_last(count):
    curve = Curve(most=512)
    for n in range(count):
        curve.add(float(n))
    points = curve.points(50)
    assert 1 <= len(points) <= 50
    assert points == sorted(points)
    assert points[0] <= count / len(points)
    assert points[-1] >= count * (1 - 2 / len(points)) - 1 - count / 256


def test_bars_reach_from_lowest_to_highest():
    assert bars([0, 1, 2, 3, 4, 5, 6, 7], 0, 7) == BARS
    assert bars([3.0, 3.0], 3.0, 3.0) == BARS[0] * 2
