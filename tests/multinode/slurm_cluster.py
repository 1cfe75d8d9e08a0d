"""Slurm on one machine: munge, a controller and two nodes, run as this user, with all files in one folder."""

import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import psutil

from storyteller_ds.distributed.ports import free_port
from tests.support.distributed import REPOSITORY

from .processes import MARK, kill_marked, processes_of, wait_until

HOST = socket.gethostname().split(".")[0]
# Ranks connect to the first node by name, so its name must resolve.
NODES = (HOST, f"{HOST}-second")
CPUS_PER_NODE = 4
ENDED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE"}


class SlurmCluster:
    """A cluster of two nodes that share this machine. Linux only."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._mark = f"{folder}/slurm"
        self._munge_socket = folder / "munge.socket"
        self._daemons: list[subprocess.Popen[bytes]] = []
        self.environment = {
            "SLURM_CONF": str(folder / "slurm.conf"),
            # What a user has set when submitting; sbatch passes it on.
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "DS_ACCELERATOR": "cpu",
            "GLOO_SOCKET_IFNAME": "lo",
            MARK: self._mark,
        }
        """The environment of every command that talks to the cluster."""

    def start(self) -> None:
        """Start all daemons and wait until the nodes accept jobs."""
        self._configure()
        key = self.folder / "munge.key"
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o400)
        # --force, since munge wants the folder of its socket to be more accessible than a temporary folder is.
        files = {"socket": self._munge_socket, "key-file": key}
        files |= {f"{name}-file": self.folder / f"munge.{name}" for name in ("pid", "log", "seed")}
        self._start_daemon("munged", "--foreground", "--force", *(f"--{name}={path}" for name, path in files.items()))
        wait_until(self._munge_socket.exists, 30, f"munged makes no socket: {self._logs()}")
        self._start_daemon("slurmctld", "-D", "-c")
        for node in NODES:
            self._start_daemon("slurmd", "-D", "-N", node)
        wait_until(self._takes_jobs, 60, f"the nodes do not come up: {self._logs()}")

    def submit(self, *arguments: str) -> str:
        """Run sbatch in the repository's folder with this environment active; returns the job number."""
        return self._command("sbatch", "--parsable", *arguments).strip()

    def state(self, job: str) -> tuple[str, str]:
        """State of a job, such as RUNNING, and its exit code, such as 0:0 (exit code : signal)."""
        return self._field(job, "JobState"), self._field(job, "ExitCode")

    def restarts(self, job: str) -> int:
        """How often a job was requeued and started again."""
        return int(self._field(job, "Restarts"))

    def start_soon(self, job: str) -> None:
        """Spare a requeued job the two minutes that Slurm gives nodes to settle.

        It must wait a few seconds: nodes refuse credentials of the second in which the job last ended.
        """
        self._command("scontrol", "update", f"JobId={job}", "StartTime=now+3seconds")

    def wait(self, job: str, limit_s: float) -> tuple[str, str]:
        """Wait for the end of a job; returns its last state and its exit code."""
        wait_until(lambda: self.state(job)[0] in ENDED, limit_s, f"job {job} has not ended: {self._logs()}")
        return self.state(job)

    def cancel(self, *arguments: str) -> None:
        """Run scancel."""
        self._command("scancel", *arguments)

    def job_processes(self) -> list[psutil.Process]:
        """All processes started by jobs, but not Slurm's own watchers, which hide their environment."""
        daemons = {daemon.pid for daemon in self._daemons}
        return [process for process in processes_of(self._mark) if process.pid not in daemons]

    def end_all_jobs(self) -> None:
        """scancel whatever a test has left, and wait until the nodes are free again."""
        self.cancel("--me", "--signal=KILL", "--full")
        self.cancel("--me")
        wait_until(self._takes_jobs, 60, f"jobs do not end: {self._logs()}")

    def stop(self) -> None:
        """Stop the cluster and everything that runs in it."""
        for daemon in reversed(self._daemons):
            daemon.kill()
        kill_marked(self._mark)
        for daemon in self._daemons:
            daemon.wait(timeout=30)

    def _configure(self) -> None:
        # The daemons run as this user: no other account is needed, and none can use this cluster.
        settings = {
            "ClusterName": "test",
            "SlurmctldHost": "localhost(127.0.0.1)",
            "SlurmctldPort": free_port(),
            "SlurmUser": psutil.Process().username(),
            "SlurmdUser": psutil.Process().username(),
            "AuthType": "auth/munge",
            "AuthInfo": f"socket={self._munge_socket}",
            "CredType": "cred/munge",
            "StateSaveLocation": self.folder / "state",
            "SlurmdSpoolDir": self.folder / "spool_%n",
            "SlurmctldPidFile": self.folder / "slurmctld.pid",
            "SlurmdPidFile": self.folder / "slurmd_%n.pid",
            "SlurmctldLogFile": self.folder / "slurmctld.log",
            "SlurmdLogFile": self.folder / "slurmd_%n.log",
            # Containers have no control groups of their own to delegate.
            "ProctrackType": "proctrack/linuxproc",
            "TaskPlugin": "task/none",
            "JobAcctGatherType": "jobacct_gather/none",
            "MpiDefault": "none",
            "SelectType": "select/cons_tres",
            "SelectTypeParameters": "CR_Core",
            "ReturnToService": 2,
            # Nodes have the sizes given here, whatever the machine has.
            "SlurmdParameters": "config_overrides",
        }
        (self.folder / "state").mkdir()
        lines = [f"{name}={value}" for name, value in settings.items()]
        for node in NODES:
            here = f"NodeHostname={HOST} NodeAddr=127.0.0.1 Port={free_port()}"
            lines.append(f"NodeName={node} {here} CPUs={CPUS_PER_NODE} RealMemory=4000")
        lines.append("PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP")
        (self.folder / "slurm.conf").write_text("\n".join(lines) + "\n")
        # "disabled" came with 24.05; before that, naming a version keeps slurmd from asking systemd for a cgroup.
        version = subprocess.run([_program("slurmd"), "-V"], check=True, capture_output=True, text=True).stdout
        number = re.search(r"(\d+)\.(\d+)", version)
        assert number, version
        plugin = "disabled" if (int(number[1]), int(number[2])) >= (24, 5) else "cgroup/v1"
        (self.folder / "cgroup.conf").write_text(f"CgroupPlugin={plugin}\n")

    def _start_daemon(self, program: str, *arguments: str) -> None:
        log = self.folder / f"{program}_{len(self._daemons)}.out"
        with log.open("wb") as file:
            command = [_program(program), *arguments]
            environment = {**os.environ, **self.environment}
            self._daemons.append(subprocess.Popen(command, env=environment, stdout=file, stderr=file))

    def _takes_jobs(self) -> bool:
        for daemon in self._daemons:
            assert daemon.poll() is None, f"{daemon.args} has ended: {self._logs()}"
        command = [_program("sinfo"), "--noheader", "--Node", "--format=%T"]
        states = subprocess.run(command, env={**os.environ, **self.environment}, capture_output=True, text=True)
        return states.stdout.split() == ["idle"] * len(NODES)

    def _field(self, job: str, name: str) -> str:
        description = self._command("scontrol", "--oneliner", "show", "job", job)
        found = re.search(rf"\b{name}=(\S+)", description)
        assert found, description
        return found[1]

    def _command(self, program: str, *arguments: str) -> str:
        done = subprocess.run(
            [_program(program), *arguments],
            cwd=REPOSITORY,
            env={**os.environ, **self.environment},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, f"{program} {arguments}: {done.stderr}"
        return done.stdout

    def _logs(self) -> str:
        files = sorted([*self.folder.glob("*.out"), *self.folder.glob("*.log")])
        return "\n".join(f"== {file.name}\n{file.read_text(errors='replace')[-2000:]}" for file in files)


def _program(name: str) -> str:
    path = shutil.which(name, path=f"{os.environ['PATH']}:/usr/local/sbin:/usr/sbin:/sbin")
    assert path, f"{name} is not installed: sh tests/multinode/install.sh slurm"
    return path
