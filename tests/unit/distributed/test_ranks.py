"""What launchers leave in the environment, and how it is read."""

import pytest

from storyteller_ds.distributed.ranks import Ranks, first_host, slurm_rendezvous, tasks_per_node
from storyteller_ds.errors import ConfigError

BATCH_SHELL = {"SLURM_JOB_ID": "77", "SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_JOB_NODELIST": "n[1-3,7]"}
STEP = {**BATCH_SHELL, "SLURM_STEP_ID": "0", "SLURM_PROCID": "2", "SLURM_LOCALID": "0", "SLURM_NODEID": "1"}
INTERACTIVE_STEP = {
    "SLURM_STEP_ID": "4294967290",
    "SLURM_STEP_NUM_TASKS": "1",
    "SLURM_STEP_TASKS_PER_NODE": "1",
    "SLURM_TASKS_PER_NODE": "2(x2)",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "0",
}
OPEN_MPI = {
    "OMPI_COMM_WORLD_RANK": "2",
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_LOCAL_RANK": "0",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
}


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch: pytest.MonkeyPatch):
    import os

    for name in list(os.environ):
        ours = {"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "LOCAL_SIZE", "MASTER_ADDR", "MASTER_PORT"}
        if name.startswith(("SLURM_", "OMPI_", "PMI_", "MPI_", "MV2_")) or name in ours:
            monkeypatch.delenv(name)


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, Ranks(0, 0, 1, 1)),
        # torchrun
        ({"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}, Ranks(5, 1, 8, 4)),
        # deepspeed
        ({"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_SIZE": "2"}, Ranks(1, 1, 2, 2)),
        # sbatch's own shell is one process, whatever was asked for
        (BATCH_SHELL, Ranks(0, 0, 1, 1)),
        # srun
        ({**STEP, "SLURM_STEP_TASKS_PER_NODE": "2(x2)"}, Ranks(2, 0, 4, 2)),
        ({**STEP, "SLURM_STEP_TASKS_PER_NODE": "2,1,1", "SLURM_TASKS_PER_NODE": "4"}, Ranks(2, 0, 4, 1)),
        ({**STEP, "SLURM_TASKS_PER_NODE": "1,3"}, Ranks(2, 0, 4, 3)),
        ({**STEP, "SLURM_NTASKS_PER_NODE": "2"}, Ranks(2, 0, 4, 2)),
        ({**STEP}, Ranks(2, 0, 4, 4)),
        # srun with some of the job's tasks
        ({**STEP, "SLURM_STEP_NUM_TASKS": "3", "SLURM_STEP_TASKS_PER_NODE": "1,2"}, Ranks(2, 0, 3, 2)),
        # salloc's shell, where the cluster makes it a step (srun --interactive --preserve-env), is one process too
        ({**BATCH_SHELL, **INTERACTIVE_STEP}, Ranks(0, 0, 1, 1)),
        # mpirun of Open MPI, of MVAPICH, and of MPICH or Intel MPI
        (OPEN_MPI, Ranks(2, 0, 4, 2)),
        ({name.replace("OMPI", "MV2"): value for name, value in OPEN_MPI.items()}, Ranks(2, 0, 4, 2)),
        ({"PMI_RANK": "3", "PMI_SIZE": "4", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"}, Ranks(3, 1, 4, 2)),
        # mpirun inside a Slurm step that has only started mpirun's daemon
        ({**STEP, "SLURM_STEP_TASKS_PER_NODE": "1(x4)", **OPEN_MPI}, Ranks(2, 0, 4, 2)),
        # srun --mpi=pmi2 is still srun
        ({**STEP, "SLURM_STEP_TASKS_PER_NODE": "2(x2)", "PMI_RANK": "2", "PMI_SIZE": "4"}, Ranks(2, 0, 4, 2)),
        # torchrun started by mpirun, on each of two machines
        ({**OPEN_MPI, "RANK": "0", "WORLD_SIZE": "8", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "4"}, Ranks(0, 0, 8, 4)),
        # torchrun inside a Slurm step: the nearer launcher counts, and none of the outer one's variables
        ({**STEP, "RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}, Ranks(0, 0, 2, 1)),
    ],
)
def test_every_launcher_is_understood(variables, expected, monkeypatch: pytest.MonkeyPatch):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert Ranks.from_environment() == expected


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"RANK": "3"}, "rank 3 of 1"),
        ({"RANK": "-1", "WORLD_SIZE": "2"}, "rank -1 of 2"),
        ({"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "2", "LOCAL_WORLD_SIZE": "2"}, "local rank 2 of 2"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE=two is not a number"),
        ({**STEP, "SLURM_PROCID": "4"}, "start with srun"),
        ({**OPEN_MPI, "OMPI_COMM_WORLD_RANK": "4"}, "rank 4 of 4.*start with mpirun"),
        ({**OPEN_MPI, "OMPI_COMM_WORLD_LOCAL_SIZE": ""}, "local rank 0 of 0"),
    ],
)
def test_contradictions_are_refused(variables, message, monkeypatch: pytest.MonkeyPatch):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=message):
        Ranks.from_environment()


@pytest.mark.parametrize(
    ("nodelist", "first"),
    [
        ("n1", "n1"),
        ("n[1-3,7]", "n1"),
        ("n[007-012],m3", "n007"),
        ("n[7,1-3]", "n7"),
        ("login,n[1-2]", "login"),
        ("rack[1-2]-node[03-04].site", "rack1-node03.site"),
    ],
)
def test_the_first_host_of_a_nodelist(nodelist, first):
    assert first_host(nodelist) == first


def test_tasks_of_each_node():
    assert tasks_per_node("2(x3),1") == [2, 2, 2, 1]
    assert tasks_per_node("4") == [4]


def test_all_tasks_of_a_step_meet_at_one_place(monkeypatch: pytest.MonkeyPatch):
    places = set()
    for rank in range(4):
        for name, value in {**STEP, "SLURM_PROCID": str(rank)}.items():
            monkeypatch.setenv(name, value)
        places.add(slurm_rendezvous())
    assert len(places) == 1
    ((host, port),) = places
    assert host == "n1"
    assert 1024 < port < 32768  # where Linux assigns none by itself
    # Another step, and another job, which most likely run on the same machine at the same time.
    monkeypatch.setenv("SLURM_STEP_ID", "1")
    monkeypatch.setenv("SLURM_STEP_NODELIST", "n3")
    assert slurm_rendezvous()[0] == "n3"
    assert slurm_rendezvous()[1] != port
    monkeypatch.setenv("SLURM_STEP_ID", "0")
    monkeypatch.setenv("SLURM_JOB_ID", "78")
    assert slurm_rendezvous()[1] != port


def test_mpirun_on_one_machine_needs_no_meeting_place(monkeypatch: pytest.MonkeyPatch):
    for name, value in {**OPEN_MPI, "OMPI_COMM_WORLD_LOCAL_RANK": "2", "OMPI_COMM_WORLD_LOCAL_SIZE": "4"}.items():
        monkeypatch.setenv(name, value)
    assert Ranks.from_environment().meeting_place() == ("127.0.0.1", "29500")


def test_mpirun_on_several_machines_needs_one(monkeypatch: pytest.MonkeyPatch):
    for name, value in OPEN_MPI.items():
        monkeypatch.setenv(name, value)
    ranks = Ranks.from_environment()
    with pytest.raises(ConfigError, match="-x MASTER_ADDR=HOST_0 -x MASTER_PORT=29500"):
        ranks.meeting_place()
    monkeypatch.setenv("MASTER_ADDR", "10.0.0.1")
    assert ranks.meeting_place()[1] == "29500"


def test_nobody_says_where_to_meet():
    assert Ranks(0, 0, 2, 2).meeting_place() == ("127.0.0.1", "")
