"""--to safetensors: every weight under our own name, in each dtype."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from storyteller_ds import load, train
from storyteller_ds.config.run import RunConfig
from storyteller_ds.data.tokenizers.tokenizer_json import load_tokenizer
from storyteller_ds.errors import UserError
from storyteller_ds.generation.story_model import StoryModel
from storyteller_ds.interchange import export as exporting
from storyteller_ds.interchange.export import export_model
from storyteller_ds.interchange.verify import check_safetensors
from storyteller_ds.model.canonical import placed_parameters
from tests.support.small_runs import SMALLEST


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> StoryModel:
    # No other format has all of these: noisy gating, a soft-cap, value embeddings.
    settings = {
        **SMALLEST,
        "data.builtin_stories": 60,
        "moe.noisy_gating": True,
        "model.logit_softcap": 15.0,
        "model.value_embeddings": True,
    }
    folder = tmp_path_factory.mktemp("run") / "run"
    train("tiny_test", settings, output_dir=folder)
    return load(folder, "cpu")


@pytest.mark.parametrize(
    ("dtype", "expected"), [("fp32", torch.float32), ("fp16", torch.float16), ("bf16", torch.bfloat16)]
)
def test_it_has_every_weight_under_its_own_name(model, tmp_path, dtype, expected):
    line = export_model(model, tmp_path / "export", "safetensors", dtype)
    assert line.startswith("largest difference of a weight, read back by safetensors: ")
    assert (line.endswith(": 0.0e+00")) == (dtype == "fp32")
    folder = tmp_path / "export"
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    ]
    weights = load_file(folder / "model.safetensors")
    ours = {placed.name: placed.parameter for placed in placed_parameters(model.decoder)}
    assert weights.keys() == ours.keys()
    for name, tensor in ours.items():
        assert weights[name].dtype == expected
        assert torch.equal(weights[name], tensor.to(expected)), name
    document = json.loads((folder / "config.json").read_text())
    assert RunConfig.model_validate(document["run"]) == model.run
    assert load_tokenizer(folder / "tokenizer.json").to_json() == model.tokenizer.to_json()


def test_negative_control_a_wrong_weight_is_seen(model, tmp_path):
    export_model(model, tmp_path / "export", "safetensors", "fp32")
    path = tmp_path / "export" / "model.safetensors"
    weights = load_file(path)
    weights["final_norm.weight"] *= 1 + 1e-6
    save_file(weights, path)
    with pytest.raises(UserError, match="does not compute what the model does"):
        check_safetensors(model, path, "fp32")


def test_numbers_beyond_fp16_are_seen(model, tmp_path):
    weight = model.decoder.final_norm.weight
    weight.data *= 1e6
    try:
        with pytest.raises(UserError, match="does not compute what the model does"):
            export_model(model, tmp_path / "export", "safetensors", "fp16")
    finally:
        weight.data /= 1e6
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_one_line_and_leaves_nothing(model, tmp_path: Path, monkeypatch):
    from safetensors import SafetensorError

    def full(*_: object, **__: object) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(exporting, "save_file", full)
    with pytest.raises(UserError, match="could not be written: I/O error: No space left on device"):
        export_model(model, tmp_path / "export", "safetensors", "fp32")
    assert list(tmp_path.iterdir()) == []


def test_a_write_that_falls_short_without_a_reason_names_the_likely_one(model, tmp_path: Path, monkeypatch):
    def short(*_: object, **__: object) -> None:
        raise OSError("4096 requested and 512 written")  # like numpy's tofile, which writes GGUF files

    monkeypatch.setattr(exporting, "save_file", short)
    with pytest.raises(UserError, match=r"could not be written: 4096 requested and 512 written; is the disk full\?"):
        export_model(model, tmp_path / "export", "safetensors", "fp32")
    assert list(tmp_path.iterdir()) == []
