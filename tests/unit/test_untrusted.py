"""What a stranger's file can be, and that none of it is trusted."""

import json
import os
import pickle
import socket
from pathlib import Path

import pytest

from storyteller_ds.errors import UserError
from storyteller_ds.untrusted import (
    JSON_DEPTH,
    UntrustedFileError,
    for_terminal,
    inside,
    parse_json,
    read_bytes,
    read_json,
    read_text,
    refuse_pickle,
    seal_of,
)


def refusal(function, *arguments) -> str:
    with pytest.raises(UntrustedFileError) as caught:
        function(*arguments)
    assert isinstance(caught.value, UserError)
    return str(caught.value)


# --- files that are not files ---


@pytest.mark.timeout(30)
def test_what_would_be_waited_on_or_never_end_is_refused(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        (tmp_path / "link").symlink_to(tmp_path / "fifo")
        for path in (tmp_path / "fifo", tmp_path / "link", tmp_path, Path("/dev/zero"), Path("/dev/null")):
            assert "not a regular file" in refusal(read_bytes, path, 10)
        with pytest.raises(OSError, match="No such device"):
            read_bytes(tmp_path / "socket", 10)
    assert "null byte" in refusal(read_bytes, Path("a\0b"), 10)


def test_a_file_is_read_up_to_its_limit(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"12345")
    assert read_bytes(path, 5) == b"12345"
    assert "larger than 4 bytes" in refusal(read_bytes, path, 4)
    path.write_bytes(b"\xef\xbb\xbfaf\xc3\xa9")
    assert read_text(path, 99) == "afé"  # a byte order mark is not part of the text
    path.write_bytes(b"abc\xff")
    assert "not UTF-8 at byte 3" in refusal(read_text, path, 99)


# --- JSON ---


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"a": 1, "b": 2, "a": 1}', "the key 'a' is given twice"),
        ('{"x": [{"a": 1, "a": 2}]}', "the key 'a' is given twice"),
        ('{"a": NaN}', "NaN is not a number"),
        ("-Infinity", "-Infinity is not a number"),
        ("[1e999]", "the number 1e999 is too large"),
        ("9" * 5000, "Exceeds the limit"),
        ("[1, 2", "line 1 column 6"),
        ("", "line 1 column 1"),
        ("1 2", "Extra data"),
        ("[" * (JSON_DEPTH + 1) + "]" * (JSON_DEPTH + 1), "nested more than"),
        ("[" * 10**6, "nested more than"),
        ('{"a":' * 2000 + "1" + "}" * 2000, "nested more than"),
    ],
)
def test_json_that_is_refused(text, said):
    message = refusal(parse_json, text, "here")
    assert message.startswith("here")
    assert said in message


def test_json_that_is_read_is_read_as_everybody_does(tmp_path):
    value = {"a": [1, 2.5, None, True, "x\n[{"], "b": {"c": {}, "d": []}, "é": -1e-300}
    text = json.dumps(value)
    assert parse_json(text, "here") == value
    deep = "[" * JSON_DEPTH + "]" * JSON_DEPTH
    assert parse_json(deep, "here") == json.loads(deep)
    (tmp_path / "a.json").write_text(text)
    assert read_json(tmp_path / "a.json") == value
    assert "larger than 10 bytes" in refusal(read_json, tmp_path / "a.json", 10)


def test_a_seal_is_of_everything_but_itself():
    entries = {"a": 1, "b": [2]}
    seal = seal_of(entries)
    assert seal_of({"b": [2], "a": 1, "seal": seal}) == seal
    assert seal_of({"a": 1, "b": [3]}) != seal


# --- names ---


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../x", "/etc/passwd", "a/b", "a\\b", "a\0b", "a\nb", "\x1b[2J", "\u202ex"]
)
def test_a_name_that_is_no_file_of_the_folder(tmp_path, name):
    assert "is not the name of a file in it" in refusal(inside, tmp_path, name)


def test_links_are_followed_only_within_the_folder(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    (tmp_path / "outside").write_text("x")
    (folder / "file").write_text("x")
    (folder / "good").symlink_to("file")
    (folder / "bad").symlink_to("../outside")
    (folder / "far").symlink_to("/etc/passwd")
    assert inside(folder, "file") == folder / "file"
    assert inside(folder, "good") == folder / "good"
    for name in ("bad", "far"):
        assert "leads out of its folder" in refusal(inside, folder, name)
    # The folder itself may be a link: the user has named it.
    (tmp_path / "way").symlink_to(folder)
    assert inside(tmp_path / "way", "good").read_text() == "x"


# --- pickles ---


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_is_known_by_how_it_begins(tmp_path, protocol):
    path = tmp_path / "innocent.txt"
    path.write_bytes(pickle.dumps({"a": 1}, protocol=protocol))
    assert "can run code" in refusal(refuse_pickle, path)


def test_a_pickle_is_known_by_its_name(tmp_path):
    for suffix in (".pt", ".PT", ".pth", ".bin", ".pkl", ".pickle", ".ckpt", ".npy", ".npz", ".joblib"):
        path = tmp_path / f"file{suffix}"
        path.write_bytes(pickle.dumps({"a": 1}, protocol=0))  # protocol 0 is plain ASCII
        assert "can run code" in refusal(refuse_pickle, path)


def test_what_is_no_pickle_passes(tmp_path):
    (tmp_path / "story.txt").write_text("Once upon a time")
    (tmp_path / "folder.pt").mkdir()
    for path in (tmp_path / "story.txt", tmp_path / "folder.pt", tmp_path / "missing"):
        refuse_pickle(path)


# --- terminals ---


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Once upon a time,\n\tshe said \u201cn\u00e4\u201d \U0001f469\u200d\U0001f680.", None),
        ("\x1b[2Jgone", "\\x1b[2Jgone"),
        ("a\rb\x08\x7f\x9b1m", "a\\rb\\x08\\x7f\\x9b1m"),
        ("safe\u202eexe.", "safe\\u202eexe."),
        ("\udc80", "\\udc80"),
    ],
)
def test_a_terminal_is_told_nothing_but_text(text, shown):
    assert for_terminal(text) == (text if shown is None else shown)
    for_terminal(text).encode()
