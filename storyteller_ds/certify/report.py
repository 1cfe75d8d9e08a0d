"""The certificate: as a table for people, as JSON for programs, as Markdown for the documentation."""

import json
import math
from collections.abc import Sequence
from typing import Any

from storyteller_ds.certify.compare import QUANTITIES
from storyteller_ds.certify.rows import PRESET, RUN, STEPS
from storyteller_ds.certify.run import Verdict
from storyteller_ds.machine import machine

COLUMNS = ("row", "ranks", *QUANTITIES, "sent/routed", "memory", "step", "result")
LEGEND = (
    "loss, grad_norm, router: largest relative difference of any step (router: balance loss, z-loss, entropy); "
    "weights: of any tensor after the last step, |a - b| / |b| in Frobenius norm; logits: of a held-out batch. "
    "sent/routed: bytes passed to all-to-all on all ranks (tokens, their gradients and the counts sent before them, "
    "including tokens that stay on their rank), divided by tokens x top_k x width x bytes per number x 2 directions x "
    "2 passes x layers. memory: peak of the largest rank (CPU: resident, with imported libraries; CUDA: allocated). "
    "step: median; ranks share the cores."
)

SCOPE = (
    f"What this shows: in fp32 these topologies compute the same numbers except for rounding, here over {STEPS} steps "
    "with the seed of 24 whose router choices are the clearest. A longer run will meet a token for which two experts "
    "are equal to the last bit. Topologies may then choose differently and drift apart: to 1e-3 after about 30 steps "
    "and to a few percent of the loss at the end, where this was measured (docs/decisions/0003). bf16 and fp16 agree "
    "only to their own precision. On CPUs, one topology repeats bit for bit."
)


def cells(verdict: Verdict) -> list[str]:
    """A row of the table, in the order of COLUMNS."""
    placement, difference, results = verdict.placement, verdict.difference, verdict.results
    return [
        placement.row.name,
        f"{placement.ranks} {placement.device}",
        *("-" if difference is None else _number(difference.largest[name]) for name in QUANTITIES),
        "-" if verdict.traffic_ratio is None else f"{verdict.traffic_ratio:.4f}",
        "-" if results is None else f"{results.peak_memory_bytes / 2**20:,.0f} MiB",
        "-" if results is None else f"{1000 * results.step_time_s:,.0f} ms",
        verdict.outcome,
    ]


def markdown_table(verdicts: Sequence[Verdict]) -> str:
    """The table of all rows."""
    lines = [COLUMNS, ["---"] * len(COLUMNS), *map(cells, verdicts)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def problems(verdicts: Sequence[Verdict]) -> list[str]:
    """One line for every row that is wrong."""
    return [f"{verdict.placement.row.name}: {verdict.problem}" for verdict in verdicts if verdict.bad]


def as_json(verdicts: Sequence[Verdict]) -> str:
    """Everything, for a program. A number that is not finite is a string."""
    document = {
        "passed": not any(verdict.bad for verdict in verdicts),
        "machine": machine(),
        "run": {"preset": PRESET, "overrides": RUN},
        "rows": [_row_json(verdict) for verdict in verdicts],
    }
    return json.dumps(_finite(document), indent=2, allow_nan=False)


def as_page(verdicts: Sequence[Verdict], seconds: float) -> str:
    """The page docs/certificate.md."""
    wrong = problems(verdicts)
    judged = [v for v in verdicts if v.outcome != "reference"]
    passed = sum(v.outcome == "passed" for v in judged)
    facts = "\n".join(f"- {name}: {value}" for name, value in machine().items())
    why = "\n".join(f"- `{v.placement.row.name}`: {v.placement.row.why}" for v in verdicts)
    found = "".join(f"- {line}\n" for line in wrong)
    return (
        "# Every topology, one result\n\n"
        f"Written by `storyteller certify --output`; {passed} of {len(judged)} rows passed in {seconds:.0f} s.\n\n"
        f"{facts}\n\n"
        f"{markdown_table(verdicts)}\n\n"
        f"{found + chr(10) if found else ''}"
        f"{LEGEND}\n\n{SCOPE}\n\n"
        f"Every row trains preset `{PRESET}` with `{' '.join(RUN)}`.\n\n"
        f"{why}\n"
    )


def _row_json(verdict: Verdict) -> dict[str, Any]:
    placement, difference, results = verdict.placement, verdict.difference, verdict.results
    row = placement.row
    return {
        **{name: getattr(row, name) for name in ("name", "why", "reference", "deepspeed", "overrides")},
        "tolerances": row.tolerances._asdict(),
        "ranks": placement.ranks,
        "device": placement.device,
        "outcome": verdict.outcome,
        "problem": verdict.problem,
        "seconds": verdict.seconds,
        "difference": difference and {**difference.largest, "by_weight": difference.by_weight},
        "first_tensor": difference and difference.first_weight_beyond(row.tolerances.weights),
        "traffic": results and {"sent_bytes": results.sent_bytes, "sent_over_routed": verdict.traffic_ratio},
        "peak_memory_bytes": results and results.peak_memory_bytes,
        "step_time_s": results and results.step_time_s,
        "records": results.records if results else [],
    }


def _finite(value: Any) -> Any:
    """Turn infinities and NaNs, which JSON does not have, into strings."""
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _number(value: float) -> str:
    return "0" if value == 0 else f"{value:.1e}"
