"""A small text, and the corpus prepared from it."""

from pathlib import Path

from storyteller_ds.config.run import RunConfig
from storyteller_ds.data.corpus import Corpus, open_corpus, prepare_corpus

STORIES = [f"Story number {i}. There was a dog called Rex{i}." for i in range(40)]


def config(text: Path, **data: object) -> RunConfig:
    """A run on this text file: a fifth of it held out, one token per character, and the cache beside it."""
    settings = {"source": str(text), "cache_dir": str(text.parent / "cache"), "validation_fraction": 0.2, **data}
    return RunConfig.model_validate({"data": settings, "tokenizer": {"kind": "char", "vocab_size": 64}})


def prepared(run: RunConfig) -> list[str]:
    """Prepare the corpus; returns the logged lines."""
    logged: list[str] = []
    prepare_corpus(run, logged.append)
    return logged


def opened(run: RunConfig) -> Corpus:
    """The corpus, which is prepared if necessary."""
    return open_corpus(run, prepare_corpus(run, _silently))


def folder_of(run: RunConfig) -> Path:
    """The folder of the corpus, which is prepared if necessary."""
    assert run.data.cache_dir is not None
    return run.data.cache_dir / prepare_corpus(run, _silently)


def content_of(folder: Path) -> dict[str, bytes]:
    """The contents of the folder's files: name -> bytes."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def _silently(line: str) -> None:
    del line
