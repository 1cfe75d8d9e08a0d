"""Two training steps of every preset: whether it runs, how long the second step takes, and how much memory it needs."""

import gc
import math
import sys
import time
from typing import Any

import torch

from benchmarks.gpu_check.part import Options, run_part
from storyteller_ds.bench.roofline import random_batches
from storyteller_ds.config import load_config
from storyteller_ds.config.files import preset_names
from storyteller_ds.distributed.plan import make_plan
from storyteller_ds.distributed.world import World
from storyteller_ds.engines.single import SingleEngine
from storyteller_ds.engines.step import train_step
from storyteller_ds.model import count_parameters, flops_per_token

QUICK_PARAMETERS = 5_000_000
"""With --quick, larger presets are left out."""


def measure(options: Options) -> dict[str, Any]:
    """A record of each preset."""
    found = {name: _steps(name, options) for name in preset_names()}
    return {"passed": all(each.get("finite", True) for each in found.values()), "presets": found}


def _steps(preset: str, options: Options) -> dict[str, Any]:
    run = load_config(preset).run
    if options.quick and count_parameters(run).total > QUICK_PARAMETERS:
        return {"left_out": "too large for --quick"}
    plan, device = make_plan(run, 1), options.device
    batches = random_batches(run, plan)
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    try:
        engine = SingleEngine(run, World(0, 0, 1, 1), device)
        losses, seconds = [], []
        for _ in range(2):
            began = time.perf_counter()
            losses.append(train_step(engine, batches, run.optimizer.lr).loss)  # which waits for the device
            seconds.append(time.perf_counter() - began)
    except torch.OutOfMemoryError as error:
        return {"out_of_memory": str(error).splitlines()[0]}
    tokens = run.train.global_batch_size * run.data.sequence_length
    return {
        "finite": all(math.isfinite(loss) for loss in losses),
        "losses": losses,
        "seconds": seconds[1],
        "tokens_per_s": tokens / seconds[1],
        "tflops": flops_per_token(run) * tokens / seconds[1] / 1e12,
        "peak_bytes": torch.cuda.max_memory_allocated() if device.type == "cuda" else None,
    }


if __name__ == "__main__":
    sys.exit(0 if run_part("presets", measure)["passed"] else 1)
