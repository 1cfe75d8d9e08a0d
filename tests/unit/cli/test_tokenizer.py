"""storyteller tokenizer."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from storyteller_ds.cli.main import storyteller
from storyteller_ds.cli.tokenizer import KINDS
from storyteller_ds.data import tokenizer_file
from storyteller_ds.data.tokenizers.choose import TRAINERS, open_tokenizer
from storyteller_ds.data.tokenizers.tokenizer import END_OF_TEXT
from storyteller_ds.errors import UserError

STORY = "Once upon a time there was a small dog who ran to the big cat and sat with the cat. "


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "processed" / "train.txt"
    path.parent.mkdir()
    path.write_text(f"\n{END_OF_TEXT}\n".join(STORY * 3 + f"{i} naïve 🐻s" for i in range(30)), encoding="utf-8")
    return path


def run(*arguments: object) -> str:
    result = CliRunner().invoke(storyteller, ["tokenizer", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout


def error(*arguments: object) -> str:
    result = CliRunner().invoke(storyteller, ["tokenizer", *map(str, arguments)])
    assert isinstance(result.exception, UserError), result
    return str(result.exception)


def train(text: Path, folder: Path, *arguments: object) -> dict[str, Any]:
    return json.loads(run("train", "--input_file", text, "--output_dir", folder, "--json", *arguments))


def test_the_kinds_are_those_that_can_be_trained():
    assert set(KINDS) == TRAINERS.keys()


@pytest.mark.parametrize(("kind", "size"), [("bpe", 300), ("char", 20), ("sentencepiece", 290)])
def test_train_writes_a_tokenizer_and_says_how_it_is(text, tmp_path, kind, size):
    options = ("--kind", kind, "--vocab-size", size, "--special_token", "<|im_start|>", "--special_token", "<|im_end|>")
    told = train(text, tmp_path / "made" / "of it", *options)
    path = tmp_path / "made" / "of it" / "tokenizer.json"
    assert told["tokenizer"] == str(path)
    made = open_tokenizer(path.parent)
    assert told["vocab_size"] == made.vocab_size == size
    assert {"<|im_start|>", "<|im_end|>"} <= made.special_tokens.keys() == told["special_tokens"].keys()
    stories = [story.strip() for story in text.read_text(encoding="utf-8").split(END_OF_TEXT)]
    ids = [i for story in stories for i in made.encode(story)]
    assert told["documents"] == 30
    assert told["bytes"] == sum(len(story.encode()) for story in stories)
    assert told["characters_per_token"] == pytest.approx(sum(map(len, stories)) / len(ids))
    assert (told["unknown_share"] > 0) == (kind == "char")
    assert [each.name for each in path.parent.iterdir()] == ["tokenizer.json"]
    shown = run("train", "--input_file", text, "--output_dir", path.parent, *options)
    assert f"{size} tokens, trained in" in shown
    assert f"{told['characters_per_token']:.2f} characters per token in the first 30 stories" in shown


def test_a_story_on_the_spot_is_a_text_too_and_settings_of_data_count(tmp_path):
    told = train(Path("builtin"), tmp_path, "--vocab_size", 300, "data.builtin_stories=50")
    assert told["documents"] == 50
    message = error("train", "--input_file=builtin", f"--output_dir={tmp_path}", "tokenizer.kind=char")
    assert "tokenizer.kind=char: only settings of data count here" in message


def test_a_vocabulary_that_the_text_does_not_have_is_refused_and_nothing_written(text, tmp_path):
    folder = tmp_path / "none"
    options = ("--input_file", text, "--output_dir", folder)
    message = error("train", *options, "--vocab_size", 5000)
    assert f"{text} has only" in message
    size = int(message.partition("; give --vocab_size ")[2].partition(",")[0])
    assert train(text, folder, "--vocab_size", size)["vocab_size"] == size
    before = (folder / "tokenizer.json").read_bytes()
    for wrong in (("--vocab_size", 5000), ("--vocab_size", 100), ("--special_token", "a")):
        error("train", *options, *wrong)
        assert (folder / "tokenizer.json").read_bytes() == before
    assert [each.name for each in folder.iterdir()] == ["tokenizer.json"]
    # Without --vocab_size, a smaller vocabulary is not an error.
    assert train(text, folder)["vocab_size"] == size


def test_what_cannot_be_read_or_written_is_named(text, tmp_path):
    missing = error("train", "--input_file", tmp_path / "no.txt", "--output_dir", tmp_path / "x")
    assert "no.txt does not exist" in missing
    assert not (tmp_path / "x").exists()
    assert "--output_dir" in error("train", "--input_file", text, "--output_dir", text)
    (tmp_path / "empty.txt").write_text(" \n")
    assert "has no story" in error("train", "--input_file", tmp_path / "empty.txt", "--output_dir", tmp_path / "x")


def test_inspect_shows_what_there_is(text, tmp_path):
    train(text, tmp_path, "--vocab_size", 300)
    shown = run("inspect", tmp_path, "--text", f"the cat {END_OF_TEXT}🐻\n")
    assert "byte-level BPE" in shown
    assert f"special:     {END_OF_TEXT} 0" in shown
    assert "[ cat][ ][<][|][e" in shown
    assert "<F0>" in shown
    assert "[\\n]" in shown
    told = json.loads(run("inspect", tmp_path / "tokenizer.json", "--text", " the cat", "--json"))
    made = open_tokenizer(tmp_path)
    assert [piece["id"] for piece in told["cut"]] == made.encode(" the cat")
    assert [piece["text"] for piece in told["cut"]] == [" the", " cat"]
    assert told["vocab_size"] == 300
    assert told["longest"][0]["bytes"] >= told["longest"][1]["bytes"] > told["shortest"][-1]["bytes"] == 1
    assert told["sha256"] == made.fingerprint
    assert "no vocab.json" in error("inspect", text.parent)
    assert "give a tokenizer.json" in error("inspect", text)
    assert "--text has bytes that are not UTF-8" in error("inspect", tmp_path, "--text", "a\udcffb")


def test_compare_paths_and_kinds(text, tmp_path):
    train(text, tmp_path / "mine", "--vocab_size", 300)
    names = [str(tmp_path / "mine"), "char:40", "sentencepiece:300"]
    options = ("--input_file", text, "--train_file", text, "--rare", 5)
    table = run("compare", *names, *options, "--plot", tmp_path / "plot.png")
    for part in (*names, "characters per token", "bits per byte", "used less than 5 times", "no text becomes"):
        assert part in table
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    rows = json.loads(run("compare", *names, *options, "--json"))
    assert [row["name"] for row in rows] == names
    assert rows[1]["characters_per_token"] == 1
    assert rows[0]["frequency_bits_per_byte"] < rows[1]["frequency_bits_per_byte"]


def test_compare_says_what_is_missing(text, tmp_path):
    assert "say on which text with --train_file" in error("compare", "bpe:300", "--input_file", text)
    assert "is a number, as in bpe:4096" in error("compare", "bpe:x", "--input_file", text, "--train_file", text)
    assert "bpe:SIZE" in error("compare", "bqe:300", "--input_file", text, "--train_file", text)
    assert "--plot" in error("compare", "char", "--input_file", text, "--plot", tmp_path / "no" / "x.png")


def test_a_write_that_fails_leaves_the_old_file(text, tmp_path, monkeypatch):
    train(text, tmp_path / "x", "--vocab_size", 300)
    before = (tmp_path / "x" / "tokenizer.json").read_bytes()

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tokenizer_file, "write_atomically", full)
    message = error("train", "--input_file", text, "--output_dir", tmp_path / "x", "--vocab_size", 290)
    assert "No space left on device" in message
    assert (tmp_path / "x" / "tokenizer.json").read_bytes() == before
