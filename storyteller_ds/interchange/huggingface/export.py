"""Writing a folder that transformers loads."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer as InnerTokenizer
from tokenizers import processors
from torch import Tensor

from storyteller_ds.data.tokenizers.tokenizer import END_OF_TEXT, UNKNOWN, Tokenizer
from storyteller_ds.durable import flush_to_disk, write_flushed
from storyteller_ds.generation.sampling import SamplingConfig
from storyteller_ds.generation.story_model import StoryModel
from storyteller_ds.interchange.huggingface.families import config_json, family_of
from storyteller_ds.interchange.layout import to_theirs
from storyteller_ds.model.canonical import placed_parameters

SHARD_BYTES = 4 * 10**9
"""Largest file of weights (bytes): larger models are split into several files with an index."""
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def write_folder(model: StoryModel, folder: Path, dtype: str) -> None:
    """Write config, weights and tokenizer into an empty folder.

    Args:
        model: the model to export.
        folder: must exist.
        dtype: a key of DTYPES.

    Raises:
        UserError: no family computes this model.
    """
    run, tokenizer = model.run, model.tokenizer
    family = family_of(run)
    name = str(DTYPES[dtype]).removeprefix("torch.")
    weights = {placed.name: placed.parameter for placed in placed_parameters(model.decoder)}
    _write_weights(folder, to_theirs(family.pieces(run), weights.__getitem__), DTYPES[dtype])
    sampling = SamplingConfig()
    end = {"bos_token_id": tokenizer.end_of_text, "eos_token_id": tokenizer.end_of_text}
    documents: dict[str, Any] = {
        "config.json": config_json(run, family, tokenizer.end_of_text, name),
        "generation_config.json": {
            **end,
            "pad_token_id": tokenizer.end_of_text,
            "do_sample": True,
            "temperature": sampling.temperature,
            "top_k": sampling.top_k,
            "top_p": sampling.top_p,
            "max_length": run.context_length,
        },
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": END_OF_TEXT,
            "eos_token": END_OF_TEXT,
            "pad_token": END_OF_TEXT,
            **({"unk_token": UNKNOWN} if tokenizer.unknown is not None else {}),
            "clean_up_tokenization_spaces": False,
            "model_max_length": run.context_length,
        },
    }
    for file, document in documents.items():
        write_flushed(folder / file, json.dumps(document, indent=2) + "\n")
    write_flushed(folder / "tokenizer.json", tokenizer_json(tokenizer))


def tokenizer_json(tokenizer: Tokenizer) -> str:
    """The tokenizer as Hugging Face programs need it: it puts the token that begins every story before a text."""
    inner = InnerTokenizer.from_str(tokenizer.to_json())
    inner.post_processor = processors.TemplateProcessing(
        single=f"{END_OF_TEXT} $A",
        pair=f"{END_OF_TEXT} $A {END_OF_TEXT} $B",
        special_tokens=[(END_OF_TEXT, tokenizer.end_of_text)],
    )
    text: str = inner.to_str(pretty=True)
    return text


def _write_weights(folder: Path, tensors: Iterator[tuple[str, Tensor]], dtype: torch.dtype) -> None:
    """Write tensors into one file, or into several with an index."""
    files: list[list[str]] = []

    def write(shard: Mapping[str, Tensor]) -> None:
        path = folder / f"part-{len(files)}.safetensors"
        save_file(dict(shard), path, metadata={"format": "pt"})
        flush_to_disk(path)
        files.append(list(shard))

    shard: dict[str, Tensor] = {}
    size = total = 0
    for name, tensor in tensors:
        low = tensor.to(dtype)
        if shard and size + low.nbytes > SHARD_BYTES:
            write(shard)
            shard, size = {}, 0
        shard[name] = low
        size, total = size + low.nbytes, total + low.nbytes
    write(shard)
    if len(files) == 1:
        (folder / "part-0.safetensors").rename(folder / "model.safetensors")
        return
    places: dict[str, str] = {}
    for number, names in enumerate(files):
        file = f"model-{number + 1:05d}-of-{len(files):05d}.safetensors"
        (folder / f"part-{number}.safetensors").rename(folder / file)
        places |= dict.fromkeys(names, file)
    index = {"metadata": {"total_size": total}, "weight_map": places}
    write_flushed(folder / "model.safetensors.index.json", json.dumps(index, indent=2) + "\n")
