"""Locks of builds that live and of builds that were killed, and what is said when nothing can be compiled."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from storyteller_ds.distributed.world import World
from storyteller_ds.engines.deepspeed import extensions
from storyteller_ds.engines.deepspeed.extensions import build_ahead, clear_stale_locks, needed_ops, use_private_folder
from storyteller_ds.errors import ConfigError

ALONE = World(rank=0, local_rank=0, size=1, local_size=1)
CPU = torch.device("cpu")
NVME = {"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "nvme", "nvme_path": "/nvme"}}}

# As torch.utils.cpp_extension does it around a build.
HOLD_THE_LOCK = """
import sys
from torch.utils.file_baton import FileBaton
baton = FileBaton(sys.argv[1])
assert baton.try_acquire()
print("held", flush=True)
sys.stdin.read()
baton.release()
"""
WORK_IN_THE_FOLDER = "import sys; print('working', flush=True); sys.stdin.read()"


@contextmanager
def process(code: str, *arguments: str, cwd: Path | None = None) -> Iterator["subprocess.Popen[str]"]:
    """A process that has done what it was to do, and now waits for the end of its input."""
    with subprocess.Popen(
        [sys.executable, "-c", code, *arguments], cwd=cwd, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as started:
        try:
            assert started.stdout is not None
            assert started.stdout.readline().strip() in ("held", "working")
            yield started
        finally:
            started.kill()


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    (tmp_path / "async_io").mkdir()
    return tmp_path / "async_io" / "lock"


class Said(list[str]):
    def __call__(self, line: str) -> None:
        self.append(line)


def clear(lock: Path, said: Said, limit_minutes: float = 0.0) -> None:
    clear_stale_locks(lock.parents[1], ["pin_memory", lock.parent.name], said, limit_minutes)


def test_the_lock_of_a_killed_build_is_removed_and_named(lock: Path):
    with process(HOLD_THE_LOCK, str(lock)) as builder:
        builder.kill()
        builder.wait(timeout=60)
    assert lock.exists()  # what torch itself would wait on for ever
    said = Said()
    clear(lock, said)
    assert not lock.exists()
    assert len(said) == 1
    assert str(lock) in said[0]


def test_the_lock_of_a_living_build_stays_and_its_process_is_named(lock: Path):
    with process(HOLD_THE_LOCK, str(lock)) as builder:
        said = Said()
        with pytest.raises(ConfigError, match=rf"{re.escape(str(lock))} .* process {builder.pid} \(.*FileBaton"):
            clear(lock, said)
        assert lock.exists()


def test_a_living_build_is_waited_for(lock: Path):
    with process(HOLD_THE_LOCK, str(lock)) as builder:

        class LetsItFinish(Said):
            def __call__(self, line: str) -> None:
                super().__call__(line)
                assert builder.stdin is not None
                builder.stdin.close()

        said = LetsItFinish()
        clear(lock, said, limit_minutes=2)
        assert builder.wait(timeout=60) == 0
    assert len(said) == 1
    assert f"process {builder.pid}" in said[0]
    assert not lock.exists()


def test_ninja_that_outlives_the_process_that_started_it_is_a_living_build(lock: Path):
    lock.touch()
    with (
        process(WORK_IN_THE_FOLDER, cwd=lock.parent) as ninja,
        pytest.raises(ConfigError, match=f"process {ninja.pid}"),
    ):
        clear(lock, Said())
    clear(lock, Said())
    assert not lock.exists()


def test_locks_of_other_extensions_are_left_alone(lock: Path):
    lock.touch()
    other = lock.parents[1] / "somebody_elses"
    other.mkdir()
    (other / "lock").touch()
    clear(lock, Said())
    assert not lock.exists()
    assert (other / "lock").exists()


def test_without_proc_only_an_old_lock_is_stale(lock: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(extensions, "_PROC", tmp_path / "no_proc")
    lock.touch()
    with pytest.raises(ConfigError, match="does not show"):
        clear(lock, Said())
    long_ago = time.time() - 24 * 3600
    os.utime(lock, (long_ago, long_ago))
    clear(lock, Said())
    assert not lock.exists()


def test_another_users_lock_counts_as_held(lock: Path, monkeypatch: pytest.MonkeyPatch):
    lock.touch()
    monkeypatch.setattr(os, "geteuid", lambda: lock.stat().st_uid + 1)
    with pytest.raises(ConfigError, match=f"user {lock.stat().st_uid}"):
        clear(lock, Said())


def test_a_private_folder_unless_the_user_has_chosen_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    # Set first, so that what the function sets is taken back.
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", "")
    monkeypatch.setenv("STORYTELLER_CACHE", str(tmp_path))
    ours = use_private_folder(CPU)
    assert ours.is_relative_to(tmp_path)
    assert torch.__version__ in ours.name
    assert os.environ["TORCH_EXTENSIONS_DIR"] == str(ours)
    assert use_private_folder(CPU) == ours
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "chosen"))
    assert use_private_folder(CPU) == tmp_path / "chosen"


def test_an_empty_cache_variable_is_not_the_current_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", "")
    monkeypatch.setenv("STORYTELLER_CACHE", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert use_private_folder(CPU).is_relative_to(tmp_path / ".cache" / "storyteller_ds")


def test_only_nvme_needs_something_compiled():
    def json(optimizer: str, parameters: str, **aio: bool) -> dict[str, object]:
        zero = {"stage": 3, "offload_optimizer": {"device": optimizer}, "offload_param": {"device": parameters}}
        return {"zero_optimization": zero, "aio": aio}

    assert needed_ops({}) == needed_ops({"zero_optimization": {"stage": 2}}) == needed_ops(json("cpu", "cpu")) == ()
    assert needed_ops(json("nvme", "none")) == needed_ops(json("cpu", "nvme")) == ("async_io",)
    assert needed_ops(json("nvme", "nvme", use_gds=True)) == ("async_io", "gds")


class Builder:
    """In the place of DeepSpeed's: a build takes minutes."""

    compatible = True
    failure: Exception | None = None
    loaded = 0

    def is_compatible(self, verbose: bool) -> bool:
        return self.compatible

    def load(self, verbose: bool) -> None:
        type(self).loaded += 1
        print("[1/13] c++ -MMD ...")
        if self.failure:
            raise self.failure


@pytest.fixture
def builder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> type[Builder]:
    for name in ("PATH", "CPATH", "LIBRARY_PATH", "LD_RUN_PATH"):
        monkeypatch.setenv(name, os.environ.get(name, ""))
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "built"))

    class Fresh(Builder):
        pass

    monkeypatch.setattr("deepspeed.ops.op_builder.AsyncIOBuilder", Fresh)
    return Fresh


def build(said: Said | None = None) -> None:
    build_ahead(needed_ops(NVME), ALONE, CPU, Said() if said is None else said, limit_minutes=0)


def test_a_build_is_announced_and_otherwise_silent(builder: type[Builder], capfd: pytest.CaptureFixture[str]):
    said = Said()
    build(said)
    assert builder.loaded == 1
    assert len(said) == 1
    assert "async_io" in said[0]
    assert capfd.readouterr() == ("", "")


def test_nothing_is_built_where_nothing_is_needed(builder: type[Builder]):
    build_ahead((), ALONE, CPU, Said(), limit_minutes=0)
    assert builder.loaded == 0


def test_a_failed_build_says_the_compilers_reason_and_where_the_rest_is(builder: type[Builder], tmp_path: Path):
    output = "Error building extension\n[1/2] c++ -c x.cpp\nx.cpp:3:1: error: 'y' was not declared\nninja: stopped"
    builder.failure = RuntimeError(output)
    with pytest.raises(ConfigError, match="'y' was not declared") as caught:
        build()
    assert "c++ -c" not in str(caught.value)
    log = tmp_path / "built" / "async_io" / "build.log"
    assert str(log) in str(caught.value)
    assert output in log.read_text(encoding="utf-8")


def test_libaio_that_is_missing_is_named(builder: type[Builder]):
    builder.compatible = False
    with pytest.raises(ConfigError, match="libaio-dev"):
        build()
    assert builder.loaded == 0


@pytest.mark.parametrize(("variable", "mend"), [("CXX", "g\\+\\+"), ("CC", "gcc")])
def test_a_compiler_that_is_missing_is_named(builder: type[Builder], monkeypatch, variable, mend):
    monkeypatch.setenv(variable, "no-such-compiler")
    with pytest.raises(ConfigError, match=f"no-such-compiler is missing; install {mend}"):
        build()
    assert builder.loaded == 0


def test_ninja_is_found_in_an_environment_that_is_not_activated(builder: type[Builder], monkeypatch):
    scripts = Path(sys.executable).parent
    assert (scripts / "ninja").exists()  # deepspeed requires it
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    build()
    assert str(scripts) in os.environ["PATH"].split(":")


def test_a_folder_that_cannot_be_made_is_named(builder: type[Builder], monkeypatch, tmp_path: Path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "file" / "folder"))
    with pytest.raises(ConfigError, match="TORCH_EXTENSIONS_DIR"):
        build()
