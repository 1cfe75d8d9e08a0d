"""Checkpoints side by side: as a table for people, and as JSON with everything."""

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from textwrap import shorten
from typing import Any

from rich import box
from rich.table import Table

from storyteller_ds.evaluation.evaluate import Evaluated
from storyteller_ds.evaluation.figures import all_figures, estimate
from storyteller_ds.evaluation.interval import Estimate, ratio
from storyteller_ds.evaluation.libraries import what_is_missing

_MOST_COPIED_BY_CHANCE = 0.1
_SHOWN = 200
"""How much of a passage is shown (characters)."""
_LEFT = 2
"""How many columns are left-aligned: the first ones, which hold words."""


def heading(found: Sequence[Evaluated]) -> list[str]:
    """What the table is about: each checkpoint, and what it was measured on."""
    lines = []
    for label, each in zip(labels(found), found, strict=True):
        size = f"{len(each.prediction.bytes_N):,} stories, {each.prediction.bytes_N.sum():,} bytes"
        lines.append(f"{label}: {each.folder}, on {each.text.name}: {size}, {each.prediction.tokens:,} tokens")
    return lines


def table(found: Sequence[Evaluated]) -> Table:
    """One row per metric, one column per checkpoint."""
    columns, lines = cells(found)
    rows = Table(box=box.MARKDOWN)
    for i, column in enumerate(columns):
        rows.add_column(column, justify="left" if i < _LEFT else "right")
    for line in lines:
        rows.add_row(*line)
    return rows


def cells(found: Sequence[Evaluated]) -> tuple[list[str], list[list[str]]]:
    """The table's column names and its rows."""
    tells = any(each.generation for each in found)
    columns = ["figure", "better", *labels(found), *(["held-out stories"] if tells else [])]
    same_tokens = _are_same(each.text.tokenizer.fingerprint for each in found)
    lines = []
    for figure in all_figures(found[0]):
        if figure.is_per_token and not same_tokens:
            continue
        values = [figure.of(each) for each in found]
        held_out = "" if figure.of_held_out is None else _first(figure.of_held_out(each) for each in found)
        if any(value != "-" for value in (*values, held_out or "-")):
            lines.append([figure.name, figure.better, *values, *([held_out] if tells else [])])
        if figure.name == "bits per byte" and (differences := compared(found)):
            shown = ["", *(f"{'' if each.value < 0 else '+'}{estimate(each)}" for each in differences)]
            lines.append([f"… less those of {labels(found)[0]}", "lower", *shown, *([""] if tells else [])])
    return columns, lines


def compared(found: Sequence[Evaluated]) -> list[Estimate]:
    """Bits per byte of each checkpoint but the first minus those of the first; empty if their texts differ.

    The interval is that of the difference, story by story. What is hard for one is hard for the other, so it is much
    narrower than the intervals of the two (Miller 2024, 2411.00640).
    """
    if len(found) < 2 or not _are_same(each.text.fingerprint for each in found):
        return []
    return [_difference(each, found[0]) for each in found[1:]]


def verdict(found: Sequence[Evaluated]) -> list[str]:
    """Which checkpoint predicts best, or that this text cannot tell; no line if there is nothing to compare."""
    if not compared(found):
        return []
    names = labels(found)
    best, second = sorted(range(len(found)), key=lambda i: found[i].prediction.bits_per_byte.value)[:2]
    less = _difference(found[second], found[best])
    if less.half_width is None or less.value <= less.half_width:
        return [f"{names[best]} and {names[second]} cannot be told apart on this text: {estimate(less)} bits per byte"]
    return [f"{names[best]} predicts best, with {estimate(less)} bits per byte less than {names[second]}"]


def _difference(one: Evaluated, other: Evaluated) -> Estimate:
    """Bits per byte of one minus those of another, on the same text."""
    nll_N = one.prediction.nll_N - other.prediction.nll_N
    return ratio(nll_N / math.log(2), one.prediction.bytes_N)


def remarks(found: Sequence[Evaluated]) -> list[str]:
    """Caveats about the metrics, one per line."""
    lines: list[str] = []
    same_tokens = _are_same(each.text.tokenizer.fingerprint for each in found)
    for label, each in zip(labels(found), found, strict=True):
        lines += [f"{label}: {remark}" for remark in each.remarks]
        if same_tokens and each.prediction.rarity_from == each.text.name:
            lines.append(f"{label}: rarity is that of tokens in {each.text.name}")
        lines += _about_stories(label, each)
    if not _are_same(each.text.fingerprint for each in found):
        lines.append("the checkpoints were measured on different texts and cannot be compared; give one with --data")
    if not same_tokens:
        lines.append(
            "the checkpoints have different tokenizers: of what is predicted only bits per byte are compared, and "
            "their stories are cut at as many tokens, not words"
        )
    if any(each.generation for each in found):
        lines += what_is_missing()
    return lines


def as_json(found: Sequence[Evaluated]) -> str:
    """Everything, with all intervals, bins and stories; unknown values are null."""
    differences = [None, *compared(found)] if len(found) > 1 else []
    columns, lines = cells(found)
    document = {
        "checkpoints": [{"name": label, **_as_mapping(each)} for label, each in zip(labels(found), found, strict=True)],
        "bits_per_byte_less_first": [None if each is None else each._asdict() for each in differences],
        "remarks": remarks(found),
        "table": {"columns": columns, "rows": lines},
    }
    return json.dumps(document, indent=2, allow_nan=False)


def labels(found: Sequence[Evaluated]) -> list[str]:
    """A short, unique name for each checkpoint."""
    names = []
    for each in found:
        parts = each.folder.absolute().parts
        run = parts[-3] if len(parts) > 2 and parts[-2] == "checkpoints" else parts[-2] if len(parts) > 1 else ""
        is_step = each.folder.name.startswith("step_")
        names.append(
            f"{run} {each.folder.name.removeprefix('step_').lstrip('0') or '0'}" if is_step else each.folder.name
        )
    count = Counter(names)
    return [f"{name} ({i})" if count[name] > 1 else name for i, name in enumerate(names, 1)]


def _as_mapping(each: Evaluated) -> dict[str, Any]:
    prediction, told = each.prediction, each.generation
    values: dict[str, Any] = {
        "checkpoint": str(each.folder),
        "text": each.text.name,
        "text_fingerprint": each.text.fingerprint,
        "stories": len(prediction.bytes_N),
        "bytes": int(prediction.bytes_N.sum()),
        "tokens": prediction.tokens,
        "bits_per_byte": prediction.bits_per_byte._asdict(),
        "loss": prediction.loss._asdict(),
        "perplexity": prediction.perplexity,
        "accuracy": prediction.calibration.accuracy,
        "calibration_error": prediction.calibration.error,
        "reliability": [each._asdict() for each in prediction.calibration.bins],
        "bits_per_byte_by_position": [each._asdict() for each in prediction.by_position],
        "bits_per_byte_by_length": [each._asdict() for each in prediction.by_length],
        "loss_by_rarity": [each._asdict() for each in prediction.by_rarity],
        "rarity_from": prediction.rarity_from,
        "generation": None if told is None else asdict(told),
    }
    return values


def _about_stories(label: str, each: Evaluated) -> list[str]:
    told, lines = each.generation, []
    if told is None:
        return []
    if told.figures.empty:
        lines.append(f"{label}: {told.figures.empty} of {told.figures.stories} stories have no word")
    if told.memorisation is not None:
        if passage := " ".join(told.memorisation.of_model.longest.split()):
            lines.append(f"{label}: the longest passage from training is: {shorten(passage, _SHOWN, placeholder=' …')}")
        if (told.memorisation.held_out.near_copies or 0) > _MOST_COPIED_BY_CHANCE:
            lines.append(
                f"{label}: {told.memorisation.held_out.near_copies:.0%} of the held-out stories are near-copies of the "
                "training text; it is not unseen, and all figures flatter"
            )
    for whose, judged in (("stories", told.judged), ("held-out stories", told.held_out_judged)):
        if judged is not None and judged.graded < judged.stories:
            lines.append(
                f"{label}: the judge has graded {judged.graded} of {judged.stories} {whose} ({judged.first_problem})"
            )
    return lines


def _are_same(values: Any) -> bool:
    return len(set(values)) == 1


def _first(values: Any) -> str:
    return next((value for value in values if value != "-"), "-")
