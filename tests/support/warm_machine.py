"""Starts runs through warm_launcher.py and observes them."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from tests.support.distributed import DS_CONFIGS, REPOSITORY, TRAIN, wait_until
from tests.support.runs import read_metrics


class MainJob(Protocol):
    """Runs the main job, which must succeed."""

    def __call__(self, folder: Path, ranks: int, ds_config: str | None, *arguments: str) -> Path:
        """Run the job and return its output folder, the one given.

        Args:
            folder: output folder; must not exist, or be that of an earlier run of the same job.
            ranks: number of processes.
            ds_config: name in ds_configs/ without .json, or None.
            arguments: further arguments of launch/train.py.
        """


STORYTELLER = REPOSITORY / "storyteller_ds" / "__main__.py"


class WarmMachine:
    """The process from which all ranks are forked."""

    def __init__(self) -> None:
        self.runs: list[Run] = []
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("warm_launcher.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            start_new_session=True,
        )

    def ask(self, request: Mapping[str, Any]) -> Any:
        """Send a request to warm_launcher.py; returns its reply."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def start(
        self,
        ranks: int,
        command: Sequence[str],
        logs: Path,
        env: Mapping[str, str] | None = None,
        console: str | None = None,
    ) -> "Run":
        """Start a Python script with its arguments on this many ranks.

        Its output goes to files in `logs`, a new folder, or to `console` if given.
        """
        logs.mkdir()
        stdout, stderr = logs / "stdout", logs / "stderr"
        stdout.touch()
        stderr.touch()
        request = {"stdout": console or str(stdout), "stderr": console or str(stderr)}
        pid = self.ask({"command": list(command), "ranks": ranks, **request, "env": dict(env or {})})
        self.runs.append(Run(self, pid, stdout, stderr))
        return self.runs[-1]

    def main_job(self, folder: Path, ranks: int, ds_config: str | None, *arguments: str, script: Path = TRAIN) -> "Run":
        """Start launch/train.py, or another script, with this output folder; the logs are beside it."""
        command = [str(script), *ds_arguments(ds_config), "--output_dir", str(folder), *arguments]
        return self.start(ranks, command, Path(tempfile.mkdtemp(prefix="logs", dir=folder.parent)) / "run")

    def close(self) -> None:
        """End the process and everything that it has started."""
        for run in self.runs:
            run.kill()
        self.process.kill()
        self.process.communicate()


class Run:
    """A started command: a launcher, with a supervisor and a training process for each rank."""

    def __init__(self, machine: WarmMachine, pid: int, stdout: Path, stderr: Path) -> None:
        self.machine, self.pid, self._stdout, self._stderr = machine, pid, stdout, stderr
        self.code: int | None = None

    def ended(self) -> bool:
        """Whether its launcher has ended."""
        if self.code is None:
            self.code = self.machine.ask({"ended": self.pid})
        return self.code is not None

    def wait(self, seconds: float) -> int:
        """Wait for the run and return its exit code; a run that hangs fails the test.

        The code is minus the signal's number if the launcher was killed.
        """
        if not wait_until(self.ended, seconds):
            left = self.members()
            self.kill()
            raise AssertionError(f"still running after {seconds} s: {left}\n{self.stderr}")
        assert self.code is not None
        return self.code

    @property
    def stdout(self) -> str:
        """The run's stdout so far."""
        return self._stdout.read_text(errors="replace")

    @property
    def stderr(self) -> str:
        """The run's stderr so far."""
        return self._stderr.read_text(errors="replace")

    @property
    def lines(self) -> list[str]:
        """Our own lines on stderr, which a run prints if it ends early."""
        return [line for line in self.stderr.splitlines() if line.startswith("storyteller: ")]

    def members(self) -> dict[int, int]:
        """pid -> parent pid of the run's live processes; they are found by session, so orphans are included."""
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                state, parent, _, session = (folder / "stat").read_text().rpartition(")")[2].split()[:4]
                if int(session) == self.pid and state not in "ZX":
                    found[int(folder.name)] = int(parent)
        return found

    def training(self, rank: int) -> int:
        """pid of the training process of this rank."""
        return self._children(self.supervisor(rank))[0]

    def supervisor(self, rank: int) -> int:
        """pid of the supervisor of this rank; ranks are forked in order."""
        return self._children(self.pid)[rank]

    def _children(self, parent: int) -> list[int]:
        return sorted(pid for pid, its_parent in self.members().items() if its_parent == parent)

    def wait_for_step(self, step: int, folder: Path, seconds: float = 120) -> None:
        """Wait until the metrics contain this step; a run that ends earlier fails the test."""
        metrics = folder / "metrics.jsonl"

        def there() -> bool:
            with contextlib.suppress(FileNotFoundError, ValueError):  # a line may be half-written
                return any(line["step"] >= step for line in read_metrics(folder))
            return False

        assert wait_until(lambda: there() or self.ended(), seconds), f"no step {step} in {metrics}\n{self.stderr}"
        assert not self.ended(), f"ended with {self.code} before step {step}\n{self.stderr}"

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to all processes of the run, as a terminal (SIGINT) or a scheduler does."""
        os.killpg(self.pid, number)

    def kill(self) -> None:
        """Kill all processes of the run with SIGKILL."""
        while members := self.members():
            for pid in members:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self.ended()


def ds_arguments(ds_config: str | None) -> list[str]:
    """The arguments --ds_config and a JSON of ds_configs/; none for None."""
    return [] if ds_config is None else ["--ds_config", str(DS_CONFIGS / f"{ds_config}.json")]
