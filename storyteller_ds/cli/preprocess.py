"""storyteller preprocess: turn raw text into stories that can be trained on."""

from pathlib import Path
from typing import Any

import click

from storyteller_ds.cli.ending import ended_as_by_ctrl_c
from storyteller_ds.cli.paths import UserPath
from storyteller_ds.errors import UserError

_READ_BY = ("data.encoding=", "data.text_field=", "data.bad_rows=")
_BOUNDARIES = ["auto", "blank_line", "line", "line_break", "heading", "opening", "file"]


@click.command()
@click.option("--input_dir", required=True, type=UserPath(), help="Folder of stories, or a file.")
@click.option("--output_dir", required=True, type=UserPath(), help="Folder to write; must not exist, or be empty.")
@click.option(
    "--boundary",
    type=click.Choice(_BOUNDARIES),
    default="auto",
    show_default=True,
    help="Where stories end in text without <|endoftext|>; auto decides by content and logs its choice.",
)
@click.option(
    "--language", default="en", show_default=True, help="Keep only stories in this language (ISO 639-1), or any."
)
@click.option(
    "--punctuation",
    type=click.Choice(["keep", "plain"]),
    default="keep",
    show_default=True,
    help="plain: replace curly quotes, dashes and ellipses by ASCII.",
)
@click.option("--min_chars", type=click.IntRange(0), default=100, show_default=True, help="Drop shorter stories.")
@click.option(
    "--max_chars",
    type=click.IntRange(1),
    default=32_000,
    show_default=True,
    help="Cut longer stories at chapters, paragraphs or sentences.",
)
@click.option(
    "--splits",
    type=click.Choice(["hash", "given"]),
    default="hash",
    show_default=True,
    help="hash: by each story's hash, so that it stays in its split when the corpus grows; given: by file name.",
)
@click.option("--validation_fraction", type=click.FloatRange(0, 0.5), default=0.05, show_default=True)
@click.option("--test_fraction", type=click.FloatRange(0, 0.4), default=0.05, show_default=True)
@click.argument("overrides", nargs=-1, metavar="[data.field=value]...")
@click.option(
    "--processes", type=click.IntRange(1), help="Number of processes; the result is the same.  [default: all cores]"
)
def preprocess(
    input_dir: Path, output_dir: Path, processes: int | None, overrides: tuple[str, ...], **settings: Any
) -> None:
    """Clean, deduplicate and split stories, with a card that accounts for every one.

    Writes train.txt, validation.txt and test.txt, for `storyteller train data.source=OUTPUT_DIR`, and card.md and
    card.json: what came in, what was dropped and why, with examples. data.encoding, data.text_field and data.bad_rows
    say how files are read, as for training.
    """
    click.get_current_context().with_resource(ended_as_by_ctrl_c())
    # Imported here: --help need not wait for it.
    from storyteller_ds.data.cleaning.extra import require_libraries

    require_libraries()
    from storyteller_ds.config.load import load_config
    from storyteller_ds.console import lines_to, stderr_console
    from storyteller_ds.cores import usable_cores
    from storyteller_ds.data.cleaning.pipeline import preprocess as clean
    from storyteller_ds.data.cleaning.policy import Policy

    if other := next((each for each in overrides if not each.startswith(_READ_BY)), None):
        raise UserError(f"{other}: only {', '.join(_READ_BY)} count here, with a value behind them")
    data = load_config(None, overrides).run.data
    policy = Policy(
        boundary=settings["boundary"],
        language=settings["language"],
        punctuation=settings["punctuation"],
        min_characters=settings["min_chars"],
        max_characters=settings["max_chars"],
        splitting=settings["splits"],
        validation_fraction=settings["validation_fraction"],
        test_fraction=settings["test_fraction"],
        encoding=data.encoding,
        text_field=data.text_field,
        bad_rows=data.bad_rows,
    )
    card = clean(input_dir, output_dir, policy, processes or usable_cores(), lines_to(stderr_console()))
    print(f"read: {card['read']['stories']:,} stories")
    for reason, count in card["dropped"].items():
        print(f"dropped, {reason.replace('_', ' ')}: {count['stories']:,}")
    for name, split in card["kept"].items():
        print(f"{name}: {split['stories']:,} stories, {split['bytes'] / 1e6:,.2f} MB")
    print(f"card: {output_dir / 'card.md'}")
