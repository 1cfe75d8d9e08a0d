"""storyteller data."""

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from storyteller_ds.cli.data import data
from storyteller_ds.data.builtin import grammar
from storyteller_ds.errors import DataError

STORIES = [grammar.story("train", 0, i) for i in range(60)]


@pytest.fixture
def call(tmp_path: Path):
    """Run a verb on the stories and return its output lines."""
    text = tmp_path / "stories.txt"
    text.write_text("<|endoftext|>".join(STORIES), encoding="utf-8")
    settings = [
        *(f"data.source={text}", f"data.validation={text}", f"data.cache_dir={tmp_path / 'cache'}"),
        *("tokenizer.vocab_size=400", "data.sequence_length=200"),
    ]

    def run(*arguments: str) -> list[str]:
        result = CliRunner().invoke(data, [*arguments, *settings])
        if isinstance(result.exception, DataError):
            raise result.exception
        assert result.exit_code == 0, result.output
        return result.stdout.splitlines()

    return run


def test_show_prints_a_story_as_it_was_read(call):
    for number in (1, 17, 60):
        assert "\n".join(call("show", str(number))) == STORIES[number - 1].strip()
    shown = call("show", "2", "--split", "validation", "--tokens")
    pieces = "\n".join(shown[:-1])[1:-1].split("][")
    assert "".join(pieces) == STORIES[1].strip().replace("\n", "\\n")
    assert shown[-1] == f"{len(pieces)} tokens"
    for number in ("0", "61"):
        with pytest.raises(DataError, match=f"there is no story {number}; there are 60, counted from 1"):
            call("show", number)


def test_stats_are_those_of_the_stories(call, tmp_path):
    from storyteller_ds.data.tokenizers.tokenizer_json import load_tokenizer

    found = json.loads("\n".join(call("stats", "--json")))["train"]
    (folder,) = (tmp_path / "cache").iterdir()
    encoded = load_tokenizer(folder / "tokenizer.json").encode_batch([story.strip() for story in STORIES])
    lengths = [len(ids) for ids in encoded]
    assert found["stories"] == 60
    assert found["bytes"] == sum(len(story.strip().encode()) for story in STORIES)
    assert found["tokens"] == sum(lengths) + 61
    assert found["length_percentiles"]["longest"] == max(lengths)
    assert found["length_percentiles"]["median"] == int(np.median(lengths))
    assert found["longer"] == sum(length > 200 for length in lengths)
    assert found["used"] == len({i for ids in encoded for i in ids}) + 1
    text = "\n".join(call("stats"))
    assert f"train: 60 stories, {found['tokens']:,} tokens" in text
    assert f"longer than data.sequence_length=200: {found['longer']} stories" in text


def test_verify_names_what_is_damaged_and_makes_nothing(call, tmp_path):
    with pytest.raises(DataError, match=r"nothing is prepared of .*; a run prepares it"):
        call("verify")
    assert not (tmp_path / "cache").exists()
    call("stats")
    (folder,) = (tmp_path / "cache").iterdir()
    assert call("verify") == [f"whole: {folder}"]
    shard = folder / "train-00000.tokens"
    content = bytearray(shard.read_bytes())
    content[-2] ^= 1
    shard.write_bytes(content)
    with pytest.raises(DataError, match=r"is damaged \(.*train-00000.tokens is damaged, its checksum is another\)"):
        call("verify")
    assert shard.read_bytes() == content
