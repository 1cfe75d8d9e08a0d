"""The run folder: one writer at a time, and nothing is ever deleted."""

import contextlib
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from storyteller_ds.errors import UserError
from storyteller_ds.records.run_folder import WANDB_RUN_ID, RunFolder

HOLDER = """
import sys
from pathlib import Path
from storyteller_ds.records.run_folder import RunFolder
folder = RunFolder(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


def content(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): p.read_text() for p in folder.rglob("*") if p.is_file() and p.name != ".lock"}


def test_a_second_process_is_refused_until_the_first_has_ended(tmp_path):
    path = tmp_path / "run"
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        try:
            assert holder.stdout.readline() == "held\n"
            with pytest.raises(UserError, match=r"another run is writing to .*choose another --output_dir") as caught:
                RunFolder(path)
            assert str(path) in str(caught.value)
            assert f"(pid {holder.pid} on {socket.gethostname()})" in str(caught.value)
            with pytest.raises(UserError, match=f"pid {holder.pid} on "):  # the failed attempt has not erased it
                RunFolder(path)
            RunFolder(tmp_path / "other")  # control: only this folder is held
        finally:
            holder.kill()  # the lock is released with the process, however it ends
            holder.wait(timeout=30)
    RunFolder(path)
    assert (path / ".lock").read_text() == f"pid {os.getpid()} on {socket.gethostname()}\n"


def test_a_second_run_of_the_same_process_is_refused_too(tmp_path):
    first = RunFolder(tmp_path)
    with pytest.raises(UserError):
        RunFolder(tmp_path)
    del first
    RunFolder(tmp_path)


def test_a_path_that_cannot_be_a_folder_is_a_user_error(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(UserError, match=rf"cannot be used: \[Errno \d+\] .*'{path}'; choose another"):
            RunFolder(path)


def earlier_run(path: Path, mark: str) -> dict[str, str]:
    records = {
        "metrics.jsonl": f"{mark}1",
        "samples.md": f"{mark}2",
        "config.json": f"{mark}3",
        "checkpoints/step_1/weights": f"{mark}4",
    }
    for name, text in records.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text(text)
    return records


def test_setting_aside_moves_everything_and_deletes_nothing(tmp_path):
    folder = RunFolder(tmp_path)
    assert folder.set_aside() is None
    (tmp_path / "notes.txt").write_text("mine")
    first = earlier_run(tmp_path, "a")
    assert folder.set_aside() == tmp_path / "previous-1"
    second = earlier_run(tmp_path, "b")
    assert folder.set_aside() == tmp_path / "previous-2"
    assert content(tmp_path) == {
        "notes.txt": "mine",
        **{f"previous-1/{name}": text for name, text in first.items()},
        **{f"previous-2/{name}": text for name, text in second.items()},
    }
    assert folder.set_aside() is None


def test_setting_aside_works_after_an_older_one_was_removed_by_hand(tmp_path):
    folder = RunFolder(tmp_path)
    (tmp_path / "previous-2").mkdir()
    (tmp_path / "previous-2" / "metrics.jsonl").write_text("old")
    records = earlier_run(tmp_path, "a")
    aside = folder.set_aside()
    assert aside is not None
    assert content(aside) == records
    assert (tmp_path / "previous-2" / "metrics.jsonl").read_text() == "old"


@pytest.mark.parametrize(
    ("text", "expected"), [('{"wandb_run_id": "abc"}', "abc"), ('{"wandb_run_id": 3}', None), ("[]", None), ("{", None)]
)
def test_the_wandb_run_is_read_from_the_config(tmp_path, text, expected):
    folder = RunFolder(tmp_path)
    assert folder.tracked_as(WANDB_RUN_ID) is None
    (tmp_path / "config.json").write_text(text)
    assert folder.tracked_as(WANDB_RUN_ID) == expected


@pytest.mark.parametrize("name", ["metrics.jsonl", "samples.md", "config.json", "tokenizer.json"])
@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir], ids=["FIFO", "folder"])
def test_a_record_that_is_no_file_is_refused_and_never_waited_for(tmp_path, name, make):
    make(tmp_path / name)
    with pytest.raises(UserError, match=f"{name} is not a file; remove it"):
        RunFolder(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", ["tensorboard", "mlruns"])
def test_a_link_in_place_of_a_trackers_folder_is_refused(tmp_path, name):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="is a link"):
        RunFolder(tmp_path / "run")


@pytest.mark.parametrize("name", ["tensorboard", "mlruns"])
def test_records_of_trackers_are_set_aside_too(tmp_path, name):
    (tmp_path / name).mkdir()
    (tmp_path / name / "events").write_text("of an earlier run")
    with contextlib.closing(RunFolder(tmp_path)) as folder:
        aside = folder.set_aside()
    assert aside is not None
    assert (aside / name / "events").read_text() == "of an earlier run"
    assert not (tmp_path / name).exists()
