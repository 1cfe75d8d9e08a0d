"""A small text, and the corpus that is prepared from it."""

from pathlib import Path

from storyteller_ds.config.run import RunConfig
from storyteller_ds.data.corpus import Corpus, open_corpus, prepare_corpus

STORIES = [f"Story number {i}. There was a dog called Rex{i}." for i in range(40)]


def config(text: Path, **data: object) -> RunConfig:
    """A run on this text file, a fifth of it held out, one token a character, with a cache beside it."""
    settings = {"source": str(text), "cache_dir": str(text.parent / "cache"), "validation_fraction": 0.2, **data}
    return RunConfig.model_validate({"data": settings, "tokenizer": {"kind": "char", "vocab_size": 64}})


def prepared(run: RunConfig) -> list[str]:
    """Prepare the corpus; returns the lines logged."""
    logged: list[str] = []
    prepare_corpus(run, logged.append)
    return logged


def opened(run: RunConfig) -> Corpus:
    """The corpus, which is made if need be."""
    return open_corpus(run, prepare_corpus(run, _silently))


def folder_of(run: RunConfig) -> Path:
    """Where the corpus lies, which is made if need be."""
    assert run.data.cache_dir is not None
    return run.data.cache_dir / prepare_corpus(run, _silently)


def content_of(folder: Path) -> dict[str, bytes]:
    """The bytes of its files by their names."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def _silently(line: str) -> None:
    del line
