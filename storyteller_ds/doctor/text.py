"""The text: how often it is read, how it fills sequences and vocabulary, and what is held out."""

from collections.abc import Iterator

from storyteller_ds.config.data import TokenizerConfig
from storyteller_ds.data.tokenizers.choose import TRAINERS
from storyteller_ds.doctor.finding import Check, Finding, error, note, warning
from storyteller_ds.doctor.leaks import leaked
from storyteller_ds.doctor.subject import Subject

_MOST_PASSES = 40
"""After four passes little is gained, after forty nothing (Muennighoff et al. 2023, 2305.16264)."""
_MANY_STORIES = 20
"""With more stories than this in a sequence, its length teaches nothing that a shorter one does not."""
_MUCH_PADDING = 0.5
_FEW_OCCURRENCES = 20
"""With fewer occurrences per token in the training text, on average, embeddings cannot be learned."""
WORTH_A_WARNING = 0.05
"""Fraction of the parameters in embedding rows that no token uses."""
_REPEATED, _BROKEN = 0.2, 0.01
"""Fractions of the stories."""
_UNKNOWN = 0.01
"""Fraction of the tokens."""
_LEAST_BYTES, _LARGE_VOCABULARY = 2.0, 1000
"""Least bytes per token of a vocabulary that large, in a text that it was made for; English has four."""
_REPLACEMENT = "\ufffd"


def too_many_passes(subject: Subject) -> Iterator[Finding]:
    """More epochs than the model can learn from."""
    run, text = subject.run, subject.text
    if text is None:
        return
    if text.sequences is not None:
        passes = run.train.max_steps * run.train.global_batch_size / text.sequences
    elif text.train_tokens is not None:
        passes = run.train.max_steps * run.train.global_batch_size * run.data.sequence_length / text.train_tokens
    else:
        return
    if passes > _MOST_PASSES and run.train.max_minutes is None:
        yield warning(
            f"{run.train.max_steps:,} steps are {text.about}{passes:,.0f} passes through the training text, which a "
            "model knows by heart long before",
            f"set train.max_steps={max(1, int(run.train.max_steps * 4 / passes))} (4 passes), or more text",
        )


def sequences_longer_than_stories(subject: Subject) -> Iterator[Finding]:
    """Most of a sequence consists of other stories or padding."""
    data, text = subject.run.data, subject.text
    if text is None:
        return
    ratio = data.sequence_length / max(1.0, text.tokens_per_story)
    if data.packing == "pad" and 1 - 1 / ratio > _MUCH_PADDING:
        yield warning(
            f"a story has {text.about}{text.tokens_per_story:,.0f} tokens and a sequence data.sequence_length="
            f"{data.sequence_length}: {1 - 1 / ratio:.0%} of it is padding",
            f"data.packing=best_fit, or data.sequence_length={_rounded(2 * text.tokens_per_story)}",
        )
    elif ratio > _MANY_STORIES and not data.document_mask:
        yield warning(
            f"a story has {text.about}{text.tokens_per_story:,.0f} tokens and a sequence data.sequence_length="
            f"{data.sequence_length}: {1 - 1 / ratio:.0%} of what a story could see is other stories",
            f"data.sequence_length={_rounded(4 * text.tokens_per_story)}, or data.document_mask=true",
        )


def unused_rows(subject: Subject) -> Iterator[Finding]:
    """Embedding rows without a token make up a good part of the model."""
    run, text = subject.run, subject.text
    if text is None or text.vocabulary is None or not subject.is_new:
        return
    rows, tokens, total = run.tokenizer.vocab_size, text.vocabulary, subject.counts.total
    tables = 1 if run.model.tie_embeddings else 2
    unused = (rows - tokens) * run.model.hidden_size * tables
    if unused >= WORTH_A_WARNING * total:
        yield warning(
            f"the tokenizer has {tokens:,} tokens, and {rows - tokens:,} of the {rows:,} rows that "
            f"tokenizer.vocab_size={rows} gives the embedding are never used: {unused:,} of {total:,} parameters",
            f"tokenizer.vocab_size={tokens} has the same tokens without them",
        )


def vocabulary_larger_than_text(subject: Subject) -> Iterator[Finding]:
    """Tokens that hardly occur."""
    run, text = subject.run, subject.text
    if text is None or text.train_tokens is None or not subject.is_new:
        return
    tokens = text.vocabulary or run.tokenizer.vocab_size
    each = text.train_tokens / tokens
    if each < _FEW_OCCURRENCES:
        enough = max(258 if run.tokenizer.kind != "char" else 2, int(text.train_tokens / (5 * _FEW_OCCURRENCES)))
        yield warning(
            f"{text.about}{text.train_tokens:,.0f} tokens of training text are {each:.1f} for each of {tokens:,} in "
            "the vocabulary, too few to learn what it means",
            "more text, or a tokenizer that is trained on it (leave out tokenizer.path and tokenizer.kind)"
            if _is_given(run.tokenizer)
            else f"set tokenizer.vocab_size={enough}, or more text",
        )


def validation_too_small(subject: Subject) -> Iterator[Finding]:
    """A val_loss measured on less than one sequence is mostly chance."""
    data, text = subject.run.data, subject.text
    if text is None or text.validation_tokens is None:
        return
    if text.validation_tokens < data.sequence_length:
        yield warning(
            f"the validation text has {text.about}{text.validation_tokens:,.0f} tokens, less than one sequence "
            f"(data.sequence_length={data.sequence_length}): val_loss is chance",
            "raise data.validation_fraction, or name a text with data.validation",
        )


def text_below_one_step(subject: Subject) -> Iterator[Finding]:
    """One batch is larger than the whole training text."""
    run, text = subject.run, subject.text
    if text is None or text.train_tokens is None:
        return
    step = run.train.global_batch_size * run.data.sequence_length
    if text.is_estimate and text.train_tokens < step:
        say = error if text.most_train_tokens < step else warning
        yield say(
            f"the training text has {text.about}{text.train_tokens:,.0f} tokens, and one step takes {step:,}",
            f"more text, or train.global_batch_size={max(1, int(text.train_tokens / run.data.sequence_length / 8))}",
        )


def unknown_tokens(subject: Subject) -> Iterator[Finding]:
    """Characters that the tokenizer does not know. (When a run starts, the line about the text says so.)"""
    text = subject.text
    if text is not None and text.unknown > _UNKNOWN:
        yield warning(
            f"{text.about}{text.unknown:.1%} of the tokens stand for text that the tokenizer does not know: no story "
            "will have it, and val_bpb looks better than the model is",
            "raise tokenizer.vocab_size, or set tokenizer.kind=bpe, which knows every byte",
        )


def foreign_tokenizer(subject: Subject) -> Iterator[Finding]:
    """A tokenizer made for another language, or for code."""
    text, tokenizer = subject.text, subject.run.tokenizer
    if text is None or text.vocabulary is None or text.bytes_per_token is None or tokenizer.kind == "char":
        return
    if _is_given(tokenizer) and text.vocabulary >= _LARGE_VOCABULARY and text.bytes_per_token < _LEAST_BYTES:
        yield warning(
            f"the tokenizer has {text.vocabulary:,} tokens, and needs one for every {text.bytes_per_token:.1f} bytes "
            "of this text: it was made for another",
            "leave out tokenizer.path, and one is trained on this text",
        )


def validation_in_training(subject: Subject) -> Iterator[Finding]:
    """Held-out stories that are also trained on, word for word or nearly."""
    text = subject.text
    if text is None or text.train is None or text.validation is None or subject.run.data.source == "builtin":
        return
    exact, near, looked_at, compared = leaked(text.train.documents, text.validation.documents)
    if not exact and not near:
        return
    is_all = text.train.is_all and compared == len(text.train.documents)
    these = "the training stories" if is_all else f"the first {compared:,} training stories"
    say = warning if (exact + near) / looked_at > 0.01 else note
    yield say(
        f"of {looked_at:,} validation stories {exact:,} are among {these} word for word, and "
        f"{near:,} nearly: val_loss looks better than the model is",
        "storyteller preprocess, which splits without leaks",
    )


def repeated_stories(subject: Subject) -> Iterator[Finding]:
    """Stories that occur more than once."""
    stories = () if subject.text is None or subject.text.train is None else subject.text.train.documents
    repeated = len(stories) - len(set(stories))
    if subject.run.data.source != "builtin" and repeated > _REPEATED * len(stories):
        yield warning(
            f"{repeated:,} of the first {len(stories):,} training stories are repetitions "
            f"({repeated / len(stories):.0%})",
            "storyteller preprocess, which drops duplicates",
        )


def broken_characters(subject: Subject) -> Iterator[Finding]:
    """Text that was decoded with the wrong encoding."""
    stories = () if subject.text is None or subject.text.train is None else subject.text.train.documents
    broken = sum(_REPLACEMENT in story or "â€" in story for story in stories)
    if broken > _BROKEN * len(stories):
        yield warning(
            f"{broken:,} of the first {len(stories):,} training stories have characters that were lost or garbled by a "
            "wrong encoding",
            "storyteller preprocess, which repairs what can be, or data.encoding=windows-1252 for the original file",
        )


def _is_given(tokenizer: TokenizerConfig) -> bool:
    """Whether the tokenizer is given and not trained on the text."""
    return tokenizer.path is not None or tokenizer.kind not in TRAINERS


def _rounded(tokens: float) -> int:
    """Round up to a multiple of 64."""
    return 64 * max(1, -(-int(tokens) // 64))


ON_TOKENS: tuple[Check, ...] = (
    too_many_passes,
    sequences_longer_than_stories,
    unused_rows,
    vocabulary_larger_than_text,
    validation_too_small,
    text_below_one_step,
    foreign_tokenizer,
)
"""Checks that need only numbers; the others read stories."""
CHECKS: tuple[Check, ...] = (
    *ON_TOKENS,
    unknown_tokens,
    validation_in_training,
    repeated_stories,
    broken_characters,
)
