"""storyteller export and import: what they print, and what they leave behind."""

import importlib.util
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from storyteller_ds import load, train
from storyteller_ds.cli.export import export
from storyteller_ds.cli.importing import import_
from storyteller_ds.errors import UserError
from storyteller_ds.interchange import export as exporting
from tests.support.small_runs import SMALLEST

pytest.importorskip("transformers")

SETTINGS = {**SMALLEST, "data.builtin_stories": 60}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train("tiny_test", SETTINGS, output_dir=tmp_path_factory.mktemp("run with a space") / "run").folder


@pytest.fixture(scope="module")
def bpe_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    bpe = {"tokenizer.kind": "bpe", "tokenizer.vocab_size": 300, "model.hidden_size": 32, "data.sequence_length": 64}
    return train("tiny_test", {**SETTINGS, **bpe}, output_dir=tmp_path_factory.mktemp("bpe") / "run").folder


def call(command, *arguments: object) -> Result:
    return CliRunner().invoke(command, [*map(str, arguments)], catch_exceptions=False)


def test_there_and_back_is_the_same_story(run: Path, tmp_path: Path):
    there, back = tmp_path / "an export", tmp_path / "back"
    outcome = call(export, "--checkpoint", run, "--to", "hf", "--output", there)
    assert "largest difference of a logit, read back by transformers: " in outcome.stdout
    assert outcome.stdout.splitlines()[-1] == f"export: {there}"
    card = (there / "README.md").read_text()
    assert "mixture-of-experts" in card
    assert "largest difference" in card
    assert sorted(path.name for path in tmp_path.iterdir()) == ["an export"]
    outcome = call(import_, "--from", "hf", "--model", there, "--output_dir", back)
    assert outcome.stdout == f"checkpoint: {back / 'checkpoints' / 'step_00000000'}\n"
    assert load(back).generate("Once", seed=3) == load(run).generate("Once", seed=3)
    assert load(there).generate("Once", seed=3) == load(run).generate("Once", seed=3)


def test_nothing_is_left_of_an_export_that_computes_something_else(run: Path, tmp_path: Path, monkeypatch):
    def wrong(*_: object) -> str:
        raise UserError("the export does not compute what the model does")

    monkeypatch.setattr(exporting, "check_huggingface", wrong)
    with pytest.raises(UserError, match="does not compute"):
        call(export, "--checkpoint", run, "--to", "hf", "--output", tmp_path / "export")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("reader", ["llama.cpp", "the gguf library"])
def test_gguf_is_read_back_too(bpe_run: Path, tmp_path: Path, monkeypatch, reader: str):
    pytest.importorskip("gguf")
    if reader == "llama.cpp":
        pytest.importorskip("xllamacpp")
    else:
        found = importlib.util.find_spec
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "xllamacpp" else found(name))
    outcome = call(export, "--checkpoint", bpe_run, "--to", "gguf", "--output", tmp_path / "export")
    assert f"read back by {reader}: " in outcome.stdout
    assert sorted(path.name for path in (tmp_path / "export").iterdir()) == ["Modelfile", "README.md", "model.gguf"]


def test_formats_that_do_not_go_together_are_refused(run: Path, tmp_path: Path):
    with pytest.raises(UserError, match="--dtype q8_0 is not for --to hf; use fp32, bf16, fp16"):
        call(export, "--checkpoint", run, "--to", "hf", "--output", tmp_path / "export", "--dtype", "q8_0")
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_is_not_replaced(run: Path, tmp_path: Path):
    (tmp_path / "there").mkdir()
    with pytest.raises(UserError, match="there exists already; remove it, or choose another --output"):
        call(export, "--checkpoint", run, "--to", "hf", "--output", tmp_path / "there")
    with pytest.raises(UserError, match="exists already"):
        call(import_, "--from", "hf", "--model", run, "--output_dir", tmp_path / "there")


def test_a_folder_that_is_none_is_named(tmp_path: Path):
    with pytest.raises(UserError, match=r"config\.json cannot be read \(No such file or directory\)"):
        call(import_, "--from", "hf", "--model", tmp_path, "--output_dir", tmp_path / "back")
    assert list(tmp_path.iterdir()) == []
