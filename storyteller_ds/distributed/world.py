"""The ranks of a run, and what they exchange.

Works under `python`, `deepspeed`, `torchrun`, `srun` and `mpirun`; nothing here imports deepspeed.
"""

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from storyteller_kernels.dispatch import choice_for
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from storyteller_ds.cores import usable_cores
from storyteller_ds.distributed.barrier import Barrier
from storyteller_ds.distributed.failures import says_peer_is_lost
from storyteller_ds.distributed.heartbeat import make_progress
from storyteller_ds.distributed.ports import free_port, listener_on
from storyteller_ds.distributed.ranks import Ranks
from storyteller_ds.distributed.supervision import child
from storyteller_ds.errors import (
    EXIT_USER_ERROR,
    ConfigError,
    Interrupted,
    InterruptedSafely,
    StorytellerError,
    UserError,
)
from storyteller_ds.meanwhile import meanwhile
from storyteller_ds.streams import print_unlocked

T = TypeVar("T")

SECONDS_FOR_TORCH_TO_GIVE_UP = 10
_MPI_LOCAL_RANK = "OMPI_COMM_WORLD_LOCAL_RANK"
_RENDEZVOUS = ("MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE", "LOCAL_RANK", _MPI_LOCAL_RANK)
"""Variables that torch's env:// rendezvous and DeepSpeed read."""
# State of the process, like the process group itself.
_connections = 0
"""Number of process groups that this process has joined."""
_store: Any = None  # torch's stores have no common type with clone()
_barrier: Barrier | None = None
"""Where the ranks of the process group wait for each other."""


@dataclass(frozen=True)
class World(Ranks):
    """The ranks of a run, which can communicate; rank 0 logs and writes the records."""

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0."""
        return self.rank == 0

    def limit_threads(self) -> None:
        """Share the machine's cores among its ranks, unless OMP_NUM_THREADS is set."""
        if not os.environ.get("OMP_NUM_THREADS"):
            torch.set_num_threads(max(1, usable_cores() // self.local_size))

    @contextlib.contextmanager
    def connected(self, device: torch.device, timeout_minutes: float) -> Iterator[None]:
        """Join a process group for the duration of the block, even with a single process.

        Raises:
            UserError: the port is taken, or the other ranks could not be reached.
        """
        with _environment_put_back(), self._process_group(device, timeout_minutes):
            yield

    @contextlib.contextmanager
    def _process_group(self, device: torch.device, timeout_minutes: float) -> Iterator[None]:
        global _connections, _barrier
        self._agree_on_rendezvous()
        where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        refusal = f"rank {self.rank} could not join the {self.size} ranks at {where}"
        fix = (
            "is the port free there, and have all ranks been started? choose a free one: --master_port of deepspeed, "
            "torchrun and storyteller launch, else the variable MASTER_PORT"
        )
        timeout = timedelta(minutes=timeout_minutes)
        try:
            # If an unrelated process listens on this port and never answers, torch waits without a limit.
            with meanwhile(lambda: _leave(f"{refusal}; {fix}"), 60 * timeout_minutes + SECONDS_FOR_TORCH_TO_GIVE_UP):
                store = self._store(timeout)
                dist.init_process_group(
                    "nccl" if device.type == "cuda" else "gloo",
                    store=PrefixStore(f"{_connections}/process_group", store),
                    rank=self.rank,
                    world_size=self.size,
                    timeout=timeout,
                    # Lets NCCL connect at once, and know its card before the first collective.
                    device_id=device if device.type == "cuda" else None,
                )
        except (dist.DistError, ValueError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            if "EADDRINUSE" in reason:
                reason += f", by {listener_on(int(os.environ['MASTER_PORT']))}"
            raise UserError(f"{refusal} ({reason}); {fix}") from error
        # Over a separate connection, so that signs of life do not wait for other requests to the store.
        own = PrefixStore(f"{_connections}/barrier", store.clone())
        _connections += 1
        _barrier = Barrier(own, self.rank, self.size, silence_s=60 * timeout_minutes)
        try:
            child.join_lifeline(self.on_main(child.lifeline_address))
            yield
        finally:
            _barrier = None
            # Under gloo, a process that exits without this aborts with SIGABRT.
            if dist.is_initialized():
                dist.destroy_process_group()

    def _store(self, timeout: timedelta) -> Any:
        """The key-value store of the ranks: one for all process groups that they form, each with its own prefix.

        If rank 0 closed it after a run and opened another at the same port, the other ranks could find the old one.
        """
        global _store
        if _store is None or self.size == 1:
            _store, *_ = next(rendezvous("env://", self.rank, self.size, timeout=timeout))
        return _store

    def _agree_on_rendezvous(self) -> None:
        """Set the variables that torch's env:// rendezvous reads.

        Raises:
            ConfigError: the port is not known.
        """
        if self.size == 1:
            # A single process need not agree on a port with anyone: any free one will do.
            host, port = "127.0.0.1", os.environ.get("MASTER_PORT") or str(free_port())
        else:
            host, port = self.meeting_place()
        os.environ.setdefault("MASTER_ADDR", host)
        if not os.environ.setdefault("MASTER_PORT", port).isdecimal():
            raise ConfigError(f"MASTER_PORT='{os.environ['MASTER_PORT']}' is not a port; a launcher sets it")
        for name, value in (("RANK", self.rank), ("WORLD_SIZE", self.size), ("LOCAL_RANK", self.local_rank)):
            os.environ[name] = str(value)
        # DeepSpeed refuses to start if an mpirun further out, or around an interactive shell, set another local rank.
        if os.environ.get(_MPI_LOCAL_RANK):
            os.environ[_MPI_LOCAL_RANK] = str(self.local_rank)

    def together(self, action: Callable[[], T]) -> list[T]:
        """Run `action` on every rank at once; returns the results of all ranks, in order.

        It may take any amount of time: the other ranks wait without a collective's timeout (barrier.py).
        If it raises a StorytellerError on any rank, the first such error is raised on all ranks, so that no rank
        waits for one that has left.

        Raises:
            TrainingStopped: a rank has sent no sign of life for parallel.timeout_minutes.
        """
        if self.size == 1:
            results = [action()]
            make_progress()
            return results
        barrier = _barrier
        assert barrier is not None, "the process group exists"
        mine: tuple[StorytellerError | None, T | None]
        try:
            with barrier.at_work():
                mine = None, action()
        except StorytellerError as error:
            mine = error, None
        try:
            barrier.wait()
        except (Interrupted, InterruptedSafely) as signalled:
            # The others receive it like any failure. If one of them is still working, this process does not wait for
            # it: the thread that receives signals ends this process (training/interruption.py).
            mine = signalled, None
            barrier.wait()
        outcomes: list[Any] = [None] * self.size
        dist.all_gather_object(outcomes, mine)
        make_progress()
        for failure, _ in outcomes:
            if failure is not None:
                raise failure
        return [result for _, result in outcomes]

    def on_main(self, action: Callable[[], T]) -> T:
        """Run `action` on rank 0 and give its result, or its error, to every rank."""
        result: T = self.together(action if self.is_main else lambda: None)[0]  # type: ignore[assignment]  # rank 0's
        return result

    def on_each_machine(self, action: Callable[[], T]) -> T:
        """Run `action` on one rank of every machine; rank 0's result, or any rank's error, goes to all ranks."""
        result: T = self.together(action if self.local_rank == 0 else lambda: None)[0]  # type: ignore[assignment]  # rank 0's
        return result

    def all_reduce_sum(self, tensor: Tensor) -> Tensor:
        """Sum over all ranks, in place; returns its argument."""
        if self.size > 1:
            dist.all_reduce(tensor)
        make_progress()
        return tensor

    def wait_to_be_ended(self, seconds: int) -> None:
        """Give rank 0 time to report an error that every rank has found, before this rank exits.

        A launcher ends all ranks as soon as one exits with an error; if this one were first, nobody would
        read rank 0's message. Does not return if this rank is ended: then rank 0 has reported the error.
        """
        if self.size > 1 and not self.is_main and signal.sigtimedwait([signal.SIGTERM], seconds) is not None:
            os._exit(128 + signal.SIGTERM)

    def wait_if_peer_lost(self, error: RuntimeError, seconds: int) -> None:
        """If a collective has failed because another rank is gone, give the supervisors time to end this one.

        They know about it too, and report which rank is lost; a traceback from this one would add nothing.
        """
        lost = self.size > 1 and says_peer_is_lost(error)
        if lost and signal.sigtimedwait([signal.SIGTERM], seconds) is not None:
            os._exit(128 + signal.SIGTERM)


@contextlib.contextmanager
def _environment_put_back() -> Iterator[None]:
    """Restore the variables at the end of the block: the process may start another run with different ones."""
    before = {name: os.environ.get(name) for name in _RENDEZVOUS}
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _leave(message: str) -> None:
    """End the process from another thread, while the main thread is stuck in torch."""
    print_unlocked(message)
    os._exit(EXIT_USER_ERROR)


def pick_device(wanted: str, local_rank: int | None, option: str = "parallel.device") -> torch.device:
    """The device of this rank, or of a process that is not a rank.

    Args:
        wanted: auto, cpu, cuda or mps; cuda:N for a process that is not a rank.
        local_rank: index of the CUDA card on a machine with several; None: not a rank, use the card with the most free
            memory.
        option: where `wanted` was given, for the error message.

    Raises:
        ConfigError: this machine lacks the device, or the kernels that STORYTELLER_KERNELS asks for do not run on it.
    """
    has = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if not isinstance(wanted, str):
        raise ConfigError(f"{option} is of type {type(wanted).__name__}; use auto, cpu, cuda, cuda:N or mps")
    kind, _, index = wanted.lower().partition(":")
    kind = kind if kind != "auto" else next(name for name, there in has.items() if there)
    if not has.get(kind, False) or (index and kind != "cuda"):
        there = ", ".join(name for name, available in has.items() if available)
        raise ConfigError(f"{option}={wanted}, but this machine has only: {there}; use one of these or auto")
    device = torch.device(kind)
    if kind == "cuda":
        cards = torch.cuda.device_count()
        if local_rank is not None and local_rank >= cards:
            raise ConfigError(f"rank {local_rank} of this machine has no CUDA card of its own, there are {cards}")
        if index and not (index.isdecimal() and int(index) < cards):
            raise ConfigError(f"{option}={wanted}, but the CUDA cards here are cuda:0 to cuda:{cards - 1}")
        if index:
            card = int(index)
        elif local_rank is not None:
            card = local_rank
        else:
            card = max(range(cards), key=lambda each: torch.cuda.mem_get_info(each)[0])
        device = torch.device(kind, card)
        torch.cuda.set_device(device)
    try:
        choice_for(device)
    except (ValueError, RuntimeError) as error:
        raise ConfigError(str(error)) from None
    return device
