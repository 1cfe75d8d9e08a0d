"""Stories that a model tells, next to the held-out stories it was given the openings of."""

from collections.abc import Sequence
from dataclasses import dataclass

from storyteller_ds.data.tokenizers.tokenizer import Tokenizer
from storyteller_ds.errors import UserError
from storyteller_ds.evaluation.openings import Opening
from storyteller_ds.evaluation.text import Log
from storyteller_ds.generation.sampling import SamplingConfig
from storyteller_ds.generation.story import Ending
from storyteller_ds.generation.story_model import StoryModel
from storyteller_ds.generation.told import told
from storyteller_ds.meanwhile import LINE_EVERY_S, meanwhile


@dataclass(frozen=True)
class Told:
    """A story, by a model or a person."""

    prompt: str
    continuation: str
    ended: bool
    """Whether it ended by itself; otherwise it was cut off."""


@dataclass(frozen=True)
class ToldStories:
    """A model's stories, next to those it was given the openings of."""

    of_model: list[Told]
    held_out: list[Told]
    """The original stories, cut to as many tokens as the model may generate."""
    left_out: int
    """Openings that leave no room in the model's context."""


def tell(model: StoryModel, beginnings: Sequence[Opening], config: SamplingConfig, log: Log) -> ToldStories:
    """Let a model continue openings, each with its own random stream.

    Args:
        model: the storyteller.
        beginnings: the openings to continue.
        config: sampling; has max_new_tokens.
        log: receives a line from time to time.
    """
    begun, held_out = [], []
    for number, opening in enumerate(beginnings):
        try:
            story = model.story(opening.prompt, config.of_story(number))
        except UserError:  # it leaves no room in the context
            continue
        begun.append(story)
        held_out.append(_cut(model.tokenizer, opening, story.continuation.most))
    of_model: list[Told] = []
    with meanwhile(lambda: log(f"telling stories: {len(of_model)} of {len(begun)}"), LINE_EVERY_S):
        for story in told(model.texts(), begun):
            rest = story.text[len(story.prompt) :]
            of_model.append(Told(story.prompt, rest, story.ending is Ending.END))
    return ToldStories(of_model, held_out, len(beginnings) - len(begun))


def _cut(tokenizer: Tokenizer, opening: Opening, most: int) -> Told:
    ids = tokenizer.encode(opening.rest)
    if len(ids) < most:  # the end of text is a token, too
        return Told(opening.prompt, opening.rest, ended=True)
    # Drop an incomplete character at the end.
    return Told(opening.prompt, tokenizer.decode(ids[:most]).rstrip("\ufffd"), ended=False)
