"""Free memory of devices and of simulated containers."""

from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch

from storyteller_ds.generation import free_memory
from storyteller_ds.generation.free_memory import free_bytes

CPU = torch.device("cpu")


def test_free_memory_is_that_of_the_device(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (device.index + 7, 99))
    assert free_bytes(torch.device("cuda", 1)) == 8
    assert free_bytes(CPU) > 2**20


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The control groups of a process in /job/step, on a machine with 1,000 bytes free."""
    (tmp_path / "membership").write_text("0::/job/step\n")
    monkeypatch.setattr(free_memory, "_MEMBERSHIP", tmp_path / "membership")
    monkeypatch.setattr(free_memory, "_GROUPS", tmp_path / "groups")
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=1000))
    (tmp_path / "groups" / "job" / "step").mkdir(parents=True)
    return tmp_path / "groups"


def limit(folder: Path, most: int | str, used: int, files: int) -> None:
    (folder / "memory.max").write_text(f"{most}\n")
    (folder / "memory.current").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon {used - files}\ninactive_file {files}\nslab 0\n")


def test_the_narrowest_limit_of_a_container_counts(groups):
    assert free_bytes(CPU) == 1000
    limit(groups / "job" / "step", "max", 5000, 0)
    assert free_bytes(CPU) == 1000
    limit(groups / "job", 900, 300, 100)
    assert free_bytes(CPU) == 700
    limit(groups / "job" / "step", 400, 300, 50)
    assert free_bytes(CPU) == 150
    limit(groups / "job" / "step", 400, 500, 50)
    assert free_bytes(CPU) == 0


def test_where_a_container_sees_its_own_group_as_the_uppermost(groups, tmp_path):
    (tmp_path / "membership").write_text("12:memory:/old\n0::/\n")
    limit(groups, 800, 100, 0)
    assert free_bytes(CPU) == 700
    (tmp_path / "membership").unlink()
    assert free_bytes(CPU) == 1000
