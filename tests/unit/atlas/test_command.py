"""storyteller atlas: what it prints and writes."""

import importlib.util
import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from storyteller_ds.cli.main import storyteller
from storyteller_ds.errors import UserError


def call(*arguments: object) -> Result:
    return CliRunner().invoke(storyteller, [*map(str, arguments)])


def atlas(checkpoint: Path, *arguments: object) -> Result:
    return call("atlas", "--checkpoint", checkpoint, "--device", "cpu", *arguments)


def rows(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]


def test_the_tables(runs):
    result = atlas(runs["char"])
    assert result.exit_code == 0, result.exception
    assert "2 layer(s) of 4 experts, 2 for each token" in result.stdout.splitlines()[0]
    found = rows(result.stdout)
    experts = [row for row in found if len(row) == 7 and row[0].isdigit()]
    assert sorted((row[0], row[1]) for row in experts) == [(str(b), str(e)) for b in range(2) for e in range(4)]
    costs = [float(row[4].split()[0]) for row in experts]
    assert costs == sorted(costs, reverse=True)
    assert sum(float(row[2]) for row in experts) == pytest.approx(200, abs=0.5)
    assert [row[0] for row in found if len(row) == 4 and row[0].isdigit()] == ["1", "2"]
    assert "dearest of 8 experts: " in result.stdout
    assert "looking at" in result.stderr
    assert "looking at" not in result.stdout


def test_json_and_files(runs, tmp_path):
    result = atlas(runs["gpt2"], "--json", "--output_dir", tmp_path / "a" / "b")
    assert result.exit_code == 0, result.exception
    document = json.loads(result.stdout, parse_constant=pytest.fail)
    assert result.stdout == (tmp_path / "a" / "b" / "atlas.json").read_text()
    (layer,) = document["layers"]
    assert layer["block"] == 1
    assert layer["pairs_EE"][0][0] == 0
    assert layer["pairs_expected_EE"][0][0] is None
    assert layer["from_previous_EE"] is None
    assert sum(sum(row) for row in layer["pairs_EE"]) == 2 * document["tokens"]
    for expert in layer["experts"]:
        assert {str(each["token"]) for each in expert["preferences"]} <= document["spelling"].keys()
        for feature, shares in expert["shares"].items():
            assert len(shares) == len(document["features"][feature])
    names = {path.name for path in (tmp_path / "a" / "b").iterdir()}
    pictures = {"atlas-load.png", "atlas-kinds.png", "atlas-knock-out.png", "atlas-pairs.png"}
    assert names == {"atlas.json", "atlas.md"} | pictures
    page = (tmp_path / "a" / "b" / "atlas.md").read_text()
    assert all(f"]({name})" in page for name in pictures)
    assert rows(page) == rows(atlas(runs["gpt2"]).stdout)
    assert all((tmp_path / "a" / "b" / name).read_bytes().startswith(b"\x89PNG") for name in pictures)


def test_without_knock_outs_and_without_pairs(runs, tmp_path):
    result = atlas(runs["one_each"], "--knock_out_tokens", 0, "--output_dir", tmp_path)
    assert result.exit_code == 0, result.exception
    assert "prune-experts" not in result.stdout
    experts = [row for row in rows(result.stdout) if len(row) == 7 and row[0].isdigit()]
    assert [row[:2] for row in experts] == [[str(b), str(e)] for b in range(2) for e in range(4)]
    assert {row[4] for row in experts} == {"-"}
    assert not {"atlas-knock-out.png", "atlas-pairs.png"} & {path.name for path in tmp_path.iterdir()}


def test_what_is_not_installed_is_said(runs, tmp_path, monkeypatch):
    find, missing = importlib.util.find_spec, "denckring_en_pos"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == missing else find(name, *rest))
    result = atlas(runs["char"], "--knock_out_tokens", 0, "--output_dir", tmp_path)
    assert result.exit_code == 0, result.exception
    assert "no parts of speech without pip install 'storyteller_ds[atlas]'" in result.stderr
    assert "part of speech" not in result.stdout


def test_another_text_a_quantized_model_and_an_export(runs, tmp_path):
    (tmp_path / "other.txt").write_text("\n".join(f"There was a fox {i}. The end." for i in range(7)))
    for others, stories in ([], 1), (["data.split=line"], 7):
        found = json.loads(atlas(runs["bpe"], "--data", tmp_path / "other.txt", "--json", *others).stdout)
        assert found["stories"] == stories
    small, export = tmp_path / "small", tmp_path / "export"
    assert call("quantize", "--checkpoint", runs["bpe"], "--bits", 8, "--output_dir", small).exit_code == 0
    one, other = (json.loads(atlas(each, "--json").stdout) for each in (runs["bpe"], small))
    assert one["bits_per_byte"]["value"] == pytest.approx(other["bits_per_byte"]["value"], rel=0.01)
    pytest.importorskip("transformers")
    assert call("export", "--checkpoint", runs["bpe"], "--to", "hf", "--output", export).exit_code == 0
    assert "an export, and no text is recorded for it; give --data" in str(atlas(export).exception)
    asked = ("--data", tmp_path / "other.txt", "--json")
    own, exported = (json.loads(atlas(each, *asked).stdout)["layers"] for each in (runs["bpe"], export))
    assert [each["load"] for each in own[0]["experts"]] == [each["load"] for each in exported[0]["experts"]]


def test_what_is_refused(runs, tmp_path):
    (tmp_path / "file").touch()
    for arguments, message in (
        (("--data", tmp_path / "nothing.txt"), "nothing.txt"),
        (("data.split=line",), "give --data"),
        (("--output_dir", tmp_path / "file"), "cannot be made"),
        (("--tokens", 0), "--tokens"),
    ):
        error = atlas(runs["char"], *arguments).exception
        assert isinstance(error, UserError | SystemExit), error
        assert message in str(error) or isinstance(error, SystemExit)
    error = atlas(runs["dense"]).exception
    assert isinstance(error, UserError)
    assert error.exit_code == 2
