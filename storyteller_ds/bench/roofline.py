"""Where the time of a training step can go: matrix products, memory traffic, launches (`storyteller bench train`)."""

import statistics
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from storyteller_ds.config.run import RunConfig
from storyteller_ds.data.batching.micro_batch import MicroBatch
from storyteller_ds.distributed.plan import ParallelPlan, make_plan
from storyteller_ds.distributed.world import World
from storyteller_ds.engines.device_rates import copy_rate, launch_time, product_rate
from storyteller_ds.engines.memory import what_to_lower
from storyteller_ds.engines.precision import run_dtype
from storyteller_ds.engines.single import SingleEngine
from storyteller_ds.engines.step import train_step
from storyteller_ds.memory import memory_hint
from storyteller_ds.model.counts import flops_per_token

_ALONE = World(0, 0, 1, 1)
_WARM_UP, _MEASURED = 3, 10
_PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "_grouped_mm", "convolution_backward", "_linear_pointwise")
_FUSED = ("scaled_dot_product", "swiglu_experts", "grouped_product", "grouped_weight_gradient", "plain_experts")


@dataclass(frozen=True)
class Roofline:
    """One step, and the least time that each of its parts would take by itself [s]."""

    step_s: float
    """Measured, median."""
    tokens: int
    products_flop: float
    products_s: float
    """At the rate of a large matrix product on this device."""
    traffic_bytes: int
    """Read and written by the operators that are not matrix products, one by one, as without a compiler."""
    traffic_s: float
    """At the rate of a large copy."""
    launches: int
    """Number of operators."""
    launches_s: float
    """Time that the host needs to launch them."""


def measure(run: RunConfig, device: torch.device) -> Roofline:
    """Train some steps on random tokens on one device.

    Raises:
        OutOfMemory: the step needs more memory than there is.
    """
    plan = make_plan(run, 1)
    batches = random_batches(run, plan)
    with memory_hint(what_to_lower(run, None, plan, device)):
        step_s = step_time(run, batches, device)
        operators = _operators(run, batches, device)
    tokens = run.train.global_batch_size * run.data.sequence_length
    flop = flops_per_token(run) * tokens
    return Roofline(
        step_s=step_s,
        tokens=tokens,
        products_flop=flop,
        products_s=flop / product_rate(device, run_dtype(run, device)),
        traffic_bytes=operators.traffic_bytes,
        traffic_s=operators.traffic_bytes / copy_rate(device),
        launches=operators.number,
        launches_s=operators.number * launch_time(device),
    )


def random_batches(run: RunConfig, plan: ParallelPlan) -> list[MicroBatch]:
    """A rank's micro-batches of one step: random tokens, all micro-batches the same."""
    token = torch.randint(run.tokenizer.vocab_size, (plan.micro_batch_size, run.data.sequence_length + 1))
    return [MicroBatch(token[:, :-1].contiguous(), token[:, 1:].contiguous())] * plan.accumulation_steps


def step_time(run: RunConfig, batches: list[MicroBatch], device: torch.device) -> float:
    """Seconds of an optimizer step on these micro-batches (median of several)."""
    engine, seconds = SingleEngine(run, _ALONE, device), []
    for _ in range(_WARM_UP + _MEASURED):
        began = time.perf_counter()
        train_step(engine, batches, run.optimizer.lr)  # which waits for the device
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[_WARM_UP:])


def _operators(run: RunConfig, batches: list[MicroBatch], device: torch.device) -> "Operators":
    """The operators of an eager step; a dispatch mode cannot see inside a compiled one."""
    eager = run.model_copy(update={"train": run.train.model_copy(update={"compile": "off"})})
    engine = SingleEngine(eager, _ALONE, device)
    operators = Operators()
    with operators:
        engine.begin_step(batches, run.optimizer.lr)
    return operators


class Operators(TorchDispatchMode):
    """Counts the operators in its context that compute something, and the bytes of those that are not products."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's stub
        self.number = self.traffic_bytes = 0

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = operation(*args, **(kwargs or {}))
        name = operation.name().partition("::")[2].partition(".")[0]
        if _computes(operation, result):
            self.number += 1
            if name not in _PRODUCTS and not any(fused in name for fused in _FUSED):
                tensors = [
                    one for one in torch.utils._pytree.tree_leaves((args, kwargs, result)) if isinstance(one, Tensor)
                ]
                self.traffic_bytes += sum({(t.data_ptr(), t.nbytes): t.nbytes for t in tensors}.values())
        return result


def _computes(operation: Any, result: Any) -> bool:
    """Whether an operator does more than create a view or allocate memory without writing to it."""
    is_view = any(alias.alias_info is not None and not alias.alias_info.is_write for alias in operation._schema.returns)
    return not is_view and "empty" not in operation.name() and result is not None
