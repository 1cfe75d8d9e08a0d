"""storyteller generate: no prompt costs another its story, and no story is lost."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from storyteller_ds.checkpoint.read import open_checkpoint
from storyteller_ds.cli.main import storyteller
from storyteller_ds.errors import CheckpointError, ConfigError
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
        patch.setattr("storyteller_ds.generation.load.load_story_model", too_large)
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


def test_a_story_may_fill_the_context_and_it_says_so(generate, prompts):
    whole, err = generate("--prompt", "Once", "--seed", "2")
    assert err.splitlines()[-1] == f"the model's context of {CONTEXT} tokens ended the story"
    assert generate("--prompt", "Once", "--seed", "2", "--max_new_tokens", "5000") == (whole, err)
    short, err = generate("--prompt", "Once", "--seed", "2", "--max_new_tokens", "3")
    assert whole.startswith(short[:-1])
    assert len(short) < len(whole)
    assert "context" not in err, "max_new_tokens ended it"
    err = generate("--prompts_file", prompts("a", "b"), "--max_new_tokens", "99")[1]
    assert f"the model's context of {CONTEXT} tokens ended 2 of 2 stories" in err


# Where the stories go


def test_the_output_is_refused_before_the_model_is_loaded(generate, prompts, tmp_path, monkeypatch):
    monkeypatch.setattr("storyteller_ds.generation.load.load_story_model", pytest.fail)
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
    assert generate("--prompts_file", file, "--output", "-") == generate("--prompts_file", file)
    assert not Path("-").exists()


def test_stories_that_cannot_be_written_are_on_stdout(generate, prompts, tmp_path):
    file, full = prompts("a", "b"), tmp_path / "full"
    full.symlink_to("/dev/full")
    out, err = generate("--prompts_file", file, "--output", str(full))
    assert out == generate("--prompts_file", file)[0]
    reason = "could not be written: No space left on device"
    assert err.splitlines()[-1] == f"storyteller: --output {full} {reason}; the stories are on stdout instead"


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


# Weights alone


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
