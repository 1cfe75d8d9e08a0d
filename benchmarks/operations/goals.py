"""How fast an operation should be, and whether it is that fast."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.operations.case import Direction

Row = dict[str, Any]
"""A row of the record; measure.py describes its fields."""


@dataclass(frozen=True)
class Goal:
    """A ratio that ours should reach in every case of an operation.

    Either a share of a limit (the time of the limit over ours), or a speed-up over the best of some peers
    (its time over ours).
    """

    text: str
    """In words, with the number."""
    op: str
    direction: Direction
    at_least: float
    limit: str | None = None
    """If set, the ratio is a share of this limit."""
    peers: tuple[str, ...] = ()
    """If set, the ratio is a speed-up over the best peer whose name starts with one of these; ("",) means all peers.
    Peers that drop tokens never count."""

    def __post_init__(self) -> None:
        if (self.limit is None) == (not self.peers):
            raise ValueError(f"the goal '{self.text}' needs either a limit or peers")


@dataclass(frozen=True)
class Verdict:
    """Whether a goal was met in one case."""

    goal: str
    op: str
    case: str
    direction: str
    at_least: float
    measured: float | None
    met: bool | None
    """None: not measured."""
    against: str
    """The limit, or the best peer."""
    why: str
    """Why it was not measured, or what it was measured without."""


def judge(goals: Sequence[Goal], rows: Sequence[Row]) -> list[Verdict]:
    """The verdict on every goal in every measured case."""
    verdicts = []
    for goal in goals:
        mine = [row for row in rows if (row["op"], row["direction"]) == (goal.op, goal.direction)]
        for case in dict.fromkeys(row["case"] for row in mine):
            verdicts.append(_judge(goal, case, [row for row in mine if row["case"] == case]))
    return verdicts


def as_records(verdicts: Sequence[Verdict]) -> list[Row]:
    """The verdicts as they go into the JSON."""
    return [asdict(verdict) for verdict in verdicts]


def is_met(measured: float | None, at_least: float) -> bool | None:
    """Whether a ratio reaches its goal, without any tolerance; None if there is no ratio."""
    return None if measured is None else measured >= at_least


def _judge(goal: Goal, case: str, rows: Sequence[Row]) -> Verdict:
    measured, against, why = _measure(goal, rows)
    met = is_met(measured, goal.at_least)
    return Verdict(goal.text, goal.op, case, goal.direction, goal.at_least, measured, met, against, why)


def _measure(goal: Goal, rows: Sequence[Row]) -> tuple[float | None, str, str]:
    """The ratio, what it compares with, and why there is none or what is missing."""
    ours = next((row for row in rows if row["role"] == "ours"), None)
    if ours is None or ours["median_s"] is None:
        return None, goal.limit or "", f"ours has no time: {ours['why'] if ours else 'not run'}"
    if goal.limit is not None:
        share = ours["of_limit"].get(goal.limit)
        return share, goal.limit, "" if share is not None else f"{goal.limit} was not measured"
    timed = [row for row in rows if row["role"] == "peer" and row["compared"] and row["median_s"]]
    peers = [row for row in timed if row["implementation"].startswith(goal.peers)]
    if not peers:
        return None, "", "no such peer has a time"
    best = min(peers, key=lambda row: float(row["median_s"]))
    absent = [name for name in goal.peers if not any(row["implementation"].startswith(name) for row in peers)]
    without = f"without {' and '.join(absent)}" if absent else ""
    return best["median_s"] / ours["median_s"], best["implementation"], without
