"""What Linux tells about processes: /proc, and the signal at the death of a parent."""

import ctypes
import sys
from collections.abc import Iterator
from pathlib import Path

ON_LINUX = sys.platform.startswith("linux")

_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
_RUNNER_NAMES = ("deepspeed", "deepspeed.pt", "ds")
_RUNNER_MODULE = "deepspeed.launcher.runner"
_LAUNCH_MODULE = "deepspeed.launcher.launch"


def signal_at_death_of_parent(number: int) -> None:
    """Have the kernel send this signal when the parent dies (prctl(2), PR_SET_PDEATHSIG).

    Linux sends it also when only the thread that started this process ends: ask os.getppid() what happened.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)


def command_line(pid: int) -> list[str]:
    """The arguments of a process; none if it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text(errors="replace").split("\0")[:-1]
    except OSError:
        return []


class Process:
    """Another process, told from a later one with the same number by the moment at which it started."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._started = _status(pid)[19:20]

    def is_alive(self) -> bool:
        """Whether it runs; a process that has ended but was not waited for does not."""
        fields = _status(self.pid)
        return fields[19:20] == self._started and fields[:1] not in ([], ["Z"], ["X"])


def is_stopped(pid: int) -> bool:
    """Whether a signal or a debugger holds the process."""
    return _status(pid)[:1] in (["T"], ["t"])


def out_of_memory_kills() -> int:
    """How many processes Linux has killed since it started because memory had run out."""
    counts = dict(line.split() for line in lines_of(Path("/proc/vmstat")))
    return int(counts.get("oom_kill", 0))


def is_deepspeed_launcher(pid: int) -> bool:
    """Whether this is the process of DeepSpeed's that starts the ranks of a machine."""
    return _LAUNCH_MODULE in command_line(pid)


def deepspeed_runner(launcher: int) -> Process | None:
    """The `deepspeed` command that has started this launcher: the process above it, or, on the machine from which a
    run of several was started, the one above the pdsh that reaches them; None if there is none here.
    """
    if not is_deepspeed_launcher(launcher):
        return None
    of_this_run = {word for word in command_line(launcher) if word.startswith(("--world_info=", "--master_port="))}
    for starter in (launcher, *_running("pdsh", of_this_run)):
        runner = Process(_parent(starter))
        first = command_line(runner.pid)[:4]  # python [-u] [-m] deepspeed
        named = any(Path(word).name in _RUNNER_NAMES or word == _RUNNER_MODULE for word in first)
        if named and runner.is_alive():
            return runner
    return None


def children(pid: int) -> list[int]:
    """The processes that this one has started, and that it has not waited for."""
    return [int(folder.name) for folder in Path("/proc").glob("[0-9]*") if _parent(int(folder.name)) == pid]


def _running(program: str, words: set[str]) -> Iterator[int]:
    """Processes of this program with these words in their command line."""
    for folder in Path("/proc").glob("[0-9]*"):
        line = command_line(int(folder.name))
        if line and Path(line[0]).name == program and words <= set(line):
            yield int(folder.name)


def _parent(pid: int) -> int:
    return int((_status(pid) or ["", "0"])[1])


def _status(pid: int) -> list[str]:
    """/proc/PID/stat from its third field on (proc(5)): state, parent, ...; empty if there is no such process."""
    lines = lines_of(Path(f"/proc/{pid}/stat"))
    return lines[0].rpartition(")")[2].split() if lines else []


def lines_of(path: Path) -> list[str]:
    """The lines of a file of /proc; none if it is gone or not for this user."""
    try:
        return path.read_text(errors="replace").splitlines()
    except OSError:
        return []
