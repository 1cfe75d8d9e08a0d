"""storyteller generate: a bad prompt does not cost another its story, and no story is lost."""

import contextlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import click
import pytest
import torch

from storyteller_ds.checkpoint.read import open_checkpoint
from storyteller_ds.cli import story_file
from storyteller_ds.cli.main import storyteller
from storyteller_ds.data.tokenizers.tokenizer import Tokenizer
from storyteller_ds.errors import CheckpointError, ConfigError
from storyteller_ds.generation.decode import text_of_each
from storyteller_ds.generation.story import Story
from storyteller_ds.untrusted import for_terminal

from .conftest import CONTEXT

BETWEEN = "\n\n<|endoftext|>\n\n"
LONG = "x " * CONTEXT


@pytest.fixture
def prompts(tmp_path):
    def write(*lines: str) -> str:
        path = tmp_path / "prompts.txt"
        path.write_text("\n".join(lines))
        return str(path)

    return write


def stories_of(out: str) -> list[str]:
    assert out.endswith("\n")
    return out[:-1].split(BETWEEN)


# Random streams


def test_equal_prompts_get_stories_of_their_own(generate, prompts):
    file = prompts("Once", "a", "Once", "Once")
    out, _ = generate("--prompts_file", file)
    stories = stories_of(out)
    assert [story[:1] for story in stories] == ["O", "a", "O", "O"]
    assert len(set(stories)) == 4
    assert generate("--prompts_file", file)[0] == out, "the same command gives the same stories"
    assert stories_of(generate("--prompts_file", file, "--seed", "1")[0])[0] != stories[0]
    assert stories_of(generate("--prompt", "Once")[0]) == stories[:1], "the first is that of the prompt alone"


def test_several_stories_of_one_prompt(generate):
    stories = stories_of(generate("--prompt", "Once", "--num_stories", "3", "--seed", "4")[0])
    assert stories == [stories_of(generate("--prompt", "Once", "--seed", str(seed))[0])[0] for seed in (4, 5, 6)]
    assert len(set(stories)) == 3
    assert stories_of(generate("--prompt", "Once", "-n3", "--seed", "4")[0]) == stories
    last = 2**63 - 1
    assert len(stories_of(generate("--prompt", "Once", "-n2", "--seed", str(last))[0])) == 2
    assert f"--seed={last + 1}" in generate("--prompt", "Once", "--seed", str(last + 1))[1]


# Memory


def test_no_shorter_prompt_is_advised_where_the_model_alone_does_not_fit(generate, monkeypatch):
    def too_large(*args):
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr("storyteller_ds.interchange.load.open_model", too_large)
        line = generate("--prompt", "Once")[1].splitlines()[-1]
    assert line == "storyteller: out of memory; the model alone does not fit; close other programs"


# Prompts that do not fit


def test_a_prompt_beyond_the_context_costs_no_other(generate, prompts, tmp_path):
    alone = stories_of(generate("--prompts_file", prompts("a", "Once", "b", "c"))[0])
    file = prompts("a", LONG, "", "b", LONG + LONG)
    for output in ([], ["--output", str(tmp_path / "stories.txt")]):
        out, err = generate("--prompts_file", file, *output)
        text = for_terminal(Path(output[1]).read_text()) if output else out
        assert stories_of(text) == [alone[0], alone[2]], "a prompt that is left out does not change the others"
        assert err.splitlines()[-1] == (
            f"storyteller: --prompts_file {file} line 2: the prompt has {2 * CONTEXT} tokens and the model's context "
            f"{CONTEXT}; shorten the prompt; --prompts_file {file} line 5: the prompt has {4 * CONTEXT} tokens and "
            f"the model's context {CONTEXT}; shorten the prompt; the other 2 prompts are continued"
        )


def test_a_single_prompt_beyond_the_context(generate, tmp_path, prompts):
    out, err = generate("--prompt", LONG)
    assert out == ""
    assert err.splitlines()[-1].startswith("storyteller: --prompt: the prompt has ")
    output = tmp_path / "stories.txt"
    generate("--prompts_file", prompts(LONG), "--output", str(output))
    assert not output.exists()


# How stories end


def last_line(err: str) -> tuple[int, str]:
    """Number of tokens of the story, and why it ended."""
    found = re.fullmatch(r"(\d+) tokens, [\d,]+ tokens/s: (.*)", err.splitlines()[-1])
    assert found, err
    return int(found[1]), found[2]


def test_a_line_says_how_each_story_ended(generate, prompts):
    whole, err = generate("--prompt", "Once", "--seed", "2")
    filled = f"the model's context of {CONTEXT} tokens ended the story"
    assert last_line(err)[1] == filled
    out, err = generate("--prompt", "Once", "--seed", "2", "--max_new_tokens", "5000")
    assert (out, last_line(err)[1]) == (whole, filled)
    short, err = generate("--prompt", "Once", "--seed", "2", "--max_new_tokens", "3")
    assert whole.startswith(short[:-1])
    assert len(short) < len(whole)
    assert last_line(err) == (3, "--max_new_tokens ended the story")
    err = generate("--prompts_file", prompts("a", "b"), "--max_new_tokens", "99")[1]
    assert err.count(filled) == 2


def test_stop_strings_end_a_story_before_them(generate):
    whole, _ = generate("--prompt", "Once", "--seed", "2")
    stop = whole[9:11]
    out, err = generate("--prompt", "Once", "--seed", "2", "--stop", "not there", "--stop", stop)
    assert out == whole[: whole.index(stop, 4)] + "\n"
    assert last_line(err)[1] == "--stop ended the story"


def test_the_end_of_the_context_need_not_be_that_of_the_story(generate):
    whole, _ = generate("--prompt", "Once", "--seed", "2")
    slide = ("--prompt", "Once", "--seed", "2", "--past_context", "slide")
    out, err = generate(*slide, "--max_new_tokens", "99")
    assert out.startswith(whole[:-1])
    assert last_line(err) == (99, "--max_new_tokens ended the story")
    assert "--past_context='slide': a story that the model never ends" in generate(*slide)[1]


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--min_p", "1.5"),
        ("--repetition_penalty", "0"),
        ("--presence_penalty", "3"),
        ("--frequency_penalty", "nan"),
        ("--temperature", "-1"),
    ],
)
def test_a_flag_out_of_its_range_is_one_line(generate, monkeypatch, flag, value):
    monkeypatch.setattr("storyteller_ds.interchange.load.open_model", pytest.fail)
    out, err = generate("--prompt", "Once", flag, value)
    assert (out, len(err.splitlines())) == ("", 1)
    assert err.startswith(f"storyteller: {flag}={value}")


@pytest.mark.parametrize(
    "flags",
    [
        ["--min_p", "0.5"],
        ["--repetition_penalty", "5"],
        ["--presence_penalty", "2"],
        ["--frequency_penalty", "-2"],
    ],
    ids=str,
)
def test_every_flag_of_sampling_reaches_it(generate, flags):
    assert generate("--prompt", "Once", *flags)[0] != generate("--prompt", "Once")[0]


# As JSON


def test_a_json_object_for_each_story(generate, prompts):
    file = prompts("Once", "Zo\u00eb \x7f")
    told = stories_of(generate("--prompts_file", file, "-n2")[0])
    out, err = generate("--prompts_file", file, "-n2", "--json")
    records = [json.loads(line) for line in out.splitlines()]
    assert [for_terminal(record["prompt"] + record["text"]) for record in records] == told
    assert out.isascii()
    for record in records:
        assert list(record) == ["prompt", "text", "reason", "tokens"]
        assert record["reason"] in ("end", "context")
        for token in record["tokens"]:
            assert list(token) == ["id", "text", "probability", "experts"]
            assert 0 < token["probability"] <= 1
            assert token["experts"] in ([[0]], [[1]])
    assert "tokens/s" not in err


def test_json_is_for_stdout(generate, prompts, tmp_path):
    assert "--json goes to stdout" in generate("--interactive", "--json")[1]
    file = prompts("a")
    assert "redirect it" in generate("--prompts_file", file, "--output", str(tmp_path / "x"), "--json")[1]
    assert len(generate("--prompts_file", file, "--output", "-", "--json")[0].splitlines()) == 1


# Where the stories go


def test_the_output_is_refused_before_the_model_is_loaded(generate, prompts, tmp_path, monkeypatch):
    monkeypatch.setattr("storyteller_ds.interchange.load.open_model", pytest.fail)
    file = prompts("a")
    assert "make it first" in generate("--prompts_file", file, "--output", str(tmp_path / "no" / "x"))[1]
    assert "a folder; name a file in it" in generate("--prompts_file", file, "--output", str(tmp_path))[1]


def test_the_stories_do_not_replace_their_prompts(generate, prompts, tmp_path):
    file = prompts("a", "b")
    (tmp_path / "link").symlink_to(file)
    for output in (file, str(tmp_path / "link")):
        assert f"--output {output} is the --prompts_file" in generate("--prompts_file", file, "--output", output)[1]
    assert Path(file).read_text() == "a\nb"


def test_a_dash_as_output_is_stdout(generate, prompts, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = prompts("a", "b")
    assert generate("--prompts_file", file, "--output", "-")[0] == generate("--prompts_file", file)[0]
    assert not Path("-").exists()


def test_stories_that_cannot_be_written_are_on_stdout(generate, prompts, tmp_path):
    file, full = prompts("a", "b"), tmp_path / "full"
    full.symlink_to("/dev/full")
    out, err = generate("--prompts_file", file, "--output", str(full))
    assert out == generate("--prompts_file", file)[0]
    reason = "could not be written: No space left on device"
    assert err.splitlines()[-1] == f"storyteller: --output {full} {reason}; the stories are on stdout instead"


@pytest.fixture
def before_each_story(monkeypatch) -> Callable[[Callable[[str], None]], None]:
    """Call a function with each story's prompt when the story begins."""

    def prepare(call: Callable[[str], None]) -> None:
        def told(tokenizer: Tokenizer, prompt: str, ids: Iterator[int]) -> Iterator[str]:
            call(prompt)
            yield from text_of_each(tokenizer, prompt, ids)

        monkeypatch.setattr("storyteller_ds.generation.story.text_of_each", told)

    return prepare


@pytest.fixture
def one_after_the_other(monkeypatch) -> None:
    """Generate stories one at a time, to test what happens between them."""

    def told(_, stories: Sequence[Story]) -> Iterator[Story]:
        for story in stories:
            for _ in story:
                pass
            yield story

    monkeypatch.setattr(story_file, "told", told)


@pytest.mark.usefixtures("one_after_the_other")
def test_the_file_has_at_any_time_what_is_finished(generate, prompts, tmp_path, before_each_story, monkeypatch):
    file, output = prompts("a", "b", "c", "d"), tmp_path / "stories.txt"
    whole = generate("--prompts_file", file)[0]
    seen = []
    before_each_story(lambda prompt: seen.append(stories_of(output.read_text()) if output.exists() else []))
    monkeypatch.setattr(story_file, "SECONDS_BETWEEN_SAVES", 0)
    _, err = generate("--prompts_file", file, "--output", str(output))
    raw = stories_of(output.read_text())
    assert [for_terminal(story) for story in raw] == stories_of(whole)
    assert seen == [raw[:finished] for finished in range(4)]
    assert err.splitlines()[1:4] == [f"{finished} of 4 stories" for finished in (1, 2, 3)]
    assert err.splitlines()[4] == f"4 stories: {output}"
    assert list(tmp_path.glob(".*")) == []


@pytest.mark.usefixtures("one_after_the_other")
@pytest.mark.parametrize("end", [KeyboardInterrupt, MemoryError])
def test_an_end_half_way_costs_only_what_is_not_finished(generate, prompts, tmp_path, before_each_story, end):
    file, output = prompts("a", "b", "c"), tmp_path / "stories.txt"
    whole = stories_of(generate("--prompts_file", file)[0])

    def stop_at_c(prompt: str) -> None:
        if prompt == "c":
            raise end

    before_each_story(stop_at_c)
    with contextlib.suppress(click.Abort):
        assert "out of memory" in generate("--prompts_file", file, "--output", str(output))[1]
    assert [for_terminal(story) for story in stories_of(output.read_text())] == whole[:2]


def test_a_pipe_gets_the_stories_once(generate, prompts, tmp_path, monkeypatch):
    file, fifo = prompts("a", "b", "c"), tmp_path / "fifo"
    os.mkfifo(fifo)
    monkeypatch.setattr(story_file, "SECONDS_BETWEEN_SAVES", 0)
    with ThreadPoolExecutor() as threads:
        read = threads.submit(fifo.read_text)
        generate("--prompts_file", file, "--output", str(fifo))
        assert for_terminal(read.result(timeout=60)) == generate("--prompts_file", file)[0]


def test_bytes_that_are_not_utf_8_are_no_reason_to_end(generate):
    out, err = generate("--prompt", b"caf\xe9 \xe2\x80\x9c".decode("utf-8", "surrogateescape"))
    assert out.startswith("caf\ufffd “")
    assert err.startswith("--prompt is not UTF-8: byte 0xe9")


# The device


@pytest.mark.skipif(torch.cuda.is_available(), reason="here --device cuda is right")
def test_a_device_that_is_not_there_is_named_as_it_was_typed(run_folder):
    with pytest.raises(ConfigError, match=r"^--device=cuda, but this machine has only"):
        storyteller.main(
            ["generate", "--checkpoint", str(run_folder), "--prompt", "x", "--device", "cuda"], standalone_mode=False
        )


# Weights only


def test_a_copy_without_what_only_training_needs(generate, run_folder, tmp_path):
    shared = tmp_path / "shared" / "step_00000002"
    left_out = shutil.ignore_patterns("optimizer-*", "rng-*")
    shutil.copytree(run_folder / "checkpoints" / "step_00000002", shared, ignore=left_out)
    whole = generate("--prompt", "Once")
    for checkpoint in (shared, shared.parent):
        out, err = generate("--prompt", "Once", checkpoint=checkpoint)
        assert out == whole[0]
        assert err.splitlines()[0] == f"model: {shared}", "no word about what is not needed"
    (weights,) = shared.glob("weights-*")
    weights.write_bytes(weights.read_bytes()[:-1])
    assert "is damaged" in generate("--prompt", "Once", checkpoint=shared)[1]
    with pytest.raises(CheckpointError, match=r"optimizer-.* is missing, it has weights only: enough to generate"):
        open_checkpoint(shared).verify()


def test_a_damaged_optimizer_is_no_damage_to_a_story(generate, run_folder, tmp_path):
    step = Path(shutil.copytree(run_folder / "checkpoints" / "step_00000002", tmp_path / "step_00000002"))
    (optimizer,) = step.glob("optimizer-*")
    optimizer.write_bytes(b"")
    assert generate("--prompt", "Once", checkpoint=step)[0] == generate("--prompt", "Once")[0]
    config = json.loads((step / "config.json").read_text())
    (step / "config.json").write_text(json.dumps(config))
    assert "config.json is damaged" in generate("--prompt", "Once", checkpoint=step)[1]
