"""Whether an export computes what the model does."""

import importlib.util
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from storyteller_ds.errors import UserError
from storyteller_ds.generation.decode import prompt_ids
from storyteller_ds.generation.story_model import StoryModel
from storyteller_ds.interchange.llama_cpp import architecture_of, tensors
from storyteller_ds.model.canonical import placed_parameters

SEQUENCES, TOKENS = 2, 64
TOLERANCES = {"fp32": 1e-4, "fp16": 0.02, "bf16": 0.1}
"""Largest difference of a logit, as a part of the largest logit. In half precision a rounding may send a token to
another expert."""


def check_huggingface(model: StoryModel, folder: Path, dtype: str) -> str:
    """Read an export back and compare logits.

    Returns:
        A line with the largest difference and what has read the export.

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
    if not difference <= TOLERANCES[dtype] * max(1.0, largest):
        raise UserError(f"the export does not compute what the model does: {line}; nothing was written, report this")
    return line


def _by_transformers(folder: Path, token_BS: Tensor) -> Tensor:
    import transformers

    library: Any = transformers  # parts of it have no types
    library.utils.logging.set_verbosity_error()
    library.utils.logging.disable_progress_bar()
    model = library.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    logits_BSV: Tensor = model(token_BS).logits
    return logits_BSV


def _by_ourselves(folder: Path, token_BS: Tensor) -> Tensor:
    from storyteller_ds.interchange.huggingface.load import read_folder

    logits_BSV: Tensor = read_folder(folder).decoder(token_BS)[0]
    return logits_BSV


GGUF_TOLERANCES = {"fp32": 0.02, "fp16": 0.1, "q8_0": 0.5}
"""Largest difference of a log-probability in llama.cpp, which keeps keys and values in 16 bits."""
WEIGHT_TOLERANCES = {"fp32": 0.0, "fp16": 2**-11, "q8_0": 2**-7}
"""Largest difference of a weight, as a part of the largest of its tensor."""
PROMPT = "Once upon a time"


@torch.no_grad()
def check_llama_cpp(model: StoryModel, path: Path, dtype: str) -> str:
    """Read a GGUF file back: by llama.cpp if it is installed (xllamacpp), and compare the probabilities of the next
    token; else compare the weights.

    Returns:
        A line with the largest difference and what has read the file.

    Raises:
        UserError: it differs by more than rounding.
    """
    apart = _probabilities_apart(model, path) if importlib.util.find_spec("xllamacpp") else []
    if apart:
        what, by, allowed, difference = "log-probability", "llama.cpp", GGUF_TOLERANCES[dtype], max(apart)
    else:
        what, by, allowed = "weight", "the gguf library", WEIGHT_TOLERANCES[dtype]
        difference = _weights_apart(model, path)
    line = f"largest difference of a {what}, read back by {by}: {difference:.1e}"
    if not difference <= allowed:
        raise UserError(f"the export does not compute what the model does: {line}; nothing was written, report this")
    return line


def _probabilities_apart(model: StoryModel, path: Path) -> list[float]:
    """Differences; none of a model whose likeliest tokens are no text, as one that has not learned."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.n_ctx, params.n_parallel, params.warmup, params.verbosity = model.run.context_length, 1, False, -1
    server = xllamacpp.Server(params)
    ids = prompt_ids(model.tokenizer, PROMPT)
    apart: list[float] = []
    while len(apart) < SEQUENCES * TOKENS and len(ids) < model.run.context_length:
        request = {"prompt": ids, "max_tokens": 1, "temperature": 0, "logprobs": TOKENS}
        found = server.handle_completions(request)["choices"][0]["logprobs"]
        ours_V = torch.log_softmax(model.decoder(torch.tensor([ids]))[0][0, -1], dim=-1)
        if found is not None:
            apart += [abs(float(ours_V[one["id"]]) - one["logprob"]) for one in found["content"][0]["top_logprobs"]]
        ids.append(int(ours_V.argmax()))
    return apart


def _weights_apart(model: StoryModel, path: Path) -> float:
    import gguf

    run = model.run
    weights = {placed.name: placed.parameter.detach() for placed in placed_parameters(model.decoder)}
    expected = dict(tensors(run, architecture_of(run), weights.__getitem__))
    found = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    if found.keys() != expected.keys():
        return math.inf
    apart = []
    for name, tensor in expected.items():
        numbers = gguf.quants.dequantize(found[name].data, found[name].tensor_type).reshape(tuple(tensor.shape))
        apart.append(float((torch.from_numpy(numbers) - tensor).abs().max() / tensor.abs().max().clamp(min=1e-30)))
    return max(apart)
