"""Pruned mixtures: the function that remains, the commands that read them, and what is refused."""

import json
import re
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result

import storyteller_ds as st
from storyteller_ds.atlas.knock_out import without
from storyteller_ds.checkpoint.read import find_checkpoint
from storyteller_ds.cli.main import storyteller
from storyteller_ds.errors import CheckpointError, UserError
from tests.support.small_mixtures import SETTINGS


def call(*arguments: object) -> Result:
    return CliRunner().invoke(storyteller, [*map(str, arguments)])


def prune(checkpoint: Path, output: Path, *arguments: object) -> Result:
    return call("prune-experts", "--checkpoint", checkpoint, "--output_dir", output, "--device", "cpu", *arguments)


@torch.no_grad()
@pytest.mark.parametrize(
    ("kind", "drop"), [("char", {0: (3,), 1: (1,)}), ("char", {0: (0, 2), 1: (3, 2)}), ("gpt2", {1: (1,)})]
)
def test_it_computes_what_the_whole_one_does_without_these_experts(runs, tmp_path, kind, drop):
    named = ",".join(f"{block}:{expert}" for block, experts in drop.items() for expert in experts)
    result = prune(runs[kind], tmp_path / "fewer", "--drop", named)
    assert result.exit_code == 0, result.exception
    whole, fewer = (st.load(each, device="cpu", precision="fp32") for each in (runs[kind], tmp_path / "fewer"))
    gone = len(next(iter(drop.values())))
    assert fewer.run.moe.num_experts == 4 - gone
    token_BS = torch.randint(60, (4, 32), generator=torch.Generator().manual_seed(0))
    with without(whole.decoder, drop):
        expected = whole.decoder(token_BS)[0]
    torch.testing.assert_close(fewer.decoder(token_BS)[0], expected, rtol=1e-5, atol=1e-5)
    # Control: with these experts the outputs differ.
    assert (whole.decoder(token_BS)[0] - expected).abs().max() > 1e-3


def test_what_it_prints(runs, tmp_path):
    result = prune(runs["char"], tmp_path / "fewer", "--experts", 3)
    assert result.exit_code == 0, result.exception
    *layers, score, size, where, train = result.stdout.splitlines()
    assert [re.sub(r"\d$", "N", line) for line in layers] == ["layer 0: without N", "layer 1: without N"]
    found = re.fullmatch(
        r"bits per byte of ([\d,]+) tokens of .*stories\.txt.*: ([\d.]+) with 4 experts a layer, ([\d.]+) with 3 "
        r"\(([+-][\d.]+) ± [\d.]+; ([+-][\d.]+) was predicted\)",
        score,
    )
    assert found is not None, score
    assert float(found[3]) - float(found[2]) == pytest.approx(float(found[4]), abs=2e-4)
    before, after = map(int, re.findall(r"\d+", size.replace(",", "")))
    assert before - after == 2 * (16 + 3 * 16 * 16), "of each layer one row of the router, and three matrices"
    assert where == f"checkpoint: {tmp_path / 'fewer' / 'checkpoints' / 'step_00000001'}"
    assert train == f"train it:   storyteller train --init_from {tmp_path / 'fewer'}"
    manifests = [
        find_checkpoint(each, pytest.fail, ("weights",)).manifest for each in (runs["char"], tmp_path / "fewer")
    ]
    assert manifests[1].val_bpb == pytest.approx(float(found[3]), abs=1e-4)
    assert manifests[1].dataset_fingerprint == manifests[0].dataset_fingerprint
    # evaluate finds the text and gives the same figure.
    figures = json.loads(call("evaluate", "--checkpoint", tmp_path / "fewer", "--stories", 0, "--json").stdout)
    assert figures["checkpoints"][0]["bits_per_byte"]["value"] == pytest.approx(manifests[1].val_bpb, rel=1e-6)


def test_the_experts_that_go_are_those_that_cost_least(runs, tmp_path):
    table = json.loads(call("atlas", "--checkpoint", runs["char"], "--json").stdout)
    assert prune(runs["char"], tmp_path / "fewer", "--experts", 2).exit_code == 0
    topology = find_checkpoint(tmp_path / "fewer", pytest.fail, ("weights",)).manifest.topology
    for layer in table["layers"]:
        cheap = sorted(layer["experts"], key=lambda each: each["cost"]["value"])[:2]
        assert topology.dropped_experts[str(layer["block"])] == sorted(each["number"] for each in cheap)
    # The atlas has measured the cost of dropping the same experts.
    measured = table["prunings"][1]["measured"]
    assert {int(block): tuple(them) for block, them in measured["dropped"].items()} == {
        int(block): tuple(them) for block, them in topology.dropped_experts.items()
    }


def test_it_tells_stories_is_exported_quantized_and_trained_further(runs, tmp_path):
    fewer = tmp_path / "fewer"
    assert prune(runs["char"], fewer, "--experts", 3).exit_code == 0
    assert st.load(fewer, device="cpu").generate("fox", temperature=0, seed=1, max_new_tokens=5).startswith("fox")
    assert "weights only" in call("checkpoint", "verify", fewer).stdout
    assert call("quantize", "--checkpoint", fewer, "--bits", 8, "--output_dir", tmp_path / "small").exit_code == 0
    result = call("export", "--checkpoint", fewer, "--to", "safetensors", "--output", tmp_path / "export")
    assert result.exit_code == 0, result.exception
    source = runs["char"].parent / "stories.txt"
    settings = {field: value for field, value in SETTINGS.items() if not field.startswith(("model.", "moe."))}
    run = st.train("tiny_test", settings, data=source, output_dir=tmp_path / "tuned", init_from=fewer)
    assert st.load(run.folder).run.moe.num_experts == 3
    with pytest.raises(CheckpointError, match="a pruned or a quantized model, with weights only"):
        st.train("tiny_test", settings, data=source, output_dir=fewer)


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        ("char", ("--experts", 1), "each token goes to 2 experts, and 1 would be left in each layer; keep 2 or more"),
        ("char", ("--experts", 4), "has 4 experts in each layer; keep fewer than 4"),
        ("all", ("--experts", 1), "each token goes to 2 experts"),
        ("single", ("--experts", 1), "keep fewer than 1"),
        ("dense", ("--experts", 1), "is a dense model and has no experts"),
        ("char", (), "give --experts, how many each layer keeps, or --drop"),
        ("char", ("--experts", 3, "--drop", "0:1,1:1"), "not both"),
        ("char", ("--drop", "0:1"), "all layers must keep as many experts: layer 1 would lose 0 and layer 0 1"),
        ("char", ("--drop", "0:1,1:4"), "layer 1 has no expert 4; they are 0 to 3"),
        ("char", ("--drop", "0:1,2:1"), "layer 2 has no experts; those that have: 0, 1"),
        ("gpt2", ("--drop", "0:1"), "layer 0 has no experts; those that have: 1"),
        ("char", ("--drop", "0:1,0:1"), "0:1 is there twice"),
        ("char", ("--drop", "0:1,0:2,0:3,1:0,1:1,1:2"), "1 would be left"),
        ("char", ("--drop", "0-1"), "'0-1' is not LAYER:EXPERT; write for instance --drop 0:3,1:5"),
        ("char", ("--experts", 3, "--data", "nothing.txt"), "nothing.txt"),
    ],
)
def test_what_cannot_be_is_refused_and_leaves_nothing(runs, tmp_path, kind, arguments, message):
    error = prune(runs[kind], tmp_path / "fewer", *arguments).exception
    assert isinstance(error, UserError), error
    assert message in str(error)
    assert list(tmp_path.iterdir()) == []


def test_quantized_models_exports_and_folders_that_are_there(runs, tmp_path):
    small, export = tmp_path / "small", tmp_path / "export"
    assert call("quantize", "--checkpoint", runs["char"], "--bits", 8, "--output_dir", small).exit_code == 0
    for source, message in (
        (small, "has 8 bits; prune the run that it was made from"),
        (tmp_path / "no", "no checkpoint"),
    ):
        assert message in str(prune(source, tmp_path / "fewer", "--experts", 3).exception)
    assert "exists already; remove it" in str(prune(runs["char"], small, "--experts", 3).exception)
    pytest.importorskip("transformers")
    assert call("export", "--checkpoint", runs["bpe"], "--to", "hf", "--output", export).exit_code == 0
    assert "read it first: storyteller import" in str(prune(export, tmp_path / "fewer", "--experts", 3).exception)
    assert not (tmp_path / "fewer").exists()


def test_a_full_disk_leaves_nothing(runs, tmp_path, monkeypatch):
    def full(tensors, path):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("storyteller_ds.checkpoint.write.save_file", full)
    assert "No space left on device" in str(prune(runs["char"], tmp_path / "fewer", "--experts", 3).exception)
    assert list(tmp_path.iterdir()) == []
