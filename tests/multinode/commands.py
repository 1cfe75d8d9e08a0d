"""The ways to start the main job on two nodes, as users type them."""

import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from storyteller_ds.distributed.ports import free_port
from tests.support.distributed import DS_CONFIGS, TRAIN

from .linked_machines import LinkedMachines
from .ssh_nodes import SshNodes

BIN = Path(sys.executable).parent


class Command:
    """A command in its own session; all its output goes into a file."""

    def __init__(self, command: Sequence[str | Path], environment: Mapping[str, str], log: Path):
        self._log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                command,
                env={**os.environ, "DS_ACCELERATOR": "cpu", **environment},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )

    def wait(self, limit_s: float) -> int:
        """Wait for the command to end; returns its exit code.

        Raises:
            TimeoutError: it took longer; the message contains its output.
        """
        try:
            return self.process.wait(timeout=limit_s)
        except subprocess.TimeoutExpired:
            raise TimeoutError(f"{self.process.args!r} took over {limit_s} s\n{self.output()}") from None

    def output(self) -> str:
        """Everything that it has written so far to stdout and stderr."""
        return self._log.read_text(errors="replace")


def main_job(folder: Path, *arguments: str) -> list[str]:
    """The script and its arguments, which are the same under every launcher."""
    return [str(TRAIN), "--ds_config", str(DS_CONFIGS / "zero2.json"), "--output_dir", str(folder), *arguments]


def start_by_ssh(nodes: SshNodes, slots: int, job: list[str], logs: Path) -> list[Command]:
    """One command; DeepSpeed's launcher reaches both nodes with pdsh."""
    master = ["--master_addr", nodes.nodes[0].address, "--master_port", str(free_port())]
    launch = [BIN / "deepspeed", "--hostfile", nodes.hostfile(slots), *master]
    return [Command([*launch, *job], nodes.environment, logs / "deepspeed")]


def start_by_storyteller(nodes: SshNodes, slots: int, job: list[str], logs: Path) -> list[Command]:
    """storyteller launch, which checks its arguments and then does the same as start_by_ssh."""
    master = ["--master_addr", nodes.nodes[0].address, "--master_port", str(free_port())]
    launch = [BIN / "storyteller", "launch", "--hostfile", nodes.hostfile(slots), *master, "--"]
    return [Command([*launch, *job[1:]], nodes.environment, logs / "storyteller")]


def start_without_ssh(nodes: SshNodes, slots: int, job: list[str], logs: Path) -> list[Command]:
    """DeepSpeed's launcher, typed on each node."""
    launch = _on_each_node(nodes.hostfile(slots), nodes.nodes[0].address)
    return [
        Command([*launch, "--node_rank", str(rank), *job], node.environment, logs / f"deepspeed_{rank}")
        for rank, node in enumerate(nodes.nodes)
    ]


def start_torchrun(nodes: SshNodes, slots: int, job: list[str], logs: Path) -> list[Command]:
    """torchrun, typed on each node; the nodes rendezvous at a port of the first."""
    meeting = ["--rdzv_backend", "c10d", "--rdzv_endpoint", f"{nodes.nodes[0].address}:{free_port()}"]
    launch = [BIN / "torchrun", "--nnodes", "2", "--nproc_per_node", str(slots), *meeting]
    return [
        Command([*launch, "--local_addr", node.address, *job], node.environment, logs / f"torchrun_{rank}")
        for rank, node in enumerate(nodes.nodes)
    ]


WAYS: dict[str, Callable[[SshNodes, int, list[str], Path], list[Command]]] = {
    "ssh": start_by_ssh,
    "storyteller": start_by_storyteller,
    "no_ssh": start_without_ssh,
    "torchrun": start_torchrun,
}


def start_linked(machines: LinkedMachines, job: list[str], logs: Path) -> list[Command]:
    """DeepSpeed's launcher, typed on each of two machines that only a cable connects; one rank each."""
    launch = _on_each_node(machines.hostfile(), machines.addresses[0])
    return [
        Command(
            [*machines.enter(rank), *launch, "--node_rank", str(rank), *job],
            machines.environment(rank),
            logs / f"deepspeed_{rank}",
        )
        for rank in range(len(machines.addresses))
    ]


def _on_each_node(hostfile: Path, first: str) -> list[str | Path]:
    master = ["--master_addr", first, "--master_port", str(free_port())]
    return [BIN / "deepspeed", "--no_ssh", "--hostfile", hostfile, *master]
