"""What a report says in words and numbers, about one run or about several side by side."""

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

from rich.filesize import decimal

from storyteller_ds.config.load import flatten
from storyteller_ds.console import duration
from storyteller_ds.model.counts import count_parameters
from storyteller_ds.report.run_records import RunRecords

_NOT_COMPARED = (
    "tracking.",
    "checkpoint.",
    "train.sample_",
    "train.log_every_steps",
    "train.callbacks",
    "data.cache_dir",
)
"""Settings that may differ between runs without any effect on what is learned."""


class Tile(NamedTuple):
    """A key number at the top of the page."""

    label: str
    value: str
    note: str = ""


def sentence(run: RunRecords) -> str:
    """What the run is, and what came of it."""
    parts = []
    if run.config is not None:
        count, moe = count_parameters(run.config), run.config.moe
        kind = f"mixture of {moe.num_experts} experts, top-{moe.top_k}" if run.config.moe_layers else "dense model"
        parts.append(f"A {kind}, {count.total / 1e6:.2f}M parameters, {count.active / 1e6:.2f}M active for a token.")
    parts.append(state(run) + ".")
    if (bpb := best_known_bpb(run)) is not None:
        parts.append(f"It predicts held-out stories with {bpb:.4f} bits per byte.")
    return " ".join(parts)


def state(run: RunRecords) -> str:
    """The run's progress."""
    steps = f"{run.step:,} steps"
    if run.is_being_written:
        return f"Still training: {steps} so far"
    if run.last("final_val_bpb") is not None:
        return f"Finished after {steps}"
    planned = "" if run.config is None else f" of {run.config.train.max_steps:,}"
    return f"Stopped early, after {run.step:,}{planned} steps" if run.step else "No step is recorded yet"


def best_known_bpb(run: RunRecords) -> float | None:
    """Bits per byte of the whole validation text if known, else of the last validation."""
    value = run.last("final_val_bpb")
    value = run.last("val_bpb") if value is None else value
    return float(value) if isinstance(value, int | float) else None


def tiles(run: RunRecords) -> list[Tile]:
    """The key numbers of a run; unknown ones are left out."""
    is_final = run.last("final_val_bpb") is not None
    found = []
    if (bpb := best_known_bpb(run)) is not None:
        found.append(Tile("bits per byte", f"{bpb:.4f}", "all held-out stories" if is_final else "last validation"))
    if (ppl := run.last("final_val_ppl" if is_final else "val_ppl")) is not None:
        found.append(Tile("perplexity", f"{ppl:.2f}", "per token"))
    if run.train:
        found.append(Tile("trained on", f"{run.tokens / 1e6:.2f}M tokens", f"{run.step:,} steps"))
        found.append(Tile("time", duration(seconds_in_steps(run)), "in optimizer steps"))
    if speeds := _known(run, "tokens_per_s"):
        mfu = _known(run, "mfu")
        note = f"{statistics.median(mfu):.0%} of this device's rate" if mfu else ""
        found.append(Tile("tokens/s", f"{statistics.median(speeds):,.0f}", note))
    if peaks := _known(run, "memory_peak_bytes"):
        found.append(Tile("GPU memory", decimal(int(max(peaks))), "peak"))
    elif host := _known(run, "host_memory_bytes"):
        found.append(Tile("memory", decimal(int(max(host))), "of the process"))
    if run.checkpoints:
        newest = run.checkpoints[0]
        note = f"step {newest.step:,}, newest of {len(run.checkpoints)}"
        found.append(Tile("checkpoint", decimal(newest.bytes), note))
    return found


def incidents(run: RunRecords) -> list[str]:
    """What went wrong along the way, one line each."""
    counts = (
        ("skipped_steps", "step(s) were skipped, since their gradient was not finite"),
        ("loss_spikes", "loss spike(s)"),
        ("rollbacks", "time(s) the run was put back to a checkpoint"),
        ("undone_steps", "step(s) were undone by it"),
        ("idle_experts", "expert(s) have had no token in any of the last logged steps: dead weight, see the atlas"),
    )
    return [f"{count:,} {what}" for key, what in counts if (count := run.last(key))]


def seconds_in_steps(run: RunRecords) -> float:
    """Time spent in optimizer steps, with each logged step standing for all since the previous one."""
    total, before = 0.0, 0
    for record in run.train:
        total += (record.get("step_time_s") or 0.0) * (record["step"] - before)
        before = record["step"]
    return total


def where(run: RunRecords) -> list[tuple[str, str]]:
    """The machine and the ranks, as far as recorded."""
    topology = run.saved.get("topology")
    facts = []
    if isinstance(topology, dict):
        zero = topology.get("zero_stage")
        engine = "one process" if zero is None else f"DeepSpeed ZeRO-{zero}, ep_size {topology.get('ep_size')}"
        ranks = topology.get("world_size")
        facts.append(("ran on", f"{ranks} rank(s), {topology.get('device')}; {engine}"))
    machine = run.saved.get("machine")
    facts += [(str(key), str(value)) for key, value in machine.items()] if isinstance(machine, dict) else []
    if run.config is not None:
        facts += [
            ("text", run.config.data.source_name),
            ("held out", str(run.config.data.validation or "a part of it")),
        ]
    return facts


def continuation(run: RunRecords) -> str:
    """The command that continues the run; empty if none is recorded."""
    command = run.saved.get("command")
    return command if isinstance(command, str) else ""


def same_tokenizer(runs: Sequence[RunRecords]) -> bool:
    """Whether losses per token can be compared: the tokenizer files are the same."""
    found = set()
    for run in runs:
        file = run.folder / "tokenizer.json"
        found.add(file.read_bytes() if file.is_file() else None)
    return len(found) == 1 and (len(runs) == 1 or None not in found)


def same_text(runs: Sequence[RunRecords]) -> bool:
    """Whether scores can be compared: the settings that name the held-out text are the same."""
    found = set()
    for run in runs:
        if run.config is None:
            return False
        data = run.config.data
        held_out = ("source", "split", "validation_fraction", "builtin_stories", "revision", "max_documents")
        named = ("validation", "encoding", "text_field", *(held_out if data.validation is None else ()))
        found.add(tuple(str(getattr(data, field)) for field in named))
    return len(found) == 1


def comparison(runs: Sequence[RunRecords], same_tokens: bool) -> list[tuple[str, list[str]]]:
    """Rows of numbers, with a column for each run; what counts is the fewest bits per byte."""

    def row(name: str, values: Sequence[object | None], shown: str) -> tuple[str, list[str]]:
        return name, ["-" if value is None else format(value, shown) for value in values]

    counts = [None if run.config is None else count_parameters(run.config) for run in runs]
    rows = [
        row("bits per byte, all held-out stories", [run.last("final_val_bpb") for run in runs], ".4f"),
        row("bits per byte, last validation", [run.last("val_bpb") for run in runs], ".4f"),
        *([row("loss (nats per token)", [run.last("final_val_loss") for run in runs], ".4f")] if same_tokens else []),
        row("steps", [run.step for run in runs], ","),
        row("million tokens", [run.tokens / 1e6 for run in runs], ".2f"),
        ("time in steps", [duration(seconds_in_steps(run)) for run in runs]),
        row("tokens/s (median)", [_median(_known(run, "tokens_per_s")) for run in runs], ",.0f"),
        row("million parameters", [None if count is None else count.total / 1e6 for count in counts], ".2f"),
        row("… active for a token", [None if count is None else count.active / 1e6 for count in counts], ".2f"),
        ("state", [state(run) for run in runs]),
    ]
    return [each for each in rows if any(value != "-" for value in each[1])]


def differences(runs: Sequence[RunRecords]) -> list[tuple[str, list[str]]]:
    """Settings in which the runs differ, with a column for each run."""
    settings = [flatten(run.config.model_dump(mode="json")) if run.config is not None else {} for run in runs]
    rows = []
    for field in sorted(set().union(*settings)):
        values = [str(each.get(field, "-")) for each in settings]
        if len(set(values)) > 1 and not field.startswith(_NOT_COMPARED):
            rows.append((field, values))
    return rows


def _known(run: RunRecords, key: str) -> list[float]:
    values = [record.get(key) for record in run.train]
    return [float(value) for value in values if isinstance(value, int | float) and math.isfinite(value)]


def _median(values: Sequence[float]) -> float | None:
    return statistics.median(values) if values else None
