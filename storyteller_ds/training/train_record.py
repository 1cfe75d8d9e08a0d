"""What a logged optimizer step puts into metrics.jsonl; docs/tracking.md describes each field."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import psutil
import torch

from storyteller_ds.checkpoint.train_state import TrainState
from storyteller_ds.config.run import RunConfig
from storyteller_ds.engines.base import LossScale, RouterMetrics, StepResult
from storyteller_ds.model.counts import flops_per_token
from storyteller_ds.records.metrics import finite
from storyteller_ds.training.callbacks.callback import Record
from storyteller_ds.training.router_history import RouterHistory

_COUNTS = ("skipped_steps", "bad_steps", "loss_spikes", "rollbacks", "undone_steps")
"""Fields of the state in every train record: see TrainState."""


class StepTime(NamedTuple):
    """Time that an optimizer step took [s]."""

    seconds: float
    waited_for_data: float
    """Part of it until its batches were there."""
    parts: Mapping[str, float]
    """Parts of it for forward, backward and optimizer, if the device reports them."""


class TrainRecords:
    """Makes the records of a run.

    Args:
        run: its batch and its model decide the tokens and FLOPs of a step.
        devices: number of ranks of the run.
        product_rate: product rate of this rank's device [FLOP/s], see engines/device_rates.py; None: no record has
            "mfu".
        earlier: records of the run so far.
    """

    def __init__(self, run: RunConfig, devices: int, product_rate: float | None, earlier: Iterable[Record]) -> None:
        self._tokens = run.train.global_batch_size * run.data.sequence_length
        self._devices = devices
        flops = flops_per_token(run) * self._tokens / devices
        self._least_seconds = None if product_rate is None else flops / product_rate
        self._routers = RouterHistory(earlier)
        self._process = psutil.Process()
        self._process.cpu_percent()  # each call measures since the previous one

    def record(
        self, state: TrainState, result: StepResult, scale: LossScale | None, lr: float, took: StepTime
    ) -> Record:
        """The record of the step that led to this state."""
        tokens_per_s = self._tokens / took.seconds
        record = {
            "step": state.step,
            "tokens": state.tokens,
            "train_loss": result.loss,
            "lr": lr,
            "grad_norm": None if result.skipped else result.grad_norm,
            **{f"grad_norm_{part}": None if result.skipped else norm for part, norm in result.part_norms.items()},
            **self._of_routers(result, state.step),
            "tokens_per_s": tokens_per_s,
            "tokens_per_s_per_device": tokens_per_s / self._devices,
            "step_time_s": took.seconds,
            "data_wait": took.waited_for_data / took.seconds,
            **{f"{part}_s": seconds for part, seconds in took.parts.items()},
            **{name: getattr(state, name) for name in _COUNTS},
        }
        if self._least_seconds is not None:
            record["mfu"] = self._least_seconds / took.seconds
        if scale is not None:
            record["loss_scale"] = scale.scale
        if torch.cuda.is_available():
            record["memory_bytes"] = torch.cuda.memory_allocated()
            record["memory_peak_bytes"] = torch.cuda.max_memory_allocated()
        record["host_memory_bytes"] = self._process.memory_info().rss
        record["cpu_percent"] = self._process.cpu_percent()
        return {name: finite(value) for name, value in record.items()}

    def _of_routers(self, result: StepResult, step: int) -> Record:
        """Metrics of all layers together, then of each layer under the same names with "layer_" in front."""
        if result.router is None:
            return {}
        names = [field.name for field in dataclasses.fields(RouterMetrics)]
        return {
            **dataclasses.asdict(result.router),
            **{f"layer_{name}": [getattr(layer, name) for layer in result.router_layers] for name in names},
            **self._routers.record(result.router_layers, step),
        }


def mean_parts(results: Sequence[StepResult]) -> Mapping[str, float]:
    """Time that each part of a step took [s], averaged over steps."""
    return {part: sum(result.seconds[part] for result in results) / len(results) for part in results[0].seconds}
