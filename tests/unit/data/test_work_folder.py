"""Work folders belong to one process at a time, are taken over when it dies, and are finally removed."""

import contextlib
import errno
import fcntl
import multiprocessing
import os
import signal
import time
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest

from storyteller_ds.data.work_folder import KEPT_DAYS, LOCK, put_in_place, set_aside, work_folder

KEY = "0123456789abcdef01234567"
SECONDS = 60


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_it_becomes_what_it_was_made_for(tmp_path):
    target = tmp_path / "cache" / KEY
    with work_folder(target) as folder:
        assert folder.parent == target.parent
        assert names(folder) == [LOCK]
        (folder / "file").write_text("x")
        put_in_place(folder, target)
    assert names(target.parent) == [KEY]
    assert names(target) == ["file"]


def test_it_is_removed_if_it_did_not_and_kept_when_the_block_is_interrupted(tmp_path):
    with work_folder(tmp_path / KEY) as folder:
        (folder / "file").touch()
    assert names(tmp_path) == []
    with contextlib.suppress(KeyboardInterrupt), work_folder(tmp_path / KEY) as folder:
        (folder / "file").touch()
        raise KeyboardInterrupt
    assert names(tmp_path) == [folder.name]
    with work_folder(tmp_path / KEY) as again:
        assert again == folder
        assert names(again) == ["file", LOCK]
    with work_folder(tmp_path / ("f" * 24)) as other:
        assert other != folder


def hold(target: Path, taken: Event) -> None:
    with work_folder(target) as folder:
        (folder / "half").touch()
        taken.set()
        time.sleep(SECONDS)


@pytest.mark.timeout(120)
def test_that_of_a_living_process_is_left_alone_and_that_of_a_killed_one_taken_over(tmp_path):
    context = multiprocessing.get_context("fork")
    taken = context.Event()
    process = context.Process(target=hold, args=(tmp_path / KEY, taken))
    process.start()
    try:
        assert taken.wait(SECONDS)
        (theirs,) = tmp_path.iterdir()
        with work_folder(tmp_path / KEY) as mine:
            assert mine != theirs
        os.utime(theirs, (0, 0))  # its age does not matter
        with work_folder(tmp_path / ("f" * 24)):
            pass
        assert names(theirs) == ["half", LOCK]
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.join(SECONDS)
    with work_folder(tmp_path / KEY) as mine:
        assert mine == theirs
        assert names(mine) == ["half", LOCK]


def test_of_several_that_were_left_one_is_taken_and_the_others_go(tmp_path):
    for number in range(3):
        (tmp_path / f"{KEY}.work-{number:08x}").mkdir()
    with work_folder(tmp_path / KEY) as folder:
        assert names(tmp_path) == [folder.name]


def test_what_nobody_came_back_for_is_removed_and_nothing_else(tmp_path):
    other = "f" * 24
    forgotten = [f"{other}.work-00000000", f"{other}.tmp-12-00000000", f"{KEY}.tmp-7"]
    kept = [f"{other}.work-00000001", "photos.work-1", "notes.tmp-1", f"{other}", "extensions", f"x{other}.work-0"]
    for name in (*forgotten, *kept):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").touch()
    (tmp_path / f"{other}.work-00000002").touch()  # not a folder
    old = time.time() - 24 * 3600 * (KEPT_DAYS + 1)
    for path in tmp_path.iterdir():
        if path.name != kept[0]:
            os.utime(path, (old, old))
    with work_folder(tmp_path / KEY):
        pass
    assert names(tmp_path) == sorted([*kept, f"{other}.work-00000002"])


@pytest.mark.filterwarnings("ignore:.*flock")  # the library then uses the existence of the file as the lock
def test_a_file_system_without_locks_is_no_obstacle(tmp_path, monkeypatch):
    def unsupported(*args: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    with work_folder(tmp_path / KEY) as folder:
        put_in_place(folder, tmp_path / KEY)
    assert names(tmp_path) == [KEY]


def test_a_lock_that_leads_elsewhere_is_not_followed(tmp_path):
    left = tmp_path / f"{KEY}.work-00000000"
    left.mkdir()
    (left / LOCK).symlink_to(tmp_path / "outside")
    with work_folder(tmp_path / KEY) as folder:
        assert folder != left
    assert not (tmp_path / "outside").exists()


@pytest.mark.parametrize("kind", ["folder", "file", "link", "nothing"])
def test_what_is_set_aside_is_no_longer_there_and_a_folder_is_taken_over(tmp_path, kind):
    target = tmp_path / KEY
    if kind == "folder":
        target.mkdir()
        (target / "file").touch()
    elif kind == "file":
        target.touch()
    elif kind == "link":
        target.symlink_to(tmp_path / "nowhere")
    set_aside(target)
    assert KEY not in names(tmp_path)
    with work_folder(target) as folder:
        assert names(folder) == (["file", LOCK] if kind == "folder" else [LOCK])


def test_a_folder_that_cannot_be_made_says_so(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"), work_folder(tmp_path / "file" / KEY):
        pass
