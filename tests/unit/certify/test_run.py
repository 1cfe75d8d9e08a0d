"""Which rank's error a row reports; no rank trains here."""

import faulthandler
import os
import signal
import sys
from pathlib import Path
from typing import NoReturn

import pytest
import torch.distributed as dist

from storyteller_ds.certify import rank as ranks
from storyteller_ds.certify import run
from storyteller_ds.certify.rank import FAILED, LOST_PEER, log_of, run_rank
from storyteller_ds.certify.rows import ROWS, Placement
from storyteller_ds.errors import ConfigError

TWO = Placement(next(row for row in ROWS if row.name == "zero2"), "cpu", 2)
LOST = "RuntimeError: Connection closed by peer [127.0.0.1]:4711"
OWN = "DeepSpeed refuses its JSON: zero_optimization.stage"


def reported(folder: Path, monkeypatch: pytest.MonkeyPatch, *ends: tuple[int, str]) -> str:
    """The error of a row whose ranks end with these exit codes and log lines, each after the previous one."""
    folder.mkdir()
    for rank in range(len(ends)):
        os.mkfifo(folder / f"{rank}.lives")

    def ending_rank(_: Placement, rank: int, port: int, key: str, row: Path) -> None:
        if rank > 0:
            (folder / f"{rank - 1}.lives").read_bytes()
        if rank < len(ends) - 1:
            os.open(folder / f"{rank}.lives", os.O_WRONLY)
        code, says = ends[rank]
        log_of(row, rank).write_text(f"{says}\n")
        if code < 0:
            faulthandler.disable()
            os.kill(os.getpid(), -code)
        os._exit(code)

    monkeypatch.setattr(run, "run_rank", ending_rank)
    monkeypatch.setattr(run, "_process_context", lambda _: run.multiprocessing.get_context("fork"))
    with pytest.raises(run.RowFailed) as failed:
        run.run_ranks(TWO, folder / "row", "key")
    return str(failed.value)


@pytest.mark.parametrize(
    ("ends", "expected"),
    [
        (((LOST_PEER, LOST), (FAILED, OWN)), OWN),
        (((FAILED, OWN), (LOST_PEER, LOST)), OWN),
        (((-signal.SIGABRT, LOST), (FAILED, OWN)), OWN),
        (((FAILED, OWN), (FAILED, "another")), OWN),
        (((LOST_PEER, LOST), (-signal.SIGKILL, "step 3")), "rank 1 was ended by SIGKILL; its last line: step 3"),
        (((LOST_PEER, LOST), (LOST_PEER, LOST)), LOST),
    ],
)
def test_the_rank_at_fault_is_reported_and_not_one_that_has_lost_it(ends, expected, tmp_path, monkeypatch):
    assert reported(tmp_path / "folder", monkeypatch, *ends) == expected


@pytest.mark.parametrize(
    ("error", "code", "last_line"),
    [
        (ConfigError(OWN), FAILED, OWN),
        (ZeroDivisionError("division by zero\nand more"), FAILED, "ZeroDivisionError: division by zero"),
        (RuntimeError(LOST.partition(" ")[2]), LOST_PEER, LOST),
        (dist.DistNetworkError("failed to recv, got 0 bytes. Connection was likely closed."), LOST_PEER, None),
    ],
)
def test_a_rank_tells_its_own_error_from_a_lost_peer(error, code, last_line, tmp_path, monkeypatch):
    def fail(*_: object, **__: object) -> NoReturn:
        raise error

    monkeypatch.setattr(ranks, "load_config", fail)
    monkeypatch.setattr(sys, "stdout", sys.__stdout__)  # pytest's stdout is not file descriptor 1
    context = run.multiprocessing.get_context("fork")
    process = context.Process(target=run_rank, args=(TWO, 0, 0, "key", tmp_path))
    process.start()
    process.join(60)
    assert process.exitcode == code
    if last_line is not None:
        assert log_of(tmp_path, 0).read_text().splitlines()[-1] == last_line
