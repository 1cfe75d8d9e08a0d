"""Sample stories during training."""

from collections.abc import Sequence
from pathlib import Path

import torch

from storyteller_ds.checkpoint.train_state import TrainState
from storyteller_ds.config.run import RunConfig
from storyteller_ds.data.tokenizers.tokenizer import Tokenizer
from storyteller_ds.durable import write_atomically
from storyteller_ds.engines.base import Engine
from storyteller_ds.errors import UserError
from storyteller_ds.generation.decode import prompt_ids
from storyteller_ds.generation.markdown import as_quote
from storyteller_ds.generation.sampling import SamplingConfig
from storyteller_ds.generation.story import Story
from storyteller_ds.records.run_folder import written_record
from storyteller_ds.records.samples import HEADING
from storyteller_ds.training.callbacks.callback import Callback, Sample


def check_prompts(run: RunConfig, tokenizer: Tokenizer) -> None:
    """Refuse sample prompts that leave no room for a story.

    Raises:
        UserError: names the prompt.
    """
    for prompt in run.train.sample_prompts:
        tokens = len(prompt_ids(tokenizer, prompt))
        if tokens >= run.context_length:
            raise UserError(
                f"train.sample_prompts has '{prompt}', which is {tokens} tokens, and the model's context is "
                f"{run.context_length}; shorten it, or set train.sample_prompts=[] for no samples"
            )


class Samples(Callback):
    """Writes stories to samples.md, one section per step. A story that was cut off ends with an ellipsis.

    Args:
        engine: the model; every rank takes part, since the experts may be spread over them.
        run: has the prompts and the interval.
        tokenizer: for the text.
        path: samples.md; rank 0 writes it.
        others: callbacks that get the stories, too, through on_samples.
    """

    def __init__(
        self, engine: Engine, run: RunConfig, tokenizer: Tokenizer, path: Path, others: Sequence[Callback] = ()
    ) -> None:
        self.engine, self.run, self.tokenizer, self.path, self.others = engine, run, tokenizer, path, others

    def on_start(self, state: TrainState) -> None:
        """Drop the sections beyond the step that training continues from."""
        if not (self.engine.world.is_main and self.path.exists()):
            return
        with written_record(self.path):
            text = self.path.read_text(encoding="utf-8", errors="replace")
            for section in HEADING.finditer(text):
                if int(section[1]) > state.step:
                    write_atomically(self.path, text[: section.start()])
                    return

    def busy_with(self, state: TrainState, last: bool) -> str | None:
        """Stories, if they are due."""
        return f"generating {len(self.run.train.sample_prompts)} stories" if self._due(state, last) else None

    def acts_after(self, state: TrainState) -> bool:
        """Whether samples are due."""
        return self._due(state, False)

    def on_step_end(self, state: TrainState, last: bool) -> None:
        """Write stories if they are due."""
        if not self._due(state, last):
            return
        decoder = self.engine.decoder
        was_training = decoder.training
        decoder.eval()
        samples = [self._sample(prompt) for prompt in self.run.train.sample_prompts]
        decoder.train(was_training)
        if self.engine.world.is_main:
            stories = [as_quote(*sample) for sample in samples]
            with written_record(self.path), self.path.open("a", encoding="utf-8") as file:
                file.write("\n\n".join([f"## Step {state.step}", *stories]) + "\n\n")
        for callback in self.others:
            callback.on_samples(state, samples)

    def _due(self, state: TrainState, last: bool) -> bool:
        every = self.run.train.sample_every_steps
        return bool(self.run.train.sample_prompts) and (last or bool(every and state.step % every == 0))

    def _sample(self, prompt: str) -> Sample:
        config = SamplingConfig(seed=self.run.seed, max_new_tokens=self.run.train.sample_tokens)
        story = Story(self.engine.decoder, self.run, self.tokenizer, prompt, config, self._agreed)
        continuation = "".join(story)
        return Sample(prompt, continuation + " …" if story.was_cut else continuation)

    def _agreed(self, chosen: int) -> int:
        """The id that rank 0 has chosen."""
        world = self.engine.world
        mine = torch.tensor([chosen if world.is_main else 0], device=self.engine.device)
        return int(world.all_reduce_sum(mine))
