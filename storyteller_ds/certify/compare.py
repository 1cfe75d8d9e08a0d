"""What a run has computed, read from its folder, and how far it is from another run's results."""

import math
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from storyteller_ds.certify.rows import Tolerances
from storyteller_ds.checkpoint.read import open_checkpoint
from storyteller_ds.engines.differences import differences, largest, relative_difference
from storyteller_ds.records.trained_run import TrainedRun

_OF_STEPS = {
    "loss": ("train_loss",),
    "grad_norm": ("grad_norm",),
    "router": ("balance_loss", "z_loss", "router_entropy"),
}
"""Quantity -> its fields in each step of metrics.jsonl."""
QUANTITIES = Tolerances._fields


@dataclass(frozen=True)
class Results:
    """What a run of a row has computed."""

    records: list[dict[str, Any]]
    """The lines of metrics.jsonl."""
    weights: Mapping[str, Tensor]
    """Canonical name -> fp32, after the last step."""
    logits_BSV: Tensor
    """fp32, of a batch held back from training."""
    sent_bytes: int
    """Bytes passed to all-to-all by all ranks in all steps."""
    peak_memory_bytes: int
    """Of the rank that needed most. CPU: resident, including everything it has imported. CUDA: allocated."""

    @property
    def step_time_s(self) -> float:
        """Median over the steps after the first."""
        times = [record["step_time_s"] for record in self.records if "step_time_s" in record]
        return float(statistics.median(times[1:] or times))


@dataclass(frozen=True)
class Difference:
    """Largest relative differences; infinite where there is nothing to compare with, NaN where a number is NaN."""

    largest: Mapping[str, float]
    """For each of QUANTITIES, over all steps, or over all tensors after the last step."""
    by_weight: Mapping[str, float]
    """The difference of each tensor."""

    def first_weight_beyond(self, tolerance: float) -> str | None:
        """The first tensor that differs by more than the tolerance."""
        return next((name for name, value in self.by_weight.items() if not value <= tolerance), None)

    def problem(self, tolerances: Tolerances) -> str | None:
        """One line about what exceeds its tolerance, with the first tensor that differs; None if nothing does."""
        allowed = tolerances._asdict()
        wrong = {quantity: value for quantity, value in self.largest.items() if not value <= allowed[quantity]}
        if not wrong:
            return None
        quantity, value = largest(wrong)
        name = self.first_weight_beyond(tolerances.weights)
        tensor = (
            f"first tensor that differs: {name} ({self.by_weight[name]:.1e})" if name else "every weight tensor agrees"
        )
        return f"largest difference {value:.1e} ({quantity}), allowed {allowed[quantity]:g}; {tensor}"


def compare(ours: Results, reference: Results) -> Difference:
    """The differences of `ours` from `reference`."""
    of_steps = {
        quantity: largest(differences(numbers(ours.records, fields), numbers(reference.records, fields)))[1]
        for quantity, fields in _OF_STEPS.items()
    }
    by_weight = differences(ours.weights, reference.weights)
    logits = relative_difference(ours.logits_BSV, reference.logits_BSV)
    return Difference({**of_steps, "weights": largest(by_weight)[1], "logits": logits}, by_weight)


def numbers(records: Iterable[Mapping[str, Any]], fields: Iterable[str]) -> dict[str, Tensor]:
    """These fields of all records that have them, each under its own name; null, which means not finite, is NaN."""

    def number(value: float | None) -> Tensor:
        return torch.tensor(math.nan if value is None else value, dtype=torch.float64)

    return {
        f"{field} of record {place}": number(record[field])
        for place, record in enumerate(records, start=1)
        for field in fields
        if field in record
    }


def write_rank(folder: Path, rank: int, **tensors: Tensor) -> None:
    """Write what one rank adds to the run folder; see read_results."""
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / f"rank{rank}.safetensors")


def read_results(run: TrainedRun, ranks: int, names: Iterable[str]) -> Results:
    """Read the run folder and what its ranks have added.

    Args:
        run: a finished run.
        ranks: how many have trained.
        names: of the weights, in the model's order.
    """
    assert run.checkpoint is not None
    tensors = open_checkpoint(run.checkpoint).open_tensors("weights")
    added = [load_file(run.folder / f"rank{rank}.safetensors") for rank in range(ranks)]
    return Results(
        records=run.metrics,
        weights={name: tensors[name] for name in names},
        logits_BSV=torch.cat([each["logits_BSV"] for each in added]),
        sent_bytes=sum(int(each["sent_bytes"]) for each in added),
        peak_memory_bytes=max(int(each["peak_memory_bytes"]) for each in added),
    )
