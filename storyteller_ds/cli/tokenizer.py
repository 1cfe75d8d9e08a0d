"""storyteller tokenizer: train, inspect or compare tokenizers."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from storyteller_ds.cli.group import Group
from storyteller_ds.cli.paths import UserPath
from storyteller_ds.errors import UserError

if TYPE_CHECKING:
    from storyteller_ds.data.tokenizers.compare import Measured
    from storyteller_ds.data.tokenizers.pieces import Piece

KINDS = ("bpe", "char", "sentencepiece")
COMPARED = 10_000
"""Maximum number of stories that tokenizers are compared on."""
_EXAMPLES = 8

_as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group(cls=Group)
def tokenizer() -> None:
    """Train, inspect or compare tokenizers."""


@tokenizer.command()
@click.option(
    "--input_file",
    required=True,
    type=UserPath(or_word=True),
    help="Text to train on; anything that data.source takes.",
)
@click.option("--output_dir", required=True, type=UserPath(), help="Folder for tokenizer.json.")
@click.option("--kind", type=click.Choice(KINDS), default="bpe", show_default=True, help="See tokenizer.kind.")
@click.option("--vocab_size", type=click.IntRange(2, 10_000_000), help="Number of tokens.  [default: at most 2048]")
@click.option(
    "--special_token", multiple=True, metavar="TOKEN", help="Special token that no text is encoded to; may be repeated."
)
@_as_json
@click.argument("overrides", nargs=-1, metavar="[data.field=value]...")
def train(
    input_file: str,
    output_dir: Path,
    kind: str,
    vocab_size: int | None,
    special_token: tuple[str, ...],
    as_json: bool,
    overrides: tuple[str, ...],
) -> None:
    """Train a tokenizer on a text, and write tokenizer.json.

    Nothing is held out. tokenizer.path=OUTPUT_DIR trains a model with it. Settings of data say how the text is read.
    """
    from storyteller_ds.config.load import load_config
    from storyteller_ds.console import lines_to, stderr_console
    from storyteller_ds.data.tokenizer_file import train_file

    if others := [each for each in overrides if not each.startswith("data.")]:
        raise UserError(f"{others[0]}: only settings of data count here; what the tokenizer is, options say (--help)")
    data = load_config(None, overrides).run.data.model_copy(update={"source": input_file})
    settings: dict[str, Any] = {"tokenizer.kind": kind, "tokenizer.special_tokens": list(special_token)}
    if vocab_size is not None:
        settings["tokenizer.vocab_size"] = vocab_size
    config = load_config(None, settings).run.tokenizer
    done = train_file(data, config, output_dir, vocab_size is not None, lines_to(stderr_console()))
    if as_json:
        values = {
            "tokenizer": str(done.path),
            "kind": kind,
            "vocab_size": done.tokenizer.vocab_size,
            "special_tokens": done.tokenizer.special_tokens,
            "documents": done.documents,
            "bytes": done.bytes,
            "seconds": done.seconds,
            "characters_per_token": done.characters_per_token,
            "unknown_share": done.unknown_share,
        }
        print(json.dumps(values, indent=2))
        return
    unknown = f", {done.unknown_share:.2%} of them unknown" if done.tokenizer.unknown is not None else ""
    print(
        f"{done.tokenizer.vocab_size:,} tokens, trained in {done.seconds:.1f} s on {done.documents:,} stories, "
        f"{done.bytes / 1e6:,.1f} MB\n{done.characters_per_token:.2f} characters per token in the first "
        f"{done.looked_at:,} stories{unknown}\ntokenizer: {done.path}"
    )


@tokenizer.command()
@click.argument("path", type=UserPath())
@click.option("--text", help="Also show how this text is split.")
@_as_json
def inspect(path: Path, text: str | None, as_json: bool) -> None:
    """Show what a tokenizer consists of, and how it splits a text.

    PATH is a tokenizer.json, a tokenizer.bin of llama2.c, or a folder: a run's, or one with vocab.json and merges.txt.
    """
    from storyteller_ds.data.tokenizers.choose import open_tokenizer
    from storyteller_ds.data.tokenizers.pieces import Piece, cut, kind_of, pieces, unreachable
    from storyteller_ds.user_paths import is_utf8

    if text is not None and not is_utf8(text):
        raise UserError("--text has bytes that are not UTF-8, which are not characters; leave them out")
    found = open_tokenizer(path, "give a tokenizer.json, a tokenizer.bin, or a folder")
    by_length = sorted(
        (Piece(i, content) for i, content in pieces(found).items()), key=lambda piece: (len(piece.content), piece.id)
    )
    shown = None if text is None else cut(found, text)
    dead = unreachable(found)
    if as_json:
        values = {
            "path": str(path),
            "kind": kind_of(found),
            "vocab_size": found.vocab_size,
            "special_tokens": found.special_tokens,
            "unknown": found.unknown,
            "sha256": found.fingerprint,
            "longest": _as_values(by_length[: -_EXAMPLES - 1 : -1]),
            "shortest": _as_values(by_length[:_EXAMPLES]),
            "unreachable": _as_values(dead),
            "cut": None if shown is None else _as_values(shown),
        }
        print(json.dumps(values, indent=2))
        return
    special = ", ".join(f"{name} {i}" for name, i in found.special_tokens.items())
    unknown = "none: any text can be spelt" if found.unknown is None else f"{found.name(found.unknown)} {found.unknown}"
    lines = {
        "kind": kind_of(found),
        "tokens": f"{found.vocab_size:,}",
        "special": special,
        "unknown": unknown,
        "longest": _listed(by_length[: -_EXAMPLES - 1 : -1]),
        "shortest": _listed(by_length[:_EXAMPLES]),
        "unreachable": f"{len(dead)}{': ' if dead else ''}{_listed(dead[:_EXAMPLES])}",
    }
    for name, line in lines.items():
        _print(f"{name + ':':<13}{line}")
    if text is not None and shown is not None:
        _print(f"\n{_listed(shown)}\n{len(shown)} tokens, {len(text)} characters, {len(text.encode())} bytes")


@tokenizer.command()
@click.argument("tokenizers", nargs=-1, required=True, type=UserPath(or_word=True), metavar="TOKENIZER...")
@click.option("--input_file", required=True, type=UserPath(or_word=True), help="Text to compare on, as data.source.")
@click.option("--train_file", type=UserPath(or_word=True), help="Text to train tokenizers on, as data.source.")
@click.option("--rare", type=click.IntRange(1), default=10, show_default=True, help="Tokens used less often are rare.")
@click.option("--plot", type=UserPath(), help="Also plot the comparison to this PNG file.")
@_as_json
def compare(
    tokenizers: tuple[str, ...], input_file: str, train_file: str | None, rare: int, plot: Path | None, as_json: bool
) -> None:
    """Compare tokenizers on a text: length, speed, and tokens that it hardly uses.

    A TOKENIZER is a path, as for inspect; gpt2; or a kind that is trained on --train_file: bpe:4096, char:105,
    sentencepiece:4096.
    """
    if plot is not None:
        _check_plot(plot)
    from storyteller_ds.console import lines_to, print_table, stderr_console
    from storyteller_ds.data.tokenizer_file import first_documents, named_tokenizer
    from storyteller_ds.data.tokenizers.compare import measure

    log = lines_to(stderr_console())
    texts = first_documents(input_file, COMPARED)
    measured = []
    for name in tokenizers:
        found = named_tokenizer(name, train_file, log)
        log(f"encoding {len(texts):,} stories with {name}")
        measured.append(measure(name, found, texts, rare))
    if plot is not None:
        from storyteller_ds.data.tokenizers.plot import draw
        from storyteller_ds.sweep.plot import save_figure

        save_figure(draw(measured), plot)
    if as_json:
        print(json.dumps([_row(each) for each in measured], indent=2))
        return
    print_table(_table(measured, rare))
    for each in measured:
        if each.unreachable:
            _print(f"{each.name}: no text becomes {_listed(each.unreachable[:_EXAMPLES])}")


def _check_plot(path: Path) -> None:
    from storyteller_ds.durable import check_output

    check_output(path, "--plot")


def _row(each: "Measured") -> dict[str, Any]:
    """A tokenizer's figures, for JSON output."""
    return {
        "name": each.name,
        "kind": each.kind,
        "vocab_size": each.vocab_size,
        "tokens": each.tokens,
        "characters_per_token": each.characters_per_token,
        "bytes_per_token": each.bytes_per_token,
        "frequency_bits_per_byte": each.frequency_bpb,
        "mb_per_s": each.mb_per_s,
        "unknown": each.unknown,
        "unused": _as_values(each.unused),
        "rare": _as_values(each.rare),
        "unreachable": _as_values(each.unreachable),
    }


def _table(measured: "list[Measured]", rare: int) -> Any:
    from rich import box
    from rich.table import Table

    left = ("tokenizer", "kind")
    right = ("tokens", "characters per token", "bytes per token", "bits per byte, by frequency", "MB/s", "unknown")
    rows = Table(box=box.MARKDOWN)
    for column in (*left, *right, "unused", f"used less than {rare} times", "unreachable"):
        rows.add_column(column, justify="left" if column in left else "right")
    for each in measured:
        rows.add_row(
            each.name,
            each.kind,
            f"{each.vocab_size:,}",
            f"{each.characters_per_token:.2f}",
            f"{each.bytes_per_token:.2f}",
            f"{each.frequency_bpb:.3f}",
            f"{each.mb_per_s:.1f}",
            f"{each.unknown / each.tokens:.2%}",
            f"{len(each.unused):,}",
            f"{len(each.rare):,}",
            f"{len(each.unreachable):,}",
        )
    return rows


def _listed(found: "list[Piece]") -> str:
    """Pieces of text in brackets, so that spaces are visible."""
    return "".join(f"[{piece}]" for piece in found)


def _as_values(found: "list[Piece]") -> list[dict[str, Any]]:
    return [{"id": piece.id, "text": str(piece), "bytes": len(piece.content)} for piece in found]


def _print(line: str) -> None:
    """Print a line that may contain text from an untrusted file."""
    from storyteller_ds.untrusted import for_terminal

    print(for_terminal(line))
