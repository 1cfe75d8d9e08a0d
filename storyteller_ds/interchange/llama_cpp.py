"""GGUF files, for llama.cpp and Ollama, through the `gguf` library."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from storyteller_ds.config.run import RunConfig
from storyteller_ds.data.tokenizers import scored
from storyteller_ds.data.tokenizers.tokenizer import Tokenizer
from storyteller_ds.errors import UserError
from storyteller_ds.generation.sampling import SamplingConfig
from storyteller_ds.generation.story_model import StoryModel
from storyteller_ds.interchange.huggingface.families import family_of
from storyteller_ds.interchange.layout import with_neighbors
from storyteller_ds.model.canonical import placed_parameters

if TYPE_CHECKING:
    from gguf import GGUFWriter

FORMATS = {"fp32": "f32", "fp16": "f16", "q8_0": "q8_0"}
"""Formats of weights -> GGUF's names for them."""
_BLOCK = 32
"""Numbers that share a scale in q8_0: the size of a row must be a multiple of it."""
_NORMAL, _UNKNOWN, _CONTROL, _UNUSED, _BYTE = 1, 2, 3, 5, 6
"""GGUF's token types."""


@dataclass(frozen=True)
class Architecture:
    """How llama.cpp computes a Hugging Face family."""

    name: str
    interleaved: bool = False
    """Whether its rotary embedding rotates neighboring features; ours rotates feature i with i + D/2."""


ARCHITECTURES = {
    "llama": Architecture("llama", interleaved=True),
    "mixtral": Architecture("llama", interleaved=True),
    "qwen3": Architecture("qwen3"),
    "qwen3_moe": Architecture("qwen3moe"),
    "gpt2": Architecture("gpt2"),
}


def architecture_of(run: RunConfig) -> Architecture:
    """The architecture of llama.cpp that computes exactly what a run config describes.

    Raises:
        UserError: there is none.
    """
    family = family_of(run)
    if family.model_type == "qwen3_moe" and run.moe.every_n_layers != 1:
        raise UserError(f"llama.cpp has no qwen3moe with moe.every_n_layers={run.moe.every_n_layers}; export it as hf")
    return ARCHITECTURES[family.model_type]


def write_file(model: StoryModel, path: Path, form: str) -> None:
    """Write weights, sizes and tokenizer into one file.

    Args:
        model: the model to export.
        path: the file to write.
        form: a value of FORMATS; norms, biases and routers stay f32.

    Raises:
        UserError: llama.cpp does not support this model or its tokenizer.
    """
    import gguf

    run = model.run
    architecture = architecture_of(run)
    vocabulary = _vocabulary(model.tokenizer, run.tokenizer.vocab_size)  # raises before anything is written
    writer = gguf.GGUFWriter(path, architecture.name)
    _write_sizes(writer, run, architecture, form)
    _write_tokenizer(writer, model.tokenizer, vocabulary)
    weights = {placed.name: placed.parameter.detach().float().cpu() for placed in placed_parameters(model.decoder)}
    for name, tensor in tensors(run, architecture, weights.__getitem__):
        kind = _kind(name, tensor, form)
        numbers = gguf.quants.quantize(tensor.contiguous().numpy(), kind)
        writer.add_tensor(name, numbers, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def modelfile(file_name: str) -> str:
    """The content of an Ollama Modelfile."""
    sampling = SamplingConfig()
    return (
        f"FROM ./{file_name}\n"
        'TEMPLATE "{{ .Prompt }}"\n'  # a story model continues a text, it does not chat
        f"PARAMETER temperature {sampling.temperature}\n"
        f"PARAMETER top_k {sampling.top_k}\nPARAMETER top_p {sampling.top_p}\nPARAMETER repeat_penalty 1.0\n"
    )


def _kind(name: str, tensor: Tensor, form: str) -> Any:
    import gguf

    kinds = gguf.GGMLQuantizationType
    if tensor.dim() == 1 or "ffn_gate_inp" in name or name.startswith("position_embd") or form == "f32":
        return kinds.F32
    return kinds.Q8_0 if form == "q8_0" and tensor.shape[-1] % _BLOCK == 0 else kinds.F16


def _write_sizes(writer: "GGUFWriter", run: RunConfig, architecture: Architecture, form: str) -> None:
    import gguf

    model = run.model
    writer.add_name("story model")
    writer.add_context_length(run.context_length)
    writer.add_embedding_length(model.hidden_size)
    writer.add_block_count(model.num_layers)
    writer.add_feed_forward_length(model.intermediate_size)
    writer.add_head_count(model.num_heads)
    writer.add_vocab_size(run.tokenizer.vocab_size)
    file_types = {
        "f32": gguf.LlamaFileType.ALL_F32,
        "f16": gguf.LlamaFileType.MOSTLY_F16,
        "q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
    }
    writer.add_file_type(file_types[form])
    if architecture.name == "gpt2":
        writer.add_layer_norm_eps(model.norm_eps)
        return
    writer.add_head_count_kv(model.kv_heads)
    writer.add_layer_norm_rms_eps(model.norm_eps)
    writer.add_rope_freq_base(model.rope_theta)
    writer.add_rope_dimension_count(model.head_dim)
    writer.add_key_length(model.head_dim)
    writer.add_value_length(model.head_dim)
    if run.moe_layers:
        writer.add_expert_count(run.moe.num_experts)
        writer.add_expert_used_count(run.moe.top_k)
        writer.add_expert_feed_forward_length(model.intermediate_size)


class _Vocabulary(NamedTuple):
    """Tokens by id, with the merges or scores by which llama.cpp tokenizes text."""

    tokens: list[str]
    types: list[int]
    merges: list[str]
    """For byte-level BPE."""
    scores: list[float]
    """For SentencePiece's BPE."""


def _vocabulary(tokenizer: Tokenizer, rows: int) -> _Vocabulary:
    """The vocabulary, with as many tokens as the model has rows.

    Raises:
        UserError: llama.cpp does not support the tokenizer.
    """
    unused = [f"[unused {i}]" for i in range(tokenizer.vocab_size, rows)]
    if (with_scores := scored.scored_tokens(tokenizer)) is not None:
        kinds = {scored.UNKNOWN: _UNKNOWN, scored.BEGIN: _CONTROL, scored.END: _CONTROL}
        kinds |= dict.fromkeys(range(scored.FIRST_BYTE, scored.FIRST_TEXT), _BYTE)
        return _Vocabulary(
            [token.text.replace(" ", "\u2581") for token in with_scores] + unused,  # as SentencePiece writes a space
            [kinds.get(i, _NORMAL) for i in range(len(with_scores))] + [_UNUSED] * len(unused),
            [],
            [token.score for token in with_scores] + [0.0] * len(unused),
        )
    if not tokenizer.spells_bytes:
        raise UserError(
            "llama.cpp has no such tokenizer, only byte-level BPE (tokenizer.kind=bpe) and SentencePiece's "
            "(sentencepiece without special_tokens); export it as hf"
        )
    state = json.loads(tokenizer.to_json())
    tokens = [f"[unused {i}]" for i in range(rows)]
    types = [_UNUSED] * rows
    for token, i in state["model"]["vocab"].items():
        tokens[i], types[i] = token, _NORMAL
    for added in state["added_tokens"]:
        tokens[added["id"]] = added["content"]
        types[added["id"]] = _CONTROL if added["special"] else _NORMAL
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in state["model"]["merges"]]
    return _Vocabulary(tokens, types, merges, [])


def _write_tokenizer(writer: "GGUFWriter", tokenizer: Tokenizer, vocabulary: _Vocabulary) -> None:
    if vocabulary.scores:
        writer.add_tokenizer_model("llama")
        writer.add_tokenizer_pre("default")
        writer.add_token_scores(vocabulary.scores)
        writer.add_unk_token_id(scored.UNKNOWN)
        writer.add_add_space_prefix(True)
    else:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("gpt-2")
        writer.add_token_merges(vocabulary.merges)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    writer.add_bos_token_id(tokenizer.end_of_text)
    writer.add_eos_token_id(tokenizer.end_of_text)
    writer.add_add_bos_token(True)


def tensors(run: RunConfig, architecture: Architecture, read: Callable[[str], Tensor]) -> Iterator[tuple[str, Tensor]]:
    """llama.cpp's names and tensors, in fp32."""
    model = run.model
    both = ("weight", "bias") if model.bias else ("weight",)

    def norm(theirs: str, ours: str) -> Iterator[tuple[str, Tensor]]:
        for part in both if model.norm == "layernorm" else ("weight",):
            yield f"{theirs}.{part}", read(f"{ours}.{part}")

    def linear(theirs: str, ours: str) -> Iterator[tuple[str, Tensor]]:
        for part in both:
            yield f"{theirs}.{part}", read(f"{ours}.{part}")

    yield "token_embd.weight", read("embedding.weight")
    if model.position == "learned":
        yield "position_embd.weight", read("position_embedding.weight")
    for layer in range(model.num_layers):
        ours, theirs = f"blocks.{layer}", f"blk.{layer}"
        yield from norm(f"{theirs}.attn_norm", f"{ours}.attention_norm")
        yield from _attention(run, architecture, ours, theirs, read)
        yield from linear(f"{theirs}.attn_output", f"{ours}.attention.o_proj")
        yield from norm(f"{theirs}.ffn_norm", f"{ours}.ffn_norm")
        if run.moe.is_moe_layer(layer):
            gate_EID, up_EID = read(f"{ours}.ffn.experts.gate_up_proj").chunk(2, dim=1)
            yield f"{theirs}.ffn_gate_inp.weight", read(f"{ours}.ffn.router.weight")
            yield f"{theirs}.ffn_gate_exps.weight", gate_EID
            yield f"{theirs}.ffn_up_exps.weight", up_EID
            yield f"{theirs}.ffn_down_exps.weight", read(f"{ours}.ffn.experts.down_proj")
            continue
        if model.activation == "swiglu":
            gate_ID, up_ID = read(f"{ours}.ffn.gate_up_proj.weight").chunk(2)
            yield f"{theirs}.ffn_gate.weight", gate_ID
            yield f"{theirs}.ffn_up.weight", up_ID
        else:
            yield from linear(f"{theirs}.ffn_up", f"{ours}.ffn.gate_up_proj")
        yield from linear(f"{theirs}.ffn_down", f"{ours}.ffn.down_proj")
    yield from norm("output_norm", "final_norm")
    if not model.tie_embeddings:
        yield "output.weight", read("lm_head.weight")


def _attention(
    run: RunConfig, architecture: Architecture, ours: str, theirs: str, read: Callable[[str], Tensor]
) -> Iterator[tuple[str, Tensor]]:
    model = run.model
    names = ("q_proj", "k_proj", "v_proj")
    if architecture.name == "gpt2":
        for part in ("weight", "bias"):
            yield f"{theirs}.attn_qkv.{part}", torch.cat([read(f"{ours}.attention.{name}.{part}") for name in names])
        return
    for name, short, heads in zip(names, "qkv", (model.num_heads, model.kv_heads, 0), strict=True):
        weight = read(f"{ours}.attention.{name}.weight")
        if architecture.interleaved and heads:
            weight = with_neighbors(weight, heads)
        yield f"{theirs}.attn_{short}.weight", weight
    if model.qk_norm:
        for name, short in (("q_norm", "q"), ("k_norm", "k")):
            yield f"{theirs}.attn_{short}_norm.weight", read(f"{ours}.attention.{name}.weight")
