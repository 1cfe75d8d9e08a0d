"""Sweeps of the smallest runs through the command: interrupted and continued, failing, refused."""

import json
import shlex
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import storyteller_ds as st
from storyteller_ds.cli.main import storyteller
from storyteller_ds.errors import EXIT_INTERRUPTED, EXIT_TRAINING_STOPPED, InterruptedSafely, StorytellerError
from storyteller_ds.records.run_folder import RunFolder
from storyteller_ds.sweep import study
from storyteller_ds.sweep.results import Result, best_first
from storyteller_ds.training.interruption import ProcessInterruption
from tests.support.distributed import SMALLEST_RUN
from tests.support.runs import read_metrics

pytestmark = pytest.mark.timeout(120)

LISTS = ("--vary", "optimizer.lr=1e-3,1e-2,0.1")
RANGE = ("--vary", "optimizer.lr=1e-3..1e-1", "--vary", "schedule.kind=cosine,constant", "--trials", "3")
STEPS = 4


@pytest.fixture(scope="module")
def stories(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "stories.txt"
    path.write_text("\n\n".join(f"The fox {i} ran to the hill and slept." for i in range(30)))
    return path


@pytest.fixture
def sweep(stories: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[list[dict[str, Any]], str]]:
    """A function that runs the command and returns the trials of sweep.json and stdout."""

    def run(folder: Path, *arguments: str) -> tuple[list[dict[str, Any]], str]:
        settings = (*SMALLEST_RUN, f"train.max_steps={STEPS}", "schedule.warmup_steps=1", f"data.source={stories}")
        command = ["sweep", "--config", "tiny_test", "--output_dir", str(folder), *arguments, *settings]
        capsys.readouterr()
        storyteller.main(command, standalone_mode=False)
        return json.loads((folder / "sweep.json").read_text())["trials"], capsys.readouterr().out

    return run


@pytest.fixture
def at_step_2(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A function that makes something happen after the second step of a trial."""

    def prepare(trial: str, action: Callable[[], object]) -> None:
        class Acts(st.Callback):
            def on_train(self, record):
                if record["step"] == 2 and self.trainer.output_dir.name == trial:
                    action()

        monkeypatch.setattr(study, "Trainer", lambda *args, **more: st.Trainer(*args, callbacks=[Acts()], **more))

    return prepare


def received(number: int, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """A function that sends a signal and waits until the receiving thread has it: the trial might end first."""
    done, receive = threading.Event(), ProcessInterruption.receive

    def and_say_so(self: ProcessInterruption, number: int) -> None:
        receive(self, number)
        done.set()

    def send() -> None:
        signal.raise_signal(number)
        assert done.wait(30)

    monkeypatch.setattr(ProcessInterruption, "receive", and_say_so)
    return send


def numbers(trials: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The trials without their durations."""
    return [{name: value for name, value in trial.items() if name != "seconds"} for trial in trials]


def losses(folder: Path, trial: int) -> list[float]:
    return [line["train_loss"] for line in read_metrics(folder / f"trial-{trial:03d}") if "train_loss" in line]


@pytest.mark.parametrize("vary", [LISTS, RANGE], ids=["lists", "range"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_sweep_goes_on_to_the_same_numbers(sweep, at_step_2, tmp_path, monkeypatch, vary, number):
    whole, _ = sweep(tmp_path / "whole", *vary)
    with monkeypatch.context():
        at_step_2("trial-002", received(number, monkeypatch))
        with pytest.raises(InterruptedSafely, match=f"{number.name}; saved step 2; run again to continue: storyteller"):
            sweep(tmp_path / "part", *vary)
    assert InterruptedSafely.exit_code == EXIT_INTERRUPTED
    assert not (tmp_path / "part" / "sweep.json").exists()
    begun = read_metrics(tmp_path / "part" / "trial-002")
    monkeypatch.setattr(study, "Trainer", st.Trainer)
    part, _ = sweep(tmp_path / "part", *vary)
    assert numbers(part) == numbers(whole)
    for trial in (1, 2, 3):
        assert losses(tmp_path / "part", trial) == losses(tmp_path / "whole", trial)
    # It was continued, not restarted, and the other trials were not run twice.
    assert read_metrics(tmp_path / "part" / "trial-002")[: len(begun)] == begun
    assert [path.name for path in (tmp_path / "part").rglob("previous-*")] == []
    # Control: trials differ from each other.
    assert len({json.dumps(losses(tmp_path / "part", trial)) for trial in (1, 2, 3)}) == 3


def test_a_finished_sweep_prints_its_table_again(sweep, tmp_path):
    first, table = sweep(tmp_path / "a", *LISTS)
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "a").glob("trial-*/**/*")}
    assert sweep(tmp_path / "a", *LISTS) == (first, table)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "a").glob("trial-*/**/*") if path in files} == files
    scores = [float(line.split("|")[2]) for line in table.splitlines() if "| trial-" in line]
    assert scores == sorted(round(trial["val_bpb"], 4) for trial in first)
    assert [trial["values"] for trial in first] == [{"optimizer.lr": lr} for lr in (1e-3, 1e-2, 0.1)]
    for trial in first:
        run = tmp_path / "a" / trial["run"]
        assert trial["val_bpb"] == read_metrics(run)[-1]["final_val_bpb"]
        assert [path.name for path in (run / "checkpoints").iterdir()] == [f"step_{STEPS:08d}"]
    assert (tmp_path / "a" / "sweep.png").read_bytes().startswith(b"\x89PNG")
    # The best command can be run, and reproduces the run that it names.
    best = next(line for line in table.splitlines() if line.startswith("best:")).partition(" ")[2]
    storyteller.main(shlex.split(best)[1:], standalone_mode=False)
    assert read_metrics(tmp_path / "a" / "best")[-1]["final_val_bpb"] == min(trial["val_bpb"] for trial in first)


def test_more_trials_of_a_range_are_added(sweep, tmp_path):
    three, _ = sweep(tmp_path / "a", *RANGE)
    four, _ = sweep(tmp_path / "a", *RANGE[:-1], "4")
    assert (four[:3], len(four)) == (three, 4)


def test_a_trial_that_stops_itself_has_failed_and_the_sweep_goes_on(sweep, at_step_2, tmp_path, capsys):
    def stop() -> None:
        raise st.TrainingStopped("the loss is not finite")

    at_step_2("trial-002", stop)
    trials, table = sweep(tmp_path / "a", *LISTS)
    assert [trial["reason"] for trial in trials] == [None, "the loss is not finite", None]
    assert [trial["val_bpb"] is None for trial in trials] == [False, True, False]
    assert [line.split("|")[2].strip() for line in table.splitlines() if "| trial-" in line][2] == "failed"
    at_step_2("trial-001", stop)
    with pytest.raises(st.TrainingStopped, match="no trial came to its end; the first: the loss is") as ended:
        sweep(tmp_path / "b", "--vary", "optimizer.lr=1e-3")
    assert ended.value.exit_code == EXIT_TRAINING_STOPPED


def test_a_trial_that_does_not_fit_into_memory_has_failed_and_the_sweep_goes_on(sweep, at_step_2, tmp_path):
    def allocate() -> None:
        raise RuntimeError("CUDA out of memory. Tried to allocate 40.00 GiB. GPU 0 has a total capacity of 31 GiB")

    at_step_2("trial-002", allocate)
    trials, _ = sweep(tmp_path / "a", *LISTS)
    assert [trial["reason"] for trial in trials] == [None, "out of memory (tried to allocate 40.00 GiB)", None]


def test_another_sweep_or_a_second_one_is_refused(sweep, tmp_path):
    sweep(tmp_path, "--vary", "optimizer.lr=1e-3")
    for arguments, words in (
        (("--vary", "optimizer.lr=2e-3"), "another sweep: --vary optimizer.lr was 1e-3, now 2e-3; choose another"),
        (("--vary", "seed=1"), "another sweep: --vary optimizer.lr, now --vary seed; choose another"),
        (("--vary", "optimizer.lr=1e-3", "--minutes", "2"), "train.max_minutes was None, now 2.0"),
        (("--vary", "optimizer.lr=1e-3", "seed=1"), "seed was 0, now 1"),
    ):
        with pytest.raises(st.UserError) as refused:
            sweep(tmp_path, *arguments)
        assert words in str(refused.value)
    folder = RunFolder(tmp_path)
    with pytest.raises(st.UserError, match="another run is writing to"):
        sweep(tmp_path, "--vary", "optimizer.lr=1e-3")
    folder.close()
    sweep(tmp_path, "--vary", "optimizer.lr=1e-3")  # none of them still holds the folder


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (RANGE[:-2], "say with --trials how many"),
        ((*LISTS, "--trials", "2"), "--trials is for ranges"),
        (("--vary", "optimizer.lrr=1"), "did you mean 'optimizer.lr'"),
        ((*LISTS, "--minutes", "1", "train.max_minutes=2"), "--minutes is train.max_minutes, which is given too"),
    ],
)
def test_refusals_leave_nothing(sweep, tmp_path, arguments, words):
    with pytest.raises(StorytellerError) as refused:
        sweep(tmp_path / "a", *arguments)
    assert words in str(refused.value)
    assert not (tmp_path / "a").exists()


def test_a_missing_optuna_is_named_with_its_command(sweep, tmp_path, monkeypatch):
    from storyteller_ds.cli import sweep as verb

    monkeypatch.setattr(verb.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(st.UserError, match="optuna is not installed; pip install optuna"):
        sweep(tmp_path / "a", *LISTS)


def test_a_damaged_study_is_one_line(sweep, tmp_path):
    (tmp_path / study.JOURNAL).write_text("{\n{}\n")
    with pytest.raises(st.UserError, match="is damaged"):
        sweep(tmp_path, *LISTS)


def test_the_lowest_comes_first_and_failures_last():
    results = [Result(Path(str(i)), {}, bpb) for i, bpb in enumerate([2.0, None, 1.0, 2.0, 1.5])]
    assert [result.folder.name for result in best_first(results)] == ["2", "4", "0", "3", "1"]
