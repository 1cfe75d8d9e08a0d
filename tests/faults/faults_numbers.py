"""Numerical faults: a gradient that is NaN on one rank while every loss is finite, and loss spikes."""

import torch

from tests.support.runs import read_metrics, read_state

from .case import PAIR, SINGLE, STEPS, Case, Topology
from .registry import fault

SKIPPED = "all ranks skip that step and count it: no weight and no moment changes, training goes on, exit 0"
ENGINES = (SINGLE, *(Topology(2, ds_config) for ds_config in ("zero0", "zero1", "zero2", "zero3")))


def _nan(step: int, times: int, ranks: int) -> dict[str, object]:
    return {"do": "nan_gradient", "rank": ranks - 1, "step": step, "times": times}


def _is_finite(case: Case, step: int) -> None:
    bad = [name for name, tensor in read_state(case.run_folder, step).items() if not torch.isfinite(tensor).all()]
    assert not bad, bad


for _topology in ENGINES:

    @fault(f"NaN in one rank's gradient, once: {_topology}", SKIPPED, quick=_topology == PAIR)
    def _(case: Case, topology: Topology = _topology) -> None:
        watch = [{"do": "digest_state", "step": step, "path": str(case.folder / f"step{step}")} for step in (6, 7)]
        run = case.train(topology, faults=[_nan(6, 1, topology.ranks), *watch])
        case.ended(run, 0)
        for rank in range(topology.ranks):
            before, after = (case.folder / f"step6.{rank}").read_text().split()
            assert before == after, f"rank {rank} has changed weights or moments"
            before, after = (case.folder / f"step7.{rank}").read_text().split()
            assert before != after  # control: the next step changes them
        lines = {line["step"]: line for line in read_metrics(case.run_folder) if "train_loss" in line}
        assert [lines[step]["bad_steps"] for step in (6, 7, 8, STEPS)] == [0, 1, 1, 1]
        assert lines[7]["grad_norm"] is None
        assert lines[7]["train_loss"] > 0  # only the gradient was faulty
        case.saw("not a bit changed on any rank")
        case.saw("counted")
        _is_finite(case, STEPS)


@fault("NaN in one rank's gradient, three times in a row", "back to the last checkpoint, behind the data seen; exit 0")
def _(case: Case) -> None:
    run = case.train(PAIR, "train.max_bad_steps=3", faults=[_nan(5, 3, 2)], quiet=False)
    case.ended(run, 0)
    assert "the gradient of step 8 is not finite, 3 in a row; back to step 4" in run.stderr, run.stderr
    last = [line for line in read_metrics(case.run_folder) if "train_loss" in line][-1]
    assert (last["step"], last["bad_steps"], last["rollbacks"], last["undone_steps"]) == (STEPS, 3, 1, 4)
    case.saw("back from step 8 to step 4, once")
    _is_finite(case, STEPS)
    case.last_good_is(STEPS)


@fault(
    "NaN in one rank's gradient for ever", "goes back twice, then exit 3 and one line; the last checkpoint is finite"
)
def _(case: Case) -> None:
    run = case.train(PAIR, "train.max_bad_steps=2", "train.max_rollbacks=2", faults=[_nan(5, 1000, 2)])
    case.ended(run, 3, "the gradient of step 6 is not finite, 2 in a row; after 2 rollback.*training stops")
    case.last_good_is(4)
    _is_finite(case, 4)


WINDOW = "train.loss_spike_window=8"


@fault("a ten-fold loss spike, train.loss_spike_policy=report", "logged and counted, and nothing else changes; exit 0")
def _(case: Case) -> None:
    run = case.train(PAIR, WINDOW, faults=[{"do": "loss_spike", "step": 9, "factor": 10.0}], quiet=False)
    case.ended(run, 0)
    assert "the loss of step 10 jumped to " in run.stderr, run.stderr
    assert read_metrics(case.run_folder)[-2]["loss_spikes"] == 1
    theirs, ours = (read_state(folder, STEPS) for folder in (case.undisturbed(PAIR), case.run_folder))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    case.saw("logged; weights of the undisturbed run, bit for bit")


@fault("a ten-fold loss spike, train.loss_spike_policy=roll_back", "back to the last checkpoint, behind the data seen")
def _(case: Case) -> None:
    spike = {"do": "loss_spike", "step": 9, "factor": 10.0}
    run = case.train(PAIR, WINDOW, "train.loss_spike_policy=roll_back", faults=[spike], quiet=False)
    case.ended(run, 0)
    assert "the loss of step 10 jumped to " in run.stderr, run.stderr
    assert "back to step 8" in run.stderr, run.stderr
    last = [line for line in read_metrics(case.run_folder) if "train_loss" in line][-1]
    assert (last["step"], last["loss_spikes"], last["rollbacks"], last["undone_steps"]) == (STEPS, 1, 1, 2)
    case.saw("back from step 10 to step 8, once")
