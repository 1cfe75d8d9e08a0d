"""What other programs on this machine cost a run: python -m benchmarks.busy_machine [RANKS]

Trains the preset quickstart in three processes (with RANKS: of that many ranks each). The one that is measured runs
alone, next to a busy loop, and next to a second run, in turn, ROUNDS times; all others are stopped. One of the measured
runs keeps the default waiting of threads (GOMP_SPINCOUNT=300000, libgomp's default, keeps
storyteller_kernels.cpu_sharing from switching). Prints the median step of each, and its ratio to the one alone.
"""

import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from storyteller_ds.distributed.ports import free_port
from tests.support.distributed import DS_CONFIGS, TRAIN

ROUNDS, PHASE_S, SETTLE_S = 5, 5.0, 1.5
DEFAULT_WAITING = {"GOMP_SPINCOUNT": "300000"}
BURN = [sys.executable, "-c", "while True: pass"]


class Run:
    """A run in the background, which can be stopped and continued as a whole."""

    def __init__(self, folder: Path, ranks: int, environment: dict[str, str]) -> None:
        self.metrics = folder / "metrics.jsonl"
        settings = [
            *("--output_dir", str(folder), "--quiet", "train.max_steps=1000000", "train.eval_every_steps=0"),
            *("train.sample_every_steps=0", "checkpoint.every_steps=0", "tracking.wandb=disabled"),
        ]
        command = [sys.executable, str(TRAIN), *settings]
        if ranks > 1:
            launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(ranks)]
            port = ["--master_port", str(free_port())]
            command = [*launcher, *port, str(TRAIN), "--ds_config", str(DS_CONFIGS / "zero2.json"), *settings]
        self.process = subprocess.Popen(command, env={**os.environ, "DS_ACCELERATOR": "cpu", **environment})

    def send(self, number: int) -> None:
        """Send a signal to all of its processes; torchrun gives each rank its own session."""
        for process in [*psutil.Process(self.process.pid).children(recursive=True), self.process]:
            process.send_signal(number)

    def step_times(self) -> list[float]:
        """Seconds of each step so far."""
        lines = self.metrics.read_text(encoding="utf-8").splitlines() if self.metrics.exists() else []
        return [json.loads(line)["step_time_s"] for line in lines]


def main() -> None:
    """Measure and print a table."""
    ranks = int(sys.argv[1]) if len(sys.argv) > 1 else 1
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // ranks)))  # as torchrun sets it
    loop = subprocess.Popen(BURN)
    loop.send_signal(signal.SIGSTOP)
    runs: dict[str, Run] = {}
    folder = Path(tempfile.mkdtemp())
    try:
        for name, environment in (("now", {}), ("second", {}), ("default", DEFAULT_WAITING)):
            runs[name] = Run(folder / name, ranks, environment)
            while len(runs[name].step_times()) < 10:
                if runs[name].process.poll() is not None:
                    sys.exit(f"the run {name} ended by itself")
                time.sleep(0.2)
            runs[name].send(signal.SIGSTOP)
        report(measure(runs, loop), ranks)
    finally:
        loop.kill()
        for run in runs.values():
            run.send(signal.SIGKILL)
            run.process.wait()
        shutil.rmtree(folder)


def measure(runs: dict[str, Run], loop: "subprocess.Popen[bytes]") -> dict[tuple[str, str], list[float]]:
    """Step times (s) of each run, alone and next to each other program."""
    second = runs["second"]
    times: dict[tuple[str, str], list[float]] = {}
    for _ in range(ROUNDS):
        for name in ("now", "default"):
            for company in ("alone", "busy loop", "second run"):
                beside = {"alone": None, "busy loop": loop.send_signal, "second run": second.send}[company]
                if beside is not None:
                    beside(signal.SIGCONT)
                times.setdefault((name, company), []).extend(_steps_in_a_phase(runs[name]))
                if beside is not None:
                    beside(signal.SIGSTOP)
    return times


def _steps_in_a_phase(run: Run) -> list[float]:
    run.send(signal.SIGCONT)
    time.sleep(SETTLE_S)
    before = len(run.step_times())
    time.sleep(PHASE_S)
    steps = run.step_times()[before:]
    run.send(signal.SIGSTOP)
    return steps[1:]  # the first one began before


def report(times: dict[tuple[str, str], list[float]], ranks: int) -> None:
    """Print the table."""
    print(f"{ranks} rank(s), {os.cpu_count()} cores; median seconds of a step (of so many steps), times alone\n")
    print("| threads wait | alone | beside a busy loop | beside a second run |\n|---|---|---|---|")
    for name, label in (("now", "politely while others use the cores"), ("default", "as by default")):
        alone = statistics.median(times[name, "alone"])
        cells = [f"{alone:.3f} s ({len(times[name, 'alone'])})"]
        for company in ("busy loop", "second run"):
            steps = times[name, company]
            middle = statistics.median(steps) if steps else float("inf")
            cells.append(f"{middle:.3f} s ({len(steps)}), {middle / alone:.2f}x")
        print(f"| {label} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
