"""What saving costs on this machine: python -m benchmarks.checkpoint_overhead [RANKS]

Trains the preset tiny_test for many blocks of 50 steps in one run, in turn without saving, with a checkpoint at the
beginning of the block that is written while training continues, and with one that training waits for. The cost of a
save is how much longer the steps until it is in place take than the steps right after them in the same block: other
work on the machine changes from one second to the next by more than a save costs, and affects both. Blocks without
saving are measured in the same way and should give nothing. Prints the median over all blocks, and the quartiles.
"""

import dataclasses
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

from storyteller_kernels.cpu_memory import keep_freed_memory

from storyteller_ds.checkpoint.train_state import TrainState
from storyteller_ds.checkpoint.write import Contents
from storyteller_ds.config import LoadedConfig, load_config
from storyteller_ds.config.training import CheckpointConfig
from storyteller_ds.data.batching.batches import BatchSplit
from storyteller_ds.data.batching.loading import train_batches
from storyteller_ds.distributed.plan import ParallelPlan, make_plan
from storyteller_ds.distributed.ports import free_port
from storyteller_ds.distributed.shared_corpus import shared_corpus
from storyteller_ds.distributed.world import World, pick_device
from storyteller_ds.engines.build import build_engine
from storyteller_ds.engines.step import train_step
from storyteller_ds.training.callbacks.checkpoints import Checkpoints

EVERY_STEPS, ROUNDS, WARM_UP, LR = 50, 20, 10, 1e-3
KINDS = ("none", "asynchronous", "synchronous")
Times = dict[str, list[list[float]]]
"""For each kind, the seconds of the steps of each of its blocks."""


class Measured(NamedTuple):
    """Results of a run of all blocks."""

    times: Times
    last_steps: list[int]
    """For each block with saving, how many steps it took until the checkpoint was known to be in place."""
    size: int
    """Size of a checkpoint (bytes)."""


def main() -> None:
    """Start the ranks, or be one of them."""
    if os.environ.get("RANK"):
        run_rank(int(os.environ["WORLD_SIZE"]))
        return
    ranks = int(sys.argv[1]) if len(sys.argv) > 1 else 2
    if ranks == 1:
        run_rank(1)
        return
    torchrun = [str(Path(sys.executable).parent / "torchrun"), "--nproc_per_node", str(ranks)]
    command = [*torchrun, "--master_port", str(free_port()), "-m", "benchmarks.checkpoint_overhead"]
    threads = str(max(1, (os.cpu_count() or 1) // ranks))
    environment = {"OMP_NUM_THREADS": threads, **os.environ, "DS_ACCELERATOR": "cpu"}
    sys.exit(subprocess.run(command, env=environment, check=False).returncode)


def run_rank(ranks: int) -> None:
    """Train all blocks as one rank; rank 0 prints."""
    world = World.from_environment()
    loaded = load_config("tiny_test", ["parallel.device=cpu"], ds_config="zero2" if ranks > 1 else None)
    plan = make_plan(loaded.run, world.size)
    world.limit_threads()
    keep_freed_memory()
    with world.connected(pick_device("cpu", 0), 10) if ranks > 1 else nullcontext():
        # One folder for all ranks; only rank 0 creates and removes it.
        with tempfile.TemporaryDirectory() if world.is_main else nullcontext("") as folder:
            measured = measure(loaded, plan, world, Path(world.on_main(lambda: folder)))
        world.together(lambda: None)
    if world.is_main:
        report(ranks, measured)


def measure(loaded: LoadedConfig, plan: ParallelPlan, world: World, folder: Path) -> Measured:
    """Train all blocks."""
    run, device = loaded.run, pick_device("cpu", 0)
    corpus = shared_corpus(run, world, lambda _: None)
    split = BatchSplit(world.rank, plan.world_size, plan.micro_batch_size, plan.accumulation_steps)
    batches = train_batches(run, corpus, split)
    engine = build_engine(run, loaded.deepspeed, plan, world, device)

    topology = {"world_size": plan.world_size, "ep_size": plan.ep_size, "zero_stage": run.parallel.zero_stage}
    described = {"run": run.model_dump(mode="json"), "deepspeed": engine.passed_config, "topology": topology}
    contents = Contents({}, described, corpus.tokenizer.to_json(), corpus.fingerprint, topology)

    def hook(kind: str) -> Checkpoints:
        config = CheckpointConfig(every_steps=EVERY_STEPS, keep_last=1, asynchronous=kind == "asynchronous")
        return Checkpoints(engine, folder, config, contents, lambda _: last_steps.append(len(seconds) + 1))

    hooks = {kind: hook(kind) for kind in KINDS if kind != "none"}
    state = TrainState()
    times: Times = {kind: [] for kind in KINDS}
    seconds: list[float] = []
    last_steps: list[int] = []

    def block(kind: str, steps: int) -> list[float]:
        nonlocal state, seconds
        state = dataclasses.replace(state, step=state.step - state.step % EVERY_STEPS)  # a checkpoint is due
        world.together(lambda: None)
        seconds = []
        for _ in range(steps):
            began = time.perf_counter()
            if kind in hooks:
                hooks[kind].on_step_end(state, last=False)
            train_step(engine, batches.step(state.samples), LR)
            state = state.after_step(
                run.train.global_batch_size, run.train.global_batch_size * run.data.sequence_length
            )
            seconds.append(time.perf_counter() - began)
        return seconds

    for kind in KINDS:
        block(kind, WARM_UP)
    last_steps.clear()
    for number in range(ROUNDS):
        for kind in KINDS[number % 3 :] + KINDS[: number % 3]:
            times[kind].append(block(kind, EVERY_STEPS))
    size = world.on_main(lambda: sum(path.stat().st_size for path in next(folder.glob("step_*")).iterdir()))
    return Measured(times, last_steps, size)


def report(ranks: int, measured: Measured) -> None:
    """Print the table."""
    window = max(measured.last_steps)
    print(
        f"{ranks} rank(s), a checkpoint of {measured.size / 2**20:.1f} MiB every {EVERY_STEPS} steps, {ROUNDS} rounds;"
    )
    print(f"each was in place after at most {window} step(s)\n")
    if len(measured.last_steps) != 2 * ROUNDS or 3 * window > EVERY_STEPS:
        sys.exit("some were not in place for too long to measure their cost; run again on a quieter disk")
    print("| saving | step | a save costs | quartiles | of the time of 50 steps |\n|---|---|---|---|---|")
    for kind, blocks in measured.times.items():
        usual = [statistics.median(block[window : 3 * window]) for block in blocks]
        extra = [sum(block[:window]) - window * step for block, step in zip(blocks, usual, strict=True)]
        step = statistics.median(usual)
        lower, middle, upper = statistics.quantiles(extra, n=4)
        share = middle / (EVERY_STEPS * step)
        print(
            f"| {kind} | {1000 * step:.0f} ms | {1000 * middle:.0f} ms | {1000 * lower:.0f} to {1000 * upper:.0f} ms "
            f"| {share:.1%} |"
        )


if __name__ == "__main__":
    main()
