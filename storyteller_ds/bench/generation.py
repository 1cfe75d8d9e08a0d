"""How fast a model tells stories, beside other tools and the limit of the machine (`storyteller bench generate`)."""

import importlib.util
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from storyteller_kernels.cpu_sharing import shared_cores

from storyteller_ds.engines.device_rates import copy_rate, product_rate
from storyteller_ds.errors import UserError
from storyteller_ds.generation.decode import Stepper, TorchStepper, generate_ids, prompt_ids
from storyteller_ds.generation.sampling import SamplingConfig
from storyteller_ds.generation.story_model import StoryModel
from storyteller_ds.interchange.huggingface.export import write_folder
from storyteller_ds.interchange.huggingface.families import family_of
from storyteller_ds.model.counts import product_weights

PROMPT, ROUNDS = "Once upon a time", 7
Continue = Callable[[Sequence[int], int], list[int]]
"""Takes the ids of a prompt and how many to generate; gives them, each the likeliest."""


@dataclass(frozen=True)
class Speeds:
    """Of everyone who tells stories with the model, by name."""

    decode: dict[str, float]
    """Tokens a second behind the prompt, one story at a time; median."""
    prefill: dict[str, float]
    """Tokens of a prompt a second; median."""
    decode_limit: float
    """Tokens a second if the weights that a token uses were read as fast as a large copy."""
    prefill_limit: float
    """Tokens a second at the rate of a large product."""
    prompt: int
    """Length of the prompt of `prefill` (tokens)."""


def measure(model: StoryModel, tokens: int, folder: Path, log: Callable[[str], None]) -> Speeds:
    """Let everyone generate the same tokens, then time them in turn.

    Args:
        model: on the CPU or a GPU.
        tokens: to generate.
        folder: where the model is written for others.
        log: gets a line about each one that is left out.

    Raises:
        UserError: somebody generates other tokens, or the context is too short.
    """
    run, weight = model.run, model.decoder.embedding.weight
    ids = prompt_ids(model.tokenizer, PROMPT)
    tokens = min(tokens, run.context_length - len(ids) - 1)
    if tokens < 1:
        raise UserError(f"a context of {run.context_length} tokens is too short to measure anything")
    everyone = _everyone(model, folder, log)
    _check_same(everyone, ids, tokens, log)
    longest = min(512, run.context_length - 1)
    long = [ids[0], *torch.randint(run.tokenizer.vocab_size, (longest - 1,)).tolist()]
    with shared_cores():
        decode: dict[str, list[float]] = {name: [] for name in everyone}
        prefill: dict[str, list[float]] = {name: [] for name in everyone}
        for _ in range(ROUNDS):
            for name, continued in everyone.items():
                first = _seconds(continued, ids, 1)
                decode[name].append(tokens / max(_seconds(continued, ids, tokens + 1) - first, 1e-9))
                prefill[name].append(len(long) / _seconds(continued, long, 1))
        weights = product_weights(run)
        return Speeds(
            decode={name: statistics.median(each) for name, each in decode.items()},
            prefill={name: statistics.median(each) for name, each in prefill.items()},
            decode_limit=copy_rate(weight.device) / (weights * weight.itemsize),
            prefill_limit=product_rate(weight.device, weight.dtype) / (2 * weights),
            prompt=len(long),
        )


def _everyone(model: StoryModel, folder: Path, log: Callable[[str], None]) -> dict[str, Continue]:
    found = {"storyteller, torch": _ours(model, TorchStepper(model.decoder, model.run))}
    if model.stepper is not None:
        found = {"storyteller": _ours(model, model.stepper), **found}
    if importlib.util.find_spec("transformers") is None:
        log("transformers is left out: it is not installed")
        return found
    try:
        family_of(model.run)
    except UserError as error:
        log(f"transformers is left out: {error}")
        return found
    write_folder(model, folder, "fp32")
    return {**found, "transformers": _transformers(folder, model.decoder.embedding.weight.device)}


def _ours(model: StoryModel, stepper: Stepper) -> Continue:
    def continued(ids: Sequence[int], new: int) -> list[int]:
        config = SamplingConfig(temperature=0, max_new_tokens=new)
        return list(generate_ids(model.decoder, model.run, ids, config, None, stepper=stepper))

    return continued


def _transformers(folder: Path, device: torch.device) -> Continue:
    import transformers

    library: Any = transformers  # parts of it have no types
    library.utils.logging.set_verbosity_error()
    library.utils.logging.disable_progress_bar()
    model = library.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).to(device).eval()

    def continued(ids: Sequence[int], new: int) -> list[int]:
        prompt = torch.tensor([list(ids)], device=device)
        mask = torch.ones_like(prompt)
        out = model.generate(prompt, attention_mask=mask, max_new_tokens=new, min_new_tokens=new, do_sample=False)
        generated: list[int] = out[0, len(ids) :].tolist()
        return generated

    return continued


def _check_same(everyone: dict[str, Continue], ids: Sequence[int], tokens: int, log: Callable[[str], None]) -> None:
    """Correctness before time. Those who may not choose the end of a text are compared up to it."""
    expected: list[int] = []
    for name, continued in everyone.items():
        found = continued(ids, tokens)
        expected = expected or found
        ends = ids[0]  # every story begins with the token that ends one
        upto = expected.index(ends) if ends in expected else tokens
        if found[:upto] != expected[:upto]:
            raise UserError(f"{name} generates other tokens than storyteller; nothing was timed, report this")
        if upto < tokens:
            log(f"{name}: the story ends after {upto} tokens; compared so far, timed for {tokens}")


def _seconds(continued: Continue, ids: Sequence[int], new: int) -> float:
    began = time.perf_counter()
    continued(ids, new)
    return time.perf_counter() - began
