"""One rank of one row: train, and write down everything that is compared."""

import os
import resource
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from multiprocessing import parent_process
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from storyteller_ds.certify.results import RankReport, StepNumbers, write_rank
from storyteller_ds.certify.traffic import Traffic, counted
from storyteller_ds.config import LoadedConfig, load_config
from storyteller_ds.data.batches import BatchSplit, TrainBatches, ValidationBatches
from storyteller_ds.data.corpus import Corpus, open_corpus
from storyteller_ds.distributed.plan import ParallelPlan, make_plan
from storyteller_ds.distributed.world import World, pick_device
from storyteller_ds.engines.base import Engine
from storyteller_ds.engines.build import build_engine
from storyteller_ds.errors import StorytellerError
from storyteller_ds.model.moe.router import Router
from storyteller_ds.optim.schedule import learning_rate

FAULT = "STORYTELLER_CERTIFY_FAULT"
"""Environment variable for the test that a wrong result is noticed: `gradient_scale`."""
_FAULTY_SCALE = 1.01


@dataclass(frozen=True)
class Job:
    """What the ranks of a row are told."""

    preset: str
    overrides: tuple[str, ...]
    ds_config: Path | None
    """The DeepSpeed JSON."""
    corpus_key: str
    """Of the corpus that is already prepared."""
    ranks: int
    device: str
    """cpu or cuda."""
    port: int
    """Where the ranks meet."""
    folder: Path
    """Where results, errors and output go."""

    def log(self, rank: int) -> Path:
        """What the rank and its libraries print."""
        return self.folder / f"rank{rank}.log"

    def error(self, rank: int) -> Path:
        """One line on why the rank gave up; absent if it did not."""
        return self.folder / f"rank{rank}.error"


def run_rank(job: Job, rank: int) -> NoReturn:
    """Be one rank of the row; ends this process, 0 if everything is written, else 1 with a line in job.error."""
    # A process group of its own, so that what DeepSpeed may start ends with it.
    os.setpgrp()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    output = os.open(job.log(rank), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    code = 1
    try:
        _set_environment(job, rank)
        _train_and_write(job)
        code = 0
    except StorytellerError as error:
        job.error(rank).write_text(str(error), encoding="utf-8")
    except BaseException as error:
        traceback.print_exc()
        reason = str(error).strip().splitlines()
        job.error(rank).write_text(f"{type(error).__name__}: {reason[0] if reason else ''}", encoding="utf-8")
    sys.stdout.flush()
    sys.stderr.flush()
    # Without Python's finalisation, which gloo's threads may not survive (docs/experiments.md).
    os._exit(code)


def _end_with_parent() -> None:
    """End this rank, and whatever it has started, when the certifying process is gone."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os.killpg(os.getpgrp(), signal.SIGKILL)


def _set_environment(job: Job, rank: int) -> None:
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(job.ranks),
        LOCAL_WORLD_SIZE=str(job.ranks),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(job.port),
        DS_ACCELERATOR=job.device,
    )
    if job.device == "cuda":
        # Must be set before the first product for deterministic cuBLAS.
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.use_deterministic_algorithms(True, warn_only=True)


def _train_and_write(job: Job) -> None:
    world = World.from_environment()
    loaded = load_config(job.preset, [*job.overrides, f"parallel.device={job.device}"], ds_config=job.ds_config)
    device = pick_device(job.device, world.local_rank)
    plan = make_plan(loaded.run, world.size)
    # The model is too small to share among cores, and one thread is the same reduction order on every machine.
    torch.set_num_threads(1)
    corpus = open_corpus(loaded.run, job.corpus_key)
    timeout = loaded.run.parallel.timeout_minutes
    with world.connected(device, timeout) if loaded.deepspeed is not None else nullcontext():
        engine = build_engine(loaded.run, loaded.deepspeed, plan, world, device)
        with _fault(engine, loaded), _router_margins(engine, loaded) as margins, counted() as traffic:
            steps, times = _train(engine, loaded, plan, corpus)
        report = RankReport(
            steps=steps,
            step_times_s=times,
            peak_memory_bytes=_peak_memory(device),
            traffic=Traffic(traffic.payload_bytes, traffic.message_bytes),
            weight_names=[],
            smallest_margin=min(margins, default=None),
        )
        logits_BSV = _held_logits(engine, loaded, corpus)
        weights = {name: tensor for kind, name, tensor in engine.named_state() if kind == "weight"}
    report.weight_names.extend(weights if world.is_main else ())
    write_rank(job.folder, world.rank, report, logits_BSV, weights if world.is_main else {})


def _train(
    engine: Engine, loaded: LoadedConfig, plan: ParallelPlan, corpus: Corpus
) -> tuple[list[StepNumbers], list[float]]:
    """All steps: what each reported, and how long it took (s)."""
    run = loaded.run
    split = BatchSplit(engine.world.rank, plan.world_size, plan.micro_batch_size, plan.accumulation_steps)
    batches = TrainBatches(corpus.train, corpus.fingerprint, run.seed, run.data.sequence_length, split)
    steps, times = [], []
    for step in range(run.train.max_steps):
        began = time.perf_counter()
        result = engine.train_step(batches.step(step * run.train.global_batch_size), learning_rate(run, step))
        times.append(time.perf_counter() - began)
        assert result.router is not None  # the certified model is a mixture
        router = result.router
        steps.append(
            StepNumbers(result.loss, result.grad_norm, router.balance_loss, router.z_loss, router.router_entropy)
        )
    return steps, times


@torch.no_grad()
def _held_logits(engine: Engine, loaded: LoadedConfig, corpus: Corpus) -> Tensor:
    """[B, S, V] fp32: this rank's part of the first validation batch; the ranks' parts are in rank order."""
    run, world = loaded.run, engine.world
    split = BatchSplit(world.rank, world.size, run.train.global_batch_size // world.size, 1)
    batches = ValidationBatches(corpus.validation, corpus.validation_bytes, run.data.sequence_length, split)
    batch = next(batches.batches(1))
    engine.decoder.eval()
    logits_BSV, _ = engine.decoder(batch.token_BS.to(engine.device))
    on_cpu_BSV: Tensor = logits_BSV.float().cpu()
    return on_cpu_BSV


def _peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts in KiB


@contextmanager
def _router_margins(engine: Engine, loaded: LoadedConfig) -> Iterator[list[float]]:
    """The smallest lead in every forward pass of every router, to explain a difference; one process only.

    Two experts that are equal to the last bit may be chosen differently by another topology.
    """
    margins: list[float] = []
    top_k = loaded.run.moe.top_k

    def look(router: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(router.weight, Tensor)
        logits_TE = inputs[0].detach().double() @ router.weight.detach().double().t()
        best = logits_TE.topk(top_k + 1, dim=1).values
        margins.append(float((best[:, top_k - 1] - best[:, top_k]).min()))

    routers = [m for m in engine.decoder.modules() if isinstance(m, Router)] if loaded.deepspeed is None else []
    handles = [router.register_forward_pre_hook(look) for router in routers]
    try:
        yield margins
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _fault(engine: Engine, loaded: LoadedConfig) -> Iterator[None]:
    """Where the test asks for it: rank 0's gradients 1 % too large, as a wrong factor in a reduction would make them.

    Not with a rank's experts alone: AdamW does not notice a constant factor on a whole tensor.
    """
    if os.environ.get(FAULT) != "gradient_scale" or loaded.deepspeed is None or not engine.world.is_main:
        yield
        return

    def scale(_decoder: nn.Module, _inputs: Any, output: tuple[Tensor, Any]) -> None:
        output[0].register_hook(lambda gradient: gradient * _FAULTY_SCALE)

    handle = engine.decoder.register_forward_hook(scale)
    try:
        yield
    finally:
        handle.remove()
