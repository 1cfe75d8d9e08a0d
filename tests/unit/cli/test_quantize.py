"""storyteller quantize: what it prints, what it leaves behind, and what reads the result."""

import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from storyteller_ds import train
from storyteller_ds.checkpoint.read import find_checkpoint
from storyteller_ds.cli.main import storyteller
from storyteller_ds.errors import CheckpointError, UserError
from tests.support.small_runs import SMALLEST

STORIES = "\n\n".join(f"Once upon a time there was fox {i}. The end of {i * i % 7} foxes." for i in range(40))


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "stories.txt"
    path.write_text(STORIES)
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("a run")
    (folder / "stories.txt").write_text(STORIES)
    return train("tiny_test", SMALLEST, data=folder / "stories.txt", output_dir=folder / "run").folder


def call(*arguments: object) -> Result:
    return CliRunner().invoke(storyteller, [*map(str, arguments)])


def quantize(checkpoint: Path, output: Path, bits: int, *arguments: object) -> Result:
    return call("quantize", "--checkpoint", checkpoint, "--bits", bits, "--output_dir", output, *arguments)


@pytest.mark.parametrize("bits", [8, 4])
def test_what_it_prints_and_what_can_be_done_with_it(run_folder, generate, tmp_path, text, bits):
    out = tmp_path / "small"
    result = quantize(run_folder, out, bits, "--data", text)
    assert result.exit_code == 0, result.exception
    score, weights, where = result.stdout.splitlines()
    found = re.fullmatch(
        rf"bits per byte of ([\d,]+) tokens of {text}: ([\d.]+) in fp32, ([\d.]+) in {bits} bits \(([+-][\d.]+)%\)",
        score,
    )
    assert found is not None
    assert abs(float(found[3]) / float(found[2]) - 1 - float(found[4]) / 100) < 2e-4
    assert re.fullmatch(rf"weights: [\d.]+ kB in fp32, [\d.]+ kB in {bits} bits", weights)
    assert where == f"checkpoint: {out / 'checkpoints' / 'step_00000002'}"
    assert sorted(path.name for path in out.iterdir()) == ["checkpoints"]
    checkpoint = find_checkpoint(out, pytest.fail, ("weights",))
    assert checkpoint.manifest.val_bpb is None, "that text was not the run's own"
    story, _ = generate("--prompt", "Once", checkpoint=out)
    assert story.startswith("Once")
    assert "weights only, 4 files" in call("checkpoint", "verify", out).stdout
    shown = [json.loads(call("checkpoint", "show", each, "--json").stdout) for each in (run_folder, out)]
    assert shown[0]["parameters"] == shown[1]["parameters"]
    assert shown[0]["weights"] == shown[1]["weights"]


def test_8_bits_tell_the_same_story_here(run_folder, generate, tmp_path, text):
    assert quantize(run_folder, tmp_path / "small", 8, "--data", text).exit_code == 0
    for seed in ("1", "2"):
        stories = [
            generate("--prompt", "Once", "--temperature", "0", "--seed", seed, checkpoint=each)[0]
            for each in (run_folder, tmp_path / "small")
        ]
        assert stories[0] == stories[1]


def test_the_text_is_the_runs_own(trained, tmp_path):
    result = quantize(trained, tmp_path / "small", 8)
    assert result.exit_code == 0, result.exception
    before = find_checkpoint(trained, pytest.fail).manifest
    after = find_checkpoint(tmp_path / "small", pytest.fail, ("weights",)).manifest
    found = re.match(r"bits per byte of ([\d,]+) tokens of .+/stories\.txt: ([\d.]+) in fp32, ([\d.]+) ", result.stdout)
    assert found is not None
    assert float(found[2]) == pytest.approx(before.val_bpb, abs=1e-4)
    assert float(found[3]) == pytest.approx(after.val_bpb, abs=1e-4)
    assert int(found[1].replace(",", "")) == before.val_tokens == after.val_tokens
    assert after.dataset_fingerprint == before.dataset_fingerprint


def test_training_does_not_go_on_from_it(trained, tmp_path):
    out = tmp_path / "small"
    assert quantize(trained, out, 8).exit_code == 0
    for where in ({"output_dir": out}, {"output_dir": tmp_path / "new", "resume": out}):
        with pytest.raises(CheckpointError, match="a quantized model, with weights only: enough to generate, not to"):
            train("tiny_test", SMALLEST, data=trained.parent / "stories.txt", **where)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["small"]
    assert sorted(path.name for path in out.iterdir()) == ["checkpoints"]


@pytest.mark.parametrize("bits", [8, 4])
def test_an_export_has_the_rounded_weights(trained, tmp_path, bits):
    pytest.importorskip("transformers")
    out = tmp_path / "small"
    assert quantize(trained, out, bits).exit_code == 0
    result = call("export", "--checkpoint", out, "--to", "hf", "--output", tmp_path / "export")
    assert result.exit_code == 0, result.exception
    assert "largest difference of a logit, read back by transformers" in result.stdout


def refusal(*arguments: object) -> str:
    error = quantize(*arguments).exception
    assert isinstance(error, UserError), error
    assert "\n" not in str(error)
    return str(error)


def test_what_cannot_be_quantized_is_refused_and_leaves_nothing(run_folder, trained, tmp_path, text):
    out = tmp_path / "small"
    assert "no checkpoint at" in refusal(tmp_path / "nothing", out, 8)
    assert "nothing.txt" in refusal(run_folder, out, 8, "--data", tmp_path / "nothing.txt")
    assert not out.exists()
    assert quantize(run_folder, out, 8, "--data", text).exit_code == 0
    assert "exists already; remove it" in refusal(run_folder, out, 8, "--data", text)
    assert "has 8 bits already; give the run that it was made from" in refusal(out, tmp_path / "smaller", 4)
    assert not (tmp_path / "smaller").exists()


@pytest.mark.parametrize("change", ["gone", "changed"])
def test_another_text_is_asked_for_where_the_runs_own_is_not_there(trained, tmp_path, text, change):
    own = trained.parent / "stories.txt"
    try:
        own.unlink() if change == "gone" else own.write_text(STORIES + "\n\nOne more fox.")
        line = refusal(trained, tmp_path / "small", 8)
        assert quantize(trained, tmp_path / "small", 8, "--data", text).exit_code == 0
    finally:
        own.write_text(STORIES)
    assert line.endswith(
        "; or give a text with --data" if change == "gone" else "was trained on; give a text with --data"
    )
    assert str(own) in line


def test_a_full_disk_leaves_nothing(run_folder, tmp_path, text, monkeypatch):
    def full(tensors, path):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("storyteller_ds.checkpoint.write.save_file", full)
    assert "could not be written: No space left on device" in refusal(run_folder, tmp_path / "small", 8, "--data", text)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["stories.txt"]
