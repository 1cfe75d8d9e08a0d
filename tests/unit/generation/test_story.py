"""How stories end, and that all ranks generate the same one."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from markdown_it import MarkdownIt

from storyteller_ds.checkpoint.train_state import TrainState
from storyteller_ds.config.data import TokenizerConfig
from storyteller_ds.config.run import RunConfig
from storyteller_ds.data.tokenizers.choose import train_tokenizer
from storyteller_ds.data.tokenizers.tokenizer import Tokenizer
from storyteller_ds.distributed.world import World
from storyteller_ds.engines.base import Engine
from storyteller_ds.engines.single import SingleEngine
from storyteller_ds.errors import UserError
from storyteller_ds.generation.sampling import SamplingConfig
from storyteller_ds.generation.story import Ending, Story
from storyteller_ds.generation.story_model import StoryModel
from storyteller_ds.model.decoder import Decoder
from storyteller_ds.training.callbacks.samples import Samples

CONTEXT = 16
RUN = RunConfig.model_validate(
    {
        "model": {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "intermediate_size": 16, "dropout": 0.1},
        "moe": {"num_experts": 2, "top_k": 1},
        "data": {"sequence_length": CONTEXT},
        "tokenizer": {"vocab_size": 257},
        "train": {"sample_prompts": ["Once", "*a*"], "sample_every_steps": 1},
        "parallel": {"device": "cpu"},
    }
)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """A token for each byte."""
    return train_tokenizer(TokenizerConfig(vocab_size=257), ["x"])


@pytest.fixture
def engine() -> SingleEngine:
    return SingleEngine(RUN, World(0, 0, 1, 1), torch.device("cpu"))


def script(tokenizer: Tokenizer, *texts: str) -> Callable[[int], int]:
    """An `agree` that makes the model choose these texts, each followed by the end of a story."""
    ids: Iterator[int] = iter([i for text in texts for i in (*tokenizer.encode(text), tokenizer.end_of_text)])
    return lambda chosen: next(ids)


@pytest.mark.parametrize(
    ("text", "limit", "told", "ending"),
    [
        ("end", None, "end", Ending.END),
        ("", None, "", Ending.END),
        ("x" * 11, None, "x" * 11, Ending.END),
        # A prompt of 5 tokens leaves room for 12: the last is the one that follows a full context.
        ("x" * 12, None, "x" * 12, Ending.CONTEXT),
        ("x" * 99, None, "x" * 12, Ending.CONTEXT),
        ("x" * 99, 13, "x" * 12, Ending.CONTEXT),
        ("x" * 99, 12, "x" * 12, Ending.LENGTH),
        ("x" * 99, 3, "xxx", Ending.LENGTH),
        ("xx", 3, "xx", Ending.END),
        ("One. The e", 10, "One. The e", Ending.LENGTH),
        ("One. The e", None, "One. The e", Ending.END),
        ("One. The end. T", None, "One. The end", Ending.CONTEXT),
        ("A The end. T", None, "A ", Ending.STOP),
        ("A The end.", 10, "A ", Ending.STOP),
    ],
)
def test_how_a_story_ends(tokenizer, engine, text, limit, told, ending):
    config = SamplingConfig(max_new_tokens=limit, stop=["The end.", "never"])
    story = Story(engine.decoder, RUN, tokenizer, "Once", config, script(tokenizer, text))
    assert story.ending is None
    assert "".join(story) == told
    assert (story.text, story.ending) == (f"Once{told}", ending)
    assert story.was_cut == (ending in ("length", "context"))
    assert "".join(story.token_texts).startswith(told)


def test_a_story_that_is_left_has_no_ending(tokenizer, engine):
    story = Story(engine.decoder, RUN, tokenizer, "Once", SamplingConfig(), script(tokenizer, "abc"))
    assert next(iter(story)) == "a"
    assert (story.text, story.ending, story.was_cut) == ("Oncea", None, False)


def test_a_stop_string_ends_a_story_of_the_library(tokenizer, engine):
    model = StoryModel(engine.decoder.eval(), RUN, tokenizer, Path())
    whole = model.generate("Once", seed=3, temperature=1.5)
    stop = next(char for char in whole[6:] if char not in whole[4:6])
    assert model.generate("Once", seed=3, temperature=1.5, stop=["never", stop]) == whole[: whole.index(stop, 4)]
    with pytest.raises(UserError, match="min_p=2"):
        model.generate("Once", min_p=2)


def test_story_numbers_are_seeds():
    config = SamplingConfig(seed=7, top_k=3)
    assert config.of_story(0) == config
    assert config.of_story(5) == SamplingConfig(seed=12, top_k=3)
    assert SamplingConfig(seed=2**63 - 1).of_story(2).seed == 1


# samples.md


def hook_of(engine: Engine, tokenizer: Tokenizer, path: Path, run: RunConfig = RUN) -> Samples:
    return Samples(engine, run, tokenizer, path)


def test_samples_render_as_sections_of_quotes(tokenizer, engine, tmp_path, monkeypatch):
    hook = hook_of(engine, tokenizer, tmp_path / "samples.md")
    monkeypatch.setattr(hook, "_agreed", script(tokenizer, "\n\nThe end.", "x" * 10))
    hook.on_step_end(TrainState(step=1), last=False)
    blocks = MarkdownIt("commonmark").parse((tmp_path / "samples.md").read_text())
    assert [block.type for block in blocks if block.type.endswith("_open")] == [
        *("heading_open", "blockquote_open", "paragraph_open", "paragraph_open"),
        *("blockquote_open", "paragraph_open"),
    ]
    texts = ["".join(c.content for c in block.children or []) for block in blocks if block.type == "inline"]
    assert texts == ["Step 1", "Once", "The end.", f"*a*{'x' * 10}"]
    full = hook_of(engine, tokenizer, tmp_path / "full.md")
    monkeypatch.setattr(full, "_agreed", lambda chosen: tokenizer.encode("y")[0])
    full.on_step_end(TrainState(step=1), last=False)
    assert f"> **Once**{'y' * 12} …\n\n" in (tmp_path / "full.md").read_text(), "a story that was cut is marked"


@pytest.mark.parametrize("tokens", [1, 5])
def test_sample_tokens_is_the_longest(tokenizer, engine, tmp_path, monkeypatch, tokens):
    run = RUN.model_copy(update={"train": RUN.train.model_copy(update={"sample_tokens": tokens})})
    hook = hook_of(engine, tokenizer, tmp_path / "samples.md", run)
    monkeypatch.setattr(hook, "_agreed", lambda chosen: tokenizer.encode("y")[0])
    hook.on_step_end(TrainState(step=1), last=False)
    assert f"> **Once**{'y' * tokens} …\n\n" in (tmp_path / "samples.md").read_text()


def test_sampling_leaves_no_trace_in_training(tokenizer, engine, tmp_path):
    torch.manual_seed(3)
    before, weights = torch.get_rng_state(), [p.clone() for p in engine.decoder.parameters()]
    engine.decoder.train()
    hook_of(engine, tokenizer, tmp_path / "samples.md").on_step_end(TrainState(step=1), last=False)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(weights, engine.decoder.parameters(), strict=True))
    assert engine.decoder.training


def test_a_resumed_run_cuts_the_sections_beyond_its_step(tokenizer, engine, tmp_path):
    path = tmp_path / "samples.md"
    hook = hook_of(engine, tokenizer, path)
    texts = [""]
    for step in (1, 2, 3):
        hook.on_step_end(TrainState(step=step), last=False)
        texts.append(path.read_text())
    for step in (3, 2, 1, 0):
        hook.on_start(TrainState(step=step))
        assert path.read_text() == texts[step]


class Rank1:
    """Rank 1 of two; rank 0 chooses the given ids."""

    rank, size, is_main = 1, 2, False

    def __init__(self, chosen: list[int]) -> None:
        self.chosen = iter(chosen)

    def all_reduce_sum(self, tensor: torch.Tensor) -> torch.Tensor:
        assert tensor.tolist() == [0], "only rank 0 decides"
        return tensor + next(self.chosen)


def test_another_rank_goes_on_with_what_rank_0_has_chosen(tokenizer, engine, tmp_path):
    once, end = tokenizer.encode(" upon"), tokenizer.end_of_text
    fed: list[int] = []

    class Watched(Decoder):
        def forward(self, token_BS, *arguments):
            fed.extend(token_BS.flatten().tolist())
            return super().forward(token_BS, *arguments)

    engine.world = Rank1([*once, end, *once, end])
    engine.decoder = Watched(RUN).eval()
    with torch.no_grad():
        for parameter in engine.decoder.parameters():
            parameter.fill_(0.1)
    hook_of(engine, tokenizer, tmp_path / "samples.md").on_step_end(TrainState(step=1), last=False)
    assert not (tmp_path / "samples.md").exists()
    assert next(engine.world.chosen, None) is None, "as many passes as rank 0, no more and no fewer"
    assert fed == [end, *tokenizer.encode("Once"), *once, end, *tokenizer.encode("*a*"), *once]


def test_a_prompt_that_is_no_text_is_refused_by_its_type(tokenizer, tmp_path):
    model = StoryModel(Decoder(RUN).eval(), RUN, tokenizer, tmp_path)
    for prompt, kind in ((None, "NoneType"), (b"Once", "bytes"), (["Once"], "list")):
        with pytest.raises(UserError, match=f"the prompt is of type {kind}; give a str"):
            model.generate(prompt)
