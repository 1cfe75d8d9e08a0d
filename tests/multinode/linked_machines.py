"""Two machines connected only by a cable: network namespaces and a veth pair.

Pulling the cable simulates a lost machine. On loopback the kernel closes the connections of a killed process, so its
peers notice; a machine that loses power or its network closes nothing.
"""

import os
import subprocess
from pathlib import Path

import psutil

from .processes import MARK, kill_marked, processes_of, wait_until

INTERFACE = "cable"


class LinkedMachines:
    """Both machines. Needs root or a system that lets users create user namespaces."""

    addresses = ("10.77.0.1", "10.77.0.2")

    def __init__(self, folder: Path):
        self._folder = folder
        self._user = [] if os.geteuid() == 0 else ["--user"]
        self._holders: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        """Create both machines and plug in the cable."""
        # A namespace lives as long as a process in it; these two processes end with us.
        hold = ["--net", "setpriv", "--pdeathsig", "KILL", "sleep", "infinity"]
        map_user = ["--map-root-user"] if self._user else []
        self._hold(["unshare", *self._user, *map_user, *hold])
        user_of_first = ["nsenter", "--target", str(self._holders[0].pid), *self._user, "--preserve-credentials"]
        self._hold([*(user_of_first if self._user else []), "unshare", *hold])
        link = f"ip link add {INTERFACE} type veth peer name {INTERFACE} netns {self._holders[1].pid}"
        subprocess.run([*self.enter(0), *link.split()], check=True)
        for machine, address in enumerate(self.addresses):
            setting = f"ip link set lo up && ip addr add {address}/24 dev {INTERFACE} && ip link set {INTERFACE} up"
            subprocess.run([*self.enter(machine), "sh", "-c", setting], check=True)

    def enter(self, machine: int) -> list[str]:
        """What to put before a command to run it on a machine, 0 or 1."""
        keep = ["--preserve-credentials"] if self._user else []
        return ["nsenter", "--target", str(self._holders[machine].pid), "--net", *self._user, *keep]

    def environment(self, machine: int) -> dict[str, str]:
        """The environment of a command to run on a machine."""
        return {MARK: self._mark(machine), "GLOO_SOCKET_IFNAME": INTERFACE}

    def hostfile(self) -> Path:
        """A DeepSpeed hostfile with one rank for each machine."""
        path = self._folder / "hostfile"
        path.write_text("".join(f"{address} slots=1\n" for address in self.addresses))
        return path

    def processes(self, machine: int) -> list[psutil.Process]:
        """All processes that run on a machine."""
        return processes_of(self._mark(machine))

    def pull_the_cable(self) -> None:
        """Cut the link: neither machine hears from the other any more, and no connection is closed."""
        subprocess.run([*self.enter(0), "ip", "link", "set", INTERFACE, "down"], check=True)

    def stop(self) -> None:
        """Stop both machines and everything that runs on them; the kernel then removes the namespaces and the cable."""
        for machine in range(len(self.addresses)):
            kill_marked(self._mark(machine))
        for holder in self._holders:
            holder.kill()
            holder.wait(timeout=30)

    def _hold(self, command: list[str]) -> None:
        self._holders.append(subprocess.Popen(command, stdout=subprocess.DEVNULL))
        wait_until(lambda: self._holds(self._holders[-1]), 30, f"{command} made no network namespace")

    @staticmethod
    def _holds(holder: "subprocess.Popen[bytes]") -> bool:
        assert holder.poll() is None, "no network namespace; this test needs root, or user namespaces for everyone"
        return psutil.Process(holder.pid).name() == "sleep"

    def _mark(self, machine: int) -> str:
        return f"{self._folder}/machine_{machine}"
