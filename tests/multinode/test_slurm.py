"""launch/slurm/train.sbatch on a cluster of two nodes."""

import contextlib
from pathlib import Path

import psutil
import pytest

from tests.support.runs import read_metrics

from .processes import kill, wait_until
from .same_run import RUN, TIMEOUT_S, assert_same_run, last_step
from .slurm_cluster import CPUS_PER_NODE, SlurmCluster

# One rank per node and no GPUs; everything else is as in the script.
NODES = ("--ntasks-per-node=1", "--gpus-per-node=0", f"--cpus-per-task={CPUS_PER_NODE}")
ENDLESS = "train.max_steps=1000000"

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(3 * TIMEOUT_S)]


def submit(slurm: SlurmCluster, folder: Path, *arguments: str) -> str:
    log = f"--output={folder.with_name('log')}"
    job = ["--ds_config", "ds_configs/zero2.json", "--output_dir", str(folder), "parallel.ep_size=2", *RUN, *arguments]
    return slurm.submit(*NODES, log, "launch/slurm/train.sbatch", *job)


def wait_for_step(slurm: SlurmCluster, job: str, folder: Path, step: int) -> None:
    def reached() -> bool:
        assert slurm.state(job)[0] in {"PENDING", "RUNNING", "COMPLETING"}, folder.with_name("log").read_text()
        return last_step(folder) >= step

    wait_until(reached, TIMEOUT_S, f"job {job} has not reached step {step}")


def wait_until_nothing_is_left(slurm: SlurmCluster) -> None:
    wait_until(lambda: not slurm.job_processes(), 30, "processes of the job are left")


def processes_of_rank(slurm: SlurmCluster, rank: int) -> list[psutil.Process]:
    found = []
    for process in slurm.job_processes():
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.environ().get("SLURM_PROCID") == str(rank) and "train.py" in " ".join(process.cmdline()):
                found.append(process)
    return found


def test_two_nodes_and_one_process(slurm: SlurmCluster, single: Path, tmp_path: Path):
    job = submit(slurm, tmp_path / "run")
    assert slurm.wait(job, TIMEOUT_S) == ("COMPLETED", "0:0"), (tmp_path / "log").read_text()
    assert_same_run(tmp_path / "run", single)
    wait_until_nothing_is_left(slurm)


def test_a_users_error_is_the_jobs_exit_code(slurm: SlurmCluster, tmp_path: Path):
    job = submit(slurm, tmp_path / "run", "moe.num_expert=4")
    assert slurm.wait(job, TIMEOUT_S) == ("FAILED", "2:0"), (tmp_path / "log").read_text()
    assert "num_experts" in (tmp_path / "log").read_text()


def test_scancel_leaves_nothing(slurm: SlurmCluster, tmp_path: Path):
    job = submit(slurm, tmp_path / "run", ENDLESS)
    wait_for_step(slurm, job, tmp_path / "run", 2)
    slurm.cancel(job)
    assert slurm.wait(job, 60)[0] == "CANCELLED"
    wait_until_nothing_is_left(slurm)


def test_a_killed_rank_fails_the_job(slurm: SlurmCluster, tmp_path: Path):
    job = submit(slurm, tmp_path / "run", ENDLESS)
    wait_for_step(slurm, job, tmp_path / "run", 2)
    victims = processes_of_rank(slurm, 1)
    assert victims
    kill(victims)
    assert slurm.wait(job, 60)[0] == "FAILED", (tmp_path / "log").read_text()
    assert "lost rank 1 " in (tmp_path / "log").read_text()
    wait_until_nothing_is_left(slurm)


def test_a_job_whose_time_is_nearly_over_saves_and_is_requeued(slurm: SlurmCluster, tmp_path: Path):
    """Slurm sends USR1 to the ranks, as --signal requests; here the test sends it."""
    job = submit(slurm, tmp_path / "run", ENDLESS, "checkpoint.every_steps=0")
    wait_for_step(slurm, job, tmp_path / "run", 3)
    slurm.cancel("--signal=USR1", job)
    wait_until(lambda: slurm.state(job)[0] == "PENDING", 60, "the job is not requeued")
    wait_until_nothing_is_left(slurm)
    stopped_at = last_step(tmp_path / "run")
    log = tmp_path.joinpath("log").read_text()
    assert f"interrupted by SIGUSR1; saved step {stopped_at}; run again to continue\n" in log
    assert "lost rank" not in log

    slurm.start_soon(job)
    wait_for_step(slurm, job, tmp_path / "run", stopped_at + 3)
    assert slurm.restarts(job) == 1
    steps = [line["step"] for line in read_metrics(tmp_path / "run") if "train_loss" in line]
    assert steps == list(range(1, len(steps) + 1))
