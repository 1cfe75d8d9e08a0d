"""A real run of two presets, with a profile of three steps."""

import gzip
import json
import statistics
import time
from pathlib import Path
from typing import Any

import storyteller_ds as st
from benchmarks.gpu_check.part import Options, run_part

PRESETS, QUICK_PRESETS = ("fast_train", "moe_model"), ("tiny_test",)
MINUTES, QUICK_MINUTES = 1.5, 0.1
PROFILED = 20, 22
"""First and last profiled step."""
SKIPPED = 30
"""Steps whose speed does not count: the first ones compile, and then there is the profile."""


def measure(options: Options) -> dict[str, Any]:
    """A record of each preset."""
    presets, minutes = (QUICK_PRESETS, QUICK_MINUTES) if options.quick else (PRESETS, MINUTES)
    return {preset: _train(preset, minutes, options) for preset in presets}


def _train(preset: str, minutes: float, options: Options) -> dict[str, Any]:
    folder = options.out / "runs" / preset
    first, last = PROFILED
    overrides = [
        *options.overrides,
        f"parallel.device={options.device.type}",
        f"train.max_minutes={minutes}",
        f"train.profile_steps={first}-{last}",
        "train.max_steps=10000000",
        "train.eval_every_steps=200",
        "train.eval_batches=4",
        "checkpoint.every_steps=0",
        "tracking.wandb=disabled",
    ]
    began = time.monotonic()
    run = st.train(preset, overrides, output_dir=folder, resume="never")
    steps = [record for record in run.metrics if "train_loss" in record]
    measured = steps[SKIPPED:] or steps
    return {
        "seconds": time.monotonic() - began,
        "steps": run.step,
        "loss": [record["train_loss"] for record in steps[:: max(1, len(steps) // 50)]],
        "final_val_bpb": run.metrics[-1]["final_val_bpb"],
        **{
            name: statistics.median(record[name] for record in measured)
            for name in ("tokens_per_s", "step_time_s", "mfu", "data_wait")
        },
        "peak_bytes": steps[-1].get("memory_peak_bytes"),
        "launches_per_step": _launches(folder / "profile" / "trace.json.gz") / (last - first + 1),
        "operators": (folder / "profile" / "operators.txt").read_text(encoding="utf-8").splitlines(),
    }


def _launches(trace: Path) -> int:
    """Kernels that the traced steps launched; on a CPU, the operators in the trace."""
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    launches = [event for event in events if "LaunchKernel" in str(event.get("name"))]
    return len(launches) or sum(event.get("cat") == "cpu_op" for event in events)


if __name__ == "__main__":
    run_part("training", measure)
