"""The Weights & Biases report, as an object that is not sent."""

import sys

import pytest

from storyteller_ds.errors import UserError
from storyteller_ds.report.figures import COST, LEARNING, ROUTING
from storyteller_ds.report.run_records import read_run
from storyteller_ds.report.wandb_report import publish, wandb_report
from tests.support.recorded_runs import finished_run

wr = pytest.importorskip("wandb_workspaces.reports.v2")


@pytest.fixture
def fox(tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    return read_run(finished_run(tmp_path / "fox"))


def test_the_same_panels_over_the_runs(fox, tmp_path):
    hare = read_run(finished_run(tmp_path / "hare"))
    report = wandb_report([fox], "team")
    assert (report.entity, report.project, report.title) == ("team", "storyteller", "storyteller_ds: fox")
    grids = [block for block in report.blocks if isinstance(block, wr.PanelGrid)]
    titles = [[panel.title for panel in grid.panels] for grid in grids]
    assert titles == [[curves.title for curves in every] for every in (LEARNING, ROUTING, COST)]
    assert "id-of-fox" in str(grids[0].runsets[0].filters)
    loss = grids[0].panels[0]
    assert [str(getattr(each, "name", each)) for each in loss.y] == ["train_loss", "val_loss"]
    both = wandb_report([fox, hare], "team")
    filters = str(next(block for block in both.blocks if isinstance(block, wr.PanelGrid)).runsets[0].filters)
    assert "id-of-fox" in filters
    assert "id-of-hare" in filters


def test_runs_that_are_not_there_are_refused(fox, tmp_path):
    other = read_run(finished_run(tmp_path / "other", **{"tracking.project": "else"}))
    with pytest.raises(UserError, match="several projects"):
        wandb_report([fox, other], "team")
    (fox.folder / "config.json").write_text((fox.folder / "config.json").read_text().replace("wandb_run_id", "x"))
    with pytest.raises(UserError, match="was not tracked by Weights & Biases"):
        wandb_report([read_run(fox.folder)], "team")


def test_without_the_package_the_command_says_so(fox, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    with pytest.raises(UserError, match="pip install wandb-workspaces"):
        publish([fox])
