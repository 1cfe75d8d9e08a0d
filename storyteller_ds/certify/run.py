"""Run rows in their own processes, and judge them."""

import multiprocessing
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, Literal

from storyteller_ds.certify.compare import Difference, Results, compare, read_results
from storyteller_ds.certify.rank import FAILED, LOST_PEER, log_of, run_rank
from storyteller_ds.certify.rows import PRESET, RUN, STEPS, TRAFFIC_LIMIT, Placement, Row
from storyteller_ds.certify.traffic import routed_bytes
from storyteller_ds.config import load_config
from storyteller_ds.data.corpus import prepare_corpus
from storyteller_ds.distributed.ports import free_port
from storyteller_ds.errors import StorytellerError
from storyteller_ds.model.decoder import Decoder
from storyteller_ds.records.trained_run import TrainedRun

ROW_LIMIT_S = 180.0
"""Time limit for a row, a hundred times what one takes on two cores."""
FOR_THE_OTHERS_S = 5.0
"""Time from the first failed rank to ending all: the first to fail may just have lost the one that is at fault."""
_VICTIMS = (LOST_PEER, -signal.SIGABRT)
"""Exit codes of a rank that has lost another one: gloo and NCCL may abort the process."""
WARM_MODULES = (
    "storyteller_ds.certify.rank",
    "torch._dynamo",  # torch imports it with the first optimizer
    "storyteller_ds.engines.deepspeed.engine",
    "storyteller_ds.engines.deepspeed.expert_parallel",
    "storyteller_ds.engines.deepspeed.autoep",
    "deepspeed.runtime.zero.stage3",
    # DeepSpeed imports it to see whether the optimizer is one of its own, and it imports torch's compiler.
    "deepspeed.runtime.zero.muon.muon_optimizer",
)
"""Imported once, by the process that all CPU ranks are forked from: importing them takes ten times as long as training.

That process computes nothing: after OpenMP's first parallel loop or the first backward pass it must not be forked.
"""
Outcome = Literal["reference", "passed", "differs", "failed"]


@dataclass(frozen=True)
class Verdict:
    """The outcome of a row."""

    placement: Placement
    outcome: Outcome
    problem: str | None
    """One line about what is wrong; None if nothing is."""
    results: Results | None
    """None if the row did not run to its end."""
    difference: Difference | None
    """From the reference; None if there is none."""
    traffic_ratio: float | None
    """Bytes passed to all-to-all, including counts, over bytes that the routing needs; None without all-to-all."""
    seconds: float
    """Time of the whole row, including the start of its processes."""

    @property
    def bad(self) -> bool:
        """Whether this row prevents certification."""
        return self.outcome in ("differs", "failed")


class NotCertified(StorytellerError):
    """A row differs from its reference, or did not run."""

    exit_code = 1


class RowFailed(StorytellerError):
    """A row did not run to its end; the message is the last error of the rank that failed first."""


def certify(placements: Sequence[Placement], log: Callable[[str], None]) -> Iterator[Verdict]:
    """Run the rows one after another; references come before the rows that need them.

    Args:
        placements: from `place`.
        log: gets a line when a row begins.

    Raises:
        DataError: the corpus cannot be prepared.
    """
    references: dict[tuple[str | None, str], Results] = {}
    with tempfile.TemporaryDirectory(prefix="storyteller-certify-") as temporary:
        run = load_config(PRESET, RUN).run
        names = [name for name, _ in Decoder(run).named_parameters()]
        key = prepare_corpus(run, log)
        if any(placement.device == "cpu" for placement in placements):
            # Let the process that all CPU ranks are forked from import everything now, outside of any row's time.
            first = _process_context("cpu").Process(target=int)
            first.start()
            first.join()
        for number, placement in enumerate(placements, start=1):
            row, began = placement.row, time.monotonic()
            log(f"{number}/{len(placements)} {row.name}: {row.why} ({placement.ranks} x {placement.device})")
            folder = Path(temporary) / f"{number}"
            try:
                run_ranks(placement, folder, key)
            except RowFailed as error:
                yield Verdict(placement, "failed", str(error), None, None, None, time.monotonic() - began)
                continue
            results = read_results(TrainedRun(folder, STEPS), placement.ranks, names)
            references[row.name, placement.device] = results
            reference = references.get((row.reference, placement.device))
            routed = routed_bytes(load_config(PRESET, [*RUN, *row.overrides]).run, STEPS)
            yield _judge(placement, results, reference, routed, time.monotonic() - began)


def _judge(placement: Placement, results: Results, reference: Results | None, routed: int, seconds: float) -> Verdict:
    row = placement.row
    ratio = results.sent_bytes / routed if results.sent_bytes else None
    outcome: Outcome = "reference"
    difference = problem = None
    if reference is not None:
        difference = compare(results, reference)
        problem = difference.problem(row.tolerances) or traffic_problem(row, placement.ranks, ratio)
        outcome = "differs" if problem else "passed"
    elif row.reference is not None:
        outcome, problem = "failed", f"its reference '{row.reference}' did not run"
    return Verdict(placement, outcome, problem, results, difference, ratio, seconds)


def traffic_problem(row: Row, ranks: int, ratio: float | None) -> str | None:
    """One line if a row that promises to send only the routed tokens has sent more or fewer."""
    if not row.exact_traffic or ranks == 1:
        return None
    if ratio is None:
        return "experts are spread over ranks, but nothing went through all-to-all"
    if not 1 <= ratio <= TRAFFIC_LIMIT:
        return f"all-to-all sent {ratio:.3f} bytes for each routed byte, allowed 1 to {TRAFFIC_LIMIT}"
    return None


def run_ranks(placement: Placement, folder: Path, corpus_key: str) -> None:
    """Start all ranks and wait for them; a failed rank, the time limit or an exception ends all of them.

    Raises:
        RowFailed: a rank failed, or they took too long.
    """
    folder.mkdir()
    context, port = _process_context(placement.device), free_port()
    arguments = [(placement, rank, port, corpus_key, folder) for rank in range(placement.ranks)]
    processes = [context.Process(target=run_rank, args=each) for each in arguments]
    deadline = time.monotonic() + ROW_LIMIT_S
    try:
        for process in processes:
            process.start()
        waiting = {process.sentinel: rank for rank, process in enumerate(processes)}
        failed: list[tuple[int, int]] = []
        while waiting and (ended := wait(list(waiting), timeout=max(0.0, deadline - time.monotonic()))):
            for rank in [waiting.pop(sentinel) for sentinel in ended]:
                processes[rank].join()
                if processes[rank].exitcode != 0:
                    failed.append((processes[rank].exitcode, rank))
                    deadline = min(deadline, time.monotonic() + FOR_THE_OTHERS_S)
        if failed:
            raise RowFailed(_last_error(folder, *min(failed, key=lambda each: (each[0] in _VICTIMS, each))))
        if waiting:
            raise RowFailed(f"took over {ROW_LIMIT_S:.0f} s and was stopped; is the machine busy?")
    finally:
        for process in processes:
            if process.pid is not None:
                process.kill()
                process.join()


def _last_error(folder: Path, exit_code: int, rank: int) -> str:
    log = log_of(folder, rank)
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() if log.exists() else []
    if exit_code in (FAILED, LOST_PEER) and lines:
        return lines[-1]
    ended = f"was ended by {signal.Signals(-exit_code).name}" if exit_code < 0 else f"exited {exit_code}"
    return f"rank {rank} {ended}" + (f"; its last line: {lines[-1]}" if lines else "")


def _process_context(device: str) -> Any:
    """How to start ranks: by forking one process that has imported everything (that is installed), if that is safe.

    It is not safe with CUDA, which does not survive a fork, nor on macOS, whose system libraries do not.
    """
    if device == "cuda" or sys.platform != "linux":
        return multiprocessing.get_context("spawn")
    os.environ["DS_ACCELERATOR"] = "cpu"  # read when DeepSpeed is imported
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*WARM_MODULES])
    return context
