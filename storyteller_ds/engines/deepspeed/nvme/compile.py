"""DeepSpeed's operation for NVMe, async_io, compiled before DeepSpeed asks for it.

DeepSpeed compiles it on the user's machine at first use, through torch.utils.cpp_extension. Left alone, that is
silent for minutes; a killed build leaves a file `lock` on which torch waits forever; and builds for other versions
are in the same folder. So it is compiled in advance, with a line in the log, in a folder for these versions. The folder
is guarded by a lock that the kernel frees when its process ends: a process that holds it and finds torch's `lock`
removes what the killed build left, and starts over.
"""

import contextlib
import io
import os
import platform
import re
import secrets
import shutil
import subprocess
import sys
import sysconfig
import warnings
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path

import torch
from filelock import FileLock, Timeout

from storyteller_ds.data.cache import cache_folder
from storyteller_ds.distributed.world import World
from storyteller_ds.errors import ConfigError
from storyteller_ds.meanwhile import LINE_EVERY_S, meanwhile

Log = Callable[[str], None]

_OP = "async_io"


def use_own_folder(device: torch.device) -> Path:
    """Set TORCH_EXTENSIONS_DIR to our own folder below it, or below our cache if it is not set.

    The folder's name includes everything that a build depends on, even the machine: machines with different processors
    may share a home folder.
    """
    chosen = os.environ.get("TORCH_EXTENSIONS_DIR")
    root = Path(chosen).expanduser() if chosen else cache_folder() / "extensions"
    versions = f"deepspeed{version('deepspeed')}-torch{torch.__version__}-python{sysconfig.get_python_version()}"
    name = f"{versions}-{device.type}-{platform.node() or 'localhost'}"
    folder = root if root.name == name else root / name
    os.environ["TORCH_EXTENSIONS_DIR"] = str(folder)
    return folder


def build_ahead(world: World, device: torch.device, log: Log, limit_minutes: float) -> None:
    """Compile async_io if needed, on one rank of every machine, and load it on all ranks; called by all ranks.

    Args:
        world: this process among the ranks; connected.
        device: what the operation is for.
        log: prints a line.
        limit_minutes: how long to wait for another process's build.

    Raises:
        ConfigError: something needed for compiling is missing, the compiler failed, or another process is still
            building at the end of that time.
    """
    folder = use_own_folder(device)
    _point_compiler_at_this_environment()
    world.on_each_machine(lambda: load(folder, log, limit_minutes))
    # Every rank loads it here, and under our lock, because torch takes its own lock to load it.
    world.together(lambda: None if world.local_rank == 0 else load(folder, log, limit_minutes))


def load(folder: Path, log: Log, limit_minutes: float) -> None:
    """Load async_io, compiled into `folder` if it is not there yet; see build_ahead."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"DeepSpeed's {_OP} cannot be built in {folder}: {error.strerror}; set TORCH_EXTENSIONS_DIR to a folder "
            "that can be written"
        ) from None
    with _locked(folder, log, limit_minutes):
        for lock in folder.glob("*/lock"):
            log(f"removed {lock.parent}: the build there was killed")
            # Renamed first: a ninja that outlives its killed builder continues in the renamed folder.
            killed = lock.parent.rename(folder / f"killed-{secrets.token_hex(4)}")
            shutil.rmtree(killed, ignore_errors=True)
        _build_and_load(folder / _OP, log)


@contextlib.contextmanager
def _locked(folder: Path, log: Log, limit_minutes: float) -> Iterator[None]:
    """Keep other processes out of the folder; the kernel frees the lock of a killed process."""
    lock = FileLock(folder / "in_use")
    waiting = f"waiting for another process, which compiles DeepSpeed's {_OP} in {folder}"
    try:
        with meanwhile(lambda: log(waiting), LINE_EVERY_S):
            lock.acquire(timeout=60 * limit_minutes)
    except Timeout:
        raise ConfigError(
            f"another process is still compiling DeepSpeed's {_OP} in {folder}; wait for it or end it, or set "
            "TORCH_EXTENSIONS_DIR to another folder"
        ) from None
    try:
        yield
    finally:
        lock.release()


def _build_and_load(folder: Path, log: Log) -> None:
    from deepspeed.ops.op_builder import AsyncIOBuilder

    builder = AsyncIOBuilder()
    try:
        with _silence():
            compatible = builder.is_compatible(verbose=False)
        if not compatible:
            raise ConfigError(
                f"DeepSpeed must compile {_OP} here, but a compiler or libaio is missing: install g++, and libaio-dev "
                "(Debian, Ubuntu), libaio-devel (Fedora, RHEL) or, into this environment, conda's libaio; where they "
                "lie elsewhere, name them in CC and CXX, CPATH, LIBRARY_PATH and LD_LIBRARY_PATH"
            )
        if not (folder / f"{_OP}.so").exists():
            log(f"compiling DeepSpeed's {_OP} into {folder}, once per machine; this takes some minutes")
        with _silence():
            builder.load(verbose=False)
    except (RuntimeError, OSError, ImportError, subprocess.CalledProcessError) as error:
        build_log = folder / "build.log"
        build_log.parent.mkdir(parents=True, exist_ok=True)
        build_log.write_text(f"{error}\n", encoding="utf-8")
        raise ConfigError(
            f"DeepSpeed's {_OP} cannot be built: {_first_error(str(error))}; "
            f"the compiler's whole output is in {build_log}"
        ) from None


def _point_compiler_at_this_environment() -> None:
    """Let ninja and libaio be found where pip and conda put them, even if the environment is not activated."""
    _append("PATH", sysconfig.get_path("scripts"))
    prefix = Path(sys.prefix)
    if (prefix / "include" / "libaio.h").exists():
        _append("CPATH", str(prefix / "include"))
        _append("LIBRARY_PATH", str(prefix / "lib"))
        # Written into the linked library: LD_LIBRARY_PATH is only read when a process starts.
        _append("LD_RUN_PATH", str(prefix / "lib"))


def _append(name: str, folder: str) -> None:
    present = [part for part in os.environ.get(name, "").split(os.pathsep) if part]
    if folder not in present:
        os.environ[name] = os.pathsep.join([*present, folder])


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Hide what both libraries print; it includes more than errors, and they raise errors anyway."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _first_error(output: str) -> str:
    """The first line of a compiler's output that names what is wrong."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = (line for line in lines if re.search(r"\berror: |cannot find|undefined reference|not found", line))
    return next(errors, lines[-1] if lines else "no reason given")[:300]
