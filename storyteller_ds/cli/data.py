"""storyteller data: verify a prepared corpus, count it, and show a story as the model sees it."""

import dataclasses
import json
from typing import TYPE_CHECKING, Any

import click

from storyteller_ds.cli.group import Group
from storyteller_ds.cli.paths import UserPath

if TYPE_CHECKING:
    from storyteller_ds.config.run import RunConfig
    from storyteller_ds.data.corpus import Corpus

_SPLITS = ("train", "validation")

_config = click.option(
    "--config",
    type=UserPath(or_word=True),
    metavar="PRESET_OR_FILE",
    help="Preset name or YAML file.  [default: quickstart]",
)
_overrides = click.argument("overrides", nargs=-1, metavar="[section.field=value]...")
_as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group(cls=Group)
def data() -> None:
    """Verify, count and show the tokenized stories that a run config trains on."""


@data.command()
@_config
@_overrides
def verify(config: str | None, overrides: tuple[str, ...]) -> None:
    """Read every prepared token and compare it with the checksums. Exits 2 if one is damaged, or nothing is prepared.

    A run prepares damaged parts again.
    """
    from storyteller_ds.data.corpus import find_corpus

    run = _load(config, overrides)
    folder = find_corpus(run, _log())
    print(f"whole: {folder}")


@data.command()
@_config
@_as_json
@_overrides
def stats(config: str | None, as_json: bool, overrides: tuple[str, ...]) -> None:
    """Count stories, bytes and tokens of both splits, and how long stories are. Prepares them if needed."""
    from storyteller_ds.data.stories import statistics_of

    run = _load(config, overrides)
    corpus = _open(run)
    found = {
        split: statistics_of(
            getattr(corpus, split),
            corpus.tokenizer.end_of_text,
            getattr(corpus, f"{split}_size").bytes,
            run.data.sequence_length,
        )
        for split in _SPLITS
    }
    if as_json:
        values = {name: dataclasses.asdict(each) for name, each in found.items()}
        print(json.dumps({"fingerprint": corpus.fingerprint, **values}, indent=2))
        return
    for name, each in found.items():
        size = (
            "" if each.bytes is None else f", {each.bytes / 1e6:,.2f} MB, {each.bytes / each.tokens:.2f} bytes a token"
        )
        lengths = ", ".join(f"{value:,} ({place})" for place, value in each.length_percentiles.items())
        print(f"{name}: {each.stories:,} stories, {each.tokens:,} tokens{size}")
        print(f"  tokens of a story: {lengths}")
        print(f"  longer than data.sequence_length={run.data.sequence_length}: {each.longer:,} stories")
        print(f"  {each.used:,} of {corpus.tokenizer.vocab_size:,} different tokens occur")


@data.command()
@click.argument("number", type=int)
@_config
@click.option("--split", type=click.Choice(_SPLITS), default="train", show_default=True)
@click.option("--tokens", is_flag=True, help="Show the tokens.")
@_overrides
def show(number: int, config: str | None, split: str, tokens: bool, overrides: tuple[str, ...]) -> None:
    """Print story NUMBER, counted from 1, as the model sees it: decoded from its tokens."""
    from storyteller_ds.data.stories import Stories
    from storyteller_ds.data.tokenizers.pieces import Piece, pieces
    from storyteller_ds.untrusted import for_terminal

    corpus = _open(_load(config, overrides))
    ids = Stories(getattr(corpus, split), corpus.tokenizer.end_of_text).ids(number)
    if not tokens:
        print(for_terminal(corpus.tokenizer.decode(ids)))
        return
    contents = pieces(corpus.tokenizer)
    print(for_terminal("".join(f"[{Piece(i, contents.get(i, b''))}]" for i in ids)))
    print(f"{len(ids)} tokens")


def _load(config: str | None, overrides: tuple[str, ...]) -> "RunConfig":
    from storyteller_ds.config.load import load_config

    return load_config(config, overrides).run


def _open(run: "RunConfig") -> "Corpus":
    from storyteller_ds.data.corpus import open_corpus, prepare_corpus

    return open_corpus(run, prepare_corpus(run, _log()))


def _log() -> Any:
    from storyteller_ds.console import lines_to, stderr_console

    return lines_to(stderr_console())
