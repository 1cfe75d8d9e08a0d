"""Trained models in other tools give the same logits and the same story, and come back bit for bit."""

from typing import Any, NamedTuple

import pytest
import torch

from storyteller_ds import load, train
from storyteller_ds.generation.decode import generate_ids, prompt_ids
from storyteller_ds.generation.sampling import SamplingConfig
from storyteller_ds.generation.story_model import StoryModel
from storyteller_ds.interchange.export import export_model
from storyteller_ds.interchange.llama_cpp_process import completions
from storyteller_ds.interchange.load import import_model
from storyteller_ds.model.canonical import placed_parameters

transformers = pytest.importorskip("transformers")

PROMPT, TOKENS = "Once upon a time", 64
SETTINGS = {
    "model.hidden_size": 64,
    "model.num_layers": 2,
    "model.intermediate_size": 128,
    "data.builtin_stories": 500,
    "tokenizer.vocab_size": 512,
    "optimizer.kind": "muon",
    "optimizer.lr": 1e-2,
    "optimizer.embedding_lr_ratio": 10,
    "train.max_steps": 150,
    "train.eval_every_steps": 150,
    "train.eval_batches": 1,
    "train.sample_tokens": 1,
    "tracking.wandb": "disabled",
    "parallel.device": "cpu",
}
GPT2 = {"model.norm": "layernorm", "model.position": "learned", "model.activation": "gelu", "model.bias": True}
MODELS: dict[str, dict[str, Any]] = {
    "mixture": {"moe.num_experts": 4},
    "dense Llama": {"moe.num_experts": 0},
    "GPT-2": {"moe.num_experts": 0, "model.num_kv_heads": None, **GPT2},
}


class Trained(NamedTuple):
    """A trained model and a story of it."""

    model: StoryModel
    ids: list[int]
    """Tokens of PROMPT and its greedy continuation."""
    text: str


@pytest.fixture(scope="module", params=MODELS, ids=MODELS)
def trained(request, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("run") / "run"
    run = train("tiny_test", {**SETTINGS, **MODELS[request.param]}, output_dir=folder)
    assert run.metrics[-1]["final_val_bpb"] < 2.5  # it starts above 5
    model = load(folder, "cpu")
    prompt = prompt_ids(model.tokenizer, PROMPT)
    greedy = SamplingConfig(temperature=0, max_new_tokens=TOKENS)
    ids = [*prompt, *generate_ids(model.decoder, model.run, prompt, greedy, None)]
    assert len(ids) == len(prompt) + TOKENS
    return Trained(model, ids, model.tokenizer.decode(ids))


def test_transformers_computes_and_tells_the_same(trained, tmp_path):
    export_model(trained.model, tmp_path / "export", "hf", "fp32")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "export", dtype=torch.float32).eval()
    fast = transformers.AutoTokenizer.from_pretrained(tmp_path / "export")
    given = fast(PROMPT, return_tensors="pt")
    found = theirs.generate(**given, max_new_tokens=TOKENS, do_sample=False, eos_token_id=None, pad_token_id=0)
    assert fast.decode(found[0], skip_special_tokens=True) == trained.text
    with torch.no_grad():
        expected = trained.model.decoder(torch.tensor([trained.ids]))[0]
        assert (theirs(torch.tensor([trained.ids])).logits - expected).abs().max() < 1e-4


def test_llama_cpp_tells_the_same(trained, tmp_path):
    pytest.importorskip("gguf")
    pytest.importorskip("xllamacpp")
    line = export_model(trained.model, tmp_path / "export", "gguf", "fp32")
    assert "log-probability, read back by llama.cpp" in line
    request = {"prompt": PROMPT, "max_tokens": TOKENS, "temperature": 0, "ignore_eos": True}
    [answer] = completions(tmp_path / "export" / "model.gguf", 128, [request], seconds=120)
    assert PROMPT + answer["text"] == trained.text


def test_it_comes_back_as_the_same_bits(trained, tmp_path):
    export_model(trained.model, tmp_path / "export", "hf", "fp32")
    import_model("hf", tmp_path / "export", None, tmp_path / "back")
    again = load(tmp_path / "back", "cpu")
    theirs = {placed.name: placed.parameter for placed in placed_parameters(again.decoder)}
    ours = {placed.name: placed.parameter for placed in placed_parameters(trained.model.decoder)}
    assert theirs.keys() == ours.keys()
    for name, tensor in ours.items():
        assert torch.equal(theirs[name], tensor), name
    assert again.generate(PROMPT, temperature=0, max_new_tokens=TOKENS) == trained.model.generate(
        PROMPT, temperature=0, max_new_tokens=TOKENS
    )
