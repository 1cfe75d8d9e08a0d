"""Whether an export computes what the model does."""

import importlib.util
from pathlib import Path

import torch
from torch import Tensor

from storyteller_ds.errors import UserError
from storyteller_ds.generation.story_model import StoryModel

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

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    logits_BSV: Tensor = model(token_BS).logits
    return logits_BSV


def _by_ourselves(folder: Path, token_BS: Tensor) -> Tensor:
    from storyteller_ds.interchange.huggingface.load import read_folder

    logits_BSV: Tensor = read_folder(folder).decoder(token_BS)[0]
    return logits_BSV
