"""What a row has computed, as its ranks write it and as it is read back.

Every rank writes `rankN.safetensors` (its part of the logits; rank 0 also all weights) and then `rankN.json`.
"""

import json
import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from storyteller_ds.certify.traffic import Traffic

_LOGITS = "logits"
_WEIGHT = "weight."


@dataclass(frozen=True)
class StepNumbers:
    """What one optimizer step reported; over all ranks."""

    loss: float
    """Nats per token."""
    grad_norm: float
    """Before clipping."""
    balance_loss: float
    z_loss: float
    router_entropy: float
    """Nats."""


@dataclass(frozen=True)
class RankReport:
    """The small part of one rank's results."""

    steps: list[StepNumbers]
    step_times_s: list[float]
    peak_memory_bytes: int
    """On the CPU: resident peak of the process, with everything that it has imported. On CUDA: allocated peak."""
    traffic: Traffic
    weight_names: list[str]
    """In the model's order."""
    smallest_margin: float | None
    """Smallest lead of a chosen expert over the best one not chosen (router logits); None where not looked at."""


@dataclass(frozen=True)
class Results:
    """All of a row's results."""

    steps: list[StepNumbers]
    weights: Mapping[str, Tensor]
    """Canonical name -> fp32, after the last step, in the model's order."""
    logits_BSV: Tensor
    """fp32, of a batch held back from training."""
    traffic: Traffic
    """Sum over ranks, all steps."""
    peak_memory_bytes: int
    """Of the rank that needed most."""
    step_time_s: float
    """Median over the steps after the first, of rank 0."""
    smallest_margin: float | None


def write_rank(folder: Path, rank: int, report: RankReport, logits_BSV: Tensor, weights: Mapping[str, Tensor]) -> None:
    """Write one rank's results; the JSON comes last."""
    tensors = {_LOGITS: logits_BSV, **{_WEIGHT + name: tensor for name, tensor in weights.items()}}
    # Cloned: tied tensors share memory, which the format refuses.
    save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, _tensors(folder, rank))
    _report(folder, rank).write_text(json.dumps(asdict(report)), encoding="utf-8")


def read_results(folder: Path, ranks: int) -> Results:
    """Put together what all ranks of a row have written."""
    reports = [_read_report(folder, rank) for rank in range(ranks)]
    tensors = [load_file(_tensors(folder, rank)) for rank in range(ranks)]
    first = reports[0]
    return Results(
        steps=first.steps,
        weights={name: tensors[0][_WEIGHT + name] for name in first.weight_names},
        logits_BSV=torch.cat([each[_LOGITS] for each in tensors]),
        traffic=Traffic(
            sum(report.traffic.payload_bytes for report in reports),
            sum(report.traffic.message_bytes for report in reports),
        ),
        peak_memory_bytes=max(report.peak_memory_bytes for report in reports),
        step_time_s=statistics.median(first.step_times_s[1:] or first.step_times_s),
        smallest_margin=first.smallest_margin,
    )


def _read_report(folder: Path, rank: int) -> RankReport:
    fields = json.loads(_report(folder, rank).read_text(encoding="utf-8"))
    fields["steps"] = [StepNumbers(**step) for step in fields["steps"]]
    fields["traffic"] = Traffic(**fields["traffic"])
    return RankReport(**fields)


def _tensors(folder: Path, rank: int) -> Path:
    return folder / f"rank{rank}.safetensors"


def _report(folder: Path, rank: int) -> Path:
    return folder / f"rank{rank}.json"
