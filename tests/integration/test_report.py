"""Every run ends with a report, and `storyteller report` makes one for any run."""

import io
import json
import os
import signal

import pytest
from click.testing import CliRunner
from rich.console import Console

import storyteller_ds as st
from storyteller_ds.cli.main import storyteller
from tests.support.small_mixtures import SETTINGS, STORIES

STEPS = 8


class At(st.Callback):
    """Performs an action after a given step."""

    def __init__(self, step, action):
        self.step, self.action = step, action

    def on_step_end(self, state, last):
        if state.step == self.step:
            self.action()


def train(folder, *callbacks, steps=STEPS, **settings):
    (folder.parent / "stories.txt").write_text("\n\n".join(STORIES))
    given = {
        **SETTINGS,
        "tracking.report": True,
        "data.source": str(folder.parent / "stories.txt"),
        "train.max_steps": steps,
        **settings,
    }
    said = io.StringIO()
    trainer = st.Trainer(st.load_config("tiny_test", given), folder, callbacks, console=Console(file=said, width=500))
    return trainer.fit(), said


def report(*words):
    return CliRunner().invoke(storyteller, ["report", *map(str, words)])


def test_a_finished_run(tmp_path):
    _, said = train(tmp_path / "a")
    page = (tmp_path / "a" / "report.html").read_text()
    assert f"Finished after {STEPS} steps" in page
    assert page.count("<svg") > 5
    assert "no report" not in said.getvalue()


def test_an_interrupted_run_and_its_continuation(tmp_path):
    run, _ = train(tmp_path / "a", At(5, lambda: os.kill(os.getpid(), signal.SIGINT)))
    assert run.interrupted
    assert f"Stopped early, after 5 of {STEPS} steps" in (tmp_path / "a" / "report.html").read_text()
    train(tmp_path / "a")
    assert f"Finished after {STEPS} steps" in (tmp_path / "a" / "report.html").read_text()


def test_a_run_that_fails(tmp_path):
    def fail():
        raise RuntimeError("the disk is on fire")

    with pytest.raises(RuntimeError, match="on fire"):
        train(tmp_path / "a", At(6, fail))
    assert "after 6 of" in (tmp_path / "a" / "report.html").read_text()


def test_a_report_that_cannot_be_written_ends_no_run(tmp_path):
    run, said = train(tmp_path / "a", At(3, (tmp_path / "a" / "report.html").mkdir))
    assert run.step == STEPS
    assert run.checkpoint is not None
    assert "no report was written" in said.getvalue()
    assert "Traceback" not in said.getvalue()


def test_another_run_in_the_folder_begins_without_the_records_of_the_first(tmp_path):
    run, _ = train(tmp_path / "a")
    assert report(run.folder, "--measure", "--device", "cpu").exit_code == 0
    given = {**SETTINGS, "tracking.report": True, "data.source": str(tmp_path / "stories.txt"), "train.max_steps": 2}
    st.Trainer(st.load_config("tiny_test", given), run.folder, resume="never").fit()
    assert not (run.folder / "atlas.json").exists()
    assert {path.name for path in (run.folder / "previous-1").iterdir()} >= {"report.html", "atlas.json"}


def test_measured(tmp_path):
    run, _ = train(tmp_path / "a b")
    result = report(run.folder, "--measure", "--device", "cpu")
    assert result.exit_code == 0, result.exception
    assert result.stdout.strip() == str(run.folder / "report.html")
    page = (run.folder / "report.html").read_text()
    assert "What each expert does" in page
    assert "How good it is" in page
    assert "no evaluation" not in page
    measured = json.loads((run.folder / "evaluation.json").read_text())["checkpoints"][0]["bits_per_byte"]["value"]
    assert f"{measured:.4f}" in page
    # The measurements are kept for the next report.
    (run.folder / "report.html").unlink()
    assert report(run.folder).exit_code == 0
    assert "What each expert does" in (run.folder / "report.html").read_text()


def test_side_by_side_and_refused(tmp_path):
    one, _ = train(tmp_path / "one")
    other, _ = train(tmp_path / "other", **{"moe.num_experts": 0})
    result = report(one.folder, other.folder, "--output_dir", tmp_path / "both")
    assert result.exit_code == 0, result.exception
    page = (tmp_path / "both" / "report.html").read_text()
    assert "one and other" in page
    assert "moe.num_experts" in page
    refused = report(tmp_path / "none")
    assert isinstance(refused.exception, st.UserError)
    assert "is not a run folder" in str(refused.exception)
    refused = report(one.folder, "--wandb")
    assert isinstance(refused.exception, st.UserError)
