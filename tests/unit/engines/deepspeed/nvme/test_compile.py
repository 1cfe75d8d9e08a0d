"""Running builds, killed builds, and the messages where nothing can be compiled."""

import inspect
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from storyteller_ds.config.run import RunConfig
from storyteller_ds.distributed.world import World
from storyteller_ds.engines.build import prepared_machine
from storyteller_ds.engines.deepspeed.nvme import compile as compiling
from storyteller_ds.engines.deepspeed.nvme.compile import build_ahead, load, use_own_folder
from storyteller_ds.engines.deepspeed.nvme.settings import nvme_sections
from storyteller_ds.errors import ConfigError

ALONE = World(rank=0, local_rank=0, size=1, local_size=1)
CPU = torch.device("cpu")

# A process that compiles as ours do, until its stdin ends.
BUILD = """
import sys
from pathlib import Path
import deepspeed.ops.op_builder as builders
from storyteller_ds.engines.deepspeed.nvme.compile import load

class Builder:
    def is_compatible(self, verbose):
        return True

    def load(self, verbose):
        folder = Path(sys.argv[1]) / "async_io"
        folder.mkdir()
        (folder / "lock").touch()  # as torch does
        print("building", flush=True, file=sys.__stdout__)
        sys.stdin.read()
        (folder / "lock").unlink()

builders.AsyncIOBuilder = Builder
load(Path(sys.argv[1]), lambda line: None, 0)
"""
NINJA = """
import sys, time
print("building", flush=True)
sys.stdin.read()
open("object.o", "w").close()
print("done", flush=True)
"""


@contextmanager
def process(code: str, *arguments: str, cwd: Path | None = None) -> Iterator["subprocess.Popen[str]"]:
    """Start a process that is building, and that continues when its stdin ends."""
    with subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        cwd=cwd,
        env={**os.environ, "DS_ACCELERATOR": "cpu"},  # otherwise DeepSpeed logs which accelerator it found
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as started:
        try:
            assert started.stdout is not None
            assert started.stdout.readline().strip() == "building"
            yield started
        finally:
            started.kill()


class Logged(list[str]):
    def __call__(self, line: str) -> None:
        self.append(line)


class Builder:
    """Stands in for DeepSpeed's builder, which takes minutes."""

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


def test_what_a_killed_build_left_is_removed_and_named(builder: type[Builder], tmp_path: Path):
    with process(BUILD, str(tmp_path)) as killed:
        killed.kill()
        killed.wait(timeout=60)
    lock = tmp_path / "async_io" / "lock"
    assert lock.exists()  # torch itself would wait on it forever
    logged = Logged()
    load(tmp_path, logged, limit_minutes=0)
    assert builder.loaded == 1
    assert not lock.exists()
    assert [line.split()[0] for line in logged] == ["removed", "compiling"]
    assert str(lock.parent) in logged[0]


def test_a_living_build_is_left_alone(builder: type[Builder], tmp_path: Path):
    with process(BUILD, str(tmp_path)):
        with pytest.raises(ConfigError, match=rf"another process is still compiling .* {re.escape(str(tmp_path))}"):
            load(tmp_path, Logged(), limit_minutes=0)
        assert (tmp_path / "async_io" / "lock").exists()
    assert builder.loaded == 0


def test_a_living_build_is_waited_for(builder: type[Builder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(compiling, "LINE_EVERY_S", 0.01)
    with process(BUILD, str(tmp_path)) as living:

        class LetsItFinish(Logged):
            def __call__(self, line: str) -> None:
                super().__call__(line)
                assert living.stdin is not None
                living.stdin.close()

        logged = LetsItFinish()
        (tmp_path / "async_io" / "async_io.so").touch()
        load(tmp_path, logged, limit_minutes=2)
        assert living.wait(timeout=60) == 0
    assert builder.loaded == 1
    assert set(logged) == {f"waiting for another process, which compiles DeepSpeed's async_io in {tmp_path}"}


def test_ninja_that_outlives_the_process_that_started_it_disturbs_nobody(builder: type[Builder], tmp_path: Path):
    folder = tmp_path / "async_io"
    folder.mkdir()
    (folder / "lock").touch()
    with process(NINJA, cwd=folder) as ninja:
        load(tmp_path, Logged(), limit_minutes=0)
        folder.mkdir()  # the new build's
        ninja.communicate(timeout=60)
    assert list(folder.iterdir()) == []


def test_other_builds_in_the_users_folder_are_left_alone(builder: type[Builder], tmp_path: Path):
    others = tmp_path / "built" / "async_io"
    others.mkdir(parents=True)
    (others / "lock").touch()
    build()
    assert builder.loaded == 1
    assert (others / "lock").exists()


def test_a_folder_of_our_own_below_the_users_if_there_is_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    # Set first, so that monkeypatch undoes what the function sets.
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", "")
    monkeypatch.setenv("STORYTELLER_CACHE", str(tmp_path))
    ours = use_own_folder(CPU)
    assert ours.is_relative_to(tmp_path)
    assert torch.__version__ in ours.name
    assert os.environ["TORCH_EXTENSIONS_DIR"] == str(ours)
    assert use_own_folder(CPU) == ours
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "chosen"))
    assert use_own_folder(CPU) == tmp_path / "chosen" / ours.name


def test_an_empty_cache_variable_is_not_the_current_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", "")
    monkeypatch.setenv("STORYTELLER_CACHE", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert use_own_folder(CPU).is_relative_to(tmp_path / ".cache" / "storyteller_ds")


def test_what_deepspeed_and_torch_do_around_a_build(monkeypatch: pytest.MonkeyPatch):
    from deepspeed.ops.op_builder import AsyncIOBuilder
    from deepspeed.ops.op_builder.builder import OpBuilder
    from torch.utils import cpp_extension

    assert "FileBaton(os.path.join(build_directory, 'lock'))" in inspect.getsource(cpp_extension._jit_compile)
    inspect.signature(AsyncIOBuilder.is_compatible).bind("self", verbose=False)
    # A process does not load again what it has loaded, so it never takes torch's lock without holding ours.
    monkeypatch.setattr(sys, "_deepspeed_pin_memory_op_module", "pinned", raising=False)
    monkeypatch.setattr(OpBuilder, "_loaded_ops", {"async_io": "loaded"})
    monkeypatch.setattr(OpBuilder, "jit_load", lambda *_: pytest.fail("loaded again"))
    assert AsyncIOBuilder().load(verbose=False) == "loaded"


def test_only_nvme_needs_something_compiled():
    def sections(optimizer: str, parameters: str) -> list[str]:
        zero = {"stage": 3, "offload_optimizer": {"device": optimizer}, "offload_param": {"device": parameters}}
        return [*nvme_sections({"zero_optimization": zero})]

    assert [*nvme_sections({}), *nvme_sections({"zero_optimization": {"stage": 2}}), *sections("cpu", "cpu")] == []
    assert (sections("nvme", "none"), sections("cpu", "nvme")) == (["offload_optimizer"], ["offload_param"])


def build(logged: Logged | None = None) -> None:
    build_ahead(ALONE, CPU, Logged() if logged is None else logged, limit_minutes=0)


def test_a_build_is_announced_and_otherwise_silent(builder: type[Builder], capfd: pytest.CaptureFixture[str]):
    logged = Logged()
    build(logged)
    assert builder.loaded == 1
    assert len(logged) == 1
    assert "async_io" in logged[0]
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("ds_config", [None, {"zero_optimization": {"stage": 3}}])
def test_nothing_is_built_where_nothing_is_needed(builder: type[Builder], ds_config):
    with prepared_machine(RunConfig(), ds_config, ALONE, CPU, Logged()) as prepared:
        assert prepared == ds_config
    assert builder.loaded == 0


def test_a_failed_build_gives_the_compilers_reason_and_where_the_rest_is(builder: type[Builder], tmp_path: Path):
    output = "Error building extension\n[1/2] c++ -c x.cpp\nx.cpp:3:1: error: 'y' was not declared\nninja: stopped"
    builder.failure = RuntimeError(output)
    with pytest.raises(ConfigError, match="'y' was not declared") as caught:
        build()
    assert "c++ -c" not in str(caught.value)
    (log,) = (tmp_path / "built").glob("*/async_io/build.log")
    assert str(log) in str(caught.value)
    assert output in log.read_text(encoding="utf-8")


def test_a_compiler_or_libaio_that_is_missing_is_named(builder: type[Builder]):
    builder.compatible = False
    with pytest.raises(ConfigError, match=r"install g\+\+, and libaio-dev"):
        build()
    assert builder.loaded == 0


def test_without_a_compiler_deepspeed_calls_the_machine_incompatible(monkeypatch: pytest.MonkeyPatch):
    from deepspeed.ops.op_builder import AsyncIOBuilder

    monkeypatch.setenv("CC", "no-such-compiler")
    assert not AsyncIOBuilder().is_compatible(verbose=False)


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
