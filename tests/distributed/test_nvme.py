"""ZeRO-3 with weights and moments in files gives the numbers of one process and leaves nothing behind.

The first run in an environment compiles DeepSpeed's async_io, which takes some minutes.
"""

from pathlib import Path

import pytest

from tests.support.distributed import (
    ADAMW,
    TINY_RUN,
    marked_run,
    run_command,
    torchrun_command,
    train_command,
    wait_until,
)
from tests.support.runs import read_metrics

STEPS = 20
TOLERANCE = 1e-5
# DeepSpeed swaps only tensors of 1 MiB or more per rank; with these sizes the experts are that large.
RUN = (
    *TINY_RUN,
    *ADAMW,
    *("model.hidden_size=128", "model.intermediate_size=512"),
    *(f"train.max_steps={STEPS}", "train.eval_batches=2", "train.sample_tokens=2", "checkpoint.every_steps=10"),
    *("schedule.warmup_steps=5", "tracking.wandb=disabled", "--quiet"),
)
COMPILING_S = 1500

pytestmark = pytest.mark.timeout(COMPILING_S + 300)


def nvme_command(tmp_path: Path, folder: Path, *arguments: str) -> list[str]:
    disk = tmp_path / "disk"
    disk.mkdir(exist_ok=True)
    path = f"parallel.nvme_path={disk}"
    return torchrun_command(2, "zero3_nvme", "--output_dir", str(folder), *RUN, path, *arguments)


def losses(folder: Path) -> dict[int, float]:
    return {line["step"]: line["train_loss"] for line in read_metrics(folder) if "train_loss" in line}


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("single")
    outcome = run_command(train_command(1, None, "--output_dir", str(folder), *RUN), 240)
    assert outcome.exit_code == 0, outcome.stderr
    return folder


def assert_same_losses(ours: Path, reference: Path) -> None:
    expected, found = losses(reference), losses(ours)
    assert max(found) == STEPS
    for step, loss in found.items():
        assert abs(loss - expected[step]) <= TOLERANCE * expected[step], step


def test_training_through_files_has_the_losses_of_one_process(single: Path, tmp_path: Path):
    run = tmp_path / "run"
    with marked_run() as marked:
        command = marked.start(nvme_command(tmp_path, run))
        # Weights and optimizer state are really in files.
        for kind in ("param", "optimizer"):
            assert wait_until(
                lambda kind=kind: command.poll() is not None or any((tmp_path / "disk").rglob(f"*{kind}*/**/*.swp")),
                COMPILING_S,
            )
            assert command.poll() is None, command.communicate()[1]
        _, stderr = command.communicate(timeout=240)
        assert command.returncode == 0, stderr
    assert_same_losses(run, single)
    assert not list((tmp_path / "disk").iterdir()), "the run's own folder is removed at its end"


def test_muon_through_files_has_the_losses_of_one_process(tmp_path: Path):
    muon = ("optimizer.kind=muon", "optimizer.lr=3e-3", "optimizer.expert_period=2")
    one, files = tmp_path / "one", tmp_path / "files"
    outcome = run_command(train_command(1, None, "--output_dir", str(one), *RUN, *muon), 240)
    assert outcome.exit_code == 0, outcome.stderr
    outcome = run_command(nvme_command(tmp_path, files, *muon), COMPILING_S)
    assert outcome.exit_code == 0, outcome.stderr
    assert_same_losses(files, one)


def test_a_checkpoint_goes_into_the_files_and_out_of_them(single: Path, tmp_path: Path):
    into, out_of = tmp_path / "into", tmp_path / "out"
    half = single / "checkpoints" / "step_00000010"
    outcome = run_command(nvme_command(tmp_path, into, "--resume", str(half), "checkpoint.every_steps=15"), COMPILING_S)
    assert outcome.exit_code == 0, outcome.stderr
    assert_same_losses(into, single)
    late = into / "checkpoints" / "step_00000015"
    command = train_command(1, None, "--output_dir", str(out_of), *RUN, "--resume", str(late))
    outcome = run_command(command, 240)
    assert outcome.exit_code == 0, outcome.stderr
    assert_same_losses(out_of, single)


@pytest.mark.parametrize(
    ("argument", "fix"),
    [
        (None, "parallel.nvme_path=FOLDER"),
        ("parallel.nvme_path=/no/such/disk", "(No such file or directory); name"),
    ],
)
def test_a_folder_that_cannot_work_is_refused_before_anything_starts(argument: str | None, fix: str, tmp_path: Path):
    extra = [argument] if argument else []
    outcome = run_command(train_command(2, "zero3_nvme", "--output_dir", str(tmp_path / "run"), *RUN, *extra), 120)
    assert outcome.exit_code == 2, outcome.stderr
    assert fix in outcome.stderr
    assert not (tmp_path / "run").exists()
