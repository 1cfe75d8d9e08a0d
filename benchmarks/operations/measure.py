"""From a case to the rows of the record: build, verify, time together, divide by the limits."""

import subprocess
from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from benchmarks.operations.case import Candidate, Case, Direction, Implementation, Limit, Named, Step, Unavailable
from benchmarks.operations.correctness import Expected, Wrong, verify
from benchmarks.operations.goals import Row
from benchmarks.operations.timing import Spread, interleaved, peak_bytes

FAILURES: tuple[type[Exception], ...] = (
    *(RuntimeError, ImportError, TypeError, AttributeError, ValueError, LookupError, AssertionError),
    *(OSError, subprocess.SubprocessError),
)
"""What an implementation raises on an unsuitable machine or in an unsuitable version. Its row has the reason."""


def measure(case: Case, rounds: int | None = None) -> list[Row]:
    """All rows of a case.

    A row has: op, case, shape, direction, implementation, role; `ok` (True: verified, False: wrong or failed,
    None: not checked or not available), `why`, `note`, `compared`; `median_s`, `q1_s`, `q3_s` (None if there is no
    time), `rounds`; `of_limit`, for each limit the least time that it allows over the time taken; `work`, the FLOP or
    bytes behind that; `tokens_per_s` and `peak_bytes` where they are counted. Limits have rows of role `limit`, with
    `rate` and `unit`.
    """
    candidates, verdicts = _build_and_verify(case)
    rows = []
    for direction in case.directions:
        steps = {name: _step(candidate, direction) for name, candidate in candidates.items()}
        limits = {
            f"{limit.name}: {one.label}": one.step
            for limit in case.limits
            if limit.name in case.work[direction]
            for one in limit.steps
        }
        times = interleaved({**steps, **limits}, rounds or case.rounds, case.device)
        rates = _rates(case, direction, times)
        for implementation in case.implementations:
            name = implementation.name
            row = _row(case, direction, implementation) | verdicts[name]
            if name in steps:
                row |= _timed(case, direction, times[name], rates)
                row["peak_bytes"] = peak_bytes(steps[name], case.device)
            rows.append(row)
        rows += [_limit_row(case, direction, limit, rates, times) for limit in case.limits if limit.name in rates]
    return rows


def _build_and_verify(case: Case) -> tuple[dict[str, Candidate], dict[str, Row]]:
    """The candidates that may be timed, and `ok` and `why` of all implementations."""
    expected, failures = Expected(case.reference()), (*FAILURES, *_triton_errors())
    candidates: dict[str, Candidate] = {}
    verdicts: dict[str, Row] = {}
    for implementation in case.implementations:
        ok: bool | None = True
        why = ""
        try:
            candidate = implementation.build()
            if implementation.compared:
                verify(candidate, expected, case.tolerances, everything=implementation.role == "ours")
            else:
                ok = None
                _forward_backward(candidate, _cotangents(candidate), None)
            candidates[implementation.name] = candidate
        except Unavailable as reason:
            ok, why = None, str(reason)
        except Wrong as error:
            ok, why = False, f"wrong: {_first_line(error)}"
        except failures as error:
            # A peer that cannot run here does not count as wrong: nothing was compared. Ours has to run.
            ok = False if implementation.role == "ours" else None
            why = f"failed: {type(error).__name__}: {_first_line(error)}"
        verdicts[implementation.name] = {"ok": ok, "why": why}
    return candidates, verdicts


def _triton_errors() -> tuple[type[Exception], ...]:
    """Triton's compilation errors, which are not among Python's exceptions."""
    try:
        from triton.errors import TritonError
    except (ImportError, OSError):
        return ()
    return (TritonError,)


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or "no reason given").splitlines()[0][:300]


def _step(candidate: Candidate, direction: Direction) -> Step:
    """What to time for a direction."""
    if direction == "step":
        whole_step = candidate.step
        assert whole_step is not None, "a case with the direction 'step' has candidates with a step"
        return Step(lambda _: whole_step())
    if direction == "forward":
        return Step(lambda _: candidate.forward())
    cotangents = _cotangents(candidate)
    if direction == "backward":
        # A new graph for each backward pass: some allow only one.
        return Step(partial(_backward, candidate, cotangents), candidate.forward)
    return Step(partial(_forward_backward, candidate, cotangents))


def _cotangents(candidate: Candidate) -> Named:
    return {name: torch.randn_like(out) for name, out in candidate.forward().items() if out.requires_grad}


def _forward_backward(candidate: Candidate, cotangents: Named, _: None) -> None:
    _backward(candidate, cotangents, candidate.forward())


def _backward(candidate: Candidate, cotangents: Named, outputs: Mapping[str, Tensor]) -> None:
    for tensor in candidate.leaves.values():
        tensor.grad = None
    torch.autograd.backward([outputs[name] for name in cotangents], list(cotangents.values()))


def _rates(case: Case, direction: Direction, times: Mapping[str, Spread]) -> dict[str, float]:
    """FLOP/s or B/s of each limit of this direction: the rate of its fastest step."""
    return {
        limit.name: max(one.amount / times[f"{limit.name}: {one.label}"].median for one in limit.steps)
        for limit in case.limits
        if limit.name in case.work[direction]
    }


def _row(case: Case, direction: Direction, implementation: Implementation) -> Row:
    """A row without its measurements."""
    return {
        "op": case.op,
        "case": case.name,
        "shape": dict(case.shape),
        "direction": direction,
        "implementation": implementation.name,
        "role": implementation.role,
        "compared": implementation.compared,
        "note": implementation.note,
        "median_s": None,
        "q1_s": None,
        "q3_s": None,
        "rounds": 0,
        "of_limit": {},
        "work": dict(case.work[direction]),
        "details": dict(case.details),
        "tokens_per_s": None,
        "peak_bytes": None,
    }


def _timed(case: Case, direction: Direction, time: Spread, rates: Mapping[str, float]) -> Row:
    """The measurements of a row."""
    return {
        "median_s": time.median,
        "q1_s": time.first_quartile,
        "q3_s": time.third_quartile,
        "rounds": time.rounds,
        "of_limit": {name: case.work[direction][name] / rate / time.median for name, rate in rates.items()},
        "tokens_per_s": case.tokens / time.median if case.tokens else None,
    }


def _limit_row(
    case: Case, direction: Direction, limit: Limit, rates: Mapping[str, float], times: Mapping[str, Spread]
) -> Row:
    """The limit as a row: its time is the least that it allows for the work of this direction."""
    best = max(limit.steps, key=lambda one: one.amount / times[f"{limit.name}: {one.label}"].median)
    time, scale = times[f"{limit.name}: {best.label}"], case.work[direction][limit.name] / best.amount
    scaled = Spread(time.median * scale, time.first_quartile * scale, time.third_quartile * scale, time.rounds)
    return {
        **_row(case, direction, Implementation(limit.name, "limit", _not_built)),
        **_timed(case, direction, scaled, {limit.name: rates[limit.name]}),
        "ok": None,
        "why": "",
        "note": f"measured on {best.label}",
        "rate": rates[limit.name],
        "unit": limit.unit,
    }


def _not_built() -> Candidate:
    raise AssertionError("a limit is not built")


def red(rows: Sequence[Row]) -> list[Row]:
    """Rows of implementations that are wrong, and of ours if it failed."""
    return [row for row in rows if row["ok"] is False]
