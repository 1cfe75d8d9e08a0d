"""The processes above and below a supervisor, and the kernel's signal when a parent dies."""

import ctypes
import itertools
import sys
from pathlib import Path

import psutil

ON_LINUX = sys.platform.startswith("linux")

_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
_COMMAND_NAMES = ("deepspeed", "deepspeed.pt", "ds", "deepspeed.launcher.runner")
_LAUNCH_MODULE = "deepspeed.launcher.launch"


def signal_at_death_of_parent(number: int) -> None:
    """Have the kernel send this signal when the parent dies (prctl(2), PR_SET_PDEATHSIG).

    Linux also sends it when only the thread that started this process ends: check os.getppid() then.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)


def command_line(process: psutil.Process | None) -> list[str]:
    """The arguments of a process; empty if it is gone."""
    try:
        return [] if process is None else process.cmdline()
    except psutil.Error:
        return []


def is_deepspeed_launcher(process: psutil.Process) -> bool:
    """Whether this is the DeepSpeed process that starts the ranks of a machine."""
    return _LAUNCH_MODULE in command_line(process)


def out_of_memory_kills() -> int:
    """Number of processes that Linux has killed since it booted because memory had run out."""
    try:
        counts = dict(line.split() for line in Path("/proc/vmstat").read_text().splitlines())
    except OSError:
        return 0
    return int(counts.get("oom_kill", 0))


class DeepSpeedCommand:
    """The `deepspeed` command that was typed, seen from a launcher below it.

    Args:
        process: the command.
        started: its child: the launcher, or the pdsh that reaches the machines of a hostfile.
    """

    def __init__(self, process: psutil.Process, started: psutil.Process) -> None:
        self.process, self._started = process, started

    @classmethod
    def above(cls, launcher: psutil.Process) -> "DeepSpeedCommand | None":
        """The command above this launcher, if it is on this machine."""
        line = command_line(launcher)
        if _LAUNCH_MODULE not in line:
            return None
        of_this_run = {word for word in line if word.startswith(("--world_info=", "--master_port="))}
        pdsh = (
            process
            for process in psutil.process_iter(["cmdline"])
            if (words := process.info["cmdline"]) and Path(words[0]).name == "pdsh" and of_this_run <= set(words)
        )
        for started in itertools.chain([launcher], pdsh):
            parent = started.parent()
            first = command_line(parent)[:4]  # python [-u] [-m] deepspeed
            if parent is not None and any(Path(word).name in _COMMAND_NAMES for word in first):
                return cls(parent, started)
        return None

    def is_gone(self) -> bool:
        """Whether the command has ended: its child then has another parent, or has ended too."""
        try:
            return bool(self._started.ppid() != self.process.pid)
        except psutil.Error:
            return True
