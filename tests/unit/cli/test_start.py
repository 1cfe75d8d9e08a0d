"""Ctrl-C right at the start, while the command is still being imported."""

import signal
import subprocess
import sys

import pytest

INTERRUPTED_WHILE_IMPORTING = """
import importlib, os, signal, types
from storyteller_ds.cli import start
{before}
def import_module(name):
    os.kill(os.getpid(), signal.SIGINT)
    return types.SimpleNamespace(main=lambda: print("goes on"))
importlib.import_module = import_module
start.main()
"""


@pytest.mark.parametrize(
    ("before", "code", "out"),
    [("", -signal.SIGINT, ""), ("signal.signal(signal.SIGINT, signal.SIG_IGN)", 0, "goes on\n")],
    ids=["as usual", "ignored stays ignored"],
)
def test_an_interrupted_import_ends_silently(before, code, out):
    program = INTERRUPTED_WHILE_IMPORTING.format(before=before)
    command = [sys.executable, "-c", program]
    # pytest may itself ignore the signal, as in the background of a shell; the child must not inherit that.
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert (done.returncode, done.stdout, done.stderr) == (code, out, "")


def test_the_command_itself_answers_as_python_does():
    code = (
        "import signal; from storyteller_ds.cli import start\n"
        "before = signal.getsignal(signal.SIGINT); start._command()\n"
        "assert signal.getsignal(signal.SIGINT) is before"
    )
    subprocess.run([sys.executable, "-c", code], timeout=60, check=True)
