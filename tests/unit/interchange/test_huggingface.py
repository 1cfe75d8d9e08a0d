"""Export to Hugging Face and back: the same logits and greedy text in transformers, the same bits when read back."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from storyteller_ds.config.data import TokenizerConfig
from storyteller_ds.config.run import RunConfig
from storyteller_ds.data.tokenizers.choose import train_tokenizer
from storyteller_ds.data.tokenizers.tokenizer import Tokenizer
from storyteller_ds.errors import UserError
from storyteller_ds.generation.decode import generate_ids, prompt_ids
from storyteller_ds.generation.sampling import SamplingConfig
from storyteller_ds.generation.story_model import StoryModel
from storyteller_ds.interchange.huggingface.export import write_folder
from storyteller_ds.interchange.huggingface.families import family_of
from storyteller_ds.interchange.huggingface.load import read_folder
from storyteller_ds.interchange.verify import check_huggingface
from storyteller_ds.model.canonical import placed_parameters
from storyteller_ds.model.decoder import Decoder
from storyteller_ds.model.init import init_parameters

transformers = pytest.importorskip("transformers")

VOCABULARY = 300
TEXT = ["Once upon a time there was a cat.", "One day, the dog sang a song."] * 20
GPT2 = {"norm": "layernorm", "position": "learned", "activation": "gelu", "bias": True}
MODELS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", {}, {"num_experts": 0}),
    "llama, untied, grouped": ("LlamaForCausalLM", {"tie_embeddings": False, "num_kv_heads": 2}, {"num_experts": 0}),
    "qwen3": ("Qwen3ForCausalLM", {"qk_norm": True, "norm_eps": 1e-6}, {"num_experts": 0}),
    "mixtral": ("MixtralForCausalLM", {"num_kv_heads": 2}, {"num_experts": 4}),
    "mixtral, noise in training": ("MixtralForCausalLM", {}, {"num_experts": 4, "noisy_gating": True}),
    "qwen3_moe": ("Qwen3MoeForCausalLM", {"qk_norm": True, "tie_embeddings": False}, {"num_experts": 4, "top_k": 3}),
    "qwen3_moe, every second": ("Qwen3MoeForCausalLM", {"qk_norm": True}, {"num_experts": 4, "every_n_layers": 2}),
    "gpt2": ("GPT2LMHeadModel", GPT2, {"num_experts": 0}),
}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    run = RunConfig.model_validate({"tokenizer": {"vocab_size": VOCABULARY}})
    return train_tokenizer(run.tokenizer, TEXT)


def story_model(tokenizer: Tokenizer, model: dict[str, Any], moe: dict[str, Any], folder: Path) -> StoryModel:
    sizes = {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "intermediate_size": 48, "init_std": 0.2}
    run = RunConfig.model_validate(
        {
            "model": {**sizes, **model},
            "moe": moe,
            "data": {"sequence_length": 80},
            "tokenizer": {"vocab_size": VOCABULARY},
        }
    )
    decoder = Decoder(run)
    init_parameters(decoder, run.model, 7)
    for name, parameter in decoder.named_parameters():  # so that gains and biases matter, too
        if parameter.dim() == 1:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name)))
    return StoryModel(decoder.eval(), run, tokenizer, folder)


@pytest.fixture(params=MODELS, ids=MODELS)
def exported(request, tokenizer, tmp_path) -> tuple[str, StoryModel, Path]:
    architecture, model, moe = MODELS[request.param]
    folder = tmp_path / "export"
    folder.mkdir()
    story = story_model(tokenizer, model, moe, tmp_path)
    write_folder(story, folder, "fp32")
    return architecture, story, folder


def test_transformers_computes_the_same(exported):
    architecture, model, folder = exported
    loaded = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    assert type(loaded).__name__ == architecture
    line = check_huggingface(model, folder, "fp32")
    assert "read back by transformers" in line
    fast = transformers.AutoTokenizer.from_pretrained(folder)
    given = fast("Once upon a time", return_tensors="pt")
    prompt = given.input_ids
    assert prompt[0].tolist() == prompt_ids(model.tokenizer, "Once upon a time")
    theirs = loaded.generate(**given, max_new_tokens=64, do_sample=False, eos_token_id=None, pad_token_id=0)
    greedy = SamplingConfig(temperature=0, max_new_tokens=64)
    with torch.no_grad():
        ours = list(generate_ids(model.decoder, model.run, prompt[0].tolist(), greedy, None))
    assert theirs[0, prompt.shape[1] :].tolist() == ours
    assert fast.decode(ours, skip_special_tokens=True) == model.tokenizer.decode(ours)


def test_what_is_read_back_has_the_same_bits(exported):
    _, model, folder = exported
    again = read_folder(folder)
    ours = {p.name: p.parameter for p in placed_parameters(model.decoder) if not p.name.endswith("noise_weight")}
    theirs = {p.name: p.parameter for p in placed_parameters(again.decoder)}
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(theirs[name], tensor), name
    assert again.tokenizer.encode("One day") == model.tokenizer.encode("One day")
    assert again.tokenizer.end_of_text == model.tokenizer.end_of_text
    assert again.run.context_length == model.run.context_length


def test_negative_control_a_wrong_weight_is_seen(exported):
    _, model, folder = exported
    weights = load_file(folder / "model.safetensors")
    name = max(weights, key=lambda each: weights[each].numel())
    weights[name] *= 1.01
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="does not compute what the model does"):
        check_huggingface(model, folder, "fp32")


@pytest.mark.parametrize(
    ("model", "moe", "named"),
    [
        (
            {"logit_softcap": 15.0},
            {"num_experts": 4},
            "MixtralForCausalLM comes nearest, but has no model.logit_softcap=15.0",
        ),
        ({"activation": "relu2"}, {"num_experts": 0}, "model.activation=relu2"),
        ({}, {"num_experts": 4, "every_n_layers": 2}, "moe.every_n_layers=2"),
        ({"value_embeddings": True, "residual_scales": True}, {"num_experts": 0}, "model.value_embeddings=True"),
        (GPT2, {"num_experts": 4}, "model.activation=gelu"),
    ],
)
def test_what_no_family_computes_is_refused_by_name(tokenizer, tmp_path, model, moe, named):
    with pytest.raises(UserError, match="no family of Hugging Face") as refused:
        family_of(story_model(tokenizer, model, moe, tmp_path).run)
    assert named in str(refused.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": None, "run": {}}, r"is a step of storyteller_ds without its manifest\.json; copy all of it"),
        (
            {"num_hidden_layers": 1},
            r"have model\.layers\.1\..* and 8 more tensors, which config\.json has no place for",
        ),
        ({"model_type": "mamba"}, "model_type='mamba' is none of llama"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu' is not what we compute"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "scales rotary embeddings"),
        ({"head_dim": 16}, "head_dim=16 is not hidden_size / num_attention_heads"),
        ({"hidden_size": 64, "head_dim": None}, r"is \[300, 32\], and config.json makes it \[300, 64\]"),
        ({"num_hidden_layers": None}, "num_layers"),
    ],
)
def test_what_we_do_not_compute_is_refused_by_name(tokenizer, tmp_path, change, message):
    folder = tmp_path / "export"
    folder.mkdir()
    write_folder(story_model(tokenizer, {}, {"num_experts": 0}, tmp_path), folder, "fp32")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(UserError, match=message):
        read_folder(folder)


def test_a_run_folder_before_its_first_checkpoint_is_no_export(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"run": {}}))
    with pytest.raises(UserError, match="has no checkpoint; train until one is saved"):
        read_folder(tmp_path)


def test_large_weights_are_split_with_an_index(tokenizer, tmp_path, monkeypatch):
    from storyteller_ds.interchange.huggingface import export

    monkeypatch.setattr(export, "SHARD_BYTES", 20_000)
    folder = tmp_path / "export"
    folder.mkdir()
    model = story_model(tokenizer, {}, {"num_experts": 4}, tmp_path)
    write_folder(model, folder, "fp32")
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    files = set(index["weight_map"].values())
    assert len(files) > 2
    assert files == {path.name for path in folder.glob("*.safetensors")}
    assert index["metadata"]["total_size"] == sum(t.nbytes for file in files for t in load_file(folder / file).values())
    check_huggingface(model, folder, "fp32")
    assert torch.equal(read_folder(folder).decoder.embedding.weight, model.decoder.embedding.weight)


def test_a_pickle_is_refused(tokenizer, tmp_path):
    folder = tmp_path / "export"
    folder.mkdir()
    write_folder(story_model(tokenizer, {}, {"num_experts": 0}, tmp_path), folder, "fp32")
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x02")
    with pytest.raises(UserError, match="weights have to be safetensors: a pickle can run code"):
        read_folder(folder)


def test_a_tokenizer_with_far_fewer_tokens_than_the_model_has_rows_is_said(tokenizer, tmp_path):
    from storyteller_ds.interchange.load import open_model

    folder = tmp_path / "export"
    folder.mkdir()
    write_folder(story_model(tokenizer, {}, {"num_experts": 0}, tmp_path), folder, "fp32")
    open_model(folder, torch.device("cpu"), pytest.fail)
    other = train_tokenizer(TokenizerConfig(kind="char", vocab_size=20), ["abc"])
    (folder / "tokenizer.json").write_text(other.to_json())
    said: list[str] = []
    open_model(folder, torch.device("cpu"), said.append)
    assert f"has {other.vocab_size} tokens, and the model rows for 300; if it tells nonsense" in said[0]
