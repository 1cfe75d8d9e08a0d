"""Mixtures made from dense models: the same function without noise, and what is refused."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

import storyteller_ds as st
from storyteller_ds.cli.upcycle import upcycle
from storyteller_ds.errors import UserError
from storyteller_ds.model.init import init_parameters
from tests.support.runs import read_metrics
from tests.support.small_runs import SMALLEST

STORIES = [f"There was a dog called Rex {i}. It ran and ran.\n\nThen it slept." for i in range(40)]
MODELS: dict[str, dict[str, Any]] = {
    "llama": {},
    "gpt2": {
        **{"model.norm": "layernorm", "model.position": "learned", "model.activation": "gelu", "model.bias": True},
        "optimizer.kind": "adamw",
    },
}


@pytest.fixture(scope="module", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STORYTELLER_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("dense models")
    return {
        name: st.train(
            "tiny_test",
            {**SMALLEST, "moe.num_experts": 0, "model.num_layers": 2, **model},
            output_dir=folder / name,
            data=STORIES,
        ).folder
        for name, model in MODELS.items()
    }


def call(*arguments: object) -> str:
    return CliRunner().invoke(upcycle, [*map(str, arguments)], catch_exceptions=False).stdout


def logits(folder: Path) -> torch.Tensor:
    model = st.load(folder)
    token_BS = torch.randint(model.run.tokenizer.vocab_size, (2, 8), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return model.decoder(token_BS)[0]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    "experts", [{"num_experts": 4}, {"num_experts": 3, "top_k": 1}, {"num_experts": 4, "every_n_layers": 2}]
)
def test_without_noise_the_mixture_computes_what_the_dense_model_does(dense, tmp_path, name, experts):
    options = [text for field, value in experts.items() for text in (f"--{field}", value)]
    out = tmp_path / "a mixture"
    printed = call("--checkpoint", dense[name], "--output_dir", out, *options)
    assert printed.splitlines()[-1] == f"train it:   storyteller train --init_from '{out}'"
    torch.testing.assert_close(logits(out), logits(dense[name]), rtol=1e-5, atol=1e-5)
    run = st.load(out).run
    assert run.moe.num_experts == experts["num_experts"]
    assert run.moe_layers == (run.model.num_layers if "every_n_layers" not in experts else run.model.num_layers // 2)


def test_noise_is_a_part_of_the_weights_and_another_in_every_expert(dense, tmp_path):
    call("--checkpoint", dense["llama"], "--output_dir", tmp_path / "mixture", "--noise", 0.1, "--num_experts", 4)
    before, after = st.load(dense["llama"]).decoder, st.load(tmp_path / "mixture").decoder
    weight = before.get_parameter("blocks.0.ffn.down_proj.weight")
    noise = after.get_parameter("blocks.0.ffn.experts.down_proj") - weight
    assert float((noise.std() / weight.std()).detach()) == pytest.approx(0.1, rel=0.1)
    assert abs(torch.corrcoef(noise.flatten(1)).triu(1)).max() < 0.2
    assert not torch.allclose(logits(tmp_path / "mixture"), logits(dense["llama"]), rtol=0, atol=1e-4)
    assert torch.equal(before.embedding.weight, after.embedding.weight)


def test_routers_are_those_of_a_new_model(dense, tmp_path):
    call("--checkpoint", dense["llama"], "--output_dir", tmp_path / "mixture", "--seed", 5)
    model = st.load(tmp_path / "mixture")
    found = {name: weight.detach().clone() for name, weight in model.decoder.named_parameters() if "router" in name}
    init_parameters(model.decoder, model.run.model, 5)
    assert len(found) == model.run.model.num_layers
    for name, weight in found.items():
        assert torch.equal(weight, model.decoder.get_parameter(name)), name


def test_it_is_trained_further(dense, tmp_path):
    call("--checkpoint", dense["llama"], "--output_dir", tmp_path / "mixture")
    settings = {field: value for field, value in SMALLEST.items() if not field.startswith(("model.", "moe."))}
    still = {**settings, "optimizer.lr": 1e-30, "train.max_steps": 1}
    run = st.train("tiny_test", still, data=STORIES, output_dir=tmp_path / "run", init_from=tmp_path / "mixture")
    before, after = read_metrics(dense["llama"])[-1], read_metrics(run.folder)[-1]
    assert after["final_val_loss"] == pytest.approx(before["final_val_loss"], rel=1e-5)


def test_what_cannot_be_is_refused(dense, tmp_path):
    call("--checkpoint", dense["llama"], "--output_dir", tmp_path / "mixture")
    for arguments, message in (
        (("--checkpoint", tmp_path / "mixture"), "is a mixture of experts already; give a dense model"),
        (("--checkpoint", dense["llama"], "--num_experts", 2, "--top_k", 3), "top_k"),
        (("--checkpoint", dense["llama"], "--every_n_layers", 9), "no layer would have experts; lower it"),
    ):
        with pytest.raises(UserError, match=message):
            call(*arguments, "--output_dir", tmp_path / "other")
    with pytest.raises(UserError, match="--noise nan: give a part"):
        call("--checkpoint", dense["llama"], "--output_dir", tmp_path / "other", "--noise", "nan")
    with pytest.raises(UserError, match="exists already; remove it"):
        call("--checkpoint", dense["llama"], "--output_dir", tmp_path / "mixture")
    assert [path.name for path in tmp_path.iterdir()] == ["mixture"]
    config = json.loads((tmp_path / "mixture/checkpoints/step_00000000/config.json").read_text())
    assert config["run"]["moe"]["num_experts"] == 8
