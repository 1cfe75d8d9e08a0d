"""SIGKILL, which cannot be caught: of ranks, supervisors and launchers, at every kind of moment."""

import random

from .case import PAIR, SAVED_EVERY, SINGLE, Case
from .registry import fault

CONTINUES = "the run ends whole, with one line; the last checkpoint loads; the same command continues bit for bit"
KILLED = "killed by signal 9"
GONE = "its processes were killed"


def _killed(case: Case, injection: dict[str, object], line: str, last_good: int) -> None:
    run = case.train(PAIR, faults=[injection])
    case.ended(run, None, f"lost rank {injection['rank']} .*{line}")
    case.last_good_is(last_good)
    case.continues_exactly(PAIR)


def _at_step_6(case: Case, rank: int) -> dict[str, object]:
    # The checkpoint of step 4 is written in the background, and may take longer than two steps.
    return {"do": "at_step", "rank": rank, "step": 6, "after": str(case.step_folder(4))}


for _rank in (0, 1):

    @fault(f"kill -9 of rank {_rank} between two steps", CONTINUES, quick=_rank == 1)
    def _(case: Case, rank: int = _rank) -> None:
        _killed(case, {**_at_step_6(case, rank), "how": "self:SIGKILL"}, KILLED, 4)

    @fault(f"kill -9 of rank {_rank} within its weights shard", CONTINUES, quick=_rank == 0)
    def _(case: Case, rank: int = _rank) -> None:
        injection = {"do": "in_shard", "rank": rank, "part": "weights", "step": 8, "fraction": 0.5}
        _killed(case, {**injection, "how": "self:SIGKILL"}, KILLED, 4)
        assert not list(case.checkpoints.glob("*.tmp")), "the unfinished checkpoint is still there"


@fault("kill -9 of rank 1 within its optimizer shard", CONTINUES)
def _(case: Case) -> None:
    injection = {"do": "in_shard", "rank": 1, "part": "optimizer", "step": 8, "fraction": 0.9}
    _killed(case, {**injection, "how": "self:SIGKILL"}, KILLED, 4)


@fault("kill -9 of rank 0 between manifest and rename", CONTINUES, quick=True)
def _(case: Case) -> None:
    _killed(case, {"do": "at_rename", "rank": 0, "step": 8, "how": "self:SIGKILL"}, KILLED, 4)


@fault("kill -9 of a rank's supervisor", CONTINUES)
def _(case: Case) -> None:
    _killed(case, {**_at_step_6(case, 1), "how": "supervisor:SIGKILL"}, GONE, 4)


@fault("power cut: kill -9 of every process at once, within a shard", "as above, without a line")
def _(case: Case) -> None:
    injection = {"do": "in_shard", "rank": 0, "part": "weights", "step": 8, "fraction": 0.5, "how": "all:SIGKILL"}
    case.ended(case.train(PAIR, faults=[injection]), -9)
    case.last_good_is(4)
    case.continues_exactly(PAIR)


@fault("kill -9 of a single process within a shard", "the last checkpoint loads, and continues bit for bit")
def _(case: Case) -> None:
    injection = {"do": "in_shard", "part": "weights", "step": 8, "fraction": 0.5, "how": "self:SIGKILL"}
    case.ended(case.train(SINGLE, faults=[injection]), 128 + 9)
    case.last_good_is(4)
    case.continues_exactly(SINGLE)


@fault("kill -9 at ten random moments, restarted by a loop", "the weights are those of an undisturbed run, bit for bit")
def _(case: Case) -> None:
    longer = "train.max_steps=40"
    draw = random.Random(20)  # moments are counted in steps and bytes, so they are the same on every machine
    done, moments = 0, set()
    for _ in range(10):
        next_save = (done // SAVED_EVERY + draw.randint(1, 2)) * SAVED_EVERY
        rank, victim = draw.randint(0, 1), draw.choice(("self", "self", "supervisor", "all"))
        part, fraction = draw.choice(("weights", "optimizer", "rng")), draw.random()
        injection = draw.choice(
            (
                {"do": "at_step", "rank": rank, "step": done + draw.randint(1, 7)},
                {"do": "in_shard", "rank": rank, "step": next_save, "part": part, "fraction": fraction},
                {"do": "at_rename", "rank": 0, "step": next_save},
            )
        )
        run = case.train(PAIR, longer, faults=[{**injection, "how": f"{victim}:SIGKILL"}])
        assert run.code not in (0, 2, 3, 75), f"{injection} did not kill: exit {run.code}\n{run.stderr}"
        moments.add(injection["do"])
        saved = [path for path in case.checkpoints.glob("step_*") if not path.name.endswith(".tmp")]
        done = max((int(path.name.removeprefix("step_")) for path in saved), default=0)
    assert moments == {"at_step", "in_shard", "at_rename"}
    assert 8 <= done < 40, "the kills are not spread over the run"
    case.saw("10 kills")
    case.continues_exactly(PAIR, longer)
