"""What a preset takes on this machine, and what it achieves: python -m benchmarks.presets quickstart fast_train

Trains each preset to its end on one device, and generates a story with it. A record of each goes to
benchmarks/results/presets; the story and the table of README.md are written from all records.
"""

import json
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

import storyteller_ds as st
from benchmarks.operations.record import describe, machine_name, slug
from storyteller_ds.config.files import preset_names, preset_summary
from storyteller_ds.durable import write_atomically

REPOSITORY = Path(__file__).resolve().parents[1]
RECORDS = REPOSITORY / "benchmarks" / "results" / "presets"
README = REPOSITORY / "README.md"
PROMPT, SEED = "Once upon a time", 1
FIRST = "quickstart"
"""The preset whose story is shown."""


def measure(preset: str) -> dict[str, Any]:
    """Train a preset and record the results."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        run = st.train(preset, {"tracking.wandb": "disabled"}, output_dir=folder)
        minutes = (time.monotonic() - began) / 60
        story = st.load(run.folder).generate(PROMPT, seed=SEED)
        metrics = run.metrics
    speeds = [record["tokens_per_s"] for record in metrics if "tokens_per_s" in record]
    return {
        "preset": preset,
        "steps": run.step,
        "minutes": round(minutes, 2),
        "tokens_per_s": round(statistics.median(speeds)),
        "final_val_loss": metrics[-1]["final_val_loss"],
        "final_val_bpb": metrics[-1]["final_val_bpb"],
        "story": story,
        "machine": describe("gpu" if torch.cuda.is_available() else "cpu", None),
    }


def records() -> list[dict[str, Any]]:
    """All records of this repository, by machine and preset."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(RECORDS.glob("*.json"))]


def table(found: Sequence[Mapping[str, Any]]) -> str:
    """The table of presets: one line per preset and machine, or a single line for a preset without records."""
    lines = [
        "| preset | for what | parameters (active) | trained on | minutes | val loss | bits per byte |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [line for preset in preset_names() for line in _lines(preset, found)]
    return "\n".join(lines)


def _lines(preset: str, found: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    summary = preset_summary(preset)
    size = f"{summary.parameters / 1e6:,.1f}M ({summary.active / 1e6:,.1f}M)"
    about = f"| `{preset}` | {summary.purpose.rstrip('.')} | {size}"
    mine = [record for record in found if record["preset"] == preset]
    if not mine:
        yield f"{about} | not yet measured | | | |"
    for record in mine:
        machine = record["machine"]
        threads = f", {machine['threads']} threads" if machine["suite"] == "cpu" else ""
        yield (
            f"{about} | {machine_name(machine)}{threads} | {record['minutes']:.1f} | {record['final_val_loss']:.3f} | "
            f"{record['final_val_bpb']:.3f} |"
        )


def story(found: Sequence[Mapping[str, Any]]) -> str:
    """A story by the preset FIRST, and the machine it was made on."""
    record = next(record for record in found if record["preset"] == FIRST)
    machine = record["machine"]
    quoted = "\n".join(f"> {line}".rstrip() for line in record["story"].strip().splitlines())
    return (
        f"{quoted}\n\n`{FIRST}`, trained for {record['minutes']:.1f} minutes on {machine_name(machine)} "
        f"({machine['threads']} threads, torch {machine['versions']['torch']}, {machine['date'][:10]}); told by "
        f'`storyteller generate --checkpoint runs/{FIRST} --prompt "{PROMPT}" --seed {SEED}`.'
    )


def filled_in(text: str, found: Sequence[Mapping[str, Any]]) -> str:
    """The README, filled in from the records.

    Raises:
        ValueError: it lacks a marked place.
    """
    for name, inside in (("story", story(found)), ("presets", table(found))):
        begin, end = f"<!-- {name}: written by `python -m benchmarks.presets` -->", f"<!-- end of {name} -->"
        pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
        if not pattern.search(text):
            raise ValueError(f"README.md has no '{begin}' with '{end}' after it")
        text = pattern.sub(lambda _, block=f"{begin}\n{inside}\n{end}": block, text)  # type: ignore[misc]
    return text


def main() -> None:
    """Measure the named presets, and write the table."""
    RECORDS.mkdir(parents=True, exist_ok=True)
    for preset in sys.argv[1:]:
        record = measure(preset)
        name = f"{slug(machine_name(record['machine']))}_{preset}.json"
        write_atomically(RECORDS / name, json.dumps(record, indent=1, ensure_ascii=False) + "\n")
        print(record["story"])
    write_atomically(README, filled_in(README.read_text(encoding="utf-8"), records()))


if __name__ == "__main__":
    main()
