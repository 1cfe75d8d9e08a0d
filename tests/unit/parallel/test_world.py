"""Where the ranks meet, and what happens if they cannot."""

import os
import socket
import sys

import pytest
import torch

from storyteller_ds.errors import ConfigError, UserError
from storyteller_ds.parallel import world
from storyteller_ds.parallel.world import World, free_port

CPU = torch.device("cpu")
FIRST_OF_TWO = World(rank=0, local_rank=0, size=2, local_size=2)


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch: pytest.MonkeyPatch):
    for name in ("MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE", "LOCAL_RANK", "TORCHELASTIC_USE_AGENT_STORE"):
        # connected() sets them, and monkeypatch takes away only what it knows of.
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        monkeypatch.delenv(name)
    # A process that has been connected ends without Python's finalisation: later tests of commands would end pytest.
    monkeypatch.setattr(world, "_connected_before", False)


@pytest.fixture
def busy_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_a_busy_port_is_refused_and_its_holder_named(busy_port: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MASTER_PORT", str(busy_port))
    with pytest.raises(UserError) as refused, FIRST_OF_TWO.connected(CPU, 0.1):
        pass
    assert f"port {busy_port}" in str(refused.value)
    assert "--master_port" in str(refused.value)
    if sys.platform.startswith("linux"):
        assert f"in use by pid {os.getpid()} (" in str(refused.value)


def test_torchruns_agent_may_hold_the_port(busy_port: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MASTER_PORT", str(busy_port))
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    FIRST_OF_TWO._agree_on_rendezvous()


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
    assert os.environ["MASTER_PORT"] == "23456" != chosen  # what the user gives counts
