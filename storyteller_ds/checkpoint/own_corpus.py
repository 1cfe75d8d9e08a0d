"""The text that a checkpoint was trained and validated on."""

from collections.abc import Callable

from storyteller_ds.checkpoint.read import Checkpoint
from storyteller_ds.config.run import RunConfig
from storyteller_ds.data.corpus import Corpus, open_corpus, prepare_corpus
from storyteller_ds.errors import DataError


def own_corpus(run: RunConfig, checkpoint: Checkpoint, log: Callable[[str], None]) -> Corpus:
    """The corpus of a checkpoint, prepared again if it is no longer in the cache.

    Args:
        run: run config of the checkpoint.
        checkpoint: records the fingerprint of its corpus.
        log: gets a line about each step.

    Raises:
        DataError: no text is recorded for it, or that text cannot be used or has changed; suggests --data.
    """
    if not checkpoint.manifest.dataset_fingerprint:
        raise DataError(f"{checkpoint.folder} was made from another model, and no text is recorded for it; give --data")
    try:
        corpus = open_corpus(run, prepare_corpus(run, log))
    except DataError as error:
        raise DataError(f"{error}; or give a text with --data") from None
    if corpus.fingerprint != checkpoint.manifest.dataset_fingerprint:
        raise DataError(
            f"data.source={run.data.source_name} is not what {checkpoint.folder} was trained on; give a text with "
            "--data"
        )
    return corpus
