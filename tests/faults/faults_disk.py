"""Disks that are full, read-only or gone. The disk is a tmpfs in its own namespace (disk.py)."""

from pathlib import Path

from tests.support.distributed import wait_until
from tests.support.warm_machine import Run

from .case import END_S, PAIR, SINGLE, Case
from .disk import small_disk
from .registry import fault

STOPS = "all ranks agree, exit 2, one line; the checkpoint before loads; after the fix it continues bit for bit"
REFUSED = r"checkpoint .*step_00000008 could not be written: .*{}.*; earlier checkpoints are untouched"
DISK_KB = 1500
"""Enough for the whole run."""


def _held_at_step_6(case: Case, *arguments: str) -> tuple[Run, Path]:
    """A two-rank run that halts at step 6, with the checkpoint of step 4 saved, until the returned file exists."""
    reached, go = case.folder / "reached", case.folder / "go"
    injection = {"do": "hold", "step": 6, "reached": str(reached), "until": str(go)}
    run = case.start(PAIR, *arguments, faults=[injection])
    assert wait_until(lambda: (reached.exists() and case.step_folder(4).exists()) or run.ended(), END_S)
    assert not run.ended(), run.stderr
    return run, go


@fault("disk full before a save", STOPS)
def _(case: Case) -> None:
    with small_disk(case.folder / "disk", DISK_KB) as disk:
        case.run_folder = disk.path / "run"
        run, go = _held_at_step_6(case)
        ballast = disk.fill()
        with ballast.open("rb+") as file:  # leave room for metrics
            file.truncate(ballast.stat().st_size - (8 << 10))
        go.touch()
        case.ended(run, 2, REFUSED.format("no space left"))
        case.last_good_is(4)
        ballast.unlink()
        case.continues_exactly(PAIR)


for _rank in (0, 1):

    @fault(f"disk full in the middle of a save, while rank {_rank} writes", STOPS, quick=_rank == 1)
    def _(case: Case, rank: int = _rank) -> None:
        with small_disk(case.folder / "disk", DISK_KB) as disk:
            case.run_folder, ballast = disk.path / "run", disk.path / "ballast"
            injection = {"do": "fill_disk", "rank": rank, "part": "weights", "step": 8, "ballast": str(ballast)}
            # Synchronous, so that no line of metrics is written while the disk is full.
            run = case.train(PAIR, "checkpoint.asynchronous=false", faults=[injection])
            case.ended(run, 2, REFUSED.format("No space left on device"))
            assert ballast.stat().st_size > 0
            case.last_good_is(4)
            assert not list(case.checkpoints.glob("*.tmp"))
            ballast.unlink()
            case.continues_exactly(PAIR)


@fault("disk full, so that not even metrics can be written", STOPS)
def _(case: Case) -> None:
    with small_disk(case.folder / "disk", DISK_KB) as disk:
        case.run_folder = disk.path / "run"
        run, go = _held_at_step_6(case)
        # The last page of the metrics may still have room; fill all but 10 bytes of it.
        with (case.run_folder / "metrics.jsonl").open("rb+") as file:
            file.seek(0, 2)
            room = -file.tell() % 4096
            file.write(b"\n" * (room - 10 if room > 10 else 0))
        ballast = disk.fill()
        go.touch()
        case.ended(run, 2, "metrics.jsonl.*No space left on device")
        case.last_good_is(4)
        ballast.unlink()
        case.continues_exactly(PAIR)


@fault(
    "disk full during one save, checkpoint.on_error=continue", "a warning; training goes on, exit 0, nothing differs"
)
def _(case: Case) -> None:
    go_on = "checkpoint.on_error=continue"
    with small_disk(case.folder / "disk", DISK_KB) as disk:
        case.run_folder, ballast = disk.path / "run", disk.path / "ballast"
        fill = {"do": "fill_disk", "rank": 1, "part": "weights", "step": 4, "ballast": str(ballast)}
        clear = {"do": "remove", "rank": 1, "step": 4, "path": str(ballast)}
        run = case.train(PAIR, go_on, "checkpoint.asynchronous=false", faults=[fill, clear], quiet=False)
        case.ended(run, 0)
        assert "warning: checkpoint" in run.stderr, run.stderr
        case.saw("a warning")
        assert not case.step_folder(4).exists()
        case.is_exactly(case.undisturbed(PAIR))


@fault("files limited in size (RLIMIT_FSIZE) for rank 0", STOPS)
def _(case: Case) -> None:
    _limited(case, 0)


@fault("files limited in size (RLIMIT_FSIZE) for rank 1", STOPS)
def _(case: Case) -> None:
    _limited(case, 1)


def _limited(case: Case, rank: int) -> None:
    saved = case.undisturbed(PAIR) / "checkpoints" / "step_00000004"
    shard = saved / f"optimizer-{rank:05d}-of-00002.safetensors"
    injection = {"do": "limit_file_size", "rank": rank, "step": 6, "limit_bytes": shard.stat().st_size - 1}
    # Synchronous, so that step 4 is saved before the limit is set, however slow the machine.
    run = case.train(PAIR, "checkpoint.asynchronous=false", faults=[injection])
    case.ended(run, 2, REFUSED.format("File too large"))
    case.last_good_is(4)
    case.continues_exactly(PAIR)


@fault("a folder that becomes read-only", STOPS)
def _(case: Case) -> None:
    with small_disk(case.folder / "disk", DISK_KB) as disk:
        case.run_folder = disk.path / "run"
        run, go = _held_at_step_6(case)
        disk.make_read_only(case.checkpoints)
        go.touch()
        case.ended(run, 2, REFUSED.format("Read-only file system"))
        case.last_good_is(4)


@fault("an output folder that is read-only from the start", "exit 2, one line that names it")
def _(case: Case) -> None:
    with small_disk(case.folder / "disk", DISK_KB) as disk:
        (disk.path / "locked").mkdir()
        disk.make_read_only(disk.path / "locked")
        case.run_folder = disk.path / "locked" / "run"
        case.ended(case.train(PAIR), 2, "output folder .*Read-only file system.*--output_dir")


@fault("a mount that vanishes", "exit 2, one line, no rank waits for another; nothing is written below the mount point")
def _(case: Case) -> None:
    with small_disk(case.folder / "disk", DISK_KB) as disk:
        case.run_folder = disk.path / "run"
        run, go = _held_at_step_6(case)
        disk.unmount()
        go.touch()
        case.ended(run, 2, "No such file or directory")
        assert list(disk.path.iterdir()) == []


@fault("a single process whose disk is full", STOPS)
def _(case: Case) -> None:
    with small_disk(case.folder / "disk", DISK_KB) as disk:
        case.run_folder, ballast = disk.path / "run", disk.path / "ballast"
        fill = {"do": "fill_disk", "part": "optimizer", "step": 8, "ballast": str(ballast)}
        run = case.train(SINGLE, "checkpoint.asynchronous=false", faults=[fill])
        case.ended(run, 2, REFUSED.format("No space left on device"))
        case.last_good_is(4)
        ballast.unlink()
        case.continues_exactly(SINGLE)
