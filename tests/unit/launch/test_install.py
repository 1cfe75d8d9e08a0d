"""launch/install.sh, with a fake pip that only prints."""

import contextlib
import os
import pty
import re
import subprocess
from pathlib import Path

import pytest

LAUNCH = Path(__file__).parents[3] / "launch"
PIP = """#!/bin/sh
echo "$@" >> called
echo "Collecting numpy"
echo "  Downloading numpy-2.4.0.whl (16.4 MB)"
echo "Requirement already satisfied: x"
if [ -n "$FAILS" ]; then echo "ERROR: No matching distribution found for torch" >&2; exit 7; fi
"""
STEPS = [
    "installing torch, in the version of constraints.txt",
    "installing storyteller_ds and what it needs (deepspeed,test): about 125 packages, a minute or two",
    "done: source .venv/bin/activate",
]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    (tmp_path / "launch").mkdir()
    for name in ("install.sh", "install_libaio.sh"):
        (tmp_path / "launch" / name).write_text((LAUNCH / name).read_text())
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "include").mkdir()
    (tmp_path / ".venv" / "include" / "libaio.h").touch()  # so that nothing is fetched
    python = tmp_path / ".venv" / "bin" / "python"
    python.write_text(PIP)
    python.chmod(0o755)
    return tmp_path


def install(checkout: Path, stdout: int, fails: str = "") -> "subprocess.CompletedProcess[str]":
    command = ["sh", "launch/install.sh", ".venv", "deepspeed,test"]
    env = {**os.environ, "FAILS": fails}
    streams = {"stdout": stdout, "stderr": subprocess.PIPE}
    return subprocess.run(command, cwd=checkout, env=env, text=True, timeout=60, check=False, **streams)


def test_a_log_has_a_line_for_each_step(checkout: Path):
    done = install(checkout, subprocess.PIPE)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == STEPS
    assert (checkout / "called").read_text().splitlines() == [
        "-m pip install --constraint constraints.txt torch",
        "-m pip install --constraint constraints.txt --editable .[deepspeed,test]",
    ]
    assert "already satisfied" in (checkout / ".venv" / "install.log").read_text()


def test_a_terminal_sees_what_pip_is_at(checkout: Path):
    terminal, end = pty.openpty()
    done = install(checkout, end)
    os.close(end)
    printed = b""
    with contextlib.suppress(OSError):  # EIO: all of it has been read
        while True:
            printed += os.read(terminal, 1 << 16)
    os.close(terminal)
    text = printed.decode()
    assert done.returncode == 0, done.stderr
    assert text.count("\r\x1b[K  Collecting numpy\r\x1b[K    Downloading numpy-2.4.0.whl (16.4 MB)\r\x1b[K") == 2
    assert "already satisfied" not in text
    # What remains on the screen.
    assert [re.sub(r".*\x1b\[K", "", line) for line in text.replace("\r\n", "\n").split("\n")] == [*STEPS, ""]


def test_an_error_of_pip_is_shown_and_ends_it(checkout: Path):
    done = install(checkout, subprocess.PIPE, fails="yes")
    assert done.returncode == 7
    assert done.stdout.splitlines() == STEPS[:1]
    assert done.stderr.splitlines()[-1] == "ERROR: No matching distribution found for torch"
