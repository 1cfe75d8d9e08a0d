"""Marks, fixtures and environment shared by all tests."""

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

if os.environ.get("PYTEST_XDIST_WORKER"):
    # One core for each worker, and for each process that it starts; torch reads this when it is imported.
    os.environ["OMP_NUM_THREADS"] = "1"

import torch

from tests.support.warm_machine import MainJob, WarmMachine

REPOSITORY = Path(__file__).resolve().parents[1]
TESTS = Path(__file__).resolve().parent
MARKS = {
    "unit": "quick",
    "unit/atlas": None,
    "unit/bench/test_encoding.py::test_the_command_prints_a_line_for_each": None,
    "unit/cli/test_evaluate.py": None,
    "unit/data/test_download.py": None,
    "unit/data/test_huggingface_hub.py": None,
    "unit/data/test_huggingface_source.py": None,
    "unit/data/tokenizers/test_given.py::test_without_a_network_it_says_so_in_time": None,
    "unit/evaluation/test_evaluate.py": None,
    # Compiles the step of quantized models in a new clone.
    "unit/generation/test_quantized.py": None,
    "unit/interchange/test_hub.py": None,
    "unit/model/test_compile.py": None,
    "unit/planning/test_memory.py": None,
    "unit/planning/test_plan_command.py": None,
    "unit/report/test_page.py": None,
    "golden": "quick",
    # One real run on two ranks through DeepSpeed's launcher, and one that is killed and resumed.
    "integration/test_main_job.py": "quick",
    "integration/test_main_job.py::test_the_same_command_again_has_nothing_to_do": None,
    "integration/test_main_job.py::test_a_run_that_time_ends_says_so_and_goes_on_with_more_of_it": None,
    "distributed/test_resume.py::test_killed_and_started_again_gives_the_same_bits[False]": "quick",
    # Compiles DeepSpeed's async_io, for some minutes, once per environment.
    "distributed/test_nvme.py": "faults",
}
"""Folder, file or test -> its mark; the longest matching name counts.

`make test` runs tests marked quick; `make test-all` runs all except those marked faults.
"""


def pytest_configure() -> None:
    """Restore signals that pytest was told to ignore, as in a script's background job, for the processes under test."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests by their location; this is the only place that does."""
    for item in items:
        name = item.nodeid.removeprefix(f"{TESTS.name}/")
        places = [place for place in MARKS if name == place or name.startswith((f"{place}/", f"{place}::"))]
        if places and (mark := MARKS[max(places, key=len)]):
            item.add_marker(mark)


@pytest.fixture(scope="session", autouse=True)
def _private_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep the tests' prepared corpora out of the user's cache, also in subprocesses; all workers share them.

    DeepSpeed's extensions, which take minutes to compile, are kept for the lifetime of the environment.
    """
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base
    os.environ["STORYTELLER_CACHE"] = str(shared / "cache")
    os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(Path(sys.prefix) / "torch_extensions"))


@pytest.fixture(scope="session")
def shared_folder() -> Path:
    """Real stories and a real third-party model, which are not part of this repository."""
    folder = Path(os.environ.get("STORYTELLER_SHARED", REPOSITORY.parent / "shared"))
    if not (folder / "data").is_dir():
        pytest.skip(f"no shared data at {folder}; set STORYTELLER_SHARED to the folder that has data/ and models/")
    return folder


@pytest.fixture(scope="session")
def machine(_private_cache: None) -> Iterator[WarmMachine]:
    """Starts runs of several ranks in a second. Nothing that it starts outlives the session."""
    machine = WarmMachine()
    yield machine
    machine.close()


@pytest.fixture(scope="session")
def main_job(machine: WarmMachine) -> MainJob:
    """Trains on the warm machine."""

    def train(folder: Path, ranks: int, ds_config: str | None, *arguments: str) -> Path:
        run = machine.main_job(folder, ranks, ds_config, *arguments)
        try:
            assert run.wait(240) == 0, run.stderr
        finally:
            run.kill()
        return folder

    return train


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Use one thread: several round products of other shapes differently, and wait for each other on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def poisoned_memory() -> Iterator[None]:
    """Fill new memory with NaN, or the largest integer, so that reading it before writing shows."""
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)
