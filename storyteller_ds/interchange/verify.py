"""Check that an export computes what the model does."""

import importlib.util
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from storyteller_ds.errors import UserError
from storyteller_ds.generation.decode import prompt_ids
from storyteller_ds.generation.story_model import StoryModel
from storyteller_ds.interchange.llama2c.model_file import read_model
from storyteller_ds.interchange.llama_cpp import architecture_of, tensors
from storyteller_ds.interchange.llama_cpp_process import completions
from storyteller_ds.model.canonical import placed_parameters

SEQUENCES, TOKENS = 2, 64
TOLERANCES = {"fp32": 1e-4, "fp16": 0.02, "bf16": 0.1}
"""Largest difference of a logit, relative to the largest logit. In half precision, rounding may send a token to another
expert."""


def check_huggingface(model: StoryModel, folder: Path, dtype: str) -> str:
    """Read an export back and compare logits.

    Returns:
        A line with the largest difference and what read the export.

    Raises:
        UserError: it differs by more than rounding.
    """
    vocabulary = model.run.tokenizer.vocab_size
    shape = (SEQUENCES, min(TOKENS, model.run.context_length))
    token_BS = torch.randint(vocabulary, shape, generator=torch.Generator().manual_seed(0))
    reader = _by_transformers if importlib.util.find_spec("transformers") else _by_ourselves
    with torch.no_grad():
        expected_BSV = model.decoder(token_BS.to(model.decoder.embedding.weight.device))[0].float().cpu()
        difference = float((reader(folder, token_BS) - expected_BSV).abs().max())
    largest = float(expected_BSV.abs().max())
    by = "transformers" if reader is _by_transformers else "our own reader (transformers is not installed)"
    line = f"largest difference of a logit, read back by {by}: {difference:.1e}, of logits up to {largest:.1f}"
    return _passed(line, difference, TOLERANCES[dtype] * max(1.0, largest))


def _by_transformers(folder: Path, token_BS: Tensor) -> Tensor:
    import transformers

    library: Any = transformers  # parts of it are untyped
    library.utils.logging.set_verbosity_error()
    library.utils.logging.disable_progress_bar()
    model = library.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    logits_BSV: Tensor = model(token_BS).logits
    return logits_BSV


def _by_ourselves(folder: Path, token_BS: Tensor) -> Tensor:
    from storyteller_ds.interchange.huggingface.load import read_folder

    logits_BSV: Tensor = read_folder(folder).decoder(token_BS)[0]
    return logits_BSV


GGUF_TOLERANCES = {"fp32": 0.01, "fp16": 0.1, "q8_0": 0.5}
"""Largest difference of a log-probability in llama.cpp, which looks up GELU in a 16-bit table."""
WEIGHT_TOLERANCES = {"fp32": 0.0, "fp16": 2**-11, "bf16": 2**-8, "q8_0": 2**-7}
"""Largest difference of a weight, relative to the largest weight of its tensor."""
PROMPT, CONTINUED = "Once upon a time", 32
"""The text that llama.cpp continues, and the maximum number of tokens that it adds."""


@torch.no_grad()
def check_llama_cpp(model: StoryModel, path: Path, dtype: str) -> str:
    """Read a GGUF file back and compare.

    If llama.cpp is installed (xllamacpp), it reads the file and the probabilities of the next token are compared; else
    the weights are.

    Returns:
        A line with the largest difference and what read the file.

    Raises:
        UserError: it differs by more than rounding, or llama.cpp ends without an answer.
    """
    apart = _probabilities_apart(model, path) if importlib.util.find_spec("xllamacpp") else []
    if apart:
        line = f"largest difference of a log-probability, read back by llama.cpp: {max(apart):.1e}"
        return _passed(line, max(apart), GGUF_TOLERANCES[dtype])
    run = model.run
    expected = dict(tensors(run, architecture_of(run), _weights_of(model).__getitem__))
    return _same_weights(expected, _in_gguf(path, expected), dtype, "the gguf library")


def check_safetensors(model: StoryModel, path: Path, dtype: str) -> str:
    """Read a file of canonical weights back and compare.

    Returns:
        A line with the largest difference.

    Raises:
        UserError: it differs by more than rounding.
    """
    found = {name: tensor.float() for name, tensor in load_file(path).items()}
    return _same_weights(_weights_of(model), found, dtype, "safetensors")


@torch.no_grad()
def check_llama2c(model: StoryModel, path: Path, dtype: str) -> str:
    """Read a model.bin back and compare.

    Returns:
        A line with the largest difference.

    Raises:
        UserError: it differs by more than rounding.
    """
    _, decoder = read_model(path)
    found = {placed.name: placed.parameter for placed in placed_parameters(decoder)}
    return _same_weights(_weights_of(model), found, dtype, "our own reader")


def _probabilities_apart(model: StoryModel, path: Path) -> list[float]:
    """Differences; empty for a model whose likeliest tokens are not text, such as an untrained one."""
    context = model.run.context_length
    ids = prompt_ids(model.tokenizer, PROMPT)
    requests: list[dict[str, Any]] = []
    expected: list[Tensor] = []
    while len(requests) < CONTINUED and len(ids) < context:
        requests.append({"prompt": [*ids], "max_tokens": 1, "temperature": 0, "logprobs": TOKENS})
        expected.append(torch.log_softmax(model.decoder(torch.tensor([ids]))[0][0, -1], dim=-1))
        ids.append(int(expected[-1].argmax()))
    apart: list[float] = []
    for answer, ours_V in zip(completions(path, context, requests) if requests else [], expected, strict=True):
        if answer["logprobs"] is not None:
            likeliest = answer["logprobs"]["content"][0]["top_logprobs"]
            apart += [abs(float(ours_V[one["id"]]) - one["logprob"]) for one in likeliest]
    return apart


def _weights_of(model: StoryModel) -> dict[str, Tensor]:
    return {placed.name: placed.parameter.detach() for placed in placed_parameters(model.decoder)}


def _in_gguf(path: Path, expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    import gguf

    found = {}
    for tensor in gguf.GGUFReader(path).tensors:
        numbers = torch.tensor(gguf.quants.dequantize(tensor.data, tensor.tensor_type))
        found[tensor.name] = numbers.reshape(expected[tensor.name].shape) if tensor.name in expected else numbers
    return found


def _same_weights(expected: Mapping[str, Tensor], found: Mapping[str, Tensor], dtype: str, by: str) -> str:
    difference = math.inf
    if found.keys() == expected.keys():
        largest = {name: tensor.abs().max().clamp(min=1e-30) for name, tensor in expected.items()}
        difference = max(float((found[name] - expected[name]).abs().max() / largest[name]) for name in expected)
    line = f"largest difference of a weight, read back by {by}: {difference:.1e}"
    return _passed(line, difference, WEIGHT_TOLERANCES[dtype])


def _passed(line: str, difference: float, allowed: float) -> str:
    if not difference <= allowed:
        raise UserError(f"the export does not compute what the model does: {line}; nothing was written, report this")
    return line
