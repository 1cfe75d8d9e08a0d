"""Run rows in processes of their own, and judge them."""

import contextlib
import json
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

from storyteller_ds.certify.compare import Difference, compare
from storyteller_ds.certify.results import Results, read_results
from storyteller_ds.certify.rows import PRESET, RUN, STEPS, TRAFFIC_LIMIT, Row
from storyteller_ds.certify.traffic import routed_bytes
from storyteller_ds.certify.worker import Job, run_rank
from storyteller_ds.config import load_config
from storyteller_ds.data.corpus import prepare_corpus
from storyteller_ds.distributed.world import free_port
from storyteller_ds.errors import StorytellerError

ROW_LIMIT_S = 180.0
"""Longest time for a row, a hundred times what one takes on two cores."""


@dataclass(frozen=True)
class Placement:
    """A row and where it runs."""

    row: Row
    device: Literal["cpu", "cuda"]
    ranks: int


@dataclass(frozen=True)
class Verdict:
    """What came of a row."""

    placement: Placement
    outcome: Literal["reference", "passed", "differs", "failed"]
    problem: str | None
    """One line on what is wrong; None where nothing is."""
    results: Results | None
    """None if the row did not run to its end."""
    difference: Difference | None
    """From the reference; None without one."""
    traffic_ratio: float | None
    """Bytes handed to all-to-all, counts included, over bytes that the routing asks for; None without all-to-all."""
    seconds: float
    """Of the whole row, start of its processes included."""

    @property
    def bad(self) -> bool:
        """Whether the certificate cannot be given because of this row."""
        return self.outcome in ("differs", "failed")


class NotCertified(StorytellerError):
    """Some row differs from its reference, or did not run."""

    exit_code = 1


class RowFailed(StorytellerError):
    """A row did not run to its end; the message is the last error of the rank that gave up first."""


def place(rows: Sequence[Row], cards: int) -> list[Placement]:
    """Where each row runs on a machine with this many CUDA cards: one card a rank, on the CPU where they do not
    suffice. A reference runs on every device on which a row is compared with it.
    """
    placed = []
    for row in rows:
        if row.ranks <= cards:
            placed.append(Placement(row, "cuda", row.ranks))
        elif cards and row.fits_one_card:
            placed.append(Placement(row, "cuda", 1))
        else:
            placed.append(Placement(row, "cpu", row.ranks))
    needed = {(p.row.reference, p.device) for p in placed}
    have = {(p.row.name, p.device) for p in placed}
    by_name = {row.name: row for row in rows}
    extra = [
        Placement(by_name[name], device, by_name[name].ranks)
        for name, device in sorted(needed - have, key=str)
        if name is not None
    ]
    return extra + placed


def certify(placements: Sequence[Placement], say: Callable[[str], None]) -> Iterator[Verdict]:
    """Run the rows one after another; references come before the rows that need them.

    Args:
        placements: from `place`.
        say: told which row is running.

    Raises:
        DataError: the corpus cannot be prepared.
    """
    references: dict[tuple[str, str], Results] = {}
    with tempfile.TemporaryDirectory(prefix="storyteller-certify-") as temporary:
        folder = Path(temporary)
        run = load_config(PRESET, RUN).run
        key = prepare_corpus(run, say, check_shards=True)
        if any(placement.device == "cpu" for placement in placements):
            # The process that all CPU ranks are forked from imports everything now, outside of any row's time.
            first = _process_context("cpu").Process(target=int)
            first.start()
            first.join()
        for number, placement in enumerate(placements, start=1):
            row = placement.row
            say(f"{number}/{len(placements)} {row.name}: {row.why} ({placement.ranks} x {placement.device})")
            verdict = _judge(placement, folder / f"{number}", key, references, routed_bytes(run, STEPS))
            if verdict.results is not None:
                references[row.name, placement.device] = verdict.results
            yield verdict


def _judge(
    placement: Placement, folder: Path, key: str, references: dict[tuple[str, str], Results], routed: int
) -> Verdict:
    row, began = placement.row, time.monotonic()
    results = difference = ratio = None
    problem: str | None = None
    outcome: Literal["reference", "passed", "differs", "failed"] = "failed"
    try:
        results = _run_row(placement, folder, key)
        sent = results.traffic.payload_bytes + results.traffic.message_bytes
        ratio = sent / routed if sent else None
        if row.reference is None:
            outcome = "reference"
        elif (reference := references.get((row.reference, placement.device))) is None:
            problem = f"its reference '{row.reference}' did not run"
        else:
            difference = compare(results, reference)
            problem = difference.complaint(row.tolerance) or traffic_complaint(row, placement.ranks, ratio)
            outcome = "differs" if problem else "passed"
    except RowFailed as error:
        problem = str(error)
    return Verdict(placement, outcome, problem, results, difference, ratio, time.monotonic() - began)


def traffic_complaint(row: Row, ranks: int, ratio: float | None) -> str | None:
    """One line if a row that promises to send only the routed rows has sent more, or fewer."""
    if not row.exact_traffic or ranks == 1:
        return None
    if ratio is None:
        return "experts are spread over ranks, but nothing went through all-to-all"
    if not 1 <= ratio <= TRAFFIC_LIMIT:
        return f"all-to-all sent {ratio:.3f} bytes for each routed byte, allowed 1 to {TRAFFIC_LIMIT}"
    return None


def _run_row(placement: Placement, folder: Path, key: str) -> Results:
    folder.mkdir()
    row = placement.row
    ds_config = None
    if row.deepspeed is not None:
        ds_config = folder / f"{row.name}.json"
        ds_config.write_text(json.dumps(row.deepspeed), encoding="utf-8")
    job = Job(
        preset=PRESET,
        overrides=(*RUN, *row.overrides),
        ds_config=ds_config,
        corpus_key=key,
        ranks=placement.ranks,
        device=placement.device,
        port=free_port(),
        folder=folder,
    )
    _run_ranks(job)
    return read_results(folder, placement.ranks)


def _run_ranks(job: Job) -> None:
    """Start all ranks and wait for them; the first that fails, the time limit or an exception ends all.

    Raises:
        RowFailed: a rank failed, or they took too long.
    """
    context = _process_context(job.device)
    processes = [context.Process(target=run_rank, args=(job, rank)) for rank in range(job.ranks)]
    deadline = time.monotonic() + ROW_LIMIT_S
    try:
        for process in processes:
            process.start()
        waiting = {process.sentinel: rank for rank, process in enumerate(processes)}
        while waiting:
            ended = wait(list(waiting), timeout=max(0.0, deadline - time.monotonic()))
            if not ended:
                raise RowFailed(f"took over {ROW_LIMIT_S:.0f} s and was stopped; is the machine busy?")
            ranks = [waiting.pop(sentinel) for sentinel in ended]
            for rank in ranks:
                processes[rank].join()
            # One that was killed (a negative code) comes before those that have only lost their connection to it.
            failed = sorted((processes[rank].exitcode, rank) for rank in ranks if processes[rank].exitcode != 0)
            if failed:
                code, rank = failed[0]
                raise RowFailed(_last_error(job, rank, code))
    finally:
        for process in processes:
            if process.pid is not None:
                _kill(process)


def _kill(process: Any) -> None:
    """End a rank and whatever it has started, and wait for it."""
    # Its group exists as soon as the rank has begun; before that the process itself is all there is.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.join()


def _last_error(job: Job, rank: int, exit_code: int) -> str:
    with contextlib.suppress(OSError):
        return job.error(rank).read_text(encoding="utf-8")
    ended = f"was ended by {signal.Signals(-exit_code).name}" if exit_code < 0 else f"exited {exit_code}"
    with contextlib.suppress(OSError):
        lines = job.log(rank).read_text(encoding="utf-8", errors="replace").strip().splitlines()
        if lines:
            return f"rank {rank} {ended}; its last line: {lines[-1]}"
    return f"rank {rank} {ended} without a word"


def _process_context(device: str) -> Any:
    """How ranks are started: forked from one warm process that has imported everything, where that is safe.

    Not with CUDA, which does not survive a fork, and not on macOS, whose system libraries do not.
    """
    if device == "cuda" or sys.platform != "linux":
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["storyteller_ds.certify.warm"])
    return context
