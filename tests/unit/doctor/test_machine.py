"""Planted faults of the machine: folders, limits, ports, killed builds, versions."""

import fcntl
import os
import resource
import socket
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from storyteller_ds.doctor import libraries, machine
from storyteller_ds.records.run_folder import LOCK, RunFolder
from tests.support.doctored import NOW, MadeUp, found_by, subject_of


@pytest.fixture(autouse=True)
def healthy_environment(monkeypatch, tmp_path):
    for name in ("MASTER_PORT", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "extensions"))
    monkeypatch.setenv("STORYTELLER_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir()


def check(name: str, folder: Path, *settings: str, **context):
    return found_by(subject_of(folder, *settings, **context), name)


def test_a_folder_that_another_run_holds(tmp_path):
    assert check("output_folder", tmp_path) is None
    held = RunFolder(tmp_path / "run")
    finding = check("output_folder", tmp_path)
    assert finding is not None
    assert finding.severity == "error"
    assert f"(pid {os.getpid()} on " in finding.evidence
    assert "--output_dir" in finding.fix
    held.close()
    assert check("output_folder", tmp_path) is None
    assert (tmp_path / "run" / LOCK).exists()


def test_looking_takes_no_lock_and_makes_no_folder(tmp_path):
    check("output_folder", tmp_path)
    assert not (tmp_path / "run").exists()
    RunFolder(tmp_path / "run").close()
    check("output_folder", tmp_path)
    with (tmp_path / "run" / LOCK).open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_folder_that_is_a_file(tmp_path):
    (tmp_path / "run").write_text("")
    finding = check("output_folder", tmp_path)
    assert finding is not None
    assert (finding.severity, "is not a folder" in finding.evidence) == ("error", True)
    (tmp_path / "run").rename(tmp_path / "file")
    below = found_by(replace(subject_of(tmp_path), output_dir=tmp_path / "file" / "run"), "output_folder")
    assert below is not None
    assert f"{tmp_path / 'file'} is not a folder" in below.evidence


def test_a_folder_that_may_not_be_written(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write anywhere
    for name, fix in (("output_folder", "--output_dir"), ("cache", "STORYTELLER_CACHE")):
        finding = check(name, tmp_path)
        assert finding is not None
        assert finding.severity == "error"
        assert fix in finding.fix


def test_a_cache_that_is_a_file_or_on_a_full_disk(tmp_path, monkeypatch):
    assert check("cache", tmp_path) is None
    full = check("cache", tmp_path, machine=MadeUp(free=5 * 10**8))
    assert full is not None
    assert "500 MB free" in full.evidence
    (tmp_path / "file").write_text("")
    finding = check("cache", tmp_path, f"data.cache_dir={tmp_path / 'file'}")
    assert finding is not None
    assert finding.severity == "error"


def test_a_cache_folder_that_was_chosen_is_made(tmp_path):
    finding = check("cache_to_make", tmp_path, f"data.cache_dir={tmp_path / 'a' / 'b'}")
    assert finding is not None
    assert finding.fix == f"mkdir -p {tmp_path / 'a' / 'b'}"
    assert finding.repair is not None
    assert finding.repair() == f"made {tmp_path / 'a' / 'b'}"
    assert (tmp_path / "a" / "b").is_dir()
    assert check("cache_to_make", tmp_path, f"data.cache_dir={tmp_path / 'a' / 'b'}") is None


def planted_lock(folder: Path, age_s: float) -> Path:
    lock = folder / "extensions" / "torch2" / "cpu_adam" / "lock"
    lock.parent.mkdir(parents=True)
    lock.write_text("")
    os.utime(lock, (NOW - age_s, NOW - age_s))
    return lock


def test_a_build_that_was_killed_is_found_and_its_lock_removed(tmp_path):
    lock = planted_lock(tmp_path, 7200)
    finding = check("stale_builds", tmp_path)
    assert finding is not None
    assert finding.severity == "warning"
    assert "2.0 hours ago" in finding.evidence
    assert finding.fix == f"rm {lock}"
    assert lock.exists()  # the check itself changes nothing
    assert finding.repair is not None
    assert finding.repair() == f"removed {lock}"
    assert not lock.exists()


def test_a_build_that_goes_on_is_left_alone(tmp_path):
    lock = planted_lock(tmp_path, 7200)
    with lock.open():  # as torch's builder holds it open
        assert check("stale_builds", tmp_path) is None
    os.utime(lock, (NOW - 60, NOW - 60))  # it may be another machine's, on a shared disk
    assert check("stale_builds", tmp_path) is None


def test_a_clock_that_is_behind_the_checkpoints(tmp_path):
    step = tmp_path / "run" / "checkpoints" / "step_00000010"
    step.mkdir(parents=True)
    os.utime(step, (NOW - 60, NOW - 60))
    assert check("clock", tmp_path) is None
    os.utime(step, (NOW + 7200, NOW + 7200))
    finding = check("clock", tmp_path)
    assert finding is not None
    assert "2.0 hours in the future" in finding.evidence


def test_few_open_files(tmp_path, monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda which: (4096, 4096))
    assert check("open_files", tmp_path) is None
    monkeypatch.setattr(resource, "getrlimit", lambda which: (256, 4096))
    finding = check("open_files", tmp_path)
    assert finding is not None
    assert "256 files" in finding.evidence
    assert "ulimit -n 65536 (at most 4096" in finding.fix


def test_little_locked_memory_under_offload(tmp_path, monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda which: (65536, 65536))
    there = {"device": "cuda", "machine": MadeUp(capability=(9, 0))}
    dtype = "precision.dtype=fp32"
    finding = check("locked_memory", tmp_path, dtype, ds_config="zero2_offload", **there)
    assert finding is not None
    assert "memlock=-1" in finding.fix
    assert check("locked_memory", tmp_path, dtype, ds_config="zero2", **there) is None
    assert check("locked_memory", tmp_path, dtype, ds_config="zero2_offload", machine=MadeUp()) is None


def test_little_shared_memory_for_several_ranks(tmp_path, monkeypatch):
    class Usage:
        total = 64 << 20

    monkeypatch.setattr(machine.shutil, "disk_usage", lambda path: Usage)
    finding = check("shared_memory", tmp_path, ds_config="zero2", ranks=2)
    assert finding is not None
    assert "64 MiB" in finding.evidence
    assert "--shm-size" in finding.fix
    assert check("shared_memory", tmp_path) is None
    Usage.total = 8 << 30
    assert check("shared_memory", tmp_path, ds_config="zero2", ranks=2) is None


def test_a_locale_without_utf8(tmp_path, monkeypatch):
    monkeypatch.setattr(machine.locale, "getpreferredencoding", lambda do: "ISO-8859-1")
    finding = check("text_encoding", tmp_path)
    assert finding is not None
    assert "iso8859-1" in finding.evidence
    assert finding.fix == "export LC_ALL=C.UTF-8"
    monkeypatch.setattr(machine.locale, "getpreferredencoding", lambda do: "UTF8")
    assert check("text_encoding", tmp_path) is None


def test_more_threads_than_cores(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "usable_cores", lambda: 2)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert check("thread_count", tmp_path) is None
    monkeypatch.setenv("OMP_NUM_THREADS", "64")
    finding = check("thread_count", tmp_path)
    assert finding is not None
    assert "OMP_NUM_THREADS=64" in finding.evidence


def test_a_port_that_is_taken(tmp_path, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        monkeypatch.setenv("MASTER_PORT", str(port))
        finding = check("meeting_port", tmp_path, ds_config="zero2", ranks=2)
        assert finding is not None
        assert f"listens on port {port}" in finding.evidence
        assert f"pid {os.getpid()}" in finding.evidence
        assert "--master_port" in finding.fix
        assert check("meeting_port", tmp_path) is None  # one device needs none
    assert check("meeting_port", tmp_path, ds_config="zero2", ranks=2) is None
    monkeypatch.setenv("MASTER_PORT", "many")
    finding = check("meeting_port", tmp_path, ds_config="zero2", ranks=2)
    assert finding is not None
    assert finding.severity == "error"


@pytest.mark.parametrize(("variable", "value", "is_wrong"), [
    ("GLOO_SOCKET_IFNAME", "eth1", True), ("GLOO_SOCKET_IFNAME", "eth0", False), ("GLOO_SOCKET_IFNAME", "eth", True),
    ("NCCL_SOCKET_IFNAME", "eth", False), ("NCCL_SOCKET_IFNAME", "=eth", True), ("NCCL_SOCKET_IFNAME", "^lo", False),
    ("NCCL_SOCKET_IFNAME", "ib,eth", False),
])  # fmt: skip
def test_an_interface_that_this_machine_does_not_have(tmp_path, monkeypatch, variable, value, is_wrong):
    monkeypatch.setenv(variable, value)
    finding = check("network_interface", tmp_path, ds_config="zero2", ranks=2)
    assert (finding is not None) == is_wrong
    assert finding is None or (finding.severity, "eth0, lo" in finding.evidence) == ("error", True)
    assert check("network_interface", tmp_path) is None  # one device needs no network


@pytest.mark.parametrize(("name", "value", "said"), [
    ("STORYTELLER_KERNEL", "reference", "did you mean STORYTELLER_KERNELS?"), ("STORYTELLER_KERNELS", "cpu", None),
    ("WANDB_MODE", "onlin", "did you mean 'online'?"), ("WANDB_MODE", "offline", None),
    ("OMP_NUM_THREADS", "abc", "is not a number"), ("OMP_NUM_THREADS", "2,1", None), ("STORYTELLER_OF_MINE", "x", None),
])  # fmt: skip
def test_a_variable_that_is_misspelt(tmp_path, monkeypatch, name, value, said):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv(name, value)
    finding = check("misspelt_variables", tmp_path)
    assert (finding is not None) == (said is not None)
    assert finding is None or (finding.severity == "warning" and said in f"{finding.evidence}; {finding.fix}")


def test_several_cards_without_nccl(tmp_path, monkeypatch):
    several = {"ds_config": "zero2", "ranks": 2, "device": "cuda", "machine": MadeUp(capability=(9, 0))}
    monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda: True)
    assert check("nccl", tmp_path, "precision.dtype=bf16", **several) is None
    monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda: False)
    finding = check("nccl", tmp_path, "precision.dtype=bf16", **several)
    assert finding is not None
    assert (finding.severity, "without NCCL" in finding.evidence) == ("error", True)
    assert check("nccl", tmp_path) is None


@pytest.mark.parametrize(
    ("setting", "ds_config"), [("train.compile=on", None), ("parallel.nvme_path=/x", "zero3_nvme")]
)
def test_no_compiler_where_something_is_compiled(tmp_path, monkeypatch, setting, ds_config):
    monkeypatch.delenv("CXX", raising=False)
    assert check("compiler", tmp_path, setting, ds_config=ds_config) is None
    monkeypatch.setenv("PATH", str(tmp_path))
    finding = check("compiler", tmp_path, setting, ds_config=ds_config)
    assert finding is not None
    assert finding.severity == "error"
    assert "apt-get install g++" in finding.fix
    assert check("compiler", tmp_path) is None


@pytest.mark.parametrize(
    ("wanted", "there", "severity", "fix"),
    [
        ("torch>=2.11", "2.11.0+cpu", None, ""),
        ("torch>=2.11", "2.9.1", "error", "pip install 'torch>=2.11'"),
        ("torch>=2.11", None, "error", "pip install 'torch>=2.11'"),
        ('wandb>=0.31; extra == "wandb"', None, None, ""),
        ('deepspeed==0.19.8; sys_platform == "linux" and extra == "deepspeed"', None, None, ""),
        ('deepspeed==0.19.8; sys_platform == "linux" and extra == "deepspeed"', "0.19.8", None, ""),
        ('deepspeed==0.19.8; sys_platform == "linux" and extra == "deepspeed"', "0.18", "warning", "==0.19.8'"),
    ],
)
def test_versions_against_what_the_package_asks_for(tmp_path, monkeypatch, wanted, there, severity, fix):
    monkeypatch.setattr(libraries, "requirements", lambda: [wanted])
    monkeypatch.setattr(libraries, "installed", lambda name: there)
    finding = check("versions", tmp_path)
    assert (finding.severity if finding else None) == severity
    assert finding is None or fix in finding.fix


def test_another_deepspeed_cannot_train_through_it(tmp_path, monkeypatch):
    monkeypatch.setattr(libraries, "requirements", lambda: ['deepspeed==0.19.8; extra == "deepspeed"'])
    monkeypatch.setattr(libraries, "installed", lambda name: "0.20.1")
    finding = check("versions", tmp_path, ds_config="zero2")
    assert finding is not None
    assert finding.severity == "error"


def test_a_driver_that_torch_does_not_use(tmp_path, monkeypatch):
    (tmp_path / "driver").write_text("")
    monkeypatch.setattr(libraries, "_NVIDIA", tmp_path / "driver")
    monkeypatch.setattr(libraries.torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(libraries.torch.version, "cuda", None)
    finding = check("cuda", tmp_path)
    assert finding is not None
    assert "built for CPUs" in finding.evidence
    monkeypatch.setattr(libraries.torch.version, "cuda", "12.8")
    finding = check("cuda", tmp_path)
    assert finding is not None
    assert "update the driver" in finding.fix
    monkeypatch.setattr(libraries, "_NVIDIA", tmp_path / "none")
    assert check("cuda", tmp_path) is None
    wanted = check("cuda", tmp_path, "parallel.device=cuda")
    assert wanted is not None
    assert wanted.severity == "error"


def test_a_card_without_triton(tmp_path, monkeypatch):
    there = {"device": "cuda", "machine": MadeUp(capability=(9, 0))}
    monkeypatch.setattr(libraries, "installed", lambda name: "9.9")
    assert check("triton", tmp_path, "precision.dtype=bf16", **there) is None
    monkeypatch.setattr(libraries, "installed", lambda name: None)
    finding = check("triton", tmp_path, "precision.dtype=bf16", **there)
    assert finding is not None
    assert "triton>=3.6" in finding.fix
