"""Many stories, several at a time."""

from collections import deque
from collections.abc import Iterator, Sequence

from storyteller_ds.generation.batch import Batch
from storyteller_ds.generation.story import Story
from storyteller_ds.generation.story_model import StoryModel

BATCH = 16
"""Stories that are continued together."""


def told(model: StoryModel, stories: Sequence[Story]) -> Iterator[Story]:
    """Tell stories, and give each when it is over, in their order.

    Args:
        model: whose stories they are.
        stories: none of them begun.
    """
    texts = model.texts()
    for start in range(0, len(stories), BATCH):
        group = stories[start : start + BATCH]
        together = [story for story in group if story.continuation.config.past_context == "stop"]
        if together:
            batch = Batch([story.continuation for story in together], texts)
            for place, story in enumerate(together):
                story.read_from(batch.ids(place))
        # A piece of each in turn, so that a stop string ends one before the others are over.
        waiting, going = deque(group), [iter(story) for story in group]
        while waiting:
            going = [pieces for pieces in going if next(pieces, None) is not None]
            while waiting and waiting[0].ending is not None:
                yield waiting.popleft()
