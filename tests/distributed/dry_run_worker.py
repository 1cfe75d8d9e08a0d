"""One real rank of the first step that a dry run imitates: what it exchanges through gloo, and what it holds.

Usage: torchrun dry_run_worker.py FOLDER DS_CONFIG [section.field=value ...]; FOLDER/rankN.json is the view of rank N.
"""

import dataclasses
import json
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist

from storyteller_ds.config import load_config
from storyteller_ds.distributed.plan import make_plan
from storyteller_ds.distributed.world import World
from storyteller_ds.planning.dry_run.loopback import Call, Loopback, Speech
from storyteller_ds.planning.dry_run.rank import first_step
from storyteller_ds.planning.dry_run.run import cut

calls: list[Call] = []


class Recorded(Loopback):
    """Logs each call as a dry run does, then passes it to gloo."""

    def __init__(self, rank, ranks, gloo):
        super().__init__(rank, ranks, calls, Speech(None))
        self._gloo = gloo


def _delegating(name: str) -> Any:
    def method(self: Any, *given: Any, **named: Any) -> Any:
        # Logged by the dry run's own method, which gets copies.
        copies = _copied(given)
        getattr(Loopback, name)(self, *copies, **named)
        return getattr(self._gloo, name)(*given, **named)

    return method


def _copied(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    return type(value)(map(_copied, value)) if isinstance(value, list | tuple) else value


METHODS = (
    *("allreduce", "allreduce_coalesced", "reduce", "broadcast", "allgather", "gather", "reduce_scatter", "barrier"),
    *("_allgather_base", "allgather_into_tensor_coalesced", "_reduce_scatter_base", "reduce_scatter_tensor_coalesced"),
    "alltoall_base",
)
NEWER = {
    "all_gather_single": "_allgather_base",
    "all_gather_single_coalesced": "allgather_into_tensor_coalesced",
    "reduce_scatter_single": "_reduce_scatter_base",
    "reduce_scatter_single_coalesced": "reduce_scatter_tensor_coalesced",
    "all_to_all_single": "alltoall_base",
}
for each in METHODS:
    setattr(Recorded, each, _delegating(each))
for new, old in NEWER.items():
    setattr(Recorded, new, getattr(Recorded, old))


def create(options: Any, _: Any) -> Recorded:
    gloo = dist.ProcessGroupGloo(options.store, options.group_rank, options.group_size, timedelta(minutes=2))
    return Recorded(options.group_rank, options.global_ranks_in_group or range(options.group_size), gloo)


dist.Backend.register_backend("recorded", create, extended_api=True, devices=["cpu"])
connect = dist.init_process_group


def main(report: Path, ds_config: str, overrides: list[str]) -> None:
    world = World.from_environment()
    torch.set_num_threads(1)
    loaded = load_config("quickstart", overrides, ds_config=ds_config, ranks=world.size)
    small, _ = cut(loaded, make_plan(loaded.run, world.size, loaded))
    gather = dist.all_gather_object

    def gather_unseen(*given: Any) -> None:
        """Leave the gather out of the log: a dry run makes up what ranks tell each other between steps."""
        before = len(calls)
        gather(*given)
        del calls[before:]

    with (
        patch.object(dist, "all_gather_object", gather_unseen),
        patch.object(dist, "init_process_group", lambda _, **named: connect("recorded", **named)),
        world.connected(torch.device("cpu"), 2),
    ):
        calls.clear()  # drop those made while connecting
        view = first_step(world, small, calls)
    (report / f"rank{world.rank}.json").write_text(json.dumps(dataclasses.asdict(view)))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3:])
