"""storyteller compare, from the timing of a step to the verdict."""

import json
import re
from pathlib import Path

from click.testing import CliRunner

from storyteller_ds.bench.twins import MIXTURE, SAME_COMPUTE, SAME_PARAMETERS
from storyteller_ds.cli.compare import compare


def test_the_command_from_the_first_step_to_the_report(tmp_path: Path):
    text = ["data.builtin_stories=60", "tokenizer.kind=char", "tokenizer.vocab_size=64", "data.sequence_length=32"]
    command = ["--config", "tiny_test", "--tokens", "640", "--seeds", "2", "--output_dir", str(tmp_path / "c"), *text]
    found = CliRunner().invoke(compare, command)
    assert found.exit_code == 0, found.output
    document = json.loads((tmp_path / "c" / "compare.json").read_text())
    assert [*document["models"]] == [MIXTURE, SAME_COMPUTE, SAME_PARAMETERS]
    assert document["verdict"] in found.stdout
    assert document["verdict"] in (tmp_path / "c" / "compare.md").read_text()
    assert (tmp_path / "c" / "compare.png").read_bytes()[:4] == b"\x89PNG"
    steps = {run["steps"] for model in document["models"].values() for run in model["best"]}
    assert len(steps) == 1
    assert re.search(r"\| mixture +\| tiny_test: \d+ experts, top-\d", found.stdout)
    again = CliRunner().invoke(compare, command)
    assert json.loads((tmp_path / "c" / "compare.json").read_text())["models"] == document["models"]
    assert again.exit_code == 0
    both = CliRunner().invoke(compare, ["--tokens", "1", "--minutes", "1"])
    assert both.exit_code != 0
