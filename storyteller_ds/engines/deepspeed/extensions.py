"""What DeepSpeed compiles at first use, made ready before it asks for it.

DeepSpeed compiles some of its operations on the user's machine, through torch.utils.cpp_extension. Left alone
that goes wrong in three ways: it is silent for minutes; a lock that a killed build left behind makes every later
run wait for ever; and builds of other programs with other versions lie in the same folder. So the operations of
a run are built ahead, once per machine and with a word on the screen, in a folder of their own.

torch guards a build with a file `lock` in the operation's folder. The builder holds it open until the end, and
ninja works in that folder: a lock with neither is stale.
"""

import contextlib
import fcntl
import io
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from storyteller_ds.data.cache import cache_folder
from storyteller_ds.distributed.world import World
from storyteller_ds.errors import ConfigError

Say = Callable[[str], None]

_BUILDERS = {"async_io": "AsyncIOBuilder", "gds": "GDSBuilder"}
_BUILT_WITH_THEM = ("pin_memory",)
_BUILD_LOG = "build.log"
_LIBAIO = (
    "install libaio-dev (Debian, Ubuntu), libaio-devel (Fedora, RHEL) or, into this environment, conda's libaio; "
    "where it lies elsewhere, name its folders in CPATH, LIBRARY_PATH and LD_LIBRARY_PATH"
)
_POLL_SECONDS = 0.5
_PROC = Path("/proc")
_STALE_MINUTES = 60
"""Without /proc: a lock older than this belongs to nobody."""


def needed_ops(ds_config: Mapping[str, Any]) -> tuple[str, ...]:
    """The operations that DeepSpeed would compile for this JSON: async_io for NVMe, gds for GPUDirect Storage."""
    zero = ds_config.get("zero_optimization", {})
    devices = [(zero.get(section) or {}).get("device") for section in ("offload_optimizer", "offload_param")]
    if "nvme" not in devices:
        return ()
    return ("async_io", "gds") if ds_config.get("aio", {}).get("use_gds") else ("async_io",)


def use_private_folder(device: torch.device) -> Path:
    """Where this run's operations are built: $TORCH_EXTENSIONS_DIR if it is set, else a folder of ours, and set it.

    Ours is kept apart by everything that a build depends on, the machine included: home folders are shared by
    machines whose processors differ, and nobody here can see who holds a lock over there.
    """
    chosen = os.environ.get("TORCH_EXTENSIONS_DIR")
    if chosen:
        return Path(chosen).expanduser()
    key = "-".join(
        (
            f"deepspeed{version('deepspeed')}",
            f"torch{torch.__version__}",
            f"python{sysconfig.get_python_version()}",
            device.type,
            platform.node() or "localhost",
        )
    )
    folder = cache_folder() / "extensions" / key
    os.environ["TORCH_EXTENSIONS_DIR"] = str(folder)
    return folder


def build_ahead(ops: Sequence[str], world: World, device: torch.device, say: Say, limit_minutes: float) -> None:
    """Compile what is not compiled yet, on one rank of every machine, while the others wait; called by all ranks.

    Args:
        ops: what needed_ops found.
        world: this process among the ranks; connected.
        device: what the operations are for.
        say: where a person reads along.
        limit_minutes: how long another process's build is waited for.

    Raises:
        ConfigError: something to compile with is missing, the compiler failed, or another process is still
            building at the end of that time.
    """
    if not ops:
        return
    folder = use_private_folder(device)
    _point_compiler_at_this_environment()
    world.on_each_machine(lambda: _prepare(ops, folder, device, say, limit_minutes))
    # Only now: with a folder that several machines share, a build that began there would look stale here.
    world.on_each_machine(lambda: _build(ops, folder, say))


def clear_stale_locks(folder: Path, ops: Sequence[str], say: Say, limit_minutes: float) -> None:
    """Remove the locks that killed builds have left, and wait for the builds that live.

    Args:
        folder: $TORCH_EXTENSIONS_DIR.
        ops: the operations whose locks count.
        say: told each lock that is removed, or waited for.
        limit_minutes: how long a build that lives is waited for.

    Raises:
        ConfigError: a build still lives at the end of that time.
    """
    for op in ops:
        _clear(folder / op / "lock", say, time.monotonic() + 60 * limit_minutes)


def _clear(lock: Path, say: Say, deadline: float) -> None:
    told = False
    while lock.exists():
        # One at a time: between somebody's look and removal the lock could become a new builder's.
        with alone_in(lock.parent):
            holder = _holder(lock)
            if holder is None and lock.exists():
                lock.unlink(missing_ok=True)
                say(f"removed {lock}: the build that it guarded was killed")
        if holder is None:
            return
        if time.monotonic() > deadline:
            raise ConfigError(
                f"{lock} is still held by {holder}, which builds {lock.parent.name}; wait for it or end it, "
                "or set TORCH_EXTENSIONS_DIR to another folder"
            )
        if not told:
            say(f"waiting for {holder}, which builds {lock.parent.name} in {lock.parent}")
            told = True
        time.sleep(_POLL_SECONDS)


def _holder(lock: Path) -> str | None:
    """Who holds a lock, in words; None: nobody."""
    try:
        status = lock.stat()
    except FileNotFoundError:
        return None
    if not (_PROC / "self" / "fd").is_dir():
        young = time.time() - status.st_mtime < 60 * _STALE_MINUTES
        return "a process that this system does not show" if young else None
    path, folder = str(lock.resolve()), str(lock.parent.resolve())
    for process in _PROC.iterdir():
        if not process.name.isdecimal():
            continue
        # Other users' processes, and those that have just ended, show nothing.
        with contextlib.suppress(OSError):
            held = any(_link(descriptor) == path for descriptor in (process / "fd").iterdir())
            # ninja goes on when the process that started it is killed.
            if held or _link(process / "cwd") == folder:
                command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                return f"process {process.name} ({command.strip()[:100]})"
    if os.geteuid() not in (0, status.st_uid):
        return f"user {status.st_uid}, whose processes cannot be seen"
    return None


def _link(path: Path) -> str | None:
    try:
        return os.readlink(path)  # noqa: PTH115  # not a Path: "socket:[1]" and the like are no paths
    except OSError:
        return None


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Keep others who use this function out of a folder meanwhile."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _point_compiler_at_this_environment() -> None:
    """Let ninja and libaio be found where pip and conda put them, also when the environment is not activated."""
    _append("PATH", sysconfig.get_path("scripts"))
    prefix = Path(sys.prefix)
    if (prefix / "include" / "libaio.h").exists():
        _append("CPATH", str(prefix / "include"))
        _append("LIBRARY_PATH", str(prefix / "lib"))
        # Written into what is linked: LD_LIBRARY_PATH is only read when a process starts.
        _append("LD_RUN_PATH", str(prefix / "lib"))


def _append(name: str, folder: str) -> None:
    present = [part for part in os.environ.get(name, "").split(os.pathsep) if part]
    if folder not in present:
        os.environ[name] = os.pathsep.join([*present, folder])


def _prepare(ops: Sequence[str], folder: Path, device: torch.device, say: Say, limit_minutes: float) -> None:
    _check_tools(ops, device)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"DeepSpeed's operations cannot be built in {folder}: {error.strerror}; set TORCH_EXTENSIONS_DIR to a "
            "folder that can be written"
        ) from None
    clear_stale_locks(folder, (*_BUILT_WITH_THEM, *ops), say, limit_minutes)


def _check_tools(ops: Sequence[str], device: torch.device) -> None:
    """Name what is missing; the compiler's own words come late and are hard to read."""
    from torch.utils.cpp_extension import CUDA_HOME

    c_compiler = (os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc").split()[0]
    cxx_compiler = os.environ.get("CXX") or "c++"
    missing = [
        (shutil.which("ninja"), "ninja", "pip install ninja"),
        (shutil.which(cxx_compiler), f"the compiler {cxx_compiler}", "install g++"),
        (shutil.which(c_compiler), f"the compiler {c_compiler}", "install gcc"),
        (
            (Path(sysconfig.get_path("include")) / "Python.h").exists(),
            "Python.h",
            "install the headers of this Python (python3-dev on Debian and Ubuntu)",
        ),
        (device.type != "cuda" or CUDA_HOME, "the CUDA toolkit", "install it, or set CUDA_HOME"),
    ]
    for there, name, mend in missing:
        if not there:
            raise ConfigError(f"DeepSpeed must compile {', '.join(ops)} here, but {name} is missing; {mend}")


def _build(ops: Sequence[str], folder: Path, say: Say) -> None:
    import deepspeed.ops.op_builder as builders

    for op in ops:
        builder = getattr(builders, _BUILDERS[op])()
        try:
            with _silence():
                compatible = builder.is_compatible(verbose=False)
            if op == "async_io" and not compatible:
                raise ConfigError(f"DeepSpeed must compile {op} here, but libaio is missing; {_LIBAIO}")
            if not (folder / op / f"{op}.so").exists():
                say(f"compiling DeepSpeed's {op} into {folder}, once per machine; this takes some minutes")
            with _silence():
                builder.load(verbose=False)
        except (RuntimeError, OSError, ImportError, subprocess.CalledProcessError) as error:
            log = folder / op / _BUILD_LOG
            log.parent.mkdir(parents=True, exist_ok=True)
            log.write_text(f"{error}\n", encoding="utf-8")
            raise ConfigError(
                f"DeepSpeed's {op} cannot be built: {_telling_line(str(error))}; "
                f"the compiler's whole output is in {log}"
            ) from None


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Both libraries also tell of what is no fault; what is one, they raise."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _telling_line(output: str) -> str:
    """The first line of a compiler's output that says what is wrong."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = (line for line in lines if re.search(r"\berror: |cannot find|undefined reference|not found", line))
    return next(errors, lines[-1] if lines else "no reason given")[:300]
