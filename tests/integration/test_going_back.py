"""--resume with a step moves what the run left beyond it aside, so that no later resume continues from that."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from storyteller_ds.checkpoint.diff import diff
from storyteller_ds.checkpoint.names import step_folder_name
from storyteller_ds.checkpoint.read import open_checkpoint
from storyteller_ds.cli.main import storyteller
from tests.support.distributed import SMALLEST_RUN

FASTER = "optimizer.lr=0.05"


@pytest.fixture
def train(tmp_path, monkeypatch):
    """Train in this process, saving every two steps, and return what was printed."""
    text = tmp_path / "good.txt"
    text.write_text("\n\n".join(f"There was a dog called Rex {i}." for i in range(30)))
    monkeypatch.setenv("STORYTELLER_CACHE", str(tmp_path / "cache"))

    def run(folder: str, steps: int, *arguments: str) -> str:
        settings = [*SMALLEST_RUN, f"data.source={text}", f"train.max_steps={steps}", "checkpoint.every_steps=2"]
        result = CliRunner().invoke(storyteller, ["train", "--output_dir", folder, *settings, *arguments])
        assert result.exit_code == 0, result.exception
        return result.stderr

    monkeypatch.chdir(tmp_path)
    return run


def step(run: str, number: int) -> Path:
    return Path(run) / "checkpoints" / step_folder_name(number)


def steps(run: str) -> list[str]:
    return sorted(path.name for path in (Path(run) / "checkpoints").iterdir())


def logged(run: str) -> list[int]:
    return [json.loads(line)["step"] for line in (Path(run) / "metrics.jsonl").read_text().splitlines()]


def tensors_differ(a: Path, b: Path) -> bool:
    return bool(diff(open_checkpoint(a), open_checkpoint(b)).tensors)


@pytest.mark.timeout(120)
def test_a_run_that_went_back_is_what_goes_on(train):
    train("run", 6)
    train("again", 6)
    all_steps, all_lines = steps("run"), logged("run")
    printed = train("run", 4, "--resume", str(step("run", 2)), FASTER)
    assert "the records of an earlier run are now in run/previous-1" in printed
    assert steps("run/previous-1") == [step_folder_name(4), step_folder_name(6)]
    assert logged("run/previous-1") == all_lines
    assert (Path("run/previous-1/samples.md")).is_file()
    printed = train("run", 6, FASTER)
    assert f"continuing from {step('run', 4)}" in printed
    assert steps("run") == all_steps
    assert sorted(set(logged("run"))) == sorted(set(all_lines))
    # Independent reference: the same from step 2 without a stop, in its own folder.
    train("elsewhere", 6, "--resume", str(step("again", 2)), FASTER)
    assert not tensors_differ(step("run", 6), step("elsewhere", 6))
    assert tensors_differ(step("run", 6), step("again", 6))  # control: FASTER gives a different run
    assert not tensors_differ(step("run/previous-1", 6), step("again", 6))


@pytest.mark.timeout(120)
def test_going_on_from_another_run_keeps_what_was_in_the_folder(train):
    train("first", 2)
    train("second", 4)
    printed = train("second", 4, "--resume", "first")
    assert "the records of an earlier run are now in second/previous-1" in printed
    assert steps("second/previous-1") == [step_folder_name(2), step_folder_name(4)]
    assert steps("second") == [step_folder_name(4)]


@pytest.mark.timeout(120)
def test_a_run_that_has_nothing_left_to_do_takes_nobodys_place(train):
    """An existing output folder stays as it was; a new one gets no checkpoints and is not searched for any."""
    train("finished", 2)
    train("mine", 4)
    for folder in ("mine", "new"):
        printed = train(folder, 2, "--resume", "finished")
        assert "already trained for 2 steps; raise train.max_steps to go on" in printed
        assert "earlier run" not in printed
    assert steps("mine") == [step_folder_name(2), step_folder_name(4)]
    assert not Path("new/checkpoints").exists()


@pytest.mark.timeout(120)
def test_going_on_from_the_last_step_moves_nothing(train):
    train("run", 2)
    config = json.loads(Path("run/config.json").read_text())
    assert "earlier run" not in train("run", 4, "--resume", str(step("run", 2)))
    assert not list(Path("run").glob("previous-*"))
    assert json.loads(Path("run/config.json").read_text())["wandb_run_id"] == config["wandb_run_id"]
