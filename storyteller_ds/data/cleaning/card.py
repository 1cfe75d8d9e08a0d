"""The card of a cleaned corpus: what came in, what became of it, and why; as JSON and in words."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from storyteller_ds.data.cleaning.decisions import COMPARED
from storyteller_ds.data.cleaning.duplicates import SIMILARITY
from storyteller_ds.data.cleaning.filters import DROPPED
from storyteller_ds.data.cleaning.normalize import REPAIRS
from storyteller_ds.data.cleaning.output import Split
from storyteller_ds.data.cleaning.policy import Policy
from storyteller_ds.data.cleaning.shingles import WORDS
from storyteller_ds.data.cleaning.tally import Tally, entries
from storyteller_ds.durable import write_flushed

CARD_JSON, CARD = "card.json", "card.md"
FORMAT = 1
_MEANING = {
    **DROPPED,
    **COMPARED,
    **REPAIRS,
    "cut": "tales longer than the greatest length, cut at chapters, paragraphs or sentences",
    "gutenberg": "header, license and credits of Project Gutenberg",
}


def card_of(
    policy: Policy,
    inputs: Sequence[Mapping[str, Any]],
    unread: Sequence[str],
    notes: Sequence[str],
    license_lines: Sequence[str],
    tally: Tally,
    splits: Sequence[Split],
    found_by_check: int,
    libraries: Mapping[str, str],
    words: int,
) -> dict[str, Any]:
    """The contents of card.json, the same for the same text and settings, wherever and whenever it is made.

    Raises:
        AssertionError: the counts do not add up.
    """
    tally.check(split.as_count for split in splits)
    hashes = {split.name: split.sha256 for split in splits}
    return {
        "format": FORMAT,
        "fingerprint": hashlib.sha256(json.dumps(hashes, sort_keys=True).encode()).hexdigest(),
        "license": list(license_lines) or "not known",
        "inputs": list(inputs),
        "not_read": list(unread),
        "notes": list(notes),
        "policy": asdict(policy),
        "similarity": {"jaccard": SIMILARITY, "words_of_a_shingle": WORDS},
        "libraries": dict(libraries),
        "read": {"stories": tally.read.stories, "characters": tally.read.characters},
        "kept": {split.name: split._asdict() for split in splits},
        "dropped": entries(tally.dropped),
        "repaired": entries(tally.repaired),
        "characters_by_repairs": tally.spaces,
        "removed_before_reading": entries(tally.removed),
        "leaks_left_after_the_last_check": 0,
        "leaks_found_by_the_last_check": found_by_check,
        "vocabulary": words,
    }


def write_card(folder: Path, card: Mapping[str, Any], plots: Sequence[str]) -> None:
    """Write card.json and card.md.

    Args:
        folder: where they go.
        card: from card_of.
        plots: names of the pictures next to them.
    """
    write_flushed(folder / CARD_JSON, json.dumps(card, indent=2, ensure_ascii=False) + "\n")
    write_flushed(folder / CARD, _page(card, plots))


def _page(card: Mapping[str, Any], plots: Sequence[str]) -> str:
    kept = card["kept"].values()
    stories = sum(each["stories"] for each in kept)
    lines = [
        "# A cleaned corpus of stories",
        "",
        f"Made by `storyteller preprocess` from {_named(card['inputs'])}. "
        f"{card['read']['stories']:,} stories came in, {stories:,} stay. Fingerprint `{card['fingerprint'][:16]}`.",
        "",
        f"License: {_license(card['license'])}",
        "",
        "## What came in and what became of it",
        "",
        "| | stories | characters |",
        "|---|---:|---:|",
        f"| **read** | **{card['read']['stories']:,}** | **{card['read']['characters']:,}** |",
        *(f"| kept in {each['name']}.txt | {each['stories']:,} | {each['characters']:,} |" for each in kept),
        *(
            f"| dropped: {_MEANING[name]} | {each['stories']:,} | {each['characters']:,} |"
            for name, each in card["dropped"].items()
        ),
        f"| fewer by repairs | | {card['characters_by_repairs']:,} |",
        "",
        "The first line is the sum of the others; a tale that was cut counts as its parts.",
        "",
        *_section("Dropped, for instance", card["dropped"]),
        *_section("Repaired, for instance (before)", card["repaired"]),
        *_section("Left out before stories were told apart", card["removed_before_reading"]),
        "## How",
        "",
        *(f"- {note}" for note in card["notes"]),
        *(f"- not read: {name}" for name in card["not_read"]),
        f"- settings: {', '.join(f'{name}={value}' for name, value in card['policy'].items())}",
        f"- near-duplicates share {card['similarity']['jaccard']:.0%} of their sequences of "
        f"{card['similarity']['words_of_a_shingle']} words (Jaccard) or more; the longer one stays, or "
        "the one of the later split",
        "- the last check compared all pairs across splits that could be alike and found "
        f"{card['leaks_found_by_the_last_check']}, "
        "which were dropped and are counted above",
        f"- libraries: {', '.join(f'{name} {version}' for name, version in card['libraries'].items())}",
        f"- {card['vocabulary']:,} different words stay",
        "",
        *(f"![{name.removesuffix('.png')}]({name})" for name in plots),
    ]
    return "\n".join(lines).rstrip() + "\n"


def _section(title: str, counts: Mapping[str, Any]) -> list[str]:
    if not counts:
        return []
    lines = [f"## {title}", ""]
    for name, count in counts.items():
        lines += [f"**{_MEANING[name]}** ({count['stories']:,}):", ""]
        lines += [*(f"> {_quoted(example)}\n" for example in count["examples"])]
    return lines


def _quoted(example: str) -> str:
    """The example on one line, with the characters escaped that Markdown would interpret."""
    one_line = " ".join(example.split())
    return "".join(f"\\{each}" if each in "\\`*_{}[]<>#|!" else each for each in one_line if each.isprintable())


def _named(inputs: Sequence[Mapping[str, Any]]) -> str:
    names = [f"`{each['name']}`" for each in inputs[:5]]
    return ", ".join(names) + (f" and {len(inputs) - 5:,} more files" if len(inputs) > 5 else "")


def _license(known: str | Sequence[str]) -> str:
    return known if isinstance(known, str) else "".join(f"\n- {_quoted(line)}" for line in known)
