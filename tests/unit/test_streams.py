"""Output whose reader is gone, stalled or full; each case runs in its own process, without torch."""

import contextlib
import os
import pty
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest

from storyteller_ds import streams

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/dev/full and /proc are Linux's")

WAIT_S = 60
TRAINING = """
import os, sys
from storyteller_ds import streams
streams.secure_output(stdout_matters=False)
print(os.getpid() * 0)
print("a line", file=sys.stderr)
sys.stdin.readline()  # here the test does what it does
for number in range(50):
    print("x" * 1000)
    print("y" * 1000, file=sys.stderr, flush=True)
streams.write_unlocked(2, "z" * 100_000)
os._exit(7) if "at_once" in sys.argv else sys.exit(7)
"""


def start(*arguments: str, code: str = TRAINING, **streams_of_it: object) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.Popen(command, **{"stdin": subprocess.PIPE, **streams_of_it})  # type: ignore[call-overload]


def goes_on(process: "subprocess.Popen[bytes]") -> int:
    """Let the process continue after what was done to it; returns its exit code."""
    try:
        assert process.stdin is not None
        process.stdin.write(b"\n")
        process.stdin.close()
        return process.wait(WAIT_S)
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        with contextlib.suppress(OSError):
            os.close(end)


@pytest.mark.parametrize("end", ["at_once", "in_order"])
def test_training_goes_on_when_the_reader_has_gone(pipe, end):
    process = start(end, stdout=pipe[1], stderr=pipe[1])
    assert os.read(pipe[0], 2) == b"0\n"
    for descriptor in pipe:
        os.close(descriptor)
    assert goes_on(process) == 7


@pytest.mark.parametrize("end", ["at_once", "in_order"])
def test_training_goes_on_when_nobody_reads(pipe, end):
    assert goes_on(start(end, stdout=pipe[1], stderr=pipe[1])) == 7


def test_a_reader_that_goes_on_gets_whole_writes_again(pipe):
    code = """
import os, sys
from storyteller_ds import streams
streams.secure_output(stdout_matters=False)
for _ in range(100):
    print("x" * 1000)
os.write(2, b"stuck\\n")
sys.stdin.readline()
print("last line")
"""
    process = start(code=code, stdout=pipe[1], stderr=subprocess.PIPE)
    os.close(pipe[1])
    assert process.stderr is not None
    assert process.stderr.readline() == b"stuck\n"
    stuck = os.read(pipe[0], 1 << 20)
    assert process.stdin is not None
    process.stdin.write(b"\n")
    process.stdin.close()
    rest = b"".join(iter(lambda: os.read(pipe[0], 1 << 20), b""))
    assert process.wait(WAIT_S) == 0
    assert rest == b"last line\n"
    assert len(stuck) < 100_000  # control: lines were left out


def test_training_goes_on_with_a_full_disk():
    with Path("/dev/full").open("wb") as full:
        assert goes_on(start(stdout=full, stderr=full)) == 7


def test_training_goes_on_with_everything_closed():
    closed = start(
        code=f"import os, sys; os.closerange(1, 3); os.execv(sys.executable, ['python', '-c', {TRAINING!r}])"
    )
    assert goes_on(closed) == 7


def test_training_goes_on_without_its_terminal():
    terminal, end = pty.openpty()
    process = start(stdout=end, stderr=end)
    os.close(end)
    assert os.read(terminal, 1) == b"0"
    os.close(terminal)  # writing gives EIO from now on
    assert goes_on(process) == 7


def test_training_goes_on_after_ctrl_s():
    terminal, end = pty.openpty()
    process = start(stdout=end, stderr=end)
    assert os.read(terminal, 1) == b"0"
    termios.tcflow(end, termios.TCOOFF)
    assert goes_on(process) == 7
    os.close(end)
    os.close(terminal)


def test_a_shared_descriptor_made_non_blocking_loses_nothing(pipe):
    code = """
from storyteller_ds import streams
streams.secure_output(stdout_matters=True)
for number in range(2000):
    print("x" * 100)
"""
    os.set_blocking(pipe[1], False)
    process = start(code=code, stdout=pipe[1])
    os.close(pipe[1])
    assert b"".join(iter(lambda: os.read(pipe[0], 5000), b"")) == (b"x" * 100 + b"\n") * 2000
    assert process.wait(WAIT_S) == 0


def test_no_later_file_takes_the_place_of_a_closed_stream(tmp_path):
    code = f"""
import os, sys
from storyteller_ds import streams
streams.secure_output(stdout_matters=False)
assert sys.stdin.read() == ""
with open({str(tmp_path / "checkpoint")!r}, "w") as file:
    assert file.fileno() > 2
    os.write(1, b"lost")
    os.write(2, b"lost")
    os.system("echo lost; echo lost >&2")
"""
    line = f"import os, sys; os.closerange(0, 3); os.execv(sys.executable, ['python', '-c', {code!r}])"
    assert start(code=line, stdin=None).wait(WAIT_S) == 0
    assert (tmp_path / "checkpoint").read_text() == ""


def test_a_letter_that_the_terminal_cannot_show_ends_no_training():
    code = (
        "from storyteller_ds import streams; streams.secure_output(stdout_matters=False); print('runs/h\\u00fc\\udcff')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONIOENCODING": "ascii:strict"},
        capture_output=True,
        timeout=WAIT_S,
    )
    assert (done.returncode, done.stdout) == (0, b"runs/h\\xfc\\udcff\n")


def verb(*arguments: str, stdout: int) -> tuple[int, str]:
    """Exit code and stderr of a command with this stdout."""
    command = [sys.executable, "-m", "storyteller_ds", *arguments]
    done = subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, text=True, timeout=WAIT_S, check=False)
    return done.returncode, done.stderr


@pytest.mark.parametrize("arguments", [("config", "schema"), ("config", "show"), ("--help",), ()])
def test_a_listing_whose_reader_has_seen_enough_ends_silently(arguments, pipe):
    os.close(pipe[0])
    assert verb(*arguments, stdout=pipe[1]) == (141, "")


def test_a_listing_that_finds_no_room_says_so():
    with Path("/dev/full").open("wb") as full:
        code, said = verb("config", "schema", stdout=full.fileno())
    assert code == 2
    assert said == "storyteller: stdout cannot be written: No space left on device; redirect it elsewhere\n"


@pytest.mark.parametrize("stderr", ["/dev/full", "closed"])
def test_an_error_that_nobody_can_read_keeps_its_code(stderr):
    where = "2>&-" if stderr == "closed" else f"2>{stderr}"
    command = f"{sys.executable} -m storyteller_ds config shw {where}"
    assert subprocess.run(["sh", "-c", command], timeout=WAIT_S, check=False).returncode == 2


def test_streams_that_a_test_reads_are_left_alone(capsys):
    streams.secure_output(stdout_matters=True)
    print("here")
    assert capsys.readouterr().out == "here\n"


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ({"PYTHONIOENCODING": "ascii"}, rb"\u201cHi\u201d \xfc"),
        ({"PYTHONIOENCODING": "ascii:strict"}, rb"\u201cHi\u201d \xfc"),
        ({"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, rb"\u201cHi\u201d \xfc"),
        ({"PYTHONIOENCODING": "latin-1"}, b"\\u201cHi\\u201d \xfc"),
        ({"LC_ALL": "C"}, "“Hi” ü".encode()),
        ({"PYTHONIOENCODING": "utf-8"}, "“Hi” ü".encode()),
    ],
    ids=str,
)
@pytest.mark.parametrize("matters", [True, False])
def test_a_letter_that_an_encoding_does_not_have_ends_nothing(env, expected, matters):
    code = (
        "import sys; from storyteller_ds import streams; streams.secure_output(stdout_matters=sys.argv[1] == 'True'); "
        "text = '\\u201cHi\\u201d \\xfc'; print(text); print(text, file=sys.stderr)"
    )
    outside = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHONIO", "LC_", "LANG"))}
    done = subprocess.run(
        [sys.executable, "-c", code, str(matters)], capture_output=True, timeout=WAIT_S, env=outside | env, check=True
    )
    assert (done.stdout, done.stderr) == (expected + b"\n", expected + b"\n")


def test_bytes_of_stdin_that_are_no_text_end_nothing():
    code = (
        "import sys; from storyteller_ds import streams; streams.secure_output(stdout_matters=True); "
        "print(ascii(input()), ascii(sys.stdin.readline()))"
    )
    env = os.environ | {"PYTHONIOENCODING": "utf-8"}
    done = subprocess.run(
        [sys.executable, "-c", code], input=b"caf\xe9\n\xff\n", capture_output=True, timeout=WAIT_S, env=env, check=True
    )
    assert done.stdout == b"'caf\\udce9' '\\udcff\\n'\n"
