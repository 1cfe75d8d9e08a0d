"""Makes the batches of a run from its corpus."""

import numpy as np
from numpy.typing import NDArray

from storyteller_ds.config.data import DataConfig
from storyteller_ds.config.run import RunConfig
from storyteller_ds.data.batching.batches import BatchSplit, TrainBatches, ValidationBatches
from storyteller_ds.data.batching.packing import CutStream, Packing, WholeDocuments, ranges
from storyteller_ds.data.batching.sequences import Sequences
from storyteller_ds.data.corpus import Corpus
from storyteller_ds.data.shards import TokenStream
from storyteller_ds.data.stories import Stories


def train_batches(run: RunConfig, corpus: Corpus, split: BatchSplit) -> TrainBatches:
    """The training batches of one rank.

    Raises:
        DataError: the corpus is smaller than one global batch.
    """
    sequences = sequences_of(run.data, corpus.train, corpus.tokenizer.end_of_text, corpus.train_prompts, False)
    return TrainBatches(sequences, corpus.fingerprint, run.seed, split)


def validation_batches(run: RunConfig, corpus: Corpus, split: BatchSplit) -> ValidationBatches:
    """The validation batches of one rank, packed like the training text.

    Raises:
        DataError: there are no targets.
    """
    sequences = sequences_of(run.data, corpus.validation, corpus.tokenizer.end_of_text, corpus.validation_prompts, True)
    return ValidationBatches(sequences, corpus.validation_bytes, split)


def sequences_of(
    data: DataConfig, stream: TokenStream, end_of_text: int, prompts: NDArray[np.int64] | None, keeps_rest: bool
) -> Sequences:
    """The sequences of a corpus split.

    Args:
        data: its packing, sequence length and document mask are used.
        stream: the tokens.
        end_of_text: id of the separator between documents.
        prompts: [documents] number of prompt tokens of each, which are not targets; None: there are no prompts.
        keeps_rest: whether the rest of a cut stream, shorter than a sequence, becomes a sequence too.
    """
    packing: Packing = CutStream(len(stream), data.sequence_length, keeps_rest)
    counted = None
    if data.packing != "stream" or prompts is not None:
        separators = Stories(stream, end_of_text).separators
        if data.packing != "stream":
            packing = WholeDocuments(separators, data.sequence_length, shared=data.packing == "best_fit")
        if prompts is not None:
            counted = np.ones(len(stream), dtype=np.bool_)
            counted[ranges(separators[:-1] + 1, prompts)] = False
    return Sequences(stream, packing, end_of_text if data.document_mask else None, counted)
