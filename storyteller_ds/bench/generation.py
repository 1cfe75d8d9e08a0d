"""How fast a model generates, compared with other tools and the machine's limit (`storyteller bench generate`)."""

import importlib.util
import statistics
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from storyteller_kernels.cpu_sharing import shared_cores

from storyteller_ds.engines.device_rates import copy_rate, product_rate
from storyteller_ds.errors import UserError
from storyteller_ds.generation.batch import Batch
from storyteller_ds.generation.decode import Continuation, generate_ids, prompt_ids
from storyteller_ds.generation.sampling import SamplingConfig
from storyteller_ds.generation.stepper import Stepper
from storyteller_ds.generation.story_model import StoryModel
from storyteller_ds.generation.torch_stepper import TorchStepper
from storyteller_ds.interchange import llama_cpp
from storyteller_ds.interchange.huggingface.export import write_folder
from storyteller_ds.interchange.huggingface.families import family_of
from storyteller_ds.interchange.llama_cpp_process import completions
from storyteller_ds.model.counts import product_weights

PROMPT, ROUNDS, TOGETHER = "Once upon a time", 5, 16
LONGEST_PROMPT = 512


class Speed(NamedTuple):
    """Speed of one implementation (tokens per second)."""

    decode: float
    """After the prompt, one story at a time."""
    prefill: float
    """For a long prompt."""


@dataclass(frozen=True)
class Speeds:
    """Medians of all rounds."""

    of: dict[str, Speed]
    """Name of each implementation that ran the model -> its speed."""
    together: float
    """Decoding after TOGETHER prompts at once (tokens per second)."""
    limit: Speed
    """Decode: a token's weights are read as fast as a large copy. Prefill: at the rate of a large matrix product."""
    prompt: int
    """Length of the long prompt (tokens)."""


class Teller(Protocol):
    """An implementation that continues a prompt greedily."""

    def text(self, ids: Sequence[int], tokens: int) -> str:
        """The continuation."""

    def speed(self, ids: Sequence[int], tokens: int, long: Sequence[int]) -> Speed:
        """Speed of generating this many tokens after `ids`, and of reading the prompt `long`."""


def measure(model: StoryModel, tokens: int, folder: Path, log: Callable[[str], None]) -> Speeds:
    """Have all implementations generate the same story, then time them in turn.

    Args:
        model: on the CPU or a GPU.
        tokens: number of tokens to generate.
        folder: where the model is written for other tools.
        log: gets a line about each implementation that is left out.

    Raises:
        UserError: an implementation generates another story, or the context is too short.
    """
    run, weight = model.run, model.decoder.embedding.weight
    ids = prompt_ids(model.tokenizer, PROMPT)
    tokens = min(tokens, run.context_length - len(ids) - 1)
    if tokens < 1:
        raise UserError(f"a context of {run.context_length} tokens is too short to measure anything")
    long = [
        ids[0],
        *torch.randint(run.tokenizer.vocab_size, (min(LONGEST_PROMPT, run.context_length - 1) - 1,)).tolist(),
    ]
    # Unlike a story and its copies, random tokens go to all experts.
    prompts = torch.randint(run.tokenizer.vocab_size, (TOGETHER, len(ids))).tolist()
    tellers = _tellers(model, folder, log)
    _check_same(tellers, ids, tokens)
    found: dict[str, list[Speed]] = {name: [] for name in tellers}
    together = []
    with shared_cores():
        order = deque(tellers)
        for _ in range(ROUNDS):
            order.rotate()  # the first one finds other programs' data in the caches
            for name in order:
                found[name].append(tellers[name].speed(ids, tokens, long))
            together.append(_together(model, tokens, prompts))
        weights = product_weights(run)
        return Speeds(
            of={name: Speed(*map(statistics.median, zip(*each, strict=True))) for name, each in found.items()},
            together=statistics.median(together),
            limit=Speed(
                copy_rate(weight.device) / (weights * weight.itemsize),
                product_rate(weight.device, weight.dtype) / (2 * weights),
            ),
            prompt=len(long),
        )


def _tellers(model: StoryModel, folder: Path, log: Callable[[str], None]) -> dict[str, Teller]:
    found: dict[str, Teller] = {"storyteller, torch": _Ours(model, TorchStepper(model.decoder, model.run))}
    if model.stepper is not None:
        found = {"storyteller": _Ours(model, model.stepper), **found}
    for name, package, write in (
        ("transformers", "transformers", _Transformers),
        ("llama.cpp", "xllamacpp", _LlamaCpp),
    ):
        if importlib.util.find_spec(package) is None:
            log(f"{name} is left out: {package} is not installed")
            continue
        try:
            found[name] = write(model, folder)
        except UserError as error:
            log(f"{name} is left out: {error}")
    return found


class _InProcess(ABC):
    """A Teller whose calls can be timed here."""

    def __init__(self, model: StoryModel) -> None:
        self.model = model

    @abstractmethod
    def ids(self, ids: Sequence[int], tokens: int) -> list[int]:
        """The continuation."""

    def text(self, ids: Sequence[int], tokens: int) -> str:
        """See Teller."""
        return self.model.tokenizer.decode(self.ids(ids, tokens))

    def speed(self, ids: Sequence[int], tokens: int, long: Sequence[int]) -> Speed:
        """See Teller."""
        decoding = self._seconds(ids, tokens + 1) - self._seconds(ids, 1)
        return Speed(tokens / max(decoding, 1e-9), len(long) / self._seconds(long, 1))

    def _seconds(self, ids: Sequence[int], tokens: int) -> float:
        began = time.perf_counter()
        self.ids(ids, tokens)
        return time.perf_counter() - began


class _Ours(_InProcess):
    def __init__(self, model: StoryModel, stepper: Stepper) -> None:
        super().__init__(model)
        self.stepper = stepper

    def ids(self, ids: Sequence[int], tokens: int) -> list[int]:
        """See _InProcess."""
        greedy = SamplingConfig(temperature=0, max_new_tokens=tokens)
        return list(generate_ids(self.model.decoder, self.model.run, ids, greedy, None, stepper=self.stepper))


class _Transformers(_InProcess):
    def __init__(self, model: StoryModel, folder: Path) -> None:
        import transformers

        super().__init__(model)
        family_of(model.run)  # refuses a model that no family computes
        library: Any = transformers  # partly untyped
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()
        write_folder(model, folder, "fp32")
        self.device = model.decoder.embedding.weight.device
        theirs = library.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        self.theirs = theirs.to(self.device).eval()
        self.theirs.generation_config.eos_token_id = None  # like the others, continue after the end of a story

    def ids(self, ids: Sequence[int], tokens: int) -> list[int]:
        """See _InProcess."""
        prompt = torch.tensor([list(ids)], device=self.device)
        mask = torch.ones_like(prompt)
        out = self.theirs.generate(prompt, attention_mask=mask, max_new_tokens=tokens, do_sample=False)
        generated: list[int] = out[0, len(ids) :].tolist()
        return generated


class _LlamaCpp:
    def __init__(self, model: StoryModel, folder: Path) -> None:
        self.file, self.context = folder / "model.gguf", model.run.context_length
        if importlib.util.find_spec("gguf") is None:
            raise UserError("gguf is not installed")
        llama_cpp.architecture_of(model.run)
        llama_cpp.write_file(model, self.file, llama_cpp.FORMATS["fp32"])

    def text(self, ids: Sequence[int], tokens: int) -> str:
        """See Teller."""
        (answer,) = completions(self.file, self.context, [_request(ids, tokens)])
        text: str = answer["text"]
        return text

    def speed(self, ids: Sequence[int], tokens: int, long: Sequence[int]) -> Speed:
        """See Teller; timed by llama.cpp itself, after a first answer."""
        requests = [_request(ids, tokens), _request(ids, tokens), _request(long, 1)]
        _, decoded, read = completions(self.file, self.context, requests)
        return Speed(decoded["timings"]["predicted_per_second"], read["timings"]["prompt_per_second"])


def _request(ids: Sequence[int], tokens: int) -> dict[str, Any]:
    return {"prompt": [*ids], "max_tokens": tokens, "temperature": 0, "ignore_eos": True, "cache_prompt": False}


def _check_same(tellers: dict[str, Teller], ids: Sequence[int], tokens: int) -> None:
    """Check correctness before timing.

    After the end of a story the implementations may differ: some do not choose the end of text again. Bytes that are
    not text are decoded as U+FFFD.
    """
    (first, story), *others = ((name, teller.text(ids, tokens)) for name, teller in tellers.items())
    for name, other in others:
        length = min(len(story), len(other))
        if not length or story[:length].rstrip("\ufffd") != other[:length].rstrip("\ufffd"):
            raise UserError(f"{name} tells another story than {first}; nothing was timed, report this")


def _together(model: StoryModel, tokens: int, prompts: Sequence[Sequence[int]]) -> float:
    """Tokens per second after the prompts, measured as in _InProcess.speed."""
    texts = model.texts()

    def seconds(tokens: int) -> float:
        greedy = SamplingConfig(temperature=0, max_new_tokens=tokens)
        batch = Batch([Continuation(model.decoder, prompt, greedy, None) for prompt in prompts], texts)
        began = time.perf_counter()
        for text in range(len(prompts)):
            deque(batch.ids(text), maxlen=0)
        return time.perf_counter() - began

    return tokens * len(prompts) / max(seconds(tokens + 1) - seconds(1), 1e-9)
