"""Is the planner right? Peak memory and messages of real steps, next to the estimates: python -m benchmarks.planner

Each configuration is trained for a few steps in fresh processes, with gloo if it has two ranks. On a CPU, torch's
profiler reports every allocation and release of a tensor; on a GPU, the peak is torch.cuda.max_memory_allocated
(python -m benchmarks.planner cuda; one rank per GPU). A record goes to benchmarks/results/planner, and the tables of
docs/planner.md are written from all records; --write does only that.
"""

import contextlib
import gc
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.operations.record import describe, machine_name, slug
from storyteller_ds.config import load_config
from storyteller_ds.distributed.plan import make_plan
from storyteller_ds.distributed.ports import free_port
from storyteller_ds.durable import write_atomically
from storyteller_ds.planning.devices import Device, published
from storyteller_ds.planning.estimate import Estimate, Ranks

REPOSITORY = Path(__file__).resolve().parents[1]
RECORDS = REPOSITORY / "benchmarks" / "results" / "planner"
PAGE = REPOSITORY / "docs" / "planner.md"
BEGIN, END = "<!-- measured: written by `python -m benchmarks.planner` -->", "<!-- end of measured -->"
STEPS, LIMIT_S = 2, 240
MEAN, WORST = 0.10, 0.20
"""Bounds of the error: mean over all rows, and of each row."""
_SECONDS_TO_LET_GO = 0.004

_COMMON = ("model.num_heads=8", "tokenizer.vocab_size=8192", "tracking.wandb=disabled", "optimizer.kind=adamw")
_DENSE = ("model.hidden_size=512", "model.num_layers=6", "model.intermediate_size=1536", "moe.num_experts=0")
_MIXTURE = ("model.hidden_size=384", "model.num_layers=4", "model.intermediate_size=512", "moe.num_experts=8")
_NARROW = ("model.hidden_size=256", "model.num_layers=8", "model.intermediate_size=256", "moe.num_experts=0")
"""Its sums are short enough for selective checkpointing on a processor that uses oneDNN for products."""


@dataclass(frozen=True)
class Case:
    """One configuration."""

    name: str
    settings: tuple[str, ...]
    ranks: int = 1
    zero: Mapping[str, Any] | None = None

    @property
    def ds_config(self) -> dict[str, Any] | None:
        """A DeepSpeed JSON with small buckets, to match the model."""
        if self.zero is None:
            return None
        return {"zero_optimization": {"contiguous_gradients": True, "reduce_bucket_size": 2_000_000, **self.zero}}


def _batch(sequences: int, length: int) -> tuple[str, ...]:
    return f"train.global_batch_size={sequences}", f"data.sequence_length={length}"


def cases() -> list[Case]:
    """All cases; those with two ranks need two GPUs if run on GPUs."""
    dense, mixture = (*_COMMON, *_DENSE), (*_COMMON, *_MIXTURE)
    muon, block = "optimizer.kind=muon", "model.activation_checkpointing=block"
    selective = "model.activation_checkpointing=selective"
    one = [
        Case("dense, AdamW, 8 x 256", (*dense, *_batch(8, 256))),
        Case("dense, AdamW, 1 x 256", (*dense, *_batch(1, 256))),
        Case("dense, AdamW, 1 x 2048", (*dense, *_batch(1, 2048))),
        Case("dense, AdamW, 2 micro-batches of 4 x 256", (*dense, *_batch(8, 256), "train.micro_batch_size=4")),
        Case("dense, Muon, 8 x 256", (*dense, *_batch(8, 256), muon)),
        Case("dense, Muon, 1 x 128", (*dense, *_batch(1, 128), muon)),
        Case("dense, AdamW, 8 x 256, blocks again", (*dense, *_batch(8, 256), block)),
        Case("dense, AdamW, 8 x 512, selective", (*_COMMON, *_NARROW, *_batch(8, 512), selective)),
        Case("GPT-2's blocks, AdamW, 8 x 256", (*dense, *_batch(8, 256), *_GPT2)),
        Case("nanochat's blocks, 4 key heads, AdamW, 8 x 256", (*dense, *_batch(8, 256), *_NANOCHAT)),
        Case("mixture, AdamW, 8 x 256", (*mixture, *_batch(8, 256))),
        Case("mixture, AdamW, 1 x 256", (*mixture, *_batch(1, 256))),
        Case("mixture, Muon, 4 x 256", (*mixture, *_batch(4, 256), muon)),
        Case("mixture, AdamW, 8 x 256, blocks again", (*mixture, *_batch(8, 256), block)),
    ]
    two = [
        Case("dense, ZeRO-0", (*dense, *_batch(4, 256)), 2, {"stage": 0}),
        Case("dense, ZeRO-1", (*dense, *_batch(4, 256)), 2, {"stage": 1}),
        Case("dense, ZeRO-2", (*dense, *_batch(4, 256)), 2, {"stage": 2}),
        Case("dense, ZeRO-2, bucket of 50 million", (*dense, *_batch(4, 256)), 2, {"stage": 2} | _LARGE),
        Case("dense, ZeRO-2, offloaded", (*dense, *_batch(4, 256)), 2, {"stage": 2, "offload_optimizer": _CPU}),
        Case("dense, ZeRO-3", (*dense, *_batch(4, 256)), 2, {"stage": 3}),
        Case("mixture, ZeRO-0, experts over 2", (*mixture, *_batch(8, 256)), 2, {"stage": 0}),
        Case("mixture, ZeRO-1, Muon, experts over 2", (*mixture, *_batch(8, 256), muon), 2, {"stage": 1}),
        Case("mixture, ZeRO-2, experts over 2", (*mixture, *_batch(8, 256)), 2, {"stage": 2}),
        Case("mixture, ZeRO-2, experts on each", (*mixture, *_batch(8, 256), "parallel.ep_size=1"), 2, {"stage": 2}),
        Case("mixture, ZeRO-3", (*mixture, *_batch(8, 256)), 2, {"stage": 3}),
    ]
    few = (*dense, *_batch(2, 64), "tokenizer.vocab_size=512")
    three = [Case(f"few tokens, ZeRO-{stage}, AdamW", few, 2, {"stage": stage}) for stage in range(4)]
    three += [Case(f"few tokens, ZeRO-{stage}, Muon", (*few, muon), 2, {"stage": stage}) for stage in range(4)]
    return [*one, *two, *three]


_GPT2 = ("model.norm=layernorm", "model.position=learned", "model.activation=gelu", "model.bias=true",
         "model.qk_norm=false", "model.tie_embeddings=true")  # fmt: skip
_NANOCHAT = ("model.num_kv_heads=4", "model.value_embeddings=true", "model.residual_scales=true",
             "model.logit_softcap=15", "model.activation=relu2")  # fmt: skip
_CPU_DEVICE = Device("cpu", "cpu", 2**40, {"fp32": 1.0}, 1.0, 1.0, 1.0, 1, "fp32", "rates do not matter here")
_LARGE, _CPU = {"reduce_bucket_size": 50_000_000}, {"device": "cpu"}


def planned_of(case: Case, device: str) -> tuple[int, dict[str, int]]:
    """Planned peak bytes of a rank's tensors, and planned bytes of its messages in a step."""
    loaded = load_config(None, _settings(case, device), ds_config=case.ds_config, ranks=case.ranks)
    kind = published("h100-80") if device == "cuda" else _CPU_DEVICE
    estimate = Estimate.of(loaded, kind, Ranks(1, case.ranks))
    host = estimate.memory.host if device == "cpu" else 0
    return estimate.memory.total + host, {k: v for k, v in estimate.messages.sent.items() if v}


def _settings(case: Case, device: str) -> list[str]:
    fp32 = ["precision.dtype=fp32"] if device == "cpu" else ["precision.dtype=bf16"]
    return [*case.settings, f"parallel.device={device}", *fp32]


def be_rank(case: Case, device: str, rank: int) -> dict[str, Any]:
    """Train as one rank, and return what it took."""
    from storyteller_ds.bench.roofline import random_batches
    from storyteller_ds.distributed.world import World
    from storyteller_ds.engines.build import build_engine
    from storyteller_ds.engines.step import train_step

    _let_go_after_collectives()
    loaded = load_config(None, _settings(case, device), ds_config=case.ds_config, ranks=case.ranks)
    run, world = loaded.run, World(rank, rank, case.ranks, case.ranks)
    plan, place = make_plan(run, case.ranks), torch.device(device, rank) if device == "cuda" else torch.device(device)
    connected = world.connected(place, 2) if case.zero is not None else contextlib.nullcontext()
    with connected:
        torch.manual_seed(rank)
        engine = build_engine(run, loaded.deepspeed, plan, world, place)
        _let_go_after_exchanges(plan.ep_size)
        batches = random_batches(run, plan)
        train_step(engine, batches, 1e-4)  # which makes the moments
        peaks = [_peak_of(lambda: train_step(engine, batches, 1e-4), place) for _ in range(STEPS)]
        with _Messages() as messages:
            train_step(engine, batches, 1e-4)
        engine.close()
    return {"peak": max(peaks), "messages": dict(messages.sent)}


def _peak_of(work: Callable[[], object], device: torch.device) -> int:
    """Peak bytes of tensors during some work.

    On a CPU, the sum of the tensors that exist before, plus the allocations and releases that torch's profiler reports.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        work()
        torch.cuda.synchronize(device)
        return int(torch.cuda.max_memory_allocated(device))
    gc.collect()
    tensors = [each for each in gc.get_objects() if issubclass(type(each), torch.Tensor) and each.device == device]
    storages = {each.untyped_storage().data_ptr(): each.untyped_storage().nbytes() for each in tensors}
    del tensors
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    events = [each for each in profiler.profiler.kineto_results.events() if each.name() == "[memory]"]
    changes = sorted((each.start_ns(), each.nbytes()) for each in events)
    changes = sorted(changes + _unseen_releases(changes))
    peak: int = sum(storages.values()) + max(itertools.accumulate(size for _, size in changes))
    return peak


def _unseen_releases(changes: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Releases, by gloo's threads, of blocks that a step seems to have allocated and not released.

    They take place at the latest in the pause after each collective. If blocks of one size are ambiguous, it is the
    oldest.
    """
    open_blocks: dict[int, list[int]] = {}
    for moment, size in changes:
        if size > 0:
            open_blocks.setdefault(size, []).append(moment)
        elif open_blocks.get(-size):
            open_blocks[-size].pop()
    moments = [moment for moment, _ in changes]
    pauses = [begin for begin, end in itertools.pairwise(moments) if end - begin > 0.75e9 * _SECONDS_TO_LET_GO]
    releases = []
    for size, begun in open_blocks.items():
        for moment in begun:
            pause = next((each for each in pauses if each >= moment), moments[-1])
            releases.append((pause + 1, -size))
    return releases


_COLLECTIVES = {
    "allreduce_": "all-reduce",
    "_reduce_scatter_base_": "reduce-scatter",
    "_allgather_base_": "all-gather",
    "allgather_": "all-gather",
    "alltoall_base_": "all-to-all",
    "all_to_all_single": "all-to-all",
}
"""torch's name of a collective -> the planner's name."""


class _Messages(TorchDispatchMode):
    """Counts the bytes that this rank passes to each collective."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's
        self.sent: Counter[str] = Counter()

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        space, _, name = operation.name().partition("::")
        name = name.partition(".")[0]
        if space in ("c10d", "_c10d_functional") and name in _COLLECTIVES:
            position = {"_reduce_scatter_base_": 1, "alltoall_base_": 1}.get(name, 0)
            leaves = torch.utils._pytree.tree_leaves(args[position])
            if any(_is_alone(each) for each in args):
                return operation(*args, **(kwargs or {}))
            self.sent[_COLLECTIVES[name]] += sum(t.nbytes for t in leaves if isinstance(t, torch.Tensor))
        return operation(*args, **(kwargs or {}))


def _is_alone(argument: Any) -> bool:
    """Whether the argument is a process group of one rank, in which nothing is sent."""
    is_group = isinstance(argument, torch.ScriptObject) and argument._type().name() == "ProcessGroup"  # type: ignore[attr-defined]  # every class has one
    return is_group and dist.ProcessGroup.unbox(argument).size() == 1


def _let_go_after_collectives() -> None:
    """Let gloo's threads release a tensor before this thread does: the profiler does not see what they release."""
    names = ("all_reduce", "reduce_scatter_tensor", "_reduce_scatter_base", "all_gather_into_tensor", "all_gather",
             "_all_gather_base", "all_to_all_single", "broadcast", "reduce")  # fmt: skip
    for name in names:
        slowed = _slowed(getattr(dist, name))
        setattr(dist, name, slowed)
        setattr(dist.distributed_c10d, name, slowed)


def _let_go_after_exchanges(ep_size: int) -> None:
    if ep_size > 1:
        from storyteller_ds.engines.deepspeed import expert_parallel

        expert_parallel._arrived = _slowed(expert_parallel._arrived)


def _slowed(function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        result = function(*args, **kwargs)
        time.sleep(_SECONDS_TO_LET_GO)
        return result

    return call


def measure(case: Case, number: int, device: str) -> dict[str, Any]:
    """Run all ranks of a case, each in its own process.

    Raises:
        RuntimeError: a rank failed or took too long.
    """
    port = str(free_port())
    with tempfile.TemporaryDirectory() as folder:
        processes = []
        for rank in range(case.ranks):
            ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": case.ranks, "LOCAL_WORLD_SIZE": case.ranks}
            settings = {name: str(value) for name, value in ranks.items()}
            settings |= {
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port,
                "OMP_NUM_THREADS": "1",
                "DS_ACCELERATOR": device,
            }
            command = [sys.executable, "-m", "benchmarks.planner", "rank", device, str(number), str(rank), folder]
            processes.append(
                subprocess.Popen(
                    command, env={**os.environ, **settings}, cwd=REPOSITORY, stdout=subprocess.DEVNULL,
                    stderr=subprocess.PIPE, text=True,
                )
            )  # fmt: skip
        deadline = time.monotonic() + LIMIT_S
        try:
            for process in processes:
                _, errors = process.communicate(timeout=max(1.0, deadline - time.monotonic()))
                if process.returncode:
                    raise RuntimeError(f"{case.name}: {errors.strip().splitlines()[-1:]}")
        finally:
            for process in processes:
                process.kill()
        found = [json.loads((Path(folder) / str(rank)).read_text()) for rank in range(case.ranks)]
    return max(found, key=lambda each: each["peak"])


def table(record: Mapping[str, Any]) -> str:
    """The table of one machine."""
    machine = record["machine"]
    lines = [
        f"{machine_name(machine)}, torch {machine['versions']['torch']}, {machine['date'][:10]}:",
        "",
        "| configuration | ranks | measured MB | planned MB | error | messages: counted MB | planned MB |",
        "|---|---|---|---|---|---|---|",
    ]
    errors = []
    for row in record["rows"]:
        if "failed" in row:
            lines.append(f"| {row['name']} | {row['ranks']} | failed: {row['failed']} | | | | |")
            continue
        error = row["planned"] / row["measured"] - 1
        errors.append(abs(error))
        counted, planned = (_messages_in_words(row[key]) for key in ("messages", "planned_messages"))
        measured_mb, planned_mb = (f"{row[key] / 1e6:,.1f}" for key in ("measured", "planned"))
        figures = (row["name"], str(row["ranks"]), measured_mb, planned_mb, f"{error:+.1%}", counted, planned)
        lines.append(f"| {' | '.join(figures)} |")
    mean, worst = sum(errors) / len(errors), max(errors)
    verdict = "within" if mean < MEAN and worst < WORST else "**not within**"
    lines += [
        "",
        f"{len(errors)} rows: mean error {mean:.1%}, worst {worst:.1%}; {verdict} the bounds of 10 % and 20 %.",
    ]
    return "\n".join(lines)


def _messages_in_words(sent: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {size / 1e6:,.1f}" for name, size in sorted(sent.items()) if size >= 5e4)


def planned_now(record: dict[str, Any]) -> dict[str, Any]:
    """A record updated with the current planner's estimates."""
    device = "cuda" if record["machine"]["suite"] == "gpu" else "cpu"
    by_name = {case.name: case for case in cases()}
    for row in record["rows"]:
        row["planned"], row["planned_messages"] = planned_of(by_name[row["name"]], device)
    return record


def write_page() -> None:
    """Write the tables of docs/planner.md."""
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    tables = [
        table(planned_now(json.loads(file.read_text(encoding="utf-8")))) for file in sorted(RECORDS.glob("*.json"))
    ]
    write_atomically(PAGE, before + BEGIN + "\n" + "\n\n".join(tables) + "\n" + END + after)


def main(arguments: Sequence[str]) -> int:
    """Be a rank, or measure the cases and write the record and the page; returns 0."""
    if arguments[:1] == ["rank"]:
        device, case_number, rank, folder = arguments[1:]
        found = be_rank(cases()[int(case_number)], device, int(rank))
        (Path(folder) / rank).write_text(json.dumps(found))
        os._exit(0)  # gloo's threads may not survive Python's finalization
    device = arguments[0] if arguments and arguments[0] in ("cpu", "cuda") else "cpu"
    if "--write" not in arguments:
        wanted = [each for each in arguments if each not in ("cpu", "cuda")]
        rows = []
        for number, case in enumerate(cases()):
            is_wanted = not wanted or any(each in case.name for each in wanted)
            if not is_wanted or (device == "cuda" and case.ranks > torch.cuda.device_count()):
                continue
            planned, messages = planned_of(case, device)
            row = {"name": case.name, "ranks": case.ranks, "planned": planned, "planned_messages": messages}
            try:
                found = measure(case, number, device)
                row |= {"measured": found["peak"], "messages": found["messages"]}
            except (RuntimeError, subprocess.TimeoutExpired) as error:
                row["failed"] = str(error)[:200]
            rows.append(row)
            print(json.dumps(row), flush=True)
        machine = describe("gpu" if device == "cuda" else "cpu", None)
        RECORDS.mkdir(parents=True, exist_ok=True)
        file = RECORDS / f"{slug(machine_name(machine))}-{device}.json"
        if wanted and file.exists():  # replace rows that were measured before
            before = {row["name"]: row for row in json.loads(file.read_text(encoding="utf-8"))["rows"]}
            rows = list((before | {row["name"]: row for row in rows}).values())
        write_atomically(file, json.dumps({"machine": machine, "rows": rows}, indent=2) + "\n")
    write_page()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
