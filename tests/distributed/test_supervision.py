"""Whichever process is killed, the whole run ends in time, with a nonzero exit code and a line that names the loss.

Linux only, like supervision: processes are found in /proc.
"""

import os
import re
import signal
import socket
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from storyteller_ds.distributed.ports import free_port
from tests.support.distributed import (
    DS_CONFIGS,
    TINY_RUN,
    TRAIN,
    MarkedRun,
    marked_run,
    torchrun_command,
    train_command,
    wait_until,
)

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="supervision is for Linux")

ENDLESS = (*TINY_RUN, "train.max_steps=1000000", "train.log_every_steps=1", "tracking.wandb=disabled", "--quiet")
START_S = 240
END_S = 30  # the documented limit
DEEPSPEED = Path(sys.executable).parent / "deepspeed"
TORCHRUN = Path(sys.executable).parent / "torchrun"


def wait_for_training(run: MarkedRun, folder: Path) -> None:
    metrics = folder / "metrics.jsonl"
    begun = lambda: metrics.exists() and '"step": 3,' in metrics.read_text()  # noqa: E731
    ended = lambda: any(command.poll() is not None for command in run.commands)  # noqa: E731
    assert wait_until(lambda: begun() or ended(), START_S)
    assert not ended(), [command.communicate() for command in run.commands]


def killed(run: MarkedRun, *pids: int) -> tuple[list[int], str]:
    """Kill these processes; returns the exit codes of the commands and all of stderr."""
    for pid in pids:
        os.kill(pid, signal.SIGKILL)

    def nothing_left() -> bool:
        for command in run.commands:
            command.poll()
        return not run.members()

    assert wait_until(nothing_left, END_S), run.members()
    stderr = [command.communicate()[1] for command in run.commands]
    return [command.returncode for command in run.commands], "".join(stderr)


def lines(stderr: str) -> list[str]:
    return [line for line in stderr.splitlines() if line.startswith("storyteller: ")]


def loss_of(rank: int | str) -> str:
    return rf"storyteller: lost rank {rank} on {re.escape(socket.gethostname())} at step \d+: "


# If both ranks notice, the first to notice reports it.
VICTIMS: dict[str, tuple[Callable[[MarkedRun], int], str]] = {
    "training process of rank 0": (lambda run: run.training(0).pid, loss_of(0) + r"killed by signal 9 \(SIGKILL\)"),
    "training process of rank 1": (lambda run: run.training(1).pid, loss_of(1) + r"killed by signal 9 \(SIGKILL\)"),
    "supervisor of rank 0": (lambda run: run.supervisor(0).pid, loss_of(0) + "its processes were killed"),
    "supervisor of rank 1": (lambda run: run.supervisor(1).pid, loss_of(1) + "its processes were killed"),
    "launcher": (lambda run: run.launcher(0).pid, loss_of("[01]") + "its launcher .* is gone"),
    "command": (lambda run: run.commands[0].pid, loss_of("[01]") + "(its launcher|the deepspeed command) .* is gone"),
}
# All ranks are still alive and save before they exit.
ALL_RANKS_LEFT = ("launcher", "command")
SAVED = ["storyteller: interrupted by SIGTERM; saved step N; run again to continue"]


# The others take a quarter of a minute each; `make test-faults` runs them too.
QUICK = ("training process of rank 1", "command")


def all_but_quick_are_faults(victims: Iterable[str]) -> list[Any]:
    return [victim if victim in QUICK else pytest.param(victim, marks=pytest.mark.faults) for victim in victims]


@pytest.mark.parametrize("victim", all_but_quick_are_faults(VICTIMS))
def test_killed_under_deepspeed(victim: str, tmp_path: Path):
    find, line = VICTIMS[victim]
    with marked_run() as run:
        run.start(train_command(2, "zero2", "--output_dir", str(tmp_path), *ENDLESS))
        wait_for_training(run, tmp_path)
        assert len(run.members()) == 6  # control: the command, its launcher, two supervisors, two training processes
        codes, stderr = killed(run, find(run))
    assert codes[0] != 0
    first, *rest = lines(stderr)
    assert re.match(line, first), stderr
    assert [re.sub(r"\d+", "N", text) for text in rest] == (SAVED if victim in ALL_RANKS_LEFT else []), stderr


@pytest.mark.parametrize("victim", all_but_quick_are_faults(["supervisor of rank 0", "command"]))
def test_killed_under_torchrun(victim: str, tmp_path: Path):
    find, line = VICTIMS[victim]
    with marked_run() as run:
        run.start(torchrun_command(2, "zero2", "--output_dir", str(tmp_path), *ENDLESS))
        wait_for_training(run, tmp_path)
        assert len(run.members()) == 5
        codes, stderr = killed(run, find(run))
    assert codes[0] != 0
    first, *rest = lines(stderr)
    assert re.match(line, first), stderr
    assert [re.sub(r"\d+", "N", text) for text in rest] == (SAVED if victim in ALL_RANKS_LEFT else []), stderr


def two_nodes(run: MarkedRun, launcher: str, folder: Path) -> None:
    """Start one rank on each of two nodes, both this machine, separately, as on two machines without ssh."""
    port, hostfile = str(free_port()), folder / "hostfile"
    hostfile.write_text("localhost slots=1\n127.0.0.1 slots=1\n")
    main_job = [str(TRAIN), "--ds_config", str(DS_CONFIGS / "zero2.json"), "--output_dir", str(folder), *ENDLESS]
    meet = ["--master_addr", "127.0.0.1", "--master_port", port]
    for node in ("0", "1"):
        if launcher == "deepspeed":
            launch = [str(DEEPSPEED), "--hostfile", str(hostfile), "--no_ssh", "--node_rank", node, *meet]
        else:
            launch = [str(TORCHRUN), "--nnodes", "2", "--nproc_per_node", "1", "--node_rank", node, *meet]
        run.start([*launch, *main_job])
    wait_for_training(run, folder)


@pytest.mark.parametrize(
    ("launcher", "node"), [("deepspeed", 0), pytest.param("torchrun", 1, marks=pytest.mark.faults)]
)
def test_a_killed_launcher_ends_the_other_node_too(launcher: str, node: int, tmp_path: Path):
    with marked_run() as run:
        two_nodes(run, launcher, tmp_path)
        codes, stderr = killed(run, run.launcher(node).pid)
    assert 0 not in codes
    assert re.match(loss_of(node) + "its launcher .* is gone", lines(stderr)[0]), stderr


def test_a_killed_machine_ends_the_other_node_too(tmp_path: Path):
    with marked_run() as run:
        two_nodes(run, "torchrun", tmp_path)
        # The supervisor first, so that no process on node 1 can report it; only the connection closes.
        codes, stderr = killed(run, run.supervisor(1).pid, run.launcher(1).pid)
    assert 0 not in codes
    assert re.match(loss_of(1), lines(stderr)[0]), stderr


def test_control_without_supervision_the_launcher_leaves_orphans_and_exits_with_0(tmp_path: Path):
    # DeepSpeed's own behavior; when this fails, a part of supervision is no longer needed.
    script = tmp_path / "endless.py"
    script.write_text("import pathlib, sys, time\npathlib.Path(sys.argv[-1]).touch()\ntime.sleep(600)\n")
    begun = tmp_path / "begun"
    with marked_run() as run:
        command = [str(DEEPSPEED), "--num_accelerators", "1", "--master_port", str(free_port())]
        run.start([*command, str(script), str(begun)])
        assert wait_until(begun.exists, START_S)
        os.kill(run.launcher(0).pid, signal.SIGKILL)
        assert run.commands[0].wait(60) == 0
        assert [member.rank for member in run.members()] == [0]
