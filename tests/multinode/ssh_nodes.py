"""Two nodes on one machine: one sshd each, on 127.0.0.1 and 127.0.0.2, with their own keys, port and settings."""

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import psutil

from storyteller_ds.distributed.ports import free_port

from .processes import MARK, kill, kill_marked, processes_of, wait_until

ADDRESSES = ("127.0.0.1", "127.0.0.2")
LAUNCHER_MARK = "launcher"


@dataclass(frozen=True)
class Node:
    """One of the two nodes; everything started through its ssh server or with its `environment` belongs to it."""

    address: str
    mark: str
    sshd: "subprocess.Popen[bytes]"

    @property
    def environment(self) -> dict[str, str]:
        """The environment of a command that is started on this node without ssh."""
        return {MARK: self.mark, "GLOO_SOCKET_IFNAME": "lo"}

    def processes(self) -> list[psutil.Process]:
        """All processes that run on it, except its ssh server."""
        return processes_of(self.mark)

    def kill(self) -> None:
        """Send SIGKILL to all its processes and to its ssh connections."""
        kill([*psutil.Process(self.sshd.pid).children(recursive=True), *self.processes()])
        kill_marked(self.mark)


class SshNodes:
    """Both nodes, and what a launcher needs to reach them. Linux only: other systems have no 127.0.0.2."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.nodes: list[Node] = []
        self.port = free_port()
        for key in ("host_key", "user_key"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / key], check=True)
        (folder / "ssh_config").write_text(
            f"Port {self.port}\n"
            f"IdentityFile {folder / 'user_key'}\n"
            "IdentitiesOnly yes\n"
            f"UserKnownHostsFile {folder / 'known_hosts'}\n"
            "StrictHostKeyChecking accept-new\n"
            "LogLevel ERROR\n"
        )
        # ssh reads its settings from the account's home folder, where a user would put them; this wrapper passes ours.
        ssh = folder / "bin" / "ssh"
        ssh.parent.mkdir()
        ssh.write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F {folder / "ssh_config"} "$@"\n')
        ssh.chmod(0o755)
        # ssh does not pass these variables on; DeepSpeed exports PYTHON* and what this file names.
        (folder / "deepspeed_env").write_text(
            f"DS_ACCELERATOR=cpu\nGLOO_SOCKET_IFNAME=lo\nSTORYTELLER_CACHE={os.environ['STORYTELLER_CACHE']}\n"
        )
        self.environment = {
            "PATH": f"{ssh.parent}:{os.environ['PATH']}",
            "DS_ENV_FILE": str(folder / "deepspeed_env"),
            MARK: f"{folder}/{LAUNCHER_MARK}",
        }
        """The environment of a launcher that reaches the nodes by ssh."""

    def start(self) -> None:
        """Start both ssh servers and wait until they answer."""
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # root's sshd needs it for privilege separation
        for address in ADDRESSES:
            self.nodes.append(self._start_node(address))
        for node in self.nodes:
            wait_until(lambda node=node: self._answers(node), 60, f"{node.address} does not answer: {self._log(node)}")

    def hostfile(self, slots: int) -> Path:
        """A DeepSpeed hostfile with this many ranks for each node."""
        path = self.folder / f"hostfile_{slots}"
        path.write_text("".join(f"{node.address} slots={slots}\n" for node in self.nodes))
        return path

    def end_all_jobs(self) -> None:
        """Send SIGKILL to whatever a test has left on the nodes, and to launchers."""
        kill_marked(self.environment[MARK])
        for node in self.nodes:
            node.kill()

    def stop(self) -> None:
        """Stop both nodes and everything that runs on them."""
        self.end_all_jobs()
        for node in self.nodes:
            node.sshd.kill()
            node.sshd.wait(timeout=30)

    def _start_node(self, address: str) -> Node:
        mark = f"{self.folder}/{address}"
        settings = self.folder / f"sshd_{address}"
        settings.write_text(
            f"ListenAddress {address}:{self.port}\n"
            f"HostKey {self.folder / 'host_key'}\n"
            f"AuthorizedKeysFile {self.folder / 'user_key.pub'}\n"
            f"SetEnv {MARK}={mark}\n"
            "PidFile none\n"
            "PasswordAuthentication no\n"
            "PermitRootLogin prohibit-password\n"
            "StrictModes no\n"  # the folder is a temporary one
            "UsePAM no\n"
        )
        sshd = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/local/sbin:/usr/sbin:/sbin")
        assert sshd, "sshd is not installed: sh tests/multinode/install.sh ssh"
        with (self.folder / f"log_{address}").open("wb") as log:
            # -e makes it log to stderr. It needs its absolute path, to start itself again for each connection.
            process = subprocess.Popen([sshd, "-D", "-e", "-f", settings], stdout=log, stderr=log)
        return Node(address, mark, process)

    def _answers(self, node: Node) -> bool:
        assert node.sshd.poll() is None, f"sshd of {node.address} has ended: {self._log(node)}"
        command = [self.folder / "bin" / "ssh", node.address, "true"]
        return subprocess.run(command, capture_output=True, timeout=30).returncode == 0

    def _log(self, node: Node) -> str:
        return (self.folder / f"log_{node.address}").read_text()
