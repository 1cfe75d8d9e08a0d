"""How fast ranks of this machine exchange data in the collectives of ZeRO and expert parallelism."""

import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from storyteller_ds.errors import UserError

_ON_CPU = 2
_BYTES = {"cuda": 2**28}
_BYTES_ON_CPU = 2**25
_ROUNDS = 5
LIMIT_S = 60.0
"""Time after which the ranks are killed."""


def collective_rates(device: torch.device) -> dict[str, float]:
    """Bytes per second that leave a rank in a large all-reduce and a large all-to-all, counted as for a ring.

    Uses two processes with one core each and gloo; on CUDA, one process per card and NCCL. Empty for a single card and
    on MPS.

    Raises:
        UserError: the ranks did not answer within LIMIT_S.
    """
    ranks = {"cpu": _ON_CPU, "cuda": torch.cuda.device_count()}.get(device.type, 0)
    if ranks < 2:
        return {}
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        answers = Path(folder) / "rates"
        arguments = [(rank, ranks, device.type, Path(folder) / "store", answers) for rank in range(ranks)]
        processes = [context.Process(target=_rank, args=each, daemon=True) for each in arguments]
        deadline = time.monotonic() + LIMIT_S
        try:
            for process in processes:
                process.start()
            for process in processes:
                process.join(max(0.0, deadline - time.monotonic()))
            if any(process.exitcode != 0 for process in processes):
                raise UserError(
                    f"{ranks} processes of this machine could not exchange data in {LIMIT_S:.0f} s; set "
                    "GLOO_SOCKET_IFNAME=lo (NCCL_SOCKET_IFNAME on cards) if it has several networks"
                )
        finally:
            for process in processes:
                if process.pid is not None:
                    process.kill()
                    process.join()
        names = ("all_reduce", "all_to_all")
        return dict(zip(names, json.loads(answers.read_text(encoding="ascii")), strict=True))


def _rank(rank: int, ranks: int, kind: str, store: Path, answers: Path) -> None:
    torch.set_num_threads(1)
    device = torch.device(kind, rank) if kind == "cuda" else torch.device(kind)
    meeting_place = f"file://{store}"
    backend = "nccl" if kind == "cuda" else "gloo"
    timeout = timedelta(seconds=LIMIT_S)
    dist.init_process_group(backend, init_method=meeting_place, rank=rank, world_size=ranks, timeout=timeout)
    data = torch.zeros(_BYTES.get(kind, _BYTES_ON_CPU) // 4, device=device)
    other = torch.empty_like(data)
    moved = data.nbytes * (ranks - 1) / ranks
    reduced = 2 * moved / _seconds(lambda: dist.all_reduce(data), device)
    exchanged = moved / _seconds(lambda: dist.all_to_all_single(other, data), device)
    if rank == 0:
        answers.write_text(json.dumps([reduced, exchanged]), encoding="ascii")
    dist.barrier()
    dist.destroy_process_group()
    sys.stdout.flush()
    os._exit(0)


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    """The median time of several rounds after a warm-up round; all ranks start together."""
    seconds = []
    for _ in range(1 + _ROUNDS):
        dist.barrier()
        began = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - began)
    return sorted(seconds[1:])[_ROUNDS // 2]
