"""One rank of small runs with a gradient or loss that is not finite once: its effect on weights and moments.

Usage: torchrun non_finite_worker.py FOLDER; FOLDER/cases.json is a list of Case, FOLDER/rankN.json a list of reports.
"""

import math
import sys
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch

from storyteller_ds.config import load_config
from storyteller_ds.data.batching.batches import BatchSplit
from storyteller_ds.data.batching.micro_batch import MicroBatch
from storyteller_ds.distributed.plan import make_plan
from storyteller_ds.distributed.world import World
from storyteller_ds.engines import step as steps
from storyteller_ds.engines.base import Engine
from storyteller_ds.engines.build import build_engine
from storyteller_ds.engines.deepspeed import engine as guarded
from storyteller_ds.engines.deepspeed import private
from storyteller_ds.engines.step import train_step
from storyteller_ds.model.canonical import placed_parameters
from tests.support.cases import run_cases
from tests.support.distributed import DS_CONFIGS

LR = 1e-2
FAULTY_RANK, FAULTY_PASS = 1, 1
SOUND, FAULTY, AFTER = 0, 1, 2
"""Steps, each on different sequences."""


OVERRIDES = (
    "optimizer.expert_period=1",  # the step number, which counts skipped steps, decides which experts are due
    "data.sequence_length=16",
    "tokenizer.vocab_size=64",
    "model.hidden_size=32",
    "model.num_layers=1",
    "model.intermediate_size=32",
    "train.global_batch_size=8",
    "train.gradient_accumulation_steps=2",
)


class Case(NamedTuple):
    ds_config: str
    fault: str
    """nan, inf: an entry of a gradient; expert: nan in one expert's gradient; loss: a nan loss with sound gradients."""
    guarded: bool = True
    overrides: tuple[str, ...] = ()


def run_case(case: Case, world: World) -> dict[str, Any]:
    """Run a sound, a faulty and a sound step, and compare them with the two sound steps alone."""
    device = torch.device("cpu")
    loaded = load_config(overrides=(*OVERRIDES, *case.overrides), ds_config=DS_CONFIGS / f"{case.ds_config}.json")
    plan = make_plan(loaded.run, world.size)
    split = BatchSplit(world.rank, world.size, plan.micro_batch_size, plan.accumulation_steps)

    def start() -> Engine:
        return build_engine(loaded.run, loaded.deepspeed, plan, world, device)

    with ExitStack() as stack:
        if not case.guarded:
            stack.enter_context(without_guard())
        engine = start()
        train_step(engine, _batches(loaded.run, split, SOUND), LR)
        before = _state(engine)
        switch = _arm(engine, case.fault)
        switch["pass"] = 0 if world.rank == FAULTY_RANK else None
        result = train_step(engine, _batches(loaded.run, split, FAULTY), LR)
        switch["pass"] = None
        after = _state(engine)
    report = {
        "skipped": result.skipped,
        "non_finite": result.non_finite,
        "loss_is_finite": math.isfinite(result.loss),
        "unchanged": _same(before, after),
        "all_finite": all(bool(tensor.isfinite().all()) for tensor in after.values()),
    }
    if case.guarded:
        last = train_step(engine, _batches(loaded.run, split, AFTER), LR)
        whole = start()
        train_step(whole, _batches(loaded.run, split, SOUND), LR)
        expected = train_step(whole, _batches(loaded.run, split, AFTER), LR)
        report["forgotten"] = last == expected and _same(_state(engine), _state(whole))
    return report


def without_guard() -> Any:
    """Remove the engine's guard: ZeRO-0 then always takes the step, and ZeRO-1 to 3 do what DeepSpeed does."""
    stack = ExitStack()
    stack.enter_context(mock.patch.object(steps, "verdict", return_value=torch.tensor(0)))
    step = guarded.DeepSpeedEngine._finite_step
    stack.enter_context(mock.patch.object(guarded.DeepSpeedEngine, "_finite_step", lambda self, _: step(self, True)))
    stack.enter_context(mock.patch.object(private, "guarded_norm", return_value=nullcontext()))
    return stack


def _arm(engine: Engine, fault: str) -> dict[str, Any]:
    """Make a gradient or the loss of this rank non-finite in one pass, once the switch is on."""
    switch: dict[str, Any] = {"pass": None}
    if fault == "loss":
        forward = engine.decoder.forward

        def undefined(*args: Any, **kwargs: Any) -> Any:
            nll, layers = forward(*args, **kwargs)
            # Only the value changes; the gradients do not.
            return nll + _now(switch, math.nan, 0.0) * nll.detach() * 0, layers

        engine.decoder.forward = undefined
        return switch
    value, name = math.inf if fault == "inf" else math.nan, "experts" if fault == "expert" else "attention"
    parameter = next(piece.parameter for piece in placed_parameters(engine.decoder) if name in piece.name)

    def poison(gradient: torch.Tensor) -> torch.Tensor:
        gradient = gradient.clone()
        entry = gradient[0] if fault == "expert" else gradient  # one expert only
        entry.view(-1)[3] *= _now(switch, value, 1.0)
        return gradient

    parameter.register_hook(poison)
    return switch


def _now(switch: dict[str, Any], faulty: float, sound: float) -> float:
    if switch["pass"] is None:
        return sound
    switch["pass"] += 1
    return faulty if switch["pass"] == FAULTY_PASS + 1 else sound


def _batches(run: Any, split: BatchSplit, step: int) -> list[MicroBatch]:
    generator = torch.Generator().manual_seed(step)
    shape = (split.global_batch_size, run.data.sequence_length + 1)
    token = torch.randint(run.tokenizer.vocab_size, shape, generator=generator)
    rows = [token[list(split.positions(number))] for number in range(split.accumulation_steps)]
    return [MicroBatch(row[:, :-1].contiguous(), row[:, 1:].contiguous()) for row in rows]


def _state(engine: Engine) -> dict[str, torch.Tensor]:
    return {f"{kind}/{name}": tensor.clone() for kind, name, tensor in engine.named_state()}


def _same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(tensor.view(torch.int32), other[name].view(torch.int32)) for name, tensor in one.items()
    )


if __name__ == "__main__":
    run_cases(Path(sys.argv[1]), Case, run_case)
