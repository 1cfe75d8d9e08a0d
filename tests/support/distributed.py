"""Runs the main job as a user does, with a hard time limit and no processes left behind."""

import contextlib
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from storyteller_ds.distributed.ports import free_port

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
    "tracking.report=false",
)
"""Overrides of the quickstart preset that make a step take milliseconds."""
ADAMW = (
    *("model.num_kv_heads=2", "model.qk_norm=false", "model.tie_embeddings=true"),
    *("optimizer.kind=adamw", "optimizer.lr=3e-3", "optimizer.eps=1e-8"),
    *("optimizer.embedding_lr_ratio=1", "optimizer.output_lr_ratio=1", "optimizer.expert_period=1"),
    *("schedule.kind=cosine", "schedule.decay_fraction=1", "schedule.min_lr_ratio=0.1"),
)
"""Overrides that turn the quickstart preset into a Mixtral trained by AdamW; test_muon.py tests its own recipe."""
SMALLEST_RUN = (
    "model.hidden_size=16",
    "model.num_layers=1",
    "model.num_heads=2",
    "model.num_kv_heads=1",
    "model.intermediate_size=16",
    "data.sequence_length=8",
    "data.validation_fraction=0.3",
    "tokenizer.kind=char",
    "tokenizer.vocab_size=64",
    "train.global_batch_size=2",
    "train.max_steps=1",
    "train.sample_prompts=[a]",
    "tracking.wandb=disabled",
    "tracking.report=false",
    "parallel.device=cpu",
)
"""Overrides for one step on one device, with a text of a few lines."""


class Outcome(NamedTuple):
    """How a command ended."""

    exit_code: int
    stdout: str
    stderr: str


def run_command(command: list[str], timeout_s: float, env: dict[str, str] | None = None) -> Outcome:
    """Run a command in its own process group; after the time limit the whole group is killed.

    Raises:
        TimeoutError: the command took longer; the message contains what it printed.
    """
    process = start_command(command, env)
    try:
        stdout, stderr = process.communicate(timeout=timeout_s)
    except BaseException as error:  # including the test's own time limit, and Ctrl-C
        os.killpg(process.pid, signal.SIGKILL)
        stdout, stderr = process.communicate()
        if not isinstance(error, subprocess.TimeoutExpired):
            raise
        raise TimeoutError(f"{command} took over {timeout_s} s\n{stdout}\n{stderr}") from None
    return Outcome(process.returncode, stdout, stderr)


def start_command(command: list[str], env: dict[str, str] | None = None) -> "subprocess.Popen[str]":
    """Start a command in its own process group and capture its output."""
    return subprocess.Popen(
        command,
        env={**os.environ, "DS_ACCELERATOR": "cpu", **(env or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def train_command(ranks: int, ds_config: str | None, *arguments: str) -> list[str]:
    """The command of the main job: one process without a DeepSpeed config, otherwise the deepspeed launcher.

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


def launch_command(ranks: int, ds_config: str, *arguments: str) -> list[str]:
    """The main job through storyteller launch; the parameters are those of train_command."""
    launch = [sys.executable, "-m", "storyteller_ds", "launch", "--num_accelerators", str(ranks), "--"]
    return [*launch, "--ds_config", str(DS_CONFIGS / f"{ds_config}.json"), *arguments]


def torchrun_command(ranks: int, ds_config: str | None, *arguments: str) -> list[str]:
    """The main job through torchrun, which starts in half the time; the parameters are those of train_command."""
    if ds_config is None:
        return train_command(ranks, None, *arguments)
    launch = [str(Path(sys.executable).parent / "torchrun"), "--nproc_per_node", str(ranks)]
    launch += ["--master_port", str(free_port())]
    return [*launch, str(TRAIN), "--ds_config", str(DS_CONFIGS / f"{ds_config}.json"), *arguments]


class Member(NamedTuple):
    """A process of a marked run."""

    pid: int
    parent: int
    command: str
    rank: int | None
    """The rank that the launcher has set; None for a launcher."""


class MarkedRun:
    """Commands that belong together, and all their descendants (Linux).

    Processes are found by a variable of their environment, so orphans are found too.
    """

    def __init__(self) -> None:
        self._mark = f"STORYTELLER_TEST_MARK={uuid.uuid4().hex}"
        self.commands: list[subprocess.Popen[str]] = []

    def start(self, command: list[str], env: dict[str, str] | None = None) -> "subprocess.Popen[str]":
        """Start a command as start_command does, as part of this run."""
        name, _, value = self._mark.partition("=")
        self.commands.append(start_command(command, {**(env or {}), name: value}))
        return self.commands[-1]

    def members(self) -> list[Member]:
        """The processes that are running now."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                variables = (folder / "environ").read_text(errors="replace").split("\0")
                if self._mark in variables:
                    ranks = [v.removeprefix("RANK=") for v in variables if v.startswith("RANK=")]
                    command = (folder / "cmdline").read_text(errors="replace").replace("\0", " ")
                    parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                    found.append(Member(int(folder.name), parent, command, int(ranks[0]) if ranks else None))
        return found

    def supervisor(self, rank: int) -> Member:
        """The process of this rank that the launcher started."""
        of_rank = [member for member in self.members() if member.rank == rank]
        return next(member for member in of_rank if member.parent not in {other.pid for other in of_rank})

    def training(self, rank: int) -> Member:
        """The training process of this rank."""
        supervisor = self.supervisor(rank).pid
        return next(member for member in self.members() if member.parent == supervisor)

    def launcher(self, rank: int) -> Member:
        """The process that started this rank: deepspeed.launcher.launch, or torchrun."""
        parent = self.supervisor(rank).parent
        return next(member for member in self.members() if member.pid == parent)

    def kill(self) -> None:
        """Kill all processes with SIGKILL, including those started meanwhile."""
        while members := self.members():
            for member in members:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(member.pid, signal.SIGKILL)
            for command in self.commands:
                command.poll()


@contextlib.contextmanager
def marked_run() -> Iterator[MarkedRun]:
    """A MarkedRun whose processes are all gone after the block."""
    run = MarkedRun()
    try:
        yield run
    finally:
        run.kill()
        for command in run.commands:
            command.communicate()


def wait_until(condition: Callable[[], bool], seconds: float) -> bool:
    """Poll the condition until it holds; returns False if it still does not after this time."""
    deadline = time.monotonic() + seconds
    while not (holds := condition()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return holds
