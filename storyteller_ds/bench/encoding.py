"""How fast text becomes tokens on disk, compared with what `tokenizers` needs for encoding alone."""

import multiprocessing
import tempfile
from dataclasses import dataclass
from pathlib import Path

import tokenizers

from storyteller_ds.bench.timing import seconds_of
from storyteller_ds.config.data import TokenizerConfig
from storyteller_ds.config.load import load_config
from storyteller_ds.data.builtin import grammar
from storyteller_ds.data.corpus import prepare_corpus
from storyteller_ds.data.sources.story_ends import MARKER
from storyteller_ds.data.tokenizers.choose import train_tokenizer
from storyteller_ds.machine import peak_resident_bytes

VOCABULARY = 4096
_TRAINED_ON = 3.0
"""Text that the tokenizer is trained on (MB)."""
_DOCUMENTS_AT_ONCE = 1000


@dataclass(frozen=True)
class EncodingRate:
    """What was measured."""

    megabytes: float
    training_s: float
    """Time to train a tokenizer of VOCABULARY tokens on _TRAINED_ON MB."""
    seconds: float
    """Time from a file to shards: reading, encoding, writing, checksums."""
    peak_bytes: int
    """Peak memory of the process that did it, including all imports."""
    alone_s: float
    """Time to encode the same stories in memory with the library, without offsets."""

    def lines(self) -> list[str]:
        """The results as lines for people."""
        rate, alone = self.megabytes / self.seconds, self.megabytes / self.alone_s
        return [
            f"tokenizer: {self.training_s:.1f} s for {VOCABULARY:,} tokens of {_TRAINED_ON:.0f} MB",
            f"encoding: {rate:.1f} MB/s from text to checked shards; limit {alone:.1f} MB/s: tokenizers' own "
            f"encode_batch_fast ({rate / alone:.0%})",
            f"memory: {self.peak_bytes / 1e6:.0f} MB at most, Python and libraries included, while "
            f"{self.megabytes:.0f} MB of text became tokens",
        ]


def measure(megabytes: float) -> EncodingRate:
    """Prepare a text of made-up stories in a temporary folder.

    Args:
        megabytes: size of the text.
    """
    stories: list[str] = []
    size = 0
    while size < 1e6 * megabytes:
        stories.append(grammar.story("train", 0, len(stories)).strip())
        size += len(stories[-1].encode())
    part = stories[: max(1, int(len(stories) * min(1.0, _TRAINED_ON / megabytes)))]
    config = TokenizerConfig(vocab_size=VOCABULARY)
    training_s = seconds_of(lambda: train_tokenizer(config, part))
    tokenizer = train_tokenizer(config, part)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "stories.txt").write_text("".join(f"{story}\n{MARKER}\n" for story in stories), encoding="utf-8")
        (folder / "tokenizer.json").write_text(tokenizer.to_json(), encoding="utf-8")
        # In a separate process, so that what this one holds does not count as its memory.
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            seconds, peak = pool.apply(_prepared, (folder,))
    theirs = tokenizers.Tokenizer.from_str(tokenizer.to_json())
    batches = range(0, len(stories), _DOCUMENTS_AT_ONCE)
    alone_s = seconds_of(
        lambda: [theirs.encode_batch_fast(stories[start : start + _DOCUMENTS_AT_ONCE]) for start in batches]
    )
    return EncodingRate(size / 1e6, training_s, seconds, peak, alone_s)


def _prepared(folder: Path) -> tuple[float, int]:
    """Seconds to prepare the text of a folder with its tokenizer, and this process's peak memory (bytes)."""
    run = load_config(
        None,
        {
            "data.source": str(folder / "stories.txt"),
            "data.validation": "builtin",
            "data.builtin_stories": 1,
            "data.cache_dir": str(folder / "cache"),
            "tokenizer.path": str(folder / "tokenizer.json"),
            "tokenizer.vocab_size": VOCABULARY,
        },
    ).run
    return seconds_of(lambda: prepare_corpus(run, _nothing)), peak_resident_bytes()


def _nothing(_: str) -> None:
    """Ignore progress."""
