"""storyteller generate --interactive, with typed lines that the test gives."""

import builtins
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from storyteller_ds.generation.story import Story

from .conftest import CONTEXT


@pytest.fixture
def types(monkeypatch) -> Callable[..., None]:
    """What is typed, line after line; an exception is raised in place of a line."""

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


def test_ctrl_c_stops_a_story_and_no_more(generate, types, monkeypatch):
    def interrupted(story: Story) -> Iterator[str]:
        yield " and"
        if story.prompt == "Once":
            raise KeyboardInterrupt

    monkeypatch.setattr(Story, "__iter__", interrupted)
    types("Once", "Twice", EOFError())
    out, _ = generate("--interactive", "--num_stories", "2")
    assert out == "Once and\nTwice and\nTwice and\n", "nor are the other stories of that prompt printed"


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
