"""Fixtures of the fault tests: the case, and undisturbed runs to compare with."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.warm_machine import MainJob, WarmMachine

from .case import TINY, Case, Topology


@pytest.fixture(scope="session")
def undisturbed(main_job: MainJob, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Returns the folder of an undisturbed run of a topology and overrides, which is trained on first use."""
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
    """The argument of a fault's function; the runs that it starts are killed at the end."""
    case = Case(machine, tmp_path, undisturbed)
    yield case
    record_property("seen", "; ".join(case.seen))
    for run in case.runs:
        run.kill()
