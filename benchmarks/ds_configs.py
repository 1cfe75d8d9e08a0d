"""What each DeepSpeed JSON costs on this machine: python -m benchmarks.ds_configs [NAME ...]

Trains the same MoE model for a few steps with every JSON of ds_configs/, on two ranks, and prints the table of
ds_configs/README.md: the median time of a step, and the largest resident memory of a rank.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from storyteller_kernels.dispatch import instruction_set

from tests.support.distributed import DS_CONFIGS, torchrun_command

RANKS, STEPS, WARM_UP = 2, 8, 2
RUN = (
    *("--config", "fast_train", "model.dropout=0"),
    *("data.source=builtin", "data.builtin_stories=2000", "data.sequence_length=256"),
    *("train.global_batch_size=4", "train.micro_batch_size=2", "train.gradient_accumulation_steps=1"),
    *(f"train.max_steps={STEPS}", "train.log_every_steps=1", "train.eval_batches=1", "train.sample_tokens=1"),
    *("tracking.wandb=disabled", "--quiet"),
)


class Cost(NamedTuple):
    """What one JSON cost."""

    step_s: float
    peak_bytes: int


def main() -> None:
    """Measure every JSON, or those named, and print the table."""
    names = sys.argv[1:] or sorted(path.stem for path in DS_CONFIGS.glob("*.json"))
    print(f"two ranks on a CPU with {instruction_set()}\n", flush=True)
    print("| JSON | step | memory of a rank |\n|---|---|---|", flush=True)
    for name in (None, *names):
        cost = measure(name)
        label = f"{name}.json" if name else "none: one process has the whole batch"
        print(f"| {label} | {cost.step_s:.2f} s | {cost.peak_bytes / 2**20:,.0f} MiB |", flush=True)


def measure(name: str | None) -> Cost:
    """Train with one JSON (None: one process, no DeepSpeed)."""
    with tempfile.TemporaryDirectory() as folder:
        swap = f"parallel.nvme_path={folder}"
        override = [swap] if name else ["train.micro_batch_size=4"]
        command = torchrun_command(RANKS if name else 1, name, "--output_dir", f"{folder}/run", *RUN, *override)
        environment = {**os.environ, "DS_ACCELERATOR": "cpu"}
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        assert process.stderr is not None
        errors = process.stderr.read().decode()
        # The peak of the launcher's largest child process, which is a rank.
        _, status, usage = os.wait4(process.pid, 0)
        if status != 0:
            sys.exit(f"{name}: {errors}")
        lines = (Path(folder) / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    times = [record["step_time_s"] for record in map(json.loads, lines) if "step_time_s" in record]
    return Cost(statistics.median(times[WARM_UP:]), usage.ru_maxrss * 1024)


if __name__ == "__main__":
    main()
