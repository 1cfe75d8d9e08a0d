"""This process among its peers, as the launcher describes it, and the messages they exchange.

Works under `python`, `deepspeed`, `torchrun` and `srun`; nothing here imports deepspeed.
"""

import contextlib
import os
import signal
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from storyteller_ds.errors import ConfigError, StorytellerError, UserError

T = TypeVar("T")

_connected_before = False


def has_been_connected() -> bool:
    """Whether this process has ever joined a process group."""
    return _connected_before


@dataclass(frozen=True)
class World:
    """Ranks are counted from 0; rank 0 speaks and keeps the records."""

    rank: int
    local_rank: int
    """Rank among the processes of this machine."""
    size: int
    """Number of processes of the run."""
    local_size: int
    """Number of them on this machine."""

    @classmethod
    def from_environment(cls) -> "World":
        """What torchrun and deepspeed (RANK, ...) or Slurm (SLURM_PROCID, ...) have set; one process without.

        Raises:
            ConfigError: the variables contradict each other.
        """
        rank = _integer("RANK", "SLURM_PROCID", default=0)
        size = _integer("WORLD_SIZE", "SLURM_NTASKS", default=1)
        local_rank = _integer("LOCAL_RANK", "SLURM_LOCALID", default=0)
        local_size = _integer("LOCAL_WORLD_SIZE", "LOCAL_SIZE", default=size)
        if not (0 <= rank < size and 0 <= local_rank < local_size <= size):
            raise ConfigError(
                f"the environment says rank {rank} of {size}, local rank {local_rank} of {local_size}, which "
                "cannot be; unset RANK, WORLD_SIZE, LOCAL_RANK and LOCAL_WORLD_SIZE, or start with a launcher"
            )
        return cls(rank, local_rank, size, local_size)

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0."""
        return self.rank == 0

    def limit_threads(self) -> None:
        """Share the machine's cores among its ranks, unless OMP_NUM_THREADS says otherwise."""
        if not os.environ.get("OMP_NUM_THREADS"):
            torch.set_num_threads(max(1, _available_cores() // self.local_size))

    @contextlib.contextmanager
    def connected(self, device: torch.device, timeout_minutes: float) -> Iterator[None]:
        """A process group for the time of the block, also for a single process.

        Raises:
            UserError: the other ranks could not be reached.
        """
        os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
        if self.size == 1:
            # Alone there is nobody to agree with on a port: any free one does.
            os.environ.setdefault("MASTER_PORT", str(free_port()))
        for name, value in (("RANK", self.rank), ("WORLD_SIZE", self.size), ("LOCAL_RANK", self.local_rank)):
            os.environ[name] = str(value)
        try:
            dist.init_process_group(
                "nccl" if device.type == "cuda" else "gloo",
                rank=self.rank,
                world_size=self.size,
                timeout=timedelta(minutes=timeout_minutes),
            )
        except (dist.DistError, ValueError, RuntimeError) as error:
            where = f"{os.environ['MASTER_ADDR']}:{os.environ.get('MASTER_PORT', '(MASTER_PORT is not set)')}"
            reason = str(error).splitlines()[0]
            raise UserError(
                f"rank {self.rank} could not join the {self.size} ranks at {where} ({reason}); "
                "is the port free? choose another with the launcher's --master_port"
            ) from error
        global _connected_before  # a fact about the process, like the group itself
        _connected_before = True
        try:
            yield
        finally:
            # A process that leaves without this aborts with SIGABRT under gloo.
            dist.destroy_process_group()

    def together(self, action: Callable[[], T]) -> list[T]:
        """Run `action` on every rank at once; the results of all ranks, in order.

        If it raises a StorytellerError on any rank, the first of them is raised on all, so that no rank
        is left waiting for one that has gone.
        """
        mine: tuple[StorytellerError | None, T | None]
        try:
            mine = (None, action())
        except StorytellerError as error:
            mine = (error, None)
        outcomes: list[Any] = [mine]
        if self.size > 1:
            outcomes = [None] * self.size
            dist.all_gather_object(outcomes, mine)
        for failure, _ in outcomes:
            if failure is not None:
                raise failure
        return [result for _, result in outcomes]

    def on_main(self, action: Callable[[], T]) -> T:
        """Run `action` on rank 0 and give its result, or its error, to every rank."""
        result: T = self.together(action if self.is_main else lambda: None)[0]  # type: ignore[assignment]  # rank 0's
        return result

    def on_each_machine(self, action: Callable[[], T]) -> T:
        """Run `action` on one rank of every machine; rank 0's result, or an error of any, goes to all ranks."""
        result: T = self.together(action if self.local_rank == 0 else lambda: None)[0]  # type: ignore[assignment]  # rank 0's
        return result

    def all_reduce_sum(self, tensor: Tensor) -> Tensor:
        """Sum over all ranks, in place; returns its argument."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def wait_to_be_ended(self, seconds: int) -> None:
        """Give rank 0 the time to report an error that every rank has found, before this one exits.

        A launcher ends all ranks as soon as one exits with an error; were this one first, nobody would
        read rank 0's message.
        """
        if self.size > 1 and not self.is_main:
            signal.sigtimedwait([signal.SIGTERM], seconds)


def free_port() -> int:
    """A TCP port of the loopback interface that is free now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def pick_device(wanted: str, local_rank: int) -> torch.device:
    """The device of this rank.

    Args:
        wanted: parallel.device: auto, cpu, cuda or mps.
        local_rank: which CUDA card, on a machine with several.

    Raises:
        ConfigError: this machine does not have it.
    """
    has = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    kind = wanted if wanted != "auto" else next(name for name, there in has.items() if there)
    if not has[kind]:
        there = ", ".join(name for name, available in has.items() if available)
        raise ConfigError(f"parallel.device={wanted}, but this machine has only: {there}; use one of these or auto")
    if kind == "cuda":
        cards = torch.cuda.device_count()
        if local_rank >= cards:
            raise ConfigError(f"rank {local_rank} of this machine has no CUDA card of its own, there are {cards}")
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
        return device
    return torch.device(kind)


def _integer(*names: str, default: int) -> int:
    for name in names:
        text = os.environ.get(name)
        if text:
            try:
                return int(text)
            except ValueError:
                raise ConfigError(f"the environment variable {name}={text} is not a number; unset it") from None
    return default


def _available_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
