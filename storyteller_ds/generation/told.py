"""Many stories, several at a time."""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from storyteller_ds.distributed.world import usable_cores
from storyteller_ds.generation.batch import Batch
from storyteller_ds.generation.story import Story
from storyteller_ds.generation.story_model import StoryModel

BATCH = 16
"""Stories that torch continues in one pass."""


def told(model: StoryModel, stories: Sequence[Story]) -> Iterator[Story]:
    """Tell stories, and give each when it is over, in their order.

    Where the model has a fast stepper each core tells stories of its own, else torch tells a batch of them at once.

    Args:
        model: whose stories they are.
        stories: none of them begun.
    """
    return _on_every_core(stories) if model.stepper is not None else _in_batches(model, stories)


def _on_every_core(stories: Sequence[Story]) -> Iterator[Story]:
    pool = ThreadPoolExecutor(usable_cores())
    try:
        yield from pool.map(_tell, stories)
    finally:
        pool.shutdown(cancel_futures=True)  # after an interruption: those that have not begun


def _tell(story: Story) -> Story:
    for _ in story:
        pass
    return story


def _in_batches(model: StoryModel, stories: Sequence[Story]) -> Iterator[Story]:
    for start in range(0, len(stories), BATCH):
        group = stories[start : start + BATCH]
        together = [story for story in group if story.continuation.config.past_context == "stop"]
        if together:
            batch = Batch(model.decoder, model.run, [story.continuation for story in together])
            for place, story in enumerate(together):
                story.read_from(batch.ids(place))
        # A piece of each in turn, so that a stop string ends one before the others are over.
        waiting, going = deque(group), [iter(story) for story in group]
        while waiting:
            going = [pieces for pieces in going if next(pieces, None) is not None]
            while waiting and waiting[0].ending is not None:
                yield waiting.popleft()
