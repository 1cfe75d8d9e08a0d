"""The figures show what the records say."""

import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from storyteller_ds.png import as_png
from storyteller_ds.report import figures
from storyteller_ds.report.look import as_svg, style
from storyteller_ds.report.run_records import read_run
from tests.support.recorded_runs import finished_run, train_record, write_run


@pytest.fixture(autouse=True)
def _style():
    with style():
        yield


def lines(drawing):
    return {line.get_label(): line.get_xydata() for line in drawing.figure.axes[0].lines}


def named(drawings):
    return {drawing.name: drawing for drawing in drawings}


def test_curves_are_the_records(tmp_path):
    run = read_run(finished_run(tmp_path / "a"))
    drawn = named(figures.learning([run], same_tokens=True))
    assert [*drawn] == ["loss", "bits-per-byte", "learning-rate", "gradient-norm"]
    expected = [[record["tokens"] / 1e6, record["train_loss"]] for record in run.train]
    np.testing.assert_array_equal(lines(drawn["loss"])["training"], expected)
    np.testing.assert_array_equal(lines(drawn["loss"])["held-out stories"][:, 1], [3.0, 2.4])
    routing = named(figures.routing([run]))
    assert [*routing] == ["expert-load", "balance", "entropy", "margin", "drift"]
    for i in range(4):
        shown = lines(routing["margin"])[f"layer {i}"][:, 1]
        np.testing.assert_array_equal(shown, [record["layer_router_margin"][i] for record in run.train])


def test_a_long_curve_is_means_of_neighbors(tmp_path):
    records = [train_record(step) for step in range(1, 1001)]
    records[500]["train_loss"] = None
    run = read_run(write_run(tmp_path / "a", records))
    shown = lines(named(figures.learning([run], True))["loss"])["training"]
    # 1,000 steps, three per point; the mean leaves out unknown losses.
    losses = np.array([np.nan if record["train_loss"] is None else record["train_loss"] for record in records])
    expected = [np.nanmean(losses[i : i + 3]) for i in range(0, 1000, 3)]
    np.testing.assert_allclose(shown[:, 1], expected, rtol=1e-12)


def test_the_heat_map_is_the_loads(tmp_path):
    run = read_run(finished_run(tmp_path / "a"))
    (heat,) = (drawing for drawing in figures.routing([run]) if drawing.name == "expert-load")
    panels = [axes for axes in heat.figure.axes if axes.images]
    assert len(panels) == 4
    for i, axes in enumerate(panels[:4]):
        load_TE = np.array([record["layer_expert_load"][i] for record in run.train])
        np.testing.assert_allclose(2.0 ** axes.images[0].get_array(), np.clip(8 * load_TE.T, 0.25, 4), rtol=1e-9)


def test_parts_of_a_step_add_up(tmp_path):
    (drawing,) = (each for each in figures.cost([read_run(finished_run(tmp_path / "a"))]) if each.name == "step-time")
    top = max(float(area.get_paths()[0].vertices[:, 1].max()) for area in drawing.figure.axes[0].collections)
    assert top == pytest.approx(250)


def test_records_without_experts_or_layers_have_the_curves_that_they_can(tmp_path):
    dense = write_run(
        tmp_path / "d",
        [without(step, "layer_", "router_", "expert_") for step in range(1, 20)],
        **{"moe.num_experts": 0},
    )
    assert figures.routing([read_run(dense)]) == []
    old = write_run(tmp_path / "o", [without(step, "layer_") for step in range(1, 20)])
    assert [*lines(named(figures.routing([read_run(old)]))["balance"])] == ["mean"]


def without(step, *starts):
    return {name: value for name, value in train_record(step).items() if not name.startswith(starts)}


def test_two_steps_are_no_curve(tmp_path):
    run = read_run(write_run(tmp_path / "a", [train_record(1), train_record(2)]))
    assert figures.learning([run], True) == figures.routing([run]) == figures.cost([run]) == []


def test_several_runs_have_a_line_each(tmp_path):
    runs = [read_run(finished_run(tmp_path / name, seed=i)) for i, name in enumerate(("fox", "hare"))]
    drawn = named(figures.learning(runs, same_tokens=False))
    assert "loss" not in drawn  # their tokens are not the same
    assert [*lines(drawn["bits-per-byte"])] == ["fox", "hare"]


def test_svg_takes_the_ink_of_its_page_and_shares_no_name(tmp_path):
    run = read_run(finished_run(tmp_path / "a"))
    drawn = [*figures.learning([run], True), *figures.routing([run]), *figures.cost([run])]
    pictures = [as_svg(drawing.figure, drawing.name) for drawing in drawn]
    names = []
    for picture in pictures:
        root = ET.fromstring(picture)
        assert root.tag.endswith("svg")
        assert "currentColor" in picture
        assert "#0b0c0e" not in picture
        found = re.findall(r' id="([^"]+)"', picture)
        assert set(re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', picture)) <= {(n, "") for n in found} | {
            ("", n) for n in found
        }
        names += found
    assert len(names) == len(set(names))
    assert as_svg(drawn[0].figure, "loss") == pictures[0]  # the same bytes again
    assert as_png(drawn[0].figure).startswith(b"\x89PNG")
