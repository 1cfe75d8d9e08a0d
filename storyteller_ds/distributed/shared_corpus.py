"""The corpus of a run of several ranks: prepared by one rank of every machine, opened by all."""

from collections.abc import Callable

from storyteller_ds.config.run import RunConfig
from storyteller_ds.data.corpus import Corpus, open_corpus, prepare_corpus
from storyteller_ds.distributed.world import World
from storyteller_ds.meanwhile import LINE_EVERY_S, meanwhile


def shared_corpus(run: RunConfig, world: World, log: Callable[[str], None]) -> Corpus:
    """Prepare the corpus if needed, and open it; called by every rank.

    Args:
        run: its data and tokenizer sections determine the corpus.
        world: this process among the ranks.
        log: logs a line.

    Raises:
        DataError: the text or the tokenizer cannot be used, or the cache cannot be written.
    """
    key = world.on_each_machine(lambda: prepare_corpus(run, log))
    mine: list[Corpus] = []  # not a result of together(), which would go to the other ranks
    with meanwhile(lambda: log("checking the prepared corpus"), LINE_EVERY_S):
        world.together(lambda: mine.append(open_corpus(run, key)))
    return mine[0]
