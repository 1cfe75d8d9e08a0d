"""Our own files are replaced; a file that the user names is written where a shell would write it."""

import os
import re
import shlex
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from storyteller_ds.durable import check_output, write_atomically, write_output
from storyteller_ds.errors import UserError


def test_an_atomic_write_replaces_the_whole_file_or_nothing(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    write_atomically(path, "long first content")
    write_atomically(path, "second")
    assert path.read_text() == "second"
    assert list(tmp_path.iterdir()) == [path]

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("storyteller_ds.durable.os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_atomically(path, "third")
    assert path.read_text() == "second"


# Files that a user has named


def written(path: Path, text: str = "new") -> None:
    check_output(path, "--output")
    write_output(path, "--output", text)


def test_an_output_is_replaced_as_a_whole_and_keeps_its_mode(tmp_path, monkeypatch):
    path, neighbor = tmp_path / "stories.txt", tmp_path / "stories.txt.tmp"
    neighbor.write_text("of the user")
    written(path, "old")
    path.chmod(0o640)
    reader = path.open()
    written(path)
    assert (reader.read(), path.read_text(), stat.S_IMODE(path.stat().st_mode)) == ("old", "new", 0o640)

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("storyteller_ds.durable.os.fsync", full)
    with pytest.raises(UserError, match=r"^--output .*stories.txt could not be written: No space left on device$"):
        written(path, "third")
    assert path.read_text() == "new"
    assert sorted(tmp_path.iterdir()) == [path, neighbor], "nothing is left behind, and nothing else is touched"


@pytest.mark.parametrize("mask", [0o022, 0o002, 0o077], ids=oct)
def test_a_new_output_has_the_mode_that_the_umask_says(tmp_path, mask):
    before = os.umask(mask)
    try:
        written(tmp_path / "new.txt")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "new.txt").stat().st_mode) == 0o666 & ~mask


def test_a_link_stays_and_what_it_leads_to_is_replaced(tmp_path):
    (tmp_path / "far").mkdir()
    target = tmp_path / "far" / "target.txt"
    (tmp_path / "link").symlink_to("far/target.txt")
    for text in ("made", "replaced"):  # at first its target does not exist
        written(tmp_path / "link", text)
        assert (tmp_path / "link").is_symlink()
        assert target.read_text() == text
    assert list((tmp_path / "far").iterdir()) == [target]


def test_a_fifo_is_written_to(tmp_path):
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with ThreadPoolExecutor() as threads:
        read = threads.submit(fifo.read_text)
        written(fifo, "a story")
        assert read.result(30) == "a story"
    assert fifo.is_fifo()


def test_a_device_is_written_to(tmp_path):
    # Through our own links, so that a bug does not cost this machine its devices.
    for name in ("null", "full"):
        (tmp_path / name).symlink_to(f"/dev/{name}")
    written(tmp_path / "null")
    with pytest.raises(UserError, match="No space left"):
        written(tmp_path / "full")
    assert all((tmp_path / name).is_char_device() and (tmp_path / name).is_symlink() for name in ("null", "full"))


@pytest.mark.parametrize("mode", ["w", "a", "pipe"])
def test_our_own_stdout_is_written_to_whatever_it_is(tmp_path, mode):
    code = (
        "from pathlib import Path; from storyteller_ds.durable import write_output; "
        "print('before'); write_output(Path('/dev/stdout'), '--output', 'story\\n'); print('after')"
    )
    log = tmp_path / "log"
    log.write_text("earlier\n")
    with log.open("a" if mode == "pipe" else mode) as file:
        done = subprocess.run(
            [sys.executable, "-c", code], stdout=subprocess.PIPE if mode == "pipe" else file, timeout=60, check=True
        )
    text = (done.stdout or b"").decode() if mode == "pipe" else log.read_text()
    assert text == ("earlier\n" if mode == "a" else "") + "before\nstory\nafter\n"


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("no/such/folder/x.txt", r"the folder .*no/such/folder does not exist; make it first \(mkdir -p"),
        ("a folder", "a folder; name a file in it"),
        ("file/x.txt", "Not a directory"),
        ("loop", "symbolic links"),
        ("dangling", "the folder .*nowhere does not exist"),
        ("x" * 300, "File name too long"),
    ],
)
def test_what_cannot_be_written_is_refused_beforehand(tmp_path, name, reason):
    (tmp_path / "a folder").mkdir()
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "dangling").symlink_to("nowhere/x.txt")
    with pytest.raises(UserError, match=f"^--output .*{reason}"):
        check_output(tmp_path / name, "--output")


def test_what_may_not_be_written_is_refused_beforehand(tmp_path, monkeypatch):
    file, closed = tmp_path / "file", tmp_path / "closed"
    file.write_text("")
    closed.mkdir()
    # The tests may run as root, who may write everywhere.
    monkeypatch.setattr("storyteller_ds.durable.os.access", lambda path, mode: Path(path) not in (file, closed))
    with pytest.raises(UserError, match="file: may not be written"):
        check_output(file, "--output")
    with pytest.raises(UserError, match=r"the folder .*closed may not be written"):
        check_output(closed / "x", "--output")
    check_output(tmp_path / "x", "--output")


def test_the_command_that_makes_the_folder_can_be_pasted(tmp_path):
    with pytest.raises(UserError) as refused:
        check_output(tmp_path / "my stories" / "x.txt", "--output")
    command = re.search(r"\((mkdir .*)\)", str(refused.value))
    assert command is not None
    assert shlex.split(command[1]) == ["mkdir", "-p", str(tmp_path / "my stories")]
