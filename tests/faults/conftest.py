"""What a fault is tried out with, and undisturbed runs to compare with."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.warm_machine import MainJob, WarmMachine

from .case import TINY, Case, Topology


@pytest.fixture(scope="session")
def undisturbed(main_job: MainJob, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The folder of a run that nothing has happened to: of a topology and overrides, trained when first asked for."""
    folders: dict[tuple[object, ...], Path] = {}

    def trained(topology: Topology, *arguments: str) -> Path:
        key = (topology, arguments)
        if key not in folders:
            folder = tmp_path_factory.mktemp("undisturbed") / "run"
            more = (*TINY, *topology.arguments, *arguments, "--quiet")
            folders[key] = main_job(folder, topology.ranks, topology.ds_config, *more)
        return folders[key]

    return trained


@pytest.fixture
def case(
    machine: WarmMachine,
    undisturbed: Callable[..., Path],
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> Iterator[Case]:
    """What a fault's function is given; nothing that it starts is left."""
    case = Case(machine, tmp_path, undisturbed)
    yield case
    record_property("seen", "; ".join(case.seen))
    for run in case.runs:
        run.kill()
