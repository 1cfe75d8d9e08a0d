"""Runs that continue on another topology."""

import shutil

from .case import PAIR, SINGLE, STEPS, Case, Topology
from .registry import fault

# Without dropout, since another number of ranks has other random streams.
QUIET = "model.dropout=0.0"
TOLERANCE = 1e-5
ZERO3 = Topology(2, "zero3")
FOUR = Topology(4, "zero2")


def _path(case: Case, topologies: list[Topology]) -> None:
    """Check that topologies that continue each other, four steps each, end in the state of the first one alone."""
    case.copy_of_undisturbed(topologies[0], 4, QUIET)
    for number, topology in enumerate(topologies[1:], start=2):
        run = case.train(topology, QUIET)
        assert run.code == 0, run.stderr
        if number < len(topologies):
            shutil.rmtree(case.step_folder(STEPS))
    case.saw(" -> ".join(map(str, topologies)))
    case.is_within(case.undisturbed(topologies[0], QUIET), TOLERANCE)


@fault("world size 2 to 1 to 4", "continues; weights and moments those of one topology but for rounding")
def _(case: Case) -> None:
    _path(case, [PAIR, SINGLE, FOUR])


@fault("EP 2 to 1 to 4", "likewise")
def _(case: Case) -> None:
    _path(case, [Topology(4, "zero2", (f"parallel.ep_size={ep}",)) for ep in (2, 1, 4)])


@fault("ZeRO 2 to 3 to a single process", "likewise")
def _(case: Case) -> None:
    _path(case, [PAIR, ZERO3, SINGLE])
