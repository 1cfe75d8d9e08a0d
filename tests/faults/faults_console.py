"""Consoles that are gone, full or not read: a line that cannot be written neither ends a run nor blocks it."""

import contextlib
import os
import signal
from collections.abc import Iterator

from tests.support.distributed import wait_until
from tests.support.warm_machine import Run

from .case import END_S, PAIR, SINGLE, Case, Topology
from .registry import fault

UNNOTICED = "the run goes on without a line, exit 0, and is the undisturbed one bit for bit"


@contextlib.contextmanager
def _pipe() -> Iterator[tuple[str, int, int]]:
    """A path through which other processes open the pipe's write end, then the write end and the read end."""
    reading, writing = os.pipe()
    try:
        yield f"/proc/{os.getpid()}/fd/{writing}", writing, reading
    finally:
        for descriptor in (reading, writing):
            with contextlib.suppress(OSError):  # the test has closed it
                os.close(descriptor)


def _held_at_step_6(case: Case, topology: Topology, console: str) -> Run:
    reached = case.folder / "reached"
    hold = {"do": "hold", "step": 6, "reached": str(reached), "until": str(case.folder / "go")}
    run = case.start(topology, faults=[hold], quiet=False, console=console)
    assert wait_until(lambda: reached.exists() or run.ended(), END_S)
    assert not run.ended(), run.code
    return run


@fault("the reader of stdout and stderr goes away (as head does)", UNNOTICED, quick=True)
def _(case: Case) -> None:
    with _pipe() as (path, _, reading):
        run = _held_at_step_6(case, PAIR, path)
        os.close(reading)
        (case.folder / "go").touch()
        case.ended(run, 0)
    case.is_exactly(case.undisturbed(PAIR))


@fault("a log on a full disk", UNNOTICED)
def _(case: Case) -> None:
    case.ended(case.train(PAIR, quiet=False, console="/dev/full"), 0)
    case.is_exactly(case.undisturbed(PAIR))


@fault("a full pipe that nobody reads (a pager)", UNNOTICED)
def _(case: Case) -> None:
    with _pipe() as (path, writing, _):
        os.set_blocking(writing, False)
        with contextlib.suppress(BlockingIOError):
            while os.write(writing, bytes(1 << 16)):
                pass
        case.ended(case.train(SINGLE, quiet=False, console=path), 0)
    case.is_exactly(case.undisturbed(SINGLE))


for _topology in (SINGLE, PAIR):

    @fault(
        f"Ctrl-C that also ends the reader (tee), {_topology}",
        "the step is finished and saved, exit 75; the same command continues bit for bit",
        quick=_topology == SINGLE,
    )
    def _(case: Case, topology: Topology = _topology) -> None:
        with _pipe() as (path, _, reading):
            run = _held_at_step_6(case, topology, path)
            os.close(reading)
            run.signal(signal.SIGINT)
            (case.folder / "go").touch()
            case.ended(run, 75)
        case.last_good_is(7)
        case.continues_exactly(topology)
