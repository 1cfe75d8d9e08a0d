"""The machines of the multi-node tests; each is taken down with everything that runs on it, whatever happens."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from .linked_machines import LinkedMachines
from .same_run import train_alone
from .slurm_cluster import SlurmCluster
from .ssh_nodes import SshNodes


@pytest.fixture(scope="session", autouse=True)
def _sigterm_takes_down_too() -> Iterator[None]:
    """Make SIGTERM end the tests as Ctrl-C does; otherwise it would leave the machines behind."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture(scope="session")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The uninterrupted run of one process, with which all others are compared."""
    return train_alone(tmp_path_factory.mktemp("single"))


@pytest.fixture(scope="session")
def _ssh_nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SshNodes]:
    nodes = SshNodes(tmp_path_factory.mktemp("nodes"))
    try:
        nodes.start()
        yield nodes
    finally:
        nodes.stop()


@pytest.fixture
def ssh_nodes(_ssh_nodes: SshNodes) -> Iterator[SshNodes]:
    """Two idle nodes."""
    yield _ssh_nodes
    _ssh_nodes.end_all_jobs()


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[LinkedMachines]:
    machines = LinkedMachines(tmp_path)
    try:
        machines.start()
        yield machines
    finally:
        machines.stop()


@pytest.fixture(scope="session")
def _slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmCluster]:
    cluster = SlurmCluster(tmp_path_factory.mktemp("slurm"))
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture
def slurm(_slurm: SlurmCluster) -> Iterator[SlurmCluster]:
    """An idle cluster of two nodes."""
    yield _slurm
    _slurm.end_all_jobs()
