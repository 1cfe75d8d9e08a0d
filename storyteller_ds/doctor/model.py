"""The model: experts without effect, sizes that do not match their names, and the memory of a rank."""

import re
from collections.abc import Iterator
from pathlib import Path

from storyteller_ds.config.load import COMMAND_LINE, OVERRIDES
from storyteller_ds.doctor.finding import Check, Finding, note, warning
from storyteller_ds.doctor.subject import Subject
from storyteller_ds.engines.memory import what_to_lower
from storyteller_ds.engines.precision import DTYPE_NAMES

_COUNT_LINE = re.compile(r"^# *parameters: *(\d[\d,]*)(?![\d,.]*\d* ?[kKmMbB.])", re.MULTILINE)
_SIZE_IN_NAME = re.compile(r"(?<![\w.])(\d+(?:\.\d+)?)[ _]?([mMbB])(?![a-zA-Z0-9])")
_TOLERANCE = 0.15
"""Allowed relative deviation from the size that a name claims: `125M` may be 124."""
_FITS_WELL = 0.5
"""Fraction of a device's memory."""
_ABOUT = 1.5
"""Factor by which model.size may be off, since vocabularies differ."""
_TIMES = {"M": 1e6, "B": 1e9}


def experts_that_are_none(subject: Subject) -> Iterator[Finding]:
    """A mixture in which the router has no choice, or nothing keeps all experts in use."""
    run = subject.run
    if not run.moe_layers:
        return
    experts, top_k = run.moe.num_experts, run.moe.top_k
    if top_k == experts:
        yield warning(
            f"every token goes to all experts (moe.top_k={top_k}, moe.num_experts={experts}): a dense model that is "
            "slower",
            f"set moe.top_k={max(1, experts // 4)}" if experts > 1 else "set moe.num_experts=0, or have more of them",
        )
    elif run.moe.balance_loss_coef == 0:
        yield warning(
            f"moe.balance_loss_coef=0: nothing keeps all {experts} experts in use, and a router that is left alone "
            "tends to a few",
            "set moe.balance_loss_coef=0.01",
        )


def zero3_without_expert_parallelism(subject: Subject) -> Iterator[Finding]:
    """ZeRO-3 gathers all experts of each layer on every rank."""
    run, plan = subject.run, subject.plan
    if run.parallel.zero_stage == 3 and run.moe_layers and plan.strategy == "local" and plan.world_size > 1:
        yield warning(
            f"under plain ZeRO-3 each of {plan.world_size} ranks gathers all {run.moe.num_experts} experts of a layer "
            "for every pass",
            "--ds_config ds_configs/zero3_autoep.json, which spreads them, or ds_configs/zero2.json",
        )


def slow_format(subject: Subject) -> Iterator[Finding]:
    """A 16-bit format that the GPU's matrix units or the CPU's instructions do not support is emulated."""
    device = subject.device
    if subject.dtype in subject.machine.formats(device):
        return
    if capability := subject.machine.compute_capability(device):
        yield warning(
            f"precision.dtype=bf16 is emulated on this card (compute capability {capability[0]}.{capability[1]}, bf16 "
            "from 8.0 on), slower than fp32",
            "precision.dtype=auto, or fp16 with --ds_config ds_configs/zero2_fp16.json",
        )
    elif device.type == "cpu":
        yield warning(
            f"precision.dtype={DTYPE_NAMES[subject.dtype]} is emulated on this CPU, many times slower than fp32",
            "precision.dtype=auto, and a --ds_config that does not name a format",
        )


def claimed_size(subject: Subject) -> Iterator[Finding]:
    """A name or a comment of the config claims another size than the model has."""
    total = subject.counts.total
    of_model = ("model.", "moe.", "tokenizer.")
    is_changed = any(
        field.startswith(of_model) and source in (COMMAND_LINE, OVERRIDES)
        for field, source in subject.loaded.sources.items()
    )
    if (line := _COUNT_LINE.search(subject.config_text)) and not is_changed:
        claimed = int(line[1].replace(",", ""))
        if claimed != total:
            yield warning(
                f"the comment of {subject.loaded.name} claims {claimed:,} parameters, and the model has {total:,}",
                f"write `# parameters: {total:,} total`, or change the model",
            )
    if named := _SIZE_IN_NAME.search(Path(subject.loaded.name).name.replace("_", " ").replace("-", " ")):
        size = float(named[1]) * _TIMES[named[2].upper()]
        if abs(total - size) > _TOLERANCE * size:
            yield warning(
                f"{subject.loaded.name} is named for {named[0]} parameters, and the model has {total:,}",
                "rename the config, or change the model (storyteller config explain model.size)",
            )
    if dial := subject.run.model.size:
        size = float(dial[:-1]) * _TIMES[dial[-1]]
        if not size / _ABOUT <= total <= size * _ABOUT:
            yield warning(
                f"model.size={dial}, and the model has {total:,} parameters: settings beside it, or tokenizer."
                f"vocab_size={subject.run.tokenizer.vocab_size}, have changed it",
                "another model.size, or leave it out",
            )


def untrained_positions(subject: Subject) -> Iterator[Finding]:
    """Rows of the position table that no sequence reaches."""
    run = subject.run
    if subject.is_new and run.model.position == "learned" and run.data.sequence_length < run.context_length:
        yield warning(
            f"{run.context_length - run.data.sequence_length:,} of the {run.context_length:,} learned positions are "
            f"never trained (data.sequence_length={run.data.sequence_length})",
            f"data.sequence_length={run.context_length}, or model.position=rope",
        )


def needless_offload(subject: Subject) -> Iterator[Finding]:
    """Optimizer or weights are moved off a device that has room for them."""
    offloaded, memory = subject.offloaded, subject.machine.device_bytes(subject.device)
    if not offloaded or memory is None:
        return
    where = " and ".join(f"{section} to {device}" for section, device in offloaded.items())
    need = subject.memory.total + subject.memory.host
    if subject.device.type == "cpu":
        if set(offloaded.values()) == {"cpu"}:
            yield note(f"{where}: on a CPU it is in that memory anyway", "--ds_config ds_configs/zero2.json")
    elif need < _FITS_WELL * memory:
        yield warning(
            f"{where}, though all of a rank's tensors are {need / 1e9:.1f} of the card's {memory / 1e9:.0f} GB; "
            "every step waits for the copies",
            "--ds_config ds_configs/zero2.json",
        )


def too_little_memory(subject: Subject) -> Iterator[Finding]:
    """A step needs more memory than a rank's device has."""
    memory, planned = subject.machine.device_bytes(subject.device), subject.memory
    if memory is None:
        return
    need = planned.total + (planned.host if subject.device.type == "cpu" else 0)
    if need > memory:
        parts = ", ".join(f"{name} {size / 1e9:,.1f}" for name, size in planned.parts.items() if size > 0.05 * need)
        yield warning(
            f"a rank needs {need / 1e9:,.1f} GB {planned.moment} ({parts}), and this device has {memory / 1e9:,.1f}",
            what_to_lower(subject.run, subject.loaded.deepspeed, subject.plan, subject.device),
        )


CHECKS: tuple[Check, ...] = (
    experts_that_are_none,
    zero3_without_expert_parallelism,
    slow_format,
    claimed_size,
    untrained_positions,
    needless_offload,
    too_little_memory,
)
