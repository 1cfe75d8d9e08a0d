"""An engine that counts, and the loop around it; shared by the tests of the loop."""

import signal
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from storyteller_ds.checkpoint.train_state import TrainState
from storyteller_ds.config.run import RunConfig
from storyteller_ds.data.batching.batches import BatchSplit, TrainBatches, ValidationBatches
from storyteller_ds.data.shards import TokenStream
from storyteller_ds.data.text_bytes import TextBytes
from storyteller_ds.distributed.world import World
from storyteller_ds.engines.base import PendingStep, RouterMetrics
from storyteller_ds.engines.step import known
from storyteller_ds.errors import (
    InterruptedAfterSave,
    TrainingStopped,
)
from storyteller_ds.model.loss import MicroBatchStats
from storyteller_ds.training.callbacks.anomalies import Anomalies
from storyteller_ds.training.callbacks.callback import Callback
from storyteller_ds.training.interruption import Interruption
from storyteller_ds.training.loop import train
from tests.support.cut_stream import cut

LENGTH, BATCH = 4, 2
FINAL = {"final_val_loss", "final_val_ppl", "final_val_bpb"}
"""Scores on the whole text, in the record of the last validation."""
ROUTER = RouterMetrics([0.25, 0.75], 0.5, 0.6, 0, 1.1, 0.2, 1.5, 0.3)
_ONE = torch.tensor([1.0], dtype=torch.float64)
STATS = MicroBatchStats(
    _ONE[0], 4 * torch.tensor([ROUTER.expert_load]).double(), _ONE, 1.1 * _ONE, 0.2 * _ONE, 0.6 * _ONE, 0.3 * _ONE
)
"""The statistics that ROUTER summarizes."""


class CountingEngine:
    """An engine with given losses; every step takes `seconds` on its own clock."""

    world = World(0, 0, 1, 1)
    device = torch.device("cpu")
    loss_scale = None

    def __init__(
        self,
        losses=None,
        val_losses=(),
        seconds=1.0,
        has_router=False,
        grad_norm=1.0,
        whole_val_loss=None,
        eval_seconds=0.0,
    ):
        self.losses, self.val_losses = losses, list(val_losses)
        self.seconds, self.has_router, self.grad_norm = seconds, has_router, grad_norm
        self.eval_seconds, self.whole_val_loss = eval_seconds, whole_val_loss
        """whole_val_loss: loss of the batches after the second, which a limited validation does not reach."""
        self.time = 0.0
        self.first_tokens: list[int] = []
        self.rates: list[float] = []
        self.eval_batches: list[int] = [0]

    def clock(self) -> float:
        return self.time

    def begin_step(self, micro_batches: Sequence[Any], lr: float) -> PendingStep:
        self.time += self.seconds
        self.first_tokens.append(int(micro_batches[0].token_BS[0, 0]))
        self.rates.append(lr)
        step = len(self.rates)
        loss = self.losses[step - 1] if self.losses else 1.0 / step
        return known(loss, self.grad_norm, False, None, [STATS] if self.has_router else [])

    def eval_step(self, batch: Any) -> torch.Tensor:
        self.time += self.eval_seconds
        self.eval_batches[-1] += 1
        targets = int((batch.target_BS >= 0).sum())
        is_beyond = self.whole_val_loss is not None and int(batch.target_BS.max()) > 2 * BATCH * LENGTH
        loss = self.whole_val_loss if is_beyond else self.val_losses[0]
        return torch.tensor([targets * loss, targets], dtype=torch.float64)


class Recorder(Callback):
    def __init__(self, engine: CountingEngine) -> None:
        self.engine = engine
        self.calls: list[tuple[str, Any]] = []
        self.lasts: list[bool] = []
        self.states: list[TrainState] = []
        self.train: list[Any] = []
        self.eval: list[Any] = []
        self.busy: list[tuple[str, bool]] = []

    def on_busy(self, what, last):
        self.busy.append((what, last))

    def busy_with(self, state, last):
        return "saving" if last else None

    def on_start(self, state):
        self.calls.append(("start", state.step))

    def on_train(self, record):
        self.calls.append(("train", record["step"]))
        self.train.append(record)

    def on_eval(self, record):
        self.calls.append(("eval", record["step"]))
        self.eval.append(record)
        if len(self.engine.val_losses) > 1:
            self.engine.val_losses.pop(0)
        self.engine.eval_batches.append(0)

    def on_step_end(self, state, last):
        self.calls.append(("end of step", state.step))
        self.states.append(state)
        self.lasts.append(last)

    def on_interrupt(self, state):
        self.calls.append(("interrupt", state.step))
        self.interrupted = state

    def on_end(self, exit_code):
        self.calls.append(("end", exit_code))


def go(engine: CountingEngine, state=None, callbacks=1, interruption=None, **settings: Any):
    run = RunConfig.model_validate(
        {
            "data": {"sequence_length": LENGTH},
            "train": {"global_batch_size": BATCH, "eval_every_steps": 0, **settings},
            "schedule": {"warmup_steps": 2},
        }
    )
    split, stream = BatchSplit(0, 1, BATCH, 1), TokenStream([np.arange(41)])
    batches = TrainBatches(cut(stream, LENGTH), "corpus", 0, split)
    validation = ValidationBatches(cut(stream, LENGTH), TextBytes(stream, np.ones(41, dtype=np.int64)), split)
    recorders = [Recorder(engine) for _ in range(callbacks)]
    if not engine.val_losses:
        engine.val_losses = [1.0]
    error, end = None, None
    try:
        anomalies = Anomalies(run, lambda line: None, lambda: None)
        begin, clock = state or TrainState(), engine.clock
        end = train(run, engine, batches, validation, begin, [*recorders, anomalies], clock, interruption)
    except (TrainingStopped, InterruptedAfterSave) as stopped:
        error = stopped
    return run, recorders, end, error


class SignalledAt(CountingEngine):
    """Gets a SIGTERM in the middle of a step."""

    def __init__(self, step: int, seconds: float = 1.0) -> None:
        super().__init__(seconds=seconds)
        self.step, self.interruption = step, Interruption(clock=self.clock)

    def begin_step(self, micro_batches, lr):
        result = super().begin_step(micro_batches, lr)
        if len(self.rates) == self.step:
            self.interruption.receive(signal.SIGTERM)
        return result
