"""Where the ranks meet, and what happens if they cannot."""

import contextlib
import os
import socket
import sys
from collections.abc import Callable, Iterator

import pytest
import torch

from storyteller_ds.distributed import world
from storyteller_ds.distributed.ports import free_port
from storyteller_ds.distributed.world import World
from storyteller_ds.errors import ConfigError, DataError, InterruptedSafely, TrainingStopped, UserError

CPU = torch.device("cpu")
FIRST_OF_TWO = World(rank=0, local_rank=0, size=2, local_size=2)


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch: pytest.MonkeyPatch):
    for name in ("MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE", "LOCAL_RANK", "TORCHELASTIC_USE_AGENT_STORE"):
        # connected() sets them, and monkeypatch removes only what it knows of.
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        monkeypatch.delenv(name)
    # A process that has been connected exits without Python's finalization: later tests of commands would end pytest.
    monkeypatch.setattr(world, "_connections", 0)
    monkeypatch.setattr(world, "_store", None)


@pytest.fixture
def busy_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_a_busy_port_is_refused_and_its_holder_named(busy_port: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MASTER_PORT", str(busy_port))
    with pytest.raises(UserError) as refused, FIRST_OF_TWO.connected(CPU, 0.1):
        pass
    assert f"port: {busy_port}" in str(refused.value)
    assert "address already in use" in str(refused.value)
    if sys.platform.startswith("linux"):
        assert f", by pid {os.getpid()} (" in str(refused.value)
    assert "--master_port of deepspeed, torchrun and storyteller launch, else the variable MASTER_PORT" in str(
        refused.value
    )


def test_waiting_for_ranks_that_do_not_come_has_a_limit(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MASTER_PORT", str(free_port()))
    with pytest.raises(UserError, match="rank 0 could not join the 2 ranks"), FIRST_OF_TWO.connected(CPU, 0.05):
        pass


@pytest.mark.parametrize("port", [None, "", "http"])
def test_several_ranks_need_a_port(port: str | None, monkeypatch: pytest.MonkeyPatch):
    if port is not None:
        monkeypatch.setenv("MASTER_PORT", port)
    with pytest.raises(ConfigError, match="MASTER_PORT"), FIRST_OF_TWO.connected(CPU, 0.1):
        pass


def test_one_process_finds_a_port_by_itself():
    with World(0, 0, 1, 1).connected(CPU, 1):
        assert World(0, 0, 1, 1).on_main(lambda: 5) == 5


def test_tasks_of_srun_meet_on_the_first_host(monkeypatch: pytest.MonkeyPatch):
    variables = {"SLURM_JOB_ID": "9", "SLURM_STEP_ID": "0", "SLURM_PROCID": "1", "SLURM_NTASKS": "2"}
    variables |= {"SLURM_LOCALID": "0", "SLURM_STEP_TASKS_PER_NODE": "1(x2)", "SLURM_NODEID": "1"}
    for name, value in {**variables, "SLURM_STEP_NODELIST": "n[4-5]"}.items():
        monkeypatch.setenv(name, value)
    world = World.from_environment()
    assert world == World(1, 0, 2, 1)
    world._agree_on_rendezvous()
    assert os.environ["MASTER_ADDR"] == "n4"
    assert (os.environ["RANK"], os.environ["WORLD_SIZE"], os.environ["LOCAL_RANK"]) == ("1", "2", "0")
    chosen = os.environ["MASTER_PORT"]
    monkeypatch.setenv("MASTER_PORT", "23456")
    world._agree_on_rendezvous()
    assert os.environ["MASTER_PORT"] == "23456" != chosen  # the user's setting counts


def test_an_mpirun_farther_away_does_not_contradict_the_launcher(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OMPI_COMM_WORLD_LOCAL_RANK", "0")  # from an interactive shell, or an mpirun above torchrun
    monkeypatch.setenv("MASTER_PORT", str(free_port()))
    World(rank=1, local_rank=1, size=2, local_size=2)._agree_on_rendezvous()
    # DeepSpeed asserts that the two agree (DeepSpeedEngine._configure_with_arguments).
    assert os.environ["OMPI_COMM_WORLD_LOCAL_RANK"] == os.environ["LOCAL_RANK"] == "1"


class FakeBarrier:
    """Records the calls in `done`; waiting raises the exceptions in `raises`."""

    def __init__(self, done: list[str], *raises: Exception) -> None:
        self.done, self.raises = done, list(raises)

    @contextlib.contextmanager
    def at_work(self) -> Iterator[None]:
        self.done.append("signs of life begin")
        yield
        self.done.append("signs of life end")

    def wait(self) -> None:
        self.done.append("wait")
        if self.raises:
            raise self.raises.pop()


@pytest.fixture
def talking(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Play rank 0 of two ranks that do the same; the returned list records what it does, in order."""

    def start(*raises: Exception) -> list[str]:
        done: list[str] = []

        def gather(outcomes: list[object], mine: object) -> None:
            done.append("collective")
            outcomes[:] = [mine, mine]

        monkeypatch.setattr(world, "_barrier", FakeBarrier(done, *raises))
        monkeypatch.setattr(world.dist, "all_gather_object", gather)
        return done

    return start


@pytest.mark.parametrize("verb", ["together", "on_main", "on_each_machine"])
def test_no_collectives_clock_runs_while_an_action_takes_its_time(talking, verb):
    done = talking()
    getattr(FIRST_OF_TWO, verb)(lambda: done.append("action"))
    assert done == ["signs of life begin", "action", "signs of life end", "wait", "collective"]


def test_an_error_of_an_action_reaches_the_others_when_all_have_arrived(talking):
    done = talking()

    def fail() -> None:
        raise DataError("no text")

    with pytest.raises(DataError, match="no text"):
        FIRST_OF_TWO.together(fail)
    assert done[-2:] == ["wait", "collective"]


def test_a_rank_that_is_signalled_while_it_waits_informs_the_others(talking):
    done = talking(InterruptedSafely("SIGTERM"))
    with pytest.raises(InterruptedSafely, match="SIGTERM"):
        FIRST_OF_TWO.together(lambda: 1)
    assert done[-3:] == ["wait", "wait", "collective"]


def test_a_rank_that_has_waited_too_long_stops_waiting(talking):
    done = talking(TrainingStopped("rank 1 gave no sign of life"))
    with pytest.raises(TrainingStopped, match="no sign of life"):
        FIRST_OF_TWO.together(lambda: 1)
    assert done[-1] == "wait"


def test_ranks_wait_in_the_store_of_their_process_group():
    """A single process has such a barrier too, and it is gone afterwards."""
    with World(0, 0, 1, 1).connected(CPU, 1):
        barrier = world._barrier
        assert barrier is not None
        with barrier.at_work():
            pass
        barrier.wait()
    assert world._barrier is None
