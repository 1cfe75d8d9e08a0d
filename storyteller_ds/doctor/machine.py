"""This machine: limits, memory, locale, and the port where ranks meet."""

import codecs
import contextlib
import locale
import os
import resource
import shutil
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

from storyteller_ds.config.nearest import did_you_mean, nearest
from storyteller_ds.cores import usable_cores
from storyteller_ds.distributed.ports import listener_on
from storyteller_ds.doctor.finding import Check, Finding, error, warning
from storyteller_ds.doctor.subject import Subject
from storyteller_ds.engines.deepspeed.nvme.settings import nvme_sections

_OPEN_FILES = 1024
_SHARED_MEMORY = 512 << 20
"""Shared memory that the ranks of one machine need: NCCL and gloo keep buffers in it (bytes)."""
_SHM = Path("/dev/shm")
_LOCKED = 64 << 20
"""Minimum pinned memory for offload (bytes)."""
_DEFAULT_PORT = 29500
_OWN, _OWN_VARIABLES = "STORYTELLER_", ("CACHE", "GPU", "JUDGE_KEY", "KERNELS")
_WANDB_MODES = ("online", "offline", "disabled", "shared", "dryrun")


def open_files(subject: Subject) -> Iterator[Finding]:
    """Shards, the sockets of every rank and the pipes of loaders count as open files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < _OPEN_FILES:
        most = "" if hard == resource.RLIM_INFINITY or hard >= 65536 else f" (at most {hard} without root)"
        yield warning(f"this process may have {soft} files open (ulimit -n)", f"ulimit -n 65536{most}")


def locked_memory(subject: Subject) -> Iterator[Finding]:
    """Offload copies through locked memory."""
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if subject.offloaded and subject.device.type == "cuda" and soft != resource.RLIM_INFINITY and soft < _LOCKED:
        yield warning(
            f"this process may lock {soft / 2**20:,.0f} MiB of memory (ulimit -l), and offload pins more",
            "ulimit -l unlimited, or docker run --ulimit memlock=-1",
        )


def shared_memory(subject: Subject) -> Iterator[Finding]:
    """Containers have 64 MB of shared memory, too little for the ranks of one machine: they die with a bus error."""
    if subject.plan.world_size == 1 or not _SHM.is_dir():
        return
    size = shutil.disk_usage(_SHM).total
    if size < _SHARED_MEMORY:
        yield warning(
            f"{_SHM} has {size / 2**20:,.0f} MiB, and {subject.plan.world_size} ranks exchange tensors through it",
            "docker run --shm-size=2g (or --ipc=host); mount -o remount,size=2G /dev/shm",
        )


def text_encoding(subject: Subject) -> Iterator[Finding]:
    """File names, and stories on the terminal, are UTF-8."""
    used = {codecs.lookup(name).name for name in (locale.getpreferredencoding(False), sys.getfilesystemencoding())}
    if used - {"utf-8"}:
        yield warning(
            f"the locale is {', '.join(sorted(used))}, and stories are UTF-8: characters will be lost on the terminal",
            "export LC_ALL=C.UTF-8",
        )


def thread_count(subject: Subject) -> Iterator[Finding]:
    """More threads than cores wait for each other."""
    wanted, cores = os.environ.get("OMP_NUM_THREADS", ""), usable_cores()
    if wanted.isdecimal() and int(wanted) > cores:
        yield warning(
            f"OMP_NUM_THREADS={wanted}, and this process may use {cores} core(s): threads that wait for each other "
            "make a step many times slower",
            f"unset OMP_NUM_THREADS, or set it to {cores}",
        )


def meeting_port(subject: Subject) -> Iterator[Finding]:
    """Another program may be listening on the port at which the ranks meet."""
    given = os.environ.get("MASTER_PORT")
    if subject.loaded.deepspeed is None or (subject.plan.world_size == 1 and given is None):
        return
    if given is not None and not (given.isdecimal() and 0 < int(given) < 65536):
        yield error(f"MASTER_PORT={given} is not a port", "use a number from 1024 to 65535, or unset it")
        return
    port = int(given) if given is not None else _DEFAULT_PORT
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=0.5):
        yield warning(
            f"{listener_on(port)} listens on port {port}, where the ranks would meet",
            "--master_port 29501 (storyteller launch on one machine chooses a free one)",
        )


def network_interface(subject: Subject) -> Iterator[Finding]:
    """The network interface that ranks are told to use does not exist on this machine."""
    if subject.loaded.deepspeed is None:
        return
    there = subject.machine.interfaces()
    for variable, is_prefix in (("GLOO_SOCKET_IFNAME", False), ("NCCL_SOCKET_IFNAME", True)):
        wanted = os.environ.get(variable, "")
        if wanted.startswith("^"):  # all but these
            continue
        is_exact = not is_prefix or wanted.startswith("=")
        names = [name.strip() for name in wanted.removeprefix("=").split(",") if name.strip()]
        if names and not any(have == name if is_exact else have.startswith(name) for have in there for name in names):
            yield error(
                f"{variable}={wanted}, and this machine has only {', '.join(there)}",
                f"unset {variable}, or name the one that the machines share",
            )


def misspelt_variables(subject: Subject) -> Iterator[Finding]:
    """Environment variables that nothing reads, or with an unknown value."""
    for name in os.environ.keys():  # noqa: SIM118  # the names alone, never their values
        own = name.removeprefix(_OWN) if name.startswith(_OWN) else None
        if own is not None and own not in _OWN_VARIABLES and (meant := nearest(own, _OWN_VARIABLES)):
            yield warning(f"{name} is read by nobody", f"did you mean {_OWN}{meant}?")
    mode = os.environ.get("WANDB_MODE", "")
    if subject.run.tracking.wandb == "auto" and mode and mode not in _WANDB_MODES:
        yield warning(f"WANDB_MODE={mode} is not a mode of wandb{did_you_mean(mode, _WANDB_MODES)}", "correct it")
    threads = os.environ.get("OMP_NUM_THREADS", "")
    if threads and not all(part.strip().isdecimal() for part in threads.split(",")):
        yield warning(f"OMP_NUM_THREADS={threads} is not a number, and is ignored", "unset OMP_NUM_THREADS")


def compiler(subject: Subject) -> Iterator[Finding]:
    """Settings that compile code on this machine need a C++ compiler."""
    if any(shutil.which(name) for name in (os.environ.get("CXX") or "c++", "g++", "clang++")):
        return
    if subject.loaded.deepspeed is not None and nvme_sections(subject.loaded.deepspeed):
        yield error("offload to NVMe compiles async_io, and there is no C++ compiler", "apt-get install g++ libaio-dev")
    elif subject.run.train.compile == "on":
        yield error("train.compile=on, and there is no C++ compiler", "apt-get install g++, or train.compile=auto")


QUICK: tuple[Check, ...] = (open_files, locked_memory, shared_memory, text_encoding, thread_count)
"""Checks that take less than a millisecond."""
CHECKS: tuple[Check, ...] = (*QUICK, meeting_port, network_interface, misspelt_variables, compiler)
