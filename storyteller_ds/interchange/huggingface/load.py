"""Reading a Hugging Face folder: safetensors only, never a pickle."""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from storyteller_ds.checkpoint import names
from storyteller_ds.config.load import parse_run_config
from storyteller_ds.data.tokenizers.tokenizer import END_OF_TEXT, Tokenizer
from storyteller_ds.data.tokenizers.tokenizer_json import FILE_BYTES, parse_tokenizer
from storyteller_ds.errors import UserError
from storyteller_ds.interchange.huggingface.families import FAMILIES, run_settings
from storyteller_ds.interchange.imported import Imported, decoder_with
from storyteller_ds.interchange.layout import to_ours
from storyteller_ds.untrusted import UntrustedFileError, inside, open_regular, parse_json, read_json, read_text

_DERIVED = re.compile(r"(.*\.)?(rotary_emb\.inv_freq|attn\.(masked_)?bias|lm_head\.weight)")
"""Tensors that follow from others: rotary angles, causal masks, and an output projection tied to the embedding."""
INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"


def read_folder(folder: Path) -> Imported:
    """Read the model in a folder.

    Raises:
        UserError: it lacks a file, is of an unknown family, needs something that we do not support, or is damaged.
    """
    document = _read_object(folder / "config.json")
    family = next((each for each in FAMILIES if each.model_type == document.get("model_type")), None)
    if family is None:
        if "run" in document:
            if (folder / names.MANIFEST).exists() or (folder / names.CHECKPOINTS).exists():
                raise UserError(
                    f"{folder} is of storyteller_ds itself; use it as it is, as --checkpoint or --init_from"
                )
            if not any(folder.glob("*.safetensors")):
                raise UserError(f"{folder} has no checkpoint; train until one is saved, or give another run folder")
            raise UserError(
                f"{folder} is a step of storyteller_ds without its {names.MANIFEST}; copy all of it but "
                "optimizer-* and rng-*"
            )
        known = ", ".join(each.model_type for each in FAMILIES)
        raise UserError(f"{folder}/config.json: model_type={document.get('model_type')!r:.60} is none of {known}")
    where = str(folder / "config.json")
    try:
        settings = run_settings(document, family)
    except UserError as error:
        raise UserError(f"{where}: {error}; this model cannot be imported") from None
    run = parse_run_config(settings, where)
    tokenizer = _read_tokenizer(folder, document)
    if tokenizer.vocab_size > run.tokenizer.vocab_size:
        raise UserError(f"{folder}: the tokenizer has ids up to {tokenizer.vocab_size - 1}, the model fewer rows")
    pieces = family.pieces(run)
    read = _weights(folder, {piece.theirs: piece.shape for piece in pieces})
    return Imported(decoder_with(run, lambda shapes: to_ours(pieces, shapes, read)), run, tokenizer)


def _read_object(path: Path) -> dict[str, Any]:
    try:
        document = read_json(path)
    except (OSError, UntrustedFileError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path} cannot be read ({reason}); give a folder in Hugging Face's layout") from None
    if not isinstance(document, dict):
        raise UserError(f"{path} is not a JSON object")
    return document


def _read_tokenizer(folder: Path, document: Mapping[str, Any]) -> Tokenizer:
    """Read tokenizer.json, renaming the token that ends a text to our name for it."""
    path = folder / "tokenizer.json"
    try:
        inner = parse_json(read_text(path, FILE_BYTES), str(path))
    except (OSError, UntrustedFileError) as error:
        raise UserError(
            f"{path} cannot be read ({getattr(error, 'strerror', None) or error}); save the tokenizer with "
            "transformers' save_pretrained, whose fast tokenizers write this file"
        ) from None
    end = document.get("eos_token_id")
    end = end[0] if isinstance(end, list) and end else end
    try:
        for token in inner["added_tokens"]:
            if token["id"] == end and token["content"] != END_OF_TEXT:
                vocabulary = inner["model"].get("vocab", {})
                if isinstance(vocabulary, dict) and token["content"] in vocabulary:
                    vocabulary[END_OF_TEXT] = vocabulary.pop(token["content"])
                token["content"] = END_OF_TEXT
        inner["post_processor"] = None  # it refers to tokens that have just been renamed
    except (KeyError, TypeError, AttributeError):
        raise UserError(f"{path} is not a tokenizer.json") from None
    return parse_tokenizer(json.dumps(inner), str(path), "save it again with transformers")


def _weights(folder: Path, shapes: Mapping[str, tuple[int, ...]]) -> Callable[[str], Tensor]:
    """A function that reads a tensor by name, after checking that exactly the tensors of the family are there."""
    files = [SINGLE]
    if not (folder / SINGLE).exists() and (folder / INDEX).exists():
        places = _read_object(folder / INDEX).get("weight_map")
        if not isinstance(places, dict) or not all(isinstance(file, str) for file in places.values()):
            raise UserError(f"{folder / INDEX} has no weight_map")
        files = sorted(set(places.values()))
    homes: dict[str, Any] = {}
    for file in files:
        try:
            with open_regular(inside(folder, file)) as stream:
                opened = safe_open(f"/dev/fd/{stream.fileno()}", framework="pt")
        except (OSError, SafetensorError, UntrustedFileError) as error:
            reason = getattr(error, "strerror", None) or error
            raise UserError(
                f"{folder / file} cannot be read ({reason}); weights have to be safetensors: a pickle can run code"
            ) from None
        homes |= dict.fromkeys(opened.keys(), opened)
    for name, shape in shapes.items():
        if name not in homes:
            raise UserError(f"{folder}: the weights lack {name}")
        if (found := tuple(homes[name].get_slice(name).get_shape())) != shape:
            raise UserError(f"{folder}: {name} is {list(found)}, and config.json makes it {list(shape)}")

    unused = [name for name in homes if name not in shapes and not _DERIVED.fullmatch(name)]
    if unused:
        more = f" and {len(unused) - 1:,} more tensors" if len(unused) > 1 else ""
        raise UserError(f"{folder}: the weights have {min(unused)}{more}, which config.json has no place for")

    def read(name: str) -> Tensor:
        tensor: Tensor = homes[name].get_tensor(name)
        return tensor.float()

    return read
