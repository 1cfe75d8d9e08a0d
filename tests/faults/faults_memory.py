"""Memory that runs out, on all ranks at once or on one of them."""

from .case import PAIR, SINGLE, Case, Topology
from .registry import fault

SAID = "exit 2, one line that says what to lower; the last checkpoint continues bit for bit"
LINE = r"out of memory{} \(tried to allocate 2\.50 GiB\); lower .* train\.micro_batch_size=\d .*run again to continue"


def _out_of_memory(case: Case, topology: Topology, where: str, **ranks: int) -> None:
    fault = {"do": "out_of_memory", "step": 6, "after": str(case.step_folder(4)), **ranks}
    case.ended(case.train(topology, faults=[fault]), 2, LINE.format(where))
    case.last_good_is(4)
    case.continues_exactly(topology)


@fault("memory runs out, single process", SAID)
def _(case: Case) -> None:
    _out_of_memory(case, SINGLE, "")


@fault("memory runs out on every rank", SAID)
def _(case: Case) -> None:
    _out_of_memory(case, PAIR, " on rank 0 of .*")


for _rank in (0, 1):

    @fault(f"memory runs out on rank {_rank} alone", SAID)
    def _(case: Case, rank: int = _rank) -> None:
        _out_of_memory(case, PAIR, f" on rank {rank} of .*", rank=rank)
