"""A trained model that generates stories."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from storyteller_ds.config.run import RunConfig
from storyteller_ds.data.tokenizers.tokenizer import Tokenizer
from storyteller_ds.errors import UserError
from storyteller_ds.generation.sampling import SamplingConfig, sampling_config
from storyteller_ds.generation.stepper import Stepper, Texts
from storyteller_ds.generation.story import Story
from storyteller_ds.generation.told import told
from storyteller_ds.generation.torch_stepper import TorchStepper
from storyteller_ds.model.counts import count_parameters
from storyteller_ds.model.decoder import Decoder
from storyteller_ds.user_paths import is_utf8


class StoryModel(NamedTuple):
    """Everything needed to continue a text. Get one from storyteller_ds.load."""

    decoder: Decoder
    run: RunConfig
    """The run config that it was trained with."""
    tokenizer: Tokenizer
    step_folder: Path
    """The checkpoint that it was loaded from."""
    stepper: Stepper | None = None
    """Computes one token after the other; None: torch."""

    def generate(self, prompt: str, **sampling: Any) -> str:
        """A story: the prompt and its continuation.

        Args:
            prompt: its beginning; may be empty.
            sampling: fields of SamplingConfig, such as temperature, min_p, stop or seed. The same seed gives the same
                story.

        Raises:
            UserError: the prompt leaves no room in the context, or a setting is out of range or not for this model.
        """
        return "".join(self.stream(prompt, **sampling))

    def generate_all(self, prompts: Sequence[str], **sampling: Any) -> list[str]:
        """A story for each prompt, several computed at a time.

        Args:
            prompts: their beginnings. The first story has the seed, each later one the next, so that equal prompts get
                stories of their own.
            sampling: see generate.

        Raises:
            UserError: see generate; says which prompt. No story is generated then.
        """
        if isinstance(prompts, str):
            raise UserError("prompts is one str; give a list of them, or use generate")
        config = sampling_config(sampling)
        stories = []
        for number, prompt in enumerate(prompts):
            try:
                stories.append(self.story(prompt, config.of_story(number)))
            except UserError as error:
                raise UserError(f"prompts[{number}]: {error}") from None
        return [story.text for story in told(self.texts(), stories)]

    def stream(self, prompt: str, **sampling: Any) -> Iterator[str]:
        """Like generate, but in pieces, each as soon as it is certain: the prompt, then its continuation."""
        story = self.story(prompt, sampling_config(sampling))
        yield prompt
        yield from story

    def __repr__(self) -> str:
        return f"StoryModel({self.step_folder}, {count_parameters(self.run).total:,} parameters)"

    def story(self, prompt: str, config: SamplingConfig = SamplingConfig()) -> Story:  # noqa: B008  # it is frozen
        """A story that has not been generated yet; several may be read at the same time.

        Raises:
            UserError: see generate.
        """
        if not isinstance(config, SamplingConfig):
            raise UserError(f"config is of type {type(config).__name__}; give a SamplingConfig, or use generate")
        if not isinstance(prompt, str):
            raise UserError(f"the prompt is of type {type(prompt).__name__}; give a str")
        if not is_utf8(prompt):
            raise UserError("the prompt has half of a surrogate pair, which is not a character; leave it out")
        stepper = None if self.stepper is None else self.stepper.another()
        return Story(self.decoder, self.run, self.tokenizer, prompt, config, stepper=stepper)

    def texts(self) -> Texts:
        """Computes the logits of several texts that are continued together."""
        return (self.stepper or TorchStepper(self.decoder, self.run)).texts()
