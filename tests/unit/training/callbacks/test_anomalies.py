"""What the loop does about bad numbers, with an engine whose weights are the number of its updates."""

import dataclasses
import itertools
import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter

from storyteller_ds.checkpoint.train_state import TrainState
from storyteller_ds.config.run import RunConfig
from storyteller_ds.data.batching.batches import BatchSplit, TrainBatches, ValidationBatches
from storyteller_ds.data.shards import TokenStream
from storyteller_ds.data.text_bytes import TextBytes
from storyteller_ds.distributed.world import World
from storyteller_ds.engines.base import PendingStep, StepResult
from storyteller_ds.engines.step import known
from storyteller_ds.errors import EXIT_TRAINING_STOPPED, TrainingStopped
from storyteller_ds.training.callbacks.anomalies import Anomalies
from storyteller_ds.training.callbacks.callback import Callback
from storyteller_ds.training.loop import train
from tests.support.cut_stream import cut

GOOD, BAD_LOSS, BAD_GRADIENT, OVERFLOW, SPIKE = ".", "l", "g", "o", "S"
RESULTS = {
    GOOD: StepResult(1.0, 1.0, None),
    BAD_LOSS: StepResult(math.nan, math.inf, None, True, "loss"),
    BAD_GRADIENT: StepResult(1.0, math.inf, None, True, "gradient"),
    OVERFLOW: StepResult(1.0, math.inf, None, True),
    SPIKE: StepResult(10.0, 1.0, None),
}
BATCH = 2


class ScriptedEngine:
    """The result of a step depends only on its sample, so that a bad sample would fail again if seen again."""

    world, device, loss_scale = World(0, 0, 1, 1), torch.device("cpu"), None

    def __init__(self, script: str) -> None:
        self.script, self.updates, self.seen, self.rates = script, 0, [], []

    def begin_step(self, micro_batches: Any, lr: float) -> PendingStep:
        sample = int(micro_batches)
        self.seen.append(sample)
        self.rates.append(lr)
        result = RESULTS[self.script[sample] if sample < len(self.script) else GOOD]
        self.updates += not result.skipped
        return known(result.loss, result.grad_norm, result.skipped, result.non_finite)

    def eval_step(self, batch: Any) -> torch.Tensor:
        targets = int((batch.target_BS >= 0).sum())
        return torch.tensor([targets, targets], dtype=torch.float64)


class CountedBatches(TrainBatches):
    """Each global batch is just its number."""

    def __init__(self) -> None:
        pass

    def step(self, samples: int) -> Any:
        assert samples % BATCH == 0
        return samples // BATCH


class Checkpoints(Callback):
    """Saves the state as JSON, by default every 4 steps, like the real Checkpoints."""

    def __init__(self, engine: ScriptedEngine, every: int = 4) -> None:
        self.engine, self.every, self.saved, self.lines = engine, every, [], []
        self.trained: list[dict] = []

    def on_train(self, record):
        self.trained.append(json.loads(json.dumps(record, allow_nan=False)))

    def on_step_end(self, state, last):
        if self.every and state.step % self.every == 0 and not state.bad_steps_in_a_row:
            self.saved.append((json.dumps(dataclasses.asdict(state)), self.engine.updates))

    def on_end(self, exit_code):
        self.exit_code = exit_code

    def roll_back(self) -> TrainState | None:
        if not self.saved:
            return None
        text, self.engine.updates = self.saved[-1]
        return TypeAdapter(TrainState).validate_json(text)


def go(script: str, state: TrainState | None = None, every: int = 4, steps: int = 12, **settings: Any):
    settings = {"max_bad_steps": 3, "max_rollbacks": 2, "loss_spike_window": 8, **settings}
    run = RunConfig.model_validate(
        {
            "data": {"sequence_length": 4},
            "train": {"max_steps": steps, "global_batch_size": BATCH, "eval_every_steps": 0, **settings},
        }
    )
    engine = ScriptedEngine(script)
    engine.updates = state.updates if state else 0
    checkpoints = Checkpoints(engine, every)
    anomalies = Anomalies(run, checkpoints.lines.append, checkpoints.roll_back)
    stream, split = TokenStream([np.arange(41)]), BatchSplit(0, 1, BATCH, 1)
    validation = ValidationBatches(cut(stream, 4), TextBytes(stream, np.ones(41, dtype=np.int64)), split)
    try:
        clock = itertools.count().__next__
        batches = CountedBatches()
        end = train(run, engine, batches, validation, state or TrainState(), [checkpoints, anomalies], clock)
    except TrainingStopped as stopped:
        end = stopped
    return engine, checkpoints, end


@pytest.mark.parametrize(
    ("script", "updates", "bad", "rollbacks", "undone"),
    [
        ("............", 12, 0, 0, 0),
        ("..g.........", 11, 1, 0, 0),
        ("..lg........", 10, 2, 0, 0),
        ("gg.gg.gg.gg.", 4, 8, 0, 0),  # never three in a row
        ("..ooooooo...", 5, 0, 0, 0),  # the loss scale is still decreasing
        ("....ggg.....", 12, 3, 1, 3),  # steps 5 to 7: back to step 4, then on after sample 6
        ("......lgl...", 12, 3, 1, 5),  # steps 7 to 9; step 8 is one of the bad ones and not saved
        ("....gogg....", 12, 3, 1, 4),  # an overflow is neither good nor bad
        ("....ggg..lll....", 12, 6, 2, 3 + 5),  # the second series comes after the first
    ],
)
def test_skip_and_roll_back(script, updates, bad, rollbacks, undone):
    engine, checkpoints, end = go(script)
    assert (end.bad_steps, end.rollbacks, end.undone_steps) == (bad, rollbacks, undone)
    assert end.step == 12
    assert engine.seen == [*range(12 + undone)], "each sample once, and none again after a rollback"
    assert end.attempts == end.samples // BATCH == end.tokens // BATCH // 4 == 12 + undone
    assert engine.updates == end.updates == updates
    assert end.bad_steps_in_a_row == 0
    assert checkpoints.exit_code == 0


def test_each_bad_step_and_rollback_is_one_line():
    _, checkpoints, _ = go("....gll")
    assert checkpoints.lines == [
        "the gradient of step 5 is not finite; the step is skipped (1 in a row, train.max_bad_steps=3)",
        "the loss of step 6 is not finite; the step is skipped (2 in a row, train.max_bad_steps=3)",
        "the loss of step 7 is not finite, 3 in a row; back to step 4, continuing after the samples seen since "
        "(rollback 1 of at most 2)",
    ]


def test_the_schedule_goes_back_with_the_steps():
    engine, _, _ = go("....ggg.....")
    assert engine.rates[4:7] == engine.rates[7:10]
    assert len(set(engine.rates[7:])) == 8


def test_lines_of_undone_steps_are_told_from_the_others():
    _, checkpoints, _ = go("....ggl.....")
    lines = checkpoints.trained
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6, 7, 5, 6, 7, 8, 9, 10, 11, 12]
    attempts = [line["step"] + line["undone_steps"] for line in lines]
    assert attempts == [*range(1, 16)]
    assert [line["rollbacks"] for line in lines] == [0] * 7 + [1] * 8
    assert [line["bad_steps"] for line in lines] == [0] * 4 + [1, 2, 3] + [3] * 8
    assert [line["skipped_steps"] for line in lines] == [0] * 4 + [1, 2, 3] + [0] * 8
    assert (lines[6]["train_loss"], lines[5]["train_loss"], lines[5]["grad_norm"]) == (None, 1.0, None)
    assert [line["tokens"] for line in lines] == [8 * attempt for attempt in attempts]


@pytest.mark.parametrize("in_a_row", [1, 2, 5])
@pytest.mark.parametrize("allowed", [0, 1, 3])
def test_it_gives_up_after_the_last_rollback(in_a_row, allowed):
    engine, checkpoints, error = go("...." + "g" * 99, max_bad_steps=in_a_row, max_rollbacks=allowed)
    assert isinstance(error, TrainingStopped)
    assert error.exit_code == checkpoints.exit_code == EXIT_TRAINING_STOPPED == 3
    assert engine.seen == [*range(4 + in_a_row * (allowed + 1))]
    assert engine.updates == 4, "what is left are the weights of the checkpoint"
    assert f"the gradient of step {4 + in_a_row} is not finite" in str(error)
    assert "lower optimizer.lr" in str(error)
    assert (f"after {allowed} rollback" in str(error)) == (allowed > 0)


def test_without_a_checkpoint_it_stops_and_says_how_to_have_one():
    engine, checkpoints, error = go("..ggg", every=0)
    assert engine.seen == [0, 1, 2, 3, 4]
    assert "no checkpoint" in str(error)
    assert "set checkpoint.every_steps" in str(error)
    assert checkpoints.exit_code == EXIT_TRAINING_STOPPED


@pytest.mark.parametrize(
    ("policy", "spikes", "rollbacks", "undone"), [("off", 0, 0, 0), ("report", 1, 0, 0), ("roll_back", 1, 1, 2)]
)
def test_spike_policies(policy, spikes, rollbacks, undone):
    engine, checkpoints, end = go("." * 9 + "S..", loss_spike_policy=policy)
    assert (end.loss_spikes, end.rollbacks, end.undone_steps) == (spikes, rollbacks, undone)
    assert engine.seen == [*range(12 + undone)]
    assert engine.updates == end.updates == 12, "a spike is a step; only going back undoes it"
    assert len(checkpoints.lines) == spikes
    assert all("the loss of step 10 jumped to 10" in line for line in checkpoints.lines)


def test_a_spike_in_every_sample_gives_up():
    _, _, error = go("." * 9 + "S" * 99, loss_spike_policy="roll_back")
    assert isinstance(error, TrainingStopped)
    assert "after 2 rollback(s)" in str(error)


def test_a_spike_before_the_window_is_full_is_none():
    _, _, end = go("." * 7 + "S....", loss_spike_policy="roll_back")
    assert (end.loss_spikes, end.rollbacks) == (0, 0)


SCRIPT = "..g......S..gg.ggg..S..g....S...ggg....."


@pytest.mark.parametrize("policy", ["report", "roll_back", "off"])
def test_a_run_killed_at_any_step_ends_as_the_undisturbed_one(policy):
    settings = {"steps": 24, "loss_spike_policy": policy, "max_rollbacks": 9}
    whole, kept, end = go(SCRIPT, **settings)
    assert end.bad_steps > 5
    for text, updates in kept.saved:
        state = TypeAdapter(TrainState).validate_json(text)
        assert state.updates == updates
        engine, _, again = _resumed(state, kept, **settings)
        assert again == end
        assert engine.seen == whole.seen[state.attempts :]
        assert engine.updates == whole.updates


def _resumed(state: TrainState, kept: Checkpoints, **settings: Any):
    """The run resumed from this checkpoint, which is then the newest."""
    with pytest.MonkeyPatch.context() as patch:
        start = Checkpoints.__init__

        def with_older(self: Checkpoints, *args: Any) -> None:
            start(self, *args)
            self.saved = [one for one in kept.saved if TrainState(**json.loads(one[0])).attempts <= state.attempts]

        patch.setattr(Checkpoints, "__init__", with_older)
        return go(SCRIPT, state, **settings)


def test_negative_control_a_resume_without_the_recent_losses_ends_elsewhere():
    settings = {"steps": 24, "loss_spike_policy": "roll_back", "max_rollbacks": 9}
    _, kept, end = go(SCRIPT, **settings)
    state = dataclasses.replace(TrainState(**json.loads(kept.saved[1][0])), recent_losses=())
    assert _resumed(state, kept, **settings)[2] != end
