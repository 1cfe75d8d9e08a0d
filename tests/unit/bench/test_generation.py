"""bench generate: all implementations must generate the same text before any is timed."""

from pathlib import Path

import pytest
from click.testing import CliRunner

import storyteller_ds as st
from storyteller_ds.bench import generation
from storyteller_ds.cli.bench import bench
from storyteller_ds.errors import UserError
from storyteller_ds.model.counts import count_parameters, product_weights
from storyteller_ds.model.decoder import empty_decoder
from tests.support.small_runs import SMALLEST

SIZES = {"model.hidden_size": 32, "data.sequence_length": 64, "tokenizer.kind": "bpe", "tokenizer.vocab_size": 300}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return st.train("tiny_test", {**SMALLEST, **SIZES}, output_dir=tmp_path_factory.mktemp("a run") / "run").folder


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generation, "ROUNDS", 1)
    monkeypatch.setattr(generation, "copy_rate", lambda _: 1e9)
    monkeypatch.setattr(generation, "product_rate", lambda *_: 1e9)


def test_the_table_has_everyone_and_the_limit(run):
    result = CliRunner().invoke(bench, ["generate", "--checkpoint", str(run), "--tokens", "8"], catch_exceptions=False)
    assert "| storyteller, torch " in result.stdout
    weights = product_weights(st.load(run).run)
    assert f"{1e9 / (4 * weights):,.0f}" in result.stdout
    assert f"prefill, {SIZES['data.sequence_length'] - 1} tokens" in result.stdout


def test_whoever_tells_another_story_is_named_and_nothing_is_timed(run, tmp_path, monkeypatch):
    class Liar(generation._Ours):
        def ids(self, ids, tokens):
            return [(one + 1) % 256 for one in super().ids(ids, tokens)]

        def speed(self, ids, tokens, long):
            pytest.fail("it was timed")

    def with_a_liar(model, folder, log):
        stepper = generation.TorchStepper(model.decoder, model.run)
        return {"honest": generation._Ours(model, stepper), "liar": Liar(model, stepper)}

    monkeypatch.setattr(generation, "_tellers", with_a_liar)
    with pytest.raises(UserError, match="liar tells another story than honest"):
        generation.measure(st.load(run), 8, tmp_path, lambda _: None)


def test_the_weights_of_a_token_are_those_of_its_experts():
    run = st.load_config("quickstart").run  # untied: the embedding table is only looked up, not used as the output
    looked_up = run.tokenizer.vocab_size * run.model.hidden_size
    vectors = sum(parameter.numel() for _, parameter in empty_decoder(run).named_parameters() if parameter.dim() < 2)
    assert product_weights(run) == count_parameters(run).active - looked_up - vectors
