"""The model: experts that are none, and sizes that are not what they are called."""

import re
from collections.abc import Iterator
from pathlib import Path

import torch

from storyteller_ds.config.load import COMMAND_LINE, OVERRIDES
from storyteller_ds.doctor.finding import Check, Finding, note, warning
from storyteller_ds.doctor.subject import Subject

_COUNT_LINE = re.compile(r"^# *parameters: *([\d,]+)", re.MULTILINE)
_SIZE_IN_NAME = re.compile(r"(?<![\w.])(\d+(?:\.\d+)?)[ _]?([mMbB])(?![a-zA-Z0-9])")
_TOLERANCE = 0.15
"""Of a size that a name claims: `125M` may be 124."""
_BF16_SINCE = (8, 0)
_STATE_BYTES = 16
"""Of a parameter in training: weight, gradient and AdamW's two moments, fp32."""
_FITS_WELL = 0.25
"""Of a device's memory; the rest is for activations."""


def experts_that_are_none(subject: Subject) -> Iterator[Finding]:
    """A mixture in which nothing is chosen, or nothing keeps the experts in use."""
    run = subject.run
    if not run.moe_layers:
        return
    experts, top_k = run.moe.num_experts, run.moe.top_k
    if top_k == experts:
        yield warning(
            f"every token goes to all experts (moe.top_k={top_k}, moe.num_experts={experts}): a dense model that is "
            "slower",
            f"moe.top_k={max(1, experts // 4)}" if experts > 1 else "moe.num_experts=0, or more of them",
        )
    elif run.moe.balance_loss_coef == 0:
        yield warning(
            f"moe.balance_loss_coef=0: nothing keeps all {experts} experts in use, and a router that is left alone "
            "tends to a few",
            "moe.balance_loss_coef=0.01",
        )


def zero3_without_expert_parallelism(subject: Subject) -> Iterator[Finding]:
    """ZeRO-3 gathers all experts on every rank, for each layer."""
    run, plan = subject.run, subject.plan
    if run.parallel.zero_stage == 3 and run.moe_layers and plan.strategy == "local" and plan.world_size > 1:
        yield warning(
            f"under plain ZeRO-3 each of {plan.world_size} ranks gathers all {run.moe.num_experts} experts of a layer "
            "for every pass",
            "--ds_config ds_configs/zero3_autoep.json, which spreads them, or ds_configs/zero2.json",
        )


def slow_format(subject: Subject) -> Iterator[Finding]:
    """bf16 on a card whose matrix units do not take it is emulated."""
    capability = subject.machine.compute_capability(subject.device)
    if capability is not None and capability < _BF16_SINCE and subject.dtype == torch.bfloat16:
        yield warning(
            f"precision.dtype=bf16 is emulated on this card (compute capability {capability[0]}.{capability[1]}, bf16 "
            "from 8.0 on), slower than fp32",
            "precision.dtype=auto, or fp16 with --ds_config ds_configs/zero2_fp16.json",
        )


def claimed_size(subject: Subject) -> Iterator[Finding]:
    """A name or a comment of the config that says another size than the model has."""
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
        size = float(named[1]) * (1e6 if named[2] in "mM" else 1e9)
        if abs(total - size) > _TOLERANCE * size:
            yield warning(
                f"{subject.loaded.name} is named for {named[0]} parameters, and the model has {total:,}",
                "rename the config, or change the model (storyteller config explain model.size)",
            )


def needless_offload(subject: Subject) -> Iterator[Finding]:
    """Optimizer or weights moved off a device that has room for them."""
    offloaded = subject.offloaded
    need, memory = _STATE_BYTES * subject.counts.total, subject.machine.device_bytes(subject.device)
    if not offloaded or memory is None:
        return
    where = " and ".join(f"{section} to {device}" for section, device in offloaded.items())
    if subject.device.type == "cpu":
        if set(offloaded.values()) == {"cpu"}:
            yield note(f"{where}: on a CPU it is in that memory anyway", "--ds_config ds_configs/zero2.json")
    elif need < _FITS_WELL * memory:
        yield warning(
            f"{where}, though weights, gradients and moments are {need / 1e9:.1f} of the card's {memory / 1e9:.0f} GB; "
            "every step waits for the copies",
            "--ds_config ds_configs/zero2.json",
        )


def state_beyond_memory(subject: Subject) -> Iterator[Finding]:
    """Weights, gradients and moments alone are more than the device has."""
    memory, is_shared = subject.machine.device_bytes(subject.device), subject.run.parallel.zero_stage == 3
    if memory is None or subject.offloaded:
        return
    need = _STATE_BYTES * subject.counts.total / (subject.plan.world_size if is_shared else 1)
    if need > memory:
        yield warning(
            f"weights, gradients and moments are {need / 1e9:,.1f} GB, and this device has {memory / 1e9:,.1f}",
            "a smaller model (model.size), --ds_config ds_configs/zero3.json on more ranks, or zero3_offload.json",
        )


CHECKS: tuple[Check, ...] = (
    experts_that_are_none,
    zero3_without_expert_parallelism,
    slow_format,
    claimed_size,
    needless_offload,
    state_beyond_memory,
)
