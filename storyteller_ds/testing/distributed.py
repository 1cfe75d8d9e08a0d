"""Run the main job as a user does, with a hard time limit and nothing left behind."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from storyteller_ds.parallel.world import free_port

REPOSITORY = Path(__file__).resolve().parents[2]
TRAIN = REPOSITORY / "launch" / "train.py"
DS_CONFIGS = REPOSITORY / "ds_configs"
TINY_RUN = (
    "data.builtin_stories=600",
    "data.sequence_length=64",
    "tokenizer.vocab_size=512",
    "model.hidden_size=64",
    "model.num_layers=2",
    "model.intermediate_size=96",
    "train.global_batch_size=8",
)
"""Overrides of the quickstart preset with which a step takes milliseconds."""


class Outcome(NamedTuple):
    """How a command ended."""

    exit_code: int
    stdout: str
    stderr: str


def run_command(command: list[str], timeout_s: float, env: dict[str, str] | None = None) -> Outcome:
    """Run a command in a process group of its own; past its time the whole group is killed.

    Raises:
        TimeoutError: it took longer; the message holds what it printed.
    """
    process = start_command(command, env)
    try:
        stdout, stderr = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        stdout, stderr = process.communicate()
        raise TimeoutError(f"{command} took over {timeout_s} s\n{stdout}\n{stderr}") from None
    return Outcome(process.returncode, stdout, stderr)


def start_command(command: list[str], env: dict[str, str] | None = None) -> "subprocess.Popen[str]":
    """Start a command in a process group of its own, its output captured."""
    return subprocess.Popen(
        command,
        env={**os.environ, "DS_ACCELERATOR": "cpu", **(env or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def train_command(ranks: int, ds_config: str | None, *arguments: str) -> list[str]:
    """The main job: one process without a DeepSpeed config, else through the deepspeed launcher.

    Args:
        ranks: number of processes.
        ds_config: name in ds_configs/ without .json, or None.
        arguments: further arguments of launch/train.py.
    """
    if ds_config is None:
        return [sys.executable, str(TRAIN), *arguments]
    launcher = Path(sys.executable).parent / "deepspeed"
    launch = [str(launcher), "--num_accelerators", str(ranks), "--master_port", str(free_port())]
    return [*launch, str(TRAIN), "--ds_config", str(DS_CONFIGS / f"{ds_config}.json"), *arguments]
