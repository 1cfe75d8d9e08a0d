"""Threads sleep instead of spinning while other programs use the cores, and compute the same results."""

import subprocess
import sys
import threading
from pathlib import Path

import pytest
from storyteller_kernels import cpu_sharing
from storyteller_kernels.cpu_sharing import FREE, TAKEN, CoreSharing, Neighbors

WAITING = """
import resource, torch
from storyteller_kernels.cpu_sharing import CoreSharing
torch.set_num_threads(2)
class Neighbors:
    ranks, taken = 1, 0.0
    def look(self):
        return self.taken
sharing = CoreSharing(Neighbors(), threads=2, cores=CORES)
x = torch.randn(2**17, generator=torch.Generator().manual_seed(0))
def compute():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_nvcsw
    total = 0.0
    for _ in range(1000):
        total += float((x * 1.5).sum())
    return resource.getrusage(resource.RUSAGE_SELF).ru_nvcsw - before, total
compute()
alone = compute()
Neighbors.taken = 1.0
sharing.adjust()
beside = compute()
Neighbors.taken = 0.0
sharing.adjust()
again = compute()
print(alone[0], beside[0], again[0], alone[1] == beside[1] == again[1])
"""
"""Prints how often threads went to sleep alone, beside another program, and alone again; and whether sums are equal."""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only libgomp can be switched")
def test_threads_sleep_instead_of_spinning_while_the_cores_are_taken():
    cores = len(cpu_sharing.os.sched_getaffinity(0))
    if cores < 2:
        pytest.skip("on one core libgomp never spins")
    command = [sys.executable, "-c", WAITING.replace("CORES", str(cores))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    alone, beside, again, equal = done.stdout.split()
    assert equal == "True"
    assert int(beside) > 500
    # Negative controls: spinning threads hardly ever sleep, and they spin again once the cores are free.
    assert int(alone) < int(beside) / 4
    assert int(again) < int(beside) / 4


class Machine:
    """The time, and the core time that this process and others have used."""

    def __init__(self) -> None:
        self.now = self.own = self.others = 0.0

    def neighbors(self, ranks: int = 1) -> Neighbors:
        return Neighbors(ranks, lambda: (self.now, ranks * self.own + self.others, self.own))

    def pass_time(self, seconds: float, own: float, others: float) -> None:
        self.now, self.own, self.others = self.now + seconds, self.own + own, self.others + others


@pytest.mark.parametrize("ranks", [1, 2])
def test_cores_taken_are_those_of_other_programs(ranks: int):
    machine = Machine()
    neighbors = machine.neighbors(ranks)
    machine.pass_time(2.0, own=1.5, others=1.0)
    assert neighbors.look() == pytest.approx(0.5)
    machine.pass_time(1.0, own=0.5, others=0.0)
    assert neighbors.look() == 0.0
    assert neighbors.cores_taken == 0.0


def test_without_proc_stat_nobody_is_there():
    neighbors = Neighbors(read=lambda: None)
    assert neighbors.look() == 0.0


def test_idle_teams_come_and_go_with_the_other_programs():
    machine = Machine()
    sharing = CoreSharing(machine.neighbors(), threads=2, cores=2)

    def teams_after(others: float) -> int:
        machine.pass_time(1.0, own=1.0, others=others)
        sharing.adjust()
        return sum(thread.name == "idle team" for thread in threading.enumerate())

    assert teams_after(others=TAKEN / 2) == 0
    assert teams_after(others=1.0) == 1
    assert teams_after(others=(TAKEN + FREE) / 2) == 1  # no team comes or goes
    leader = next(thread for thread in threading.enumerate() if thread.name == "idle team")
    machine.pass_time(1.0, own=1.0, others=0.0)
    sharing.adjust()
    leader.join(timeout=30)
    assert not leader.is_alive()


@pytest.mark.parametrize(("threads", "cores", "teams"), [(2, 2, 1), (8, 16, 2), (16, 16, 1), (2, 8, 7)])
def test_more_threads_are_managed_than_there_are_cores(
    threads: int, cores: int, teams: int, monkeypatch: pytest.MonkeyPatch
):
    led = []
    monkeypatch.setattr(cpu_sharing, "_lead_idle_team", lambda size, ready, _: (led.append(size), ready.set()))
    machine = Machine()
    sharing = CoreSharing(machine.neighbors(), threads, cores)
    machine.pass_time(1.0, own=1.0, others=float(cores))
    sharing.adjust()
    assert led == [threads] * teams
    assert threads + teams * (threads - 1) > cores


def test_where_there_is_room_threads_go_on_spinning():
    machine = Machine()
    sharing = CoreSharing(machine.neighbors(), threads=2, cores=8)
    machine.pass_time(1.0, own=1.0, others=1.0)
    sharing.adjust()
    assert not any(thread.name == "idle team" for thread in threading.enumerate())


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="no /proc/stat")
def test_a_program_that_computes_beside_this_one_is_seen():
    neighbors = Neighbors()
    burn = "import time\nwhile time.process_time() < 1.0: pass"
    subprocess.run([sys.executable, "-c", burn], timeout=120, check=True)
    assert neighbors.look() > 0.1


def test_nothing_is_looked_at_while_python_ends():
    # At exit, Python ends a computing thread by unwinding its C++ frames, which aborts the process with exit code 134.
    code = (
        "import atexit, threading\n"
        "from storyteller_kernels.cpu_sharing import shared_cores\n"
        "atexit.register(lambda: print([t.name for t in threading.enumerate()]))\n"  # runs last: registered first
        "with shared_cores():\n"
        "    raise SystemExit\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout == "['MainThread']\n"
