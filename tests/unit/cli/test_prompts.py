"""Prompts from users, who may pass any file and any bytes."""

import io
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from storyteller_ds.cli.prompts import prompts_of, typed
from storyteller_ds.errors import UserError


def read(path: Path, content: bytes) -> list[str]:
    path.write_bytes(content)
    return [prompt.text for prompt in prompts_of(path, pytest.fail)]


def test_only_a_line_feed_ends_a_line(tmp_path):
    inside = "\u2028\u2029\x85\x0b\x0c\x1c\x1d\x1e\r"
    assert read(tmp_path / "p", f"a{inside}b\nc\r\nd".encode()) == [f"a{inside}b", "c", "d"]


def test_a_byte_order_mark_and_blank_lines_are_dropped(tmp_path):
    assert read(tmp_path / "p", b"\xef\xbb\xbfOnce\r\n\n \t\nTwice  \n") == ["Once", "Twice"]


def test_each_prompt_knows_its_line(tmp_path):
    (tmp_path / "p").write_text("\na\n\nb\n")
    where = [prompt.where for prompt in prompts_of(tmp_path / "p", pytest.fail)]
    assert where == [f"--prompts_file {tmp_path}/p line {line}" for line in (2, 4)]


def test_bytes_that_are_no_text_cost_no_line(tmp_path):
    logged: list[str] = []
    (tmp_path / "p").write_bytes("Ä\n".encode() + b"caf\xe9 au lait\nc\n")
    assert [prompt.text for prompt in prompts_of(tmp_path / "p", logged.append)] == ["Ä", "caf\ufffd au lait", "c"]
    assert logged == [f"--prompts_file {tmp_path}/p line 2 is not UTF-8: byte 0xe9; what is not is read as U+FFFD"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("Once\n".encode("utf-16"), "NUL bytes; save it as UTF-8"),
        (b"\n \n", "has no prompts; write one a line"),
        (b"\x80\x04K\x01.", "can run code when it is read"),
        (None, "cannot be read: No such file"),
    ],
)
def test_what_cannot_be_prompts_is_refused(tmp_path, content, reason):
    path = tmp_path / "p"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=reason):
        prompts_of(path, pytest.fail)


def test_a_fifo_and_stdin_are_files_of_prompts_too(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "fifo")
    with ThreadPoolExecutor() as threads:
        threads.submit((tmp_path / "fifo").write_text, "a\nb\n")
        assert [prompt.text for prompt in prompts_of(tmp_path / "fifo", pytest.fail)] == ["a", "b"]
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"a\n"), "ascii"))
    assert [prompt.where for prompt in prompts_of(Path("-"), pytest.fail)] == ["--prompts_file - line 1"]


def test_a_device_without_end_is_refused():
    with pytest.raises(UserError, match="has more than"):
        prompts_of(Path("/dev/zero"), pytest.fail)


def as_argument(raw: bytes, encoding: str) -> str:
    """The argument as Python decodes it in a locale with this encoding."""
    return raw.decode(encoding, "surrogateescape")


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_what_is_typed_is_what_was_meant(encoding):
    text = "Zoë “hi” 🐻"
    assert typed(as_argument(text.encode(), encoding), "--prompt", pytest.fail).text == text
    logged: list[str] = []
    assert typed(as_argument(b"caf\xe9", encoding), "--prompt", logged.append).text == "caf\ufffd"
    assert logged == ["--prompt is not UTF-8: byte 0xe9; what is not is read as U+FFFD"]


def test_what_is_typed_under_latin_1_is_latin_1():
    assert typed(as_argument(b"caf\xe9", "iso8859-1"), "--prompt", pytest.fail).text == "café"
