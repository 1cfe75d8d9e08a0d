"""What a run logs before it trains: model, devices, text, and warnings about settings that are probably mistakes."""

import math

import torch
from rich.filesize import decimal

from storyteller_ds.config import LoadedConfig
from storyteller_ds.config.run import RunConfig
from storyteller_ds.data.corpus import Corpus
from storyteller_ds.data.tokenizers.tokenizer import Tokenizer
from storyteller_ds.distributed.plan import ParallelPlan
from storyteller_ds.engines.compiling import compiles
from storyteller_ds.engines.kernel_choice import kernel_choice
from storyteller_ds.engines.precision import DTYPE_NAMES, run_dtype
from storyteller_ds.model import count_parameters, flops_per_token

WORTH_A_WARNING = 0.05
"""Fraction of the parameters in embedding rows that no token uses."""


def first_lines(
    loaded: LoadedConfig, plan: ParallelPlan, device: torch.device, corpus: Corpus, sequences: int, is_new: bool
) -> list[str]:
    """All of them; where a run continues (not `is_new`), without what can no longer be changed."""
    lines = [*model_and_devices(loaded, plan, device), text_and_passes(loaded.run, corpus, sequences)]
    rows = unused_rows(loaded.run, corpus.tokenizer) if is_new else None
    warnings = (rows, only_warm_up(loaded.run), no_patience(loaded.run), no_best(loaded.run))
    return [*lines, *(warning for warning in warnings if warning is not None)]


def model_and_devices(loaded: LoadedConfig, plan: ParallelPlan, device: torch.device) -> list[str]:
    """Size of the model; engine, topology and kernels; and what makes it slow here, if something does."""
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
        sequences: that the training text is packed into.
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


def unused_rows(run: RunConfig, tokenizer: Tokenizer) -> str | None:
    """A warning if embedding rows that stand for no token are a good part of the model."""
    rows, tokens, total = run.tokenizer.vocab_size, tokenizer.vocab_size, count_parameters(run).total
    tables = 1 if run.model.tie_embeddings else 2
    unused = (rows - tokens) * run.model.hidden_size * tables
    if unused < WORTH_A_WARNING * total:
        return None
    return (
        f"warning: the tokenizer has {tokens:,} tokens, and {rows - tokens:,} of the {rows:,} rows that "
        f"tokenizer.vocab_size={rows} gives the embedding are never used: {unused:,} of {total:,} parameters; "
        f"tokenizer.vocab_size={tokens} has the same tokens without them"
    )


def only_warm_up(run: RunConfig) -> str | None:
    """A warning if the learning rate is still rising when the run ends."""
    warm_up, steps = run.schedule.warmup_steps, run.train.max_steps
    if warm_up < steps:
        return None
    return (
        f"warning: the whole run is warm-up (schedule.warmup_steps={warm_up}, train.max_steps={steps}), its learning "
        "rate only rises; lower schedule.warmup_steps"
    )


def no_patience(run: RunConfig) -> str | None:
    """A warning if nothing is validated early enough for train.early_stop_patience."""
    patience, every, steps = run.train.early_stop_patience, run.train.eval_every_steps, run.train.max_steps
    if patience == 0 or 0 < every * (patience + 1) <= steps:
        return None
    return (
        f"warning: train.early_stop_patience={patience} has no effect, since it counts validations "
        f"(train.eval_every_steps={every}, train.max_steps={steps}); validate more often"
    )


def no_best(run: RunConfig) -> str | None:
    """A warning if no checkpoint before the last will have a score for checkpoint.keep_best."""
    keep, validated, steps = run.checkpoint, run.train.eval_every_steps, run.train.max_steps
    if keep.keep_last is None or keep.keep_best == 0 or not 0 < keep.every_steps < steps:
        return None
    if validated and math.lcm(keep.every_steps, validated) < steps:
        return None
    return (
        f"warning: checkpoint.keep_best={keep.keep_best} has no effect, since no checkpoint before the last has a "
        f"score (checkpoint.every_steps={keep.every_steps}, train.eval_every_steps={validated}); validate at "
        "steps that are saved"
    )
