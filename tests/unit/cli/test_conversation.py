"""storyteller generate --interactive, with input lines provided by the test."""

import builtins
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from storyteller_ds.data.tokenizers.tokenizer import Tokenizer
from storyteller_ds.untrusted import for_terminal

from .conftest import CONTEXT


@pytest.fixture
def types(monkeypatch) -> Callable[..., None]:
    """Set the lines to be typed, in order; an exception is raised in place of a line."""

    def prepare(*lines: Any) -> None:
        typed = iter(lines)

        def typed_line(prompt: str) -> str:
            assert prompt == "> "
            line = next(typed)
            if not isinstance(line, str):
                raise line
            return line

        monkeypatch.setattr(builtins, "input", typed_line)

    return prepare


def test_a_prompt_that_does_not_fit_does_not_end_it(generate, types):
    types("Once", "x " * CONTEXT, "  Once ", "")
    out, err = generate("--interactive", "--max_new_tokens", "8")
    first, second = out.splitlines()
    assert first == generate("--prompt", "Once", "--max_new_tokens", "8")[0].strip()
    assert second == generate("--prompt", "Once", "--max_new_tokens", "8", "--seed", "1")[0].strip()
    assert f"tokens and the model's context {CONTEXT}; shorten the prompt" in err


@pytest.mark.parametrize("end", ["", "  ", EOFError(), KeyboardInterrupt()])
def test_how_it_ends(generate, types, end):
    types("Once", end)
    out, err = generate("--interactive", "--max_new_tokens", "8")
    assert out.startswith("Once")
    assert "storyteller:" not in err


@pytest.fixture
def interrupted(monkeypatch) -> None:
    """Interrupt every story with the prompt "Once" after its first word."""

    def texts(tokenizer: Tokenizer, prompt: str, ids: Iterator[int]) -> Iterator[str]:
        yield " and"
        if prompt == "Once":
            raise KeyboardInterrupt

    monkeypatch.setattr("storyteller_ds.generation.story.text_of_each", texts)


def test_ctrl_c_stops_a_story_and_no_more(generate, types, interrupted):
    types("Once", "Twice", EOFError())
    out, _ = generate("--interactive", "--num_stories", "2")
    assert out == "Once and\nTwice and\nTwice and\n", "nor are the other stories of that prompt printed"


# Commands

SHORT = ("--interactive", "--max_new_tokens", "8")


def alone(generate: Callable[..., tuple[str, str]], *flags: str) -> str:
    """The story for the prompt given on the command line."""
    return generate("--prompt", "Once", "--max_new_tokens", "8", *flags)[0]


def test_retry_tells_another_story(generate, types):
    types("/retry", "Once", "/retry", "/retry", "")
    out, err = generate(*SHORT)
    assert out == "".join(alone(generate, "--seed", str(seed)) for seed in range(3))
    assert "there is no story yet" in err


def test_temp_is_the_temperature_from_then_on(generate, types):
    types("/temp 3", "Once", "/temp cold", "/temp -1", "/temp", "/retry", "/temp 0", "/retry", "")
    out, err = generate(*SHORT)
    hot = [alone(generate, "--seed", str(seed), "--temperature", "3") for seed in (0, 1)]
    assert out == "".join([*hot, alone(generate, "--temperature", "0")])
    lines = err.splitlines()
    assert "temperature 3.0" in lines
    assert sum(line.startswith("/temp temperature='") for line in lines) == 3


def test_save_writes_the_last_story(generate, types, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    file = tmp_path / "my story.txt"
    types("/save x", "Once", "/save", f"/save {tmp_path}", "/save no/x", "/retry", "/save ~/my story.txt", "")
    out, err = generate(*SHORT)
    assert for_terminal(file.read_text()) == alone(generate, "--seed", "1")
    assert out.endswith(for_terminal(file.read_text()))
    for reason in ("there is no story yet", "needs the name of a file", "a folder; name a file in it", "make it first"):
        assert reason in err
    assert f"saved: {file}" in err
    assert [path.name for path in tmp_path.iterdir()] == ["my story.txt"]


def test_save_replaces_no_file(generate, types, tmp_path):
    types("Once", f"/save {tmp_path}/x", "/retry", f"/save {tmp_path}/x", "")
    _, err = generate(*SHORT)
    assert for_terminal((tmp_path / "x").read_text()) == alone(generate, "--seed", "0")
    assert f"{tmp_path}/x exists already; /save under another name" in err.splitlines()


def test_a_story_that_was_stopped_can_be_saved_and_told_again(generate, types, interrupted, tmp_path):
    types("Once", f"/save {tmp_path}/x", "/retry", "")
    out, _ = generate(*SHORT)
    assert out == "Once and\nOnce and\n"
    assert (tmp_path / "x").read_text() == "Once and\n"


def test_help_lists_the_commands_and_others_are_none(generate, types):
    types("/help", "/hepl", "/", "")
    out, err = generate(*SHORT)
    assert out == ""
    assert all(f"\n{command} " in err for command in ("/retry", "/temp 0.9", "/save FILE", "/help"))
    assert "/hepl is not a command; /help lists them" in err


def test_bytes_that_are_not_utf_8_do_not_end_it(generate, types):
    types("caf\udce9", "")
    out, err = generate("--interactive", "--max_new_tokens", "2")
    assert out.startswith("caf\ufffd")
    assert "the prompt is not UTF-8: byte 0xe9" in err


def test_what_a_line_is_edited_on_is_stderr(generate, monkeypatch, capfd):
    def ask(prompt: str) -> str:
        os.write(1, b"what readline writes")
        return ""

    monkeypatch.setattr(builtins, "input", ask)
    capfd.readouterr()
    generate("--interactive")
    os.write(1, b"stdout is itself again")
    out, err = capfd.readouterr()
    assert (out, "what readline writes" in err) == ("stdout is itself again", True)
