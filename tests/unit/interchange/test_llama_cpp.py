"""GGUF files in llama.cpp give the same probabilities of the next token."""

from pathlib import Path
from typing import Any

import pytest
import torch

from storyteller_ds.errors import UserError
from storyteller_ds.interchange.llama_cpp import architecture_of, modelfile, write_file
from storyteller_ds.interchange.llama_cpp_process import completions
from tests.unit.interchange.test_huggingface import GPT2, VOCABULARY, story_model, tokenizer

pytest.importorskip("gguf")
pytest.importorskip("xllamacpp")

__all__ = ["tokenizer"]
SIZES = {"hidden_size": 64, "intermediate_size": 64}
MODELS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "llama": ("llama", {}, {"num_experts": 0}),
    "llama, untied, grouped": ("llama", {"tie_embeddings": False, "num_kv_heads": 2}, {"num_experts": 0}),
    "qwen3": ("qwen3", {"qk_norm": True, "norm_eps": 1e-6}, {"num_experts": 0}),
    "mixtral": ("llama", {"num_kv_heads": 2}, {"num_experts": 4}),
    "qwen3_moe": ("qwen3moe", {"qk_norm": True, "tie_embeddings": False}, {"num_experts": 4, "top_k": 3}),
    "gpt2": ("gpt2", GPT2, {"num_experts": 0}),
}
PROMPT = "Once upon a time"
F32 = 1e-4
GELU_TABLE = 0.01
"""Tolerance for log-probabilities; llama.cpp looks GELU up in a 16-bit table."""


def log_probabilities(path: Path, prompts: list[list[int]]) -> list[dict[int, float]]:
    """Log-probabilities of the token after each prompt; there are none for some tokens that cannot be text."""
    requests = [{"prompt": ids, "max_tokens": 1, "temperature": 0, "logprobs": VOCABULARY} for ids in prompts]
    found = [choice["logprobs"] for choice in completions(path, 80, requests, seconds=120)]
    return [
        {} if each is None else {one["id"]: one["logprob"] for one in each["content"][0]["top_logprobs"]}
        for each in found
    ]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("form", "tolerance"), [("f32", F32), ("f16", 0.05), ("q8_0", 0.5)])
def test_llama_cpp_computes_the_same(tokenizer, tmp_path, name, form, tolerance):
    architecture, model, moe = MODELS[name]
    ours = story_model(tokenizer, {**SIZES, **model}, moe, tmp_path)
    assert architecture_of(ours.run).name == architecture
    write_file(ours, tmp_path / "model.gguf", form)
    texts = (PROMPT, "One day, the dog", "a", "there was a cat. One day")
    prompts = [[tokenizer.end_of_text, *tokenizer.encode(text)] for text in texts]
    allowed = max(tolerance, GELU_TABLE) if name == "gpt2" else tolerance
    compared = 0
    for ids, theirs in zip(prompts, log_probabilities(tmp_path / "model.gguf", prompts), strict=True):
        with torch.no_grad():
            expected_V = torch.log_softmax(ours.decoder(torch.tensor([ids]))[0][0, -1], dim=-1)
        for token, value in theirs.items():
            assert value == pytest.approx(float(expected_V[token]), abs=allowed)
            compared += 1
    assert compared >= VOCABULARY


@pytest.mark.parametrize(
    ("model", "moe", "message"),
    [
        ({"qk_norm": True}, {"num_experts": 4, "every_n_layers": 2}, "no qwen3moe with moe.every_n_layers=2"),
        ({"activation": "relu"}, {"num_experts": 0}, "no family of Hugging Face"),
    ],
)
def test_what_it_does_not_compute_is_refused(tokenizer, tmp_path, model, moe, message):
    with pytest.raises(UserError, match=message):
        write_file(story_model(tokenizer, model, moe, tmp_path), tmp_path / "model.gguf", "f32")
    assert list(tmp_path.iterdir()) == []


def test_a_modelfile_names_the_file():
    assert modelfile("model.gguf").startswith("FROM ./model.gguf\n")
