"""Rank and number of ranks of this process, from the variables that its launcher sets."""

import os
import re
from dataclasses import dataclass
from typing import Self

from storyteller_ds.errors import ConfigError

_MPI = (
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"),
    ("MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_LOCAL_RANK", "MV2_COMM_WORLD_LOCAL_SIZE"),
    ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
)
"""Rank, size, local rank and local size, as set by the mpirun of Open MPI, of MVAPICH, and of MPICH and Intel."""
_MPI_PORT = "29500"
_PORTS = range(12000, 32000)
"""Below the ports that Linux assigns by itself (32768 to 60999)."""


@dataclass(frozen=True)
class Ranks:
    """The rank of this process and the number of ranks; ranks are counted from 0."""

    rank: int
    local_rank: int
    """Rank among the processes of this machine."""
    size: int
    """Number of processes of the run."""
    local_size: int
    """Number of them on this machine."""

    @classmethod
    def from_environment(cls) -> Self:
        """Read what torchrun and deepspeed (RANK, ...), mpirun or srun (SLURM_PROCID, ...) have set; else one process.

        The innermost launcher counts: mpirun may itself run in a Slurm step. Slurm's variables count only inside a
        step, and of those only the step's own: the shell of sbatch also has SLURM_NTASKS but is a single process;
        so is that of salloc, which may even be a step of one task (LaunchParameters=use_interactive_step).

        Raises:
            ConfigError: the variables contradict each other.
        """
        of_torch = any(os.environ.get(name) for name in ("RANK", "WORLD_SIZE"))
        if not of_torch and (names := _of_mpi()):
            rank, size, local_rank, local_size = (_integer(name, default=0) for name in names)
            fix = f"start with mpirun, or unset {', '.join(names)}"
        elif not of_torch and started_by_srun():
            rank = _integer("SLURM_PROCID", default=0)
            size = _integer("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS", default=1)
            local_rank, local_size = _integer("SLURM_LOCALID", default=0), _tasks_on_this_node(size)
            fix = "start with srun, one task a rank"
        else:
            rank, size = _integer("RANK", default=0), _integer("WORLD_SIZE", default=1)
            local_rank = _integer("LOCAL_RANK", default=0)
            local_size = _integer("LOCAL_WORLD_SIZE", "LOCAL_SIZE", default=size)
            fix = "unset RANK, WORLD_SIZE, LOCAL_RANK and LOCAL_WORLD_SIZE, or start with a launcher"
        if not (0 <= rank < size and 0 <= local_rank < local_size <= size):
            raise ConfigError(
                f"the environment says rank {rank} of {size}, local rank {local_rank} of {local_size}, which "
                f"cannot be; {fix}"
            )
        return cls(rank, local_rank, size, local_size)

    def meeting_place(self) -> tuple[str, str]:
        """MASTER_ADDR and MASTER_PORT to use if the launcher sets none; the port is empty if it cannot be known.

        Raises:
            ConfigError: mpirun has started ranks on several machines, and MASTER_ADDR is not set.
        """
        if _of_mpi():
            if self.local_size < self.size and not os.environ.get("MASTER_ADDR"):
                raise ConfigError(
                    "mpirun has started ranks on several machines and does not set where they meet; name the host of "
                    f"rank 0: mpirun -x MASTER_ADDR=HOST_0 -x MASTER_PORT={_MPI_PORT} (MPICH: -genv NAME VALUE)"
                )
            return "127.0.0.1", _MPI_PORT
        if started_by_srun():
            host, port = slurm_rendezvous()
            return host, str(port)
        return "127.0.0.1", ""


def started_by_srun() -> bool:
    """Whether this process is a task of a Slurm step (sbatch's own shell is not)."""
    return bool(os.environ.get("SLURM_STEP_ID"))


def _of_mpi() -> tuple[str, str, str, str] | None:
    """The names of mpirun's variables, if mpirun has started this process.

    MPICH's rank alone does not prove that: srun sets it too.
    """
    return next((names for names in _MPI if os.environ.get(names[0]) and os.environ.get(names[2])), None)


def slurm_rendezvous() -> tuple[str, int]:
    """Host of rank 0, and a port for which every task of this step computes the same number.

    Raises:
        ConfigError: SLURM_JOB_ID or SLURM_STEP_ID is not a number.
    """
    nodes = os.environ.get("SLURM_STEP_NODELIST") or os.environ.get("SLURM_JOB_NODELIST") or "127.0.0.1"
    job, step = _integer("SLURM_JOB_ID", default=0), _integer("SLURM_STEP_ID", default=0)
    return first_host(nodes), _PORTS[(job * 101 + step) % len(_PORTS)]


def first_host(nodelist: str) -> str:
    """First name of Slurm's compressed list: `a1` of `a[1-3,7],b2` (`scontrol show hostnames` gives them all)."""
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])+", nodelist)
    return re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", first[0]) if first else nodelist


def tasks_per_node(text: str) -> list[int]:
    """Tasks of each node, from Slurm's compressed list: [2, 2, 2, 1] of `2(x3),1`."""
    runs = re.findall(r"(\d+)(?:\(x(\d+)\))?", text)
    return [int(count) for count, nodes in runs for _ in range(int(nodes or 1))]


def _tasks_on_this_node(size: int) -> int:
    for name in ("SLURM_STEP_TASKS_PER_NODE", "SLURM_TASKS_PER_NODE"):
        text, node = os.environ.get(name), _integer("SLURM_NODEID", default=0)
        if text and node < len(counts := tasks_per_node(text)):
            return counts[node]
    return _integer("SLURM_NTASKS_PER_NODE", default=size)


def _integer(*names: str, default: int) -> int:
    for name in names:
        text = os.environ.get(name)
        if text:
            try:
                return int(text)
            except ValueError:
                raise ConfigError(f"the environment variable {name}={text} is not a number; unset it") from None
    return default
