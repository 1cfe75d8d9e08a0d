"""storyteller evaluate: what it prints."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from storyteller_ds import train
from storyteller_ds.cli.main import storyteller
from storyteller_ds.errors import UserError
from tests.support.fake_judge import FakeEndpoint
from tests.support.small_runs import SMALLEST

STORIES = "\n\n".join(
    f"Once there was a fox named Kit{i}. He ate {i * i % 7} cakes. {'Then he slept. ' * (i % 5)}After that he went "
    f"out to the {'wood' if i % 3 else 'lake'} and told {'each bear' if i % 2 else 'every owl'} there "
    f"about it. The end of {i}."
    for i in range(40)
)
SETTINGS = {**SMALLEST, "data.sequence_length": 128, "tokenizer.kind": "bpe", "tokenizer.vocab_size": 300}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs `one` and `two`, which use the same tokens, and `chars`."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "stories.txt").write_text(STORIES)
    for name, others in {
        "one": {},
        "two": {"seed": 7},
        "chars": {"tokenizer.kind": "char", "tokenizer.vocab_size": 64},
    }.items():
        train("tiny_test", {**SETTINGS, **others}, data=folder / "stories.txt", output_dir=folder / name)
    return folder


def call(*arguments: object) -> Result:
    command = ["evaluate", "--device", "cpu", "--stories", "4", "--max_new_tokens", "50", *map(str, arguments)]
    return CliRunner().invoke(storyteller, command)


def rows(result: Result) -> dict[str, list[str]]:
    """The cells of each table row by the row's name; the header row is named "figure"."""
    lines = [line for line in result.stdout.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {name: rest for name, *rest in cells}


def document(result: Result) -> dict[str, Any]:
    assert result.exit_code == 0, result.exception
    value: dict[str, Any] = json.loads(result.stdout, parse_constant=pytest.fail)
    return value


def test_the_table(folder):
    result = call("--checkpoint", folder / "one")
    assert result.exit_code == 0, result.exception
    assert re.match(
        rf"one 1: {folder}/one/checkpoints/step_00000001, on {folder}/stories.txt \(held-out 30 % of the documents\):"
        r" \d+ stories, [\d,]+ bytes, [\d,]+ tokens\n",
        result.stdout,
    )
    found = rows(result)
    assert found["figure"] == ["better", "one 1", "held-out stories"]
    assert re.fullmatch(r"\d\.\d{4} ± \d\.\d{4}", found["bits per byte"][1])
    assert found["bits per byte"][2] == ""
    assert found["perplexity (per token)"][0] == "lower"
    assert float(found["length (words)"][2]) > 0
    assert {"distinct-2 (%)", "near-copies: half of the 13-word passages (%)"} <= found.keys()
    assert not any(name.startswith("judge") for name in found), "nobody was asked"
    assert "evaluating" in result.stderr
    assert "evaluating" not in result.stdout


def test_side_by_side(folder):
    result = call("--checkpoint", folder / "one", "--checkpoint", folder / "two", "--checkpoint", folder / "one")
    found = rows(result)
    assert found["figure"] == ["better", "one 1 (1)", "two 1", "one 1 (3)", "held-out stories"]
    assert len(found["loss (nats per token)"]) == 5
    less = found["… less those of one 1 (1)"]
    assert (less[1], less[3]) == ("", "+0.0000 ± 0.0000")
    one, two = (float(found["bits per byte"][i].split()[0]) for i in (1, 2))
    assert float(less[2].split()[0]) == pytest.approx(two - one, abs=2e-4)
    assert "tokenizer" not in result.stderr
    first, second = ("one 1 (1)", "one 1 (3)") if one < two else ("two 1", "one 1 (1)")
    assert re.match(rf"{re.escape(first)} .*{re.escape(second)}", result.stdout.splitlines()[-1])


def test_different_tokenizers_are_compared_by_bits_per_byte_only(folder):
    result = call("--checkpoint", folder / "one", "--checkpoint", folder / "chars")
    found = rows(result)
    assert "bits per byte" in found
    assert "… less those of one 1" in found
    assert not any("token" in name for name in found)
    assert "the checkpoints have different tokenizers" in result.stderr


def test_json_has_everything_once_and_is_json(folder):
    found = document(call("--checkpoint", folder / "one", "--checkpoint", folder / "two", "--json"))
    one, two = found["checkpoints"]
    table = rows(call("--checkpoint", folder / "one"))
    assert (
        f"{one['bits_per_byte']['value']:.4f} ± {one['bits_per_byte']['half_width']:.4f}" == table["bits per byte"][1]
    )
    assert len(one["generation"]["told"]) == 4
    assert sum(each["tokens"] for each in one["reliability"]) == one["tokens"]
    assert sum(each["number"] for each in one["bits_per_byte_by_length"]) == one["stories"]
    assert found["bits_per_byte_less_first"][0] is None
    difference = two["bits_per_byte"]["value"] - one["bits_per_byte"]["value"]
    assert found["bits_per_byte_less_first"][1]["value"] == pytest.approx(difference)


def test_another_text_and_how_it_is_read(folder, tmp_path):
    text = tmp_path / "other.txt"
    text.write_text("\n".join(f"Once there was a hare {i}. The end." for i in range(7)))
    whole, lines = (
        document(call("--checkpoint", folder / "one", "--data", text, "--stories", 0, "--json", *others))
        for others in ([], ["data.split=line"])
    )
    assert (whole["checkpoints"][0]["stories"], lines["checkpoints"][0]["stories"]) == (1, 7)
    assert whole["checkpoints"][0]["generation"] is None
    assert whole["checkpoints"][0]["bytes"] == len(text.read_bytes())
    assert lines["checkpoints"][0]["bytes"] == len(text.read_bytes()) - 6


def test_text_that_was_trained_on_is_noticed(folder):
    result = call("--checkpoint", folder / "one", "--data", folder / "stories.txt", "--stories", 20)
    assert "of the held-out stories are near-copies of the training text; it is not unseen" in result.stderr


def refusal(*arguments: object) -> str:
    error = call(*arguments).exception
    assert isinstance(error, UserError), error
    assert "\n" not in str(error)
    return str(error)


def test_a_checkpoint_that_cannot_be_evaluated_does_not_stop_the_others(folder, tmp_path):
    result = call("--checkpoint", tmp_path / "nothing", "--checkpoint", folder / "one")
    assert rows(result)["figure"] == ["better", "one 1", "held-out stories"]
    assert isinstance(result.exception, UserError)
    assert result.exception.exit_code == 2
    assert str(result.exception).startswith("no checkpoint at ")
    assert str(result.exception).endswith("; of 1 checkpoint(s) the figures are above")


def test_what_is_refused(folder, tmp_path):
    one = ("--checkpoint", folder / "one")
    assert "nothing.txt" in refusal(*one, "--data", tmp_path / "nothing.txt")
    (tmp_path / "empty.txt").touch()
    assert "empty.txt" in refusal(*one, "--data", tmp_path / "empty.txt")
    assert "go together" in refusal(*one, "--judge_url", "http://localhost:1/v1")
    assert "--judge_url" in refusal(*one, "--judge_url", "localhost", "--judge_model", "m")
    assert "only settings of data" in refusal(*one, "--data", folder / "stories.txt", "train.max_steps=3")
    assert "give --data" in refusal(*one, "data.split=line")
    assert "--temperature" in refusal(*one, "--temperature", "-1")
    assert "--seed" in refusal(*one, "--seed", "-1")


def test_a_judge_grades_the_stories_and_the_held_out_ones(folder):
    endpoint = FakeEndpoint()
    try:
        result = call("--checkpoint", folder / "one", "--judge_url", endpoint.url, "--judge_model", "m")
    finally:
        endpoint.close()
    assert result.exit_code == 0, result.exception
    assert rows(result)["judge: grammar (0 to 10)"] == ["higher", "8.0", "8.0"]
    assert rows(result)["judge: consistency (0 to 10)"] == ["higher", "4.0", "4.0"]
    assert len(endpoint.requests) == 2 * 4


def test_a_judge_that_does_not_answer_costs_its_own_lines_only(folder):
    result = call("--checkpoint", folder / "one", "--judge_url", "http://127.0.0.1:9/v1", "--judge_model", "m")
    assert "bits per byte" in rows(result)
    assert isinstance(result.exception, UserError)
    assert "the judge has graded no story of " in str(result.exception)
