"""What a run logs before it trains: model, devices and text."""

import torch
from rich.filesize import decimal

from storyteller_ds.config import LoadedConfig
from storyteller_ds.config.run import RunConfig
from storyteller_ds.data.corpus import Corpus
from storyteller_ds.distributed.plan import ParallelPlan
from storyteller_ds.engines.compiling import compiles
from storyteller_ds.engines.kernel_choice import kernel_choice
from storyteller_ds.engines.precision import DTYPE_NAMES, run_dtype
from storyteller_ds.model import count_parameters, flops_per_token


def model_and_devices(loaded: LoadedConfig, plan: ParallelPlan, device: torch.device) -> list[str]:
    """Lines about model size; engine, topology and kernels; and slow kernels on this machine, if any."""
    run, counts = loaded.run, count_parameters(loaded.run)
    experts = f"{run.moe.num_experts} experts, top-{run.moe.top_k}" if run.moe_layers else "dense"
    dtype = DTYPE_NAMES[run_dtype(run, device)]
    engine = f"one device ({device.type}, {dtype})"
    if loaded.deepspeed is not None:
        ranks = f"{plan.world_size} rank(s) ({device.type}, {dtype})"
        engine = f"DeepSpeed ZeRO-{run.parallel.zero_stage} on {ranks}"
        if run.moe_layers:
            engine += f", {plan.description}"
    kernels, slow_kernels = kernel_choice(run, device, plan.strategy)
    compiled = "; blocks are compiled at the first step" if compiles(run, device, plan.strategy) else ""
    lines = [
        f"{loaded.name}: {counts.total:,} parameters, {counts.active:,} active per token ({experts}); "
        f"{flops_per_token(run) / 1e6:,.1f} MFLOP per token",
        f"{engine}; {plan.micro_batch_size} sequence(s) x {plan.accumulation_steps} accumulation step(s) x "
        f"{plan.world_size} rank(s) = {run.train.global_batch_size} per step; kernels: {kernels}{compiled}",
    ]
    return lines if slow_kernels is None else [*lines, slow_kernels]


def text_and_passes(run: RunConfig, corpus: Corpus, sequences: int) -> str:
    """How much text there is, and how often the run goes through it: `800 stories, 719 KB, 181,268 tokens; …`.

    Args:
        run: its config.
        corpus: its text.
        sequences: number of sequences that the training text is packed into.
    """
    train, held_out, tokens = corpus.train_size, corpus.validation_size, len(corpus.train)
    size = "" if train.bytes is None else f"{decimal(train.bytes)}, "
    steps = run.train.max_steps
    passes = steps * run.train.global_batch_size / sequences
    limit = "" if run.train.max_minutes is None else f", if they fit into train.max_minutes={run.train.max_minutes:g}"
    line = (
        f"{_stories(train.documents)}, {size}{tokens:,} tokens; {steps:,} steps are {passes:,.2f} passes{limit}; "
        f"{_stories(held_out.documents)} held out"
    )
    if run.data.packing != "stream":
        padding = 1 - (tokens - 1) / (sequences * run.data.sequence_length)
        line += f"; {sequences:,} sequences ({run.data.packing}), {padding:.1%} of them padding"
    if held_out.unknown_tokens:
        share = held_out.unknown_tokens / len(corpus.validation)
        line += f" ({share:.1%} of their tokens unknown, which flatters val_bpb)"
    return line


def _stories(count: int) -> str:
    return f"{count:,} {'story' if count == 1 else 'stories'}"
