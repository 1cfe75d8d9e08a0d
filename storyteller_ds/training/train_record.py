"""What a logged optimizer step puts into metrics.jsonl."""

import dataclasses
import math
from typing import NamedTuple

import torch

from storyteller_ds.checkpoint.train_state import TrainState
from storyteller_ds.config.run import RunConfig
from storyteller_ds.engines.base import LossScale, StepResult
from storyteller_ds.model.counts import flops_per_token
from storyteller_ds.training.callbacks.callback import Record

_COUNTS = ("skipped_steps", "bad_steps", "loss_spikes", "rollbacks", "undone_steps")
"""Fields of the state in every train record: see TrainState."""


class StepTime(NamedTuple):
    """What an optimizer step took [s]."""

    seconds: float
    waited_for_data: float
    """Of these, until its batches were there."""


class TrainRecords:
    """Makes the records of a run.

    Args:
        run: its batch and its model decide what a step is worth.
        devices: ranks of the run.
        product_rate: of this rank's device [FLOP/s], see engines/device_rates.py; None: no record has "mfu".
    """

    def __init__(self, run: RunConfig, devices: int, product_rate: float | None) -> None:
        self._tokens = run.train.global_batch_size * run.data.sequence_length
        self._devices = devices
        flops = flops_per_token(run) * self._tokens / devices
        self._least_seconds = None if product_rate is None else flops / product_rate

    def record(
        self, state: TrainState, result: StepResult, scale: LossScale | None, lr: float, took: StepTime
    ) -> Record:
        """Of the step after which the state is this."""
        tokens_per_s = self._tokens / took.seconds
        record = {
            "step": state.step,
            "tokens": state.tokens,
            "train_loss": result.loss,
            "lr": lr,
            "grad_norm": None if result.skipped else result.grad_norm,
            **(dataclasses.asdict(result.router) if result.router else {}),
            "tokens_per_s": tokens_per_s,
            "tokens_per_s_per_device": tokens_per_s / self._devices,
            "step_time_s": took.seconds,
            "data_wait": took.waited_for_data / took.seconds,
            **{name: getattr(state, name) for name in _COUNTS},
        }
        if self._least_seconds is not None:
            record["mfu"] = self._least_seconds / took.seconds
        if scale is not None:
            record["loss_scale"] = scale.scale
        if torch.cuda.is_available():
            record["memory_peak_bytes"] = torch.cuda.max_memory_allocated()
        # JSON has no non-finite numbers.
        return {n: None if isinstance(v, float) and not math.isfinite(v) else v for n, v in record.items()}
