"""A process group of one process that answers every collective as if the other ranks were copies of this one."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ReduceOp
from torch.futures import Future

NAME = "loopback"
_c10d: Any = torch._C._distributed_c10d  # its stubs lack what Python process groups need
_ProcessGroup: Any = dist.ProcessGroup
"""Typed as Any, because its methods have overloads that nothing calls here."""
_SPOKEN = 4096
"""Broadcasts of at most this many integers are passed on to other ranks."""
_LARGEST = 100.0


class Call(NamedTuple):
    """A collective that this rank has taken part in."""

    operation: str
    ranks: tuple[int, ...]
    shape: tuple[int, ...]
    """Shape of the tensor that this rank gives."""
    dtype: str

    @property
    def nbytes(self) -> int:
        """Bytes of that tensor."""
        return math.prod(self.shape) * int(getattr(torch, self.dtype).itemsize)

    def comparable(self) -> tuple[str, tuple[int, ...], str]:
        """What must be the same on all ranks; the number of rows that the router sends need not be."""
        routed = self.operation == "all_to_all" and len(self.shape) > 1
        return self.operation, self.shape[1:] if routed else self.shape, self.dtype

    def described(self) -> str:
        """The call in words."""
        return f"{self.operation} of {list(self.shape)} {self.dtype}"


class Speech:
    """The few integers that rank 0 broadcasts, with which DeepSpeed compares what its ranks are about to do.

    Args:
        heard: the broadcasts of rank 0, in order; None: this is rank 0.
    """

    def __init__(self, heard: Sequence[list[int]] | None) -> None:
        self.said: list[list[int]] = []
        self._heard = None if heard is None else iter(heard)

    def pass_on(self, tensor: Tensor, is_speaker: bool) -> None:
        """Record what is said, or fill in what is heard; does nothing if rank 0 said nothing more."""
        if is_speaker:
            self.said.append(tensor.flatten().tolist())
        elif self._heard is not None and (values := next(self._heard, None)) is not None:
            tensor.copy_(torch.tensor(values, dtype=tensor.dtype).view_as(tensor))


class Loopback(_ProcessGroup):  # type: ignore[misc]
    """Logs the calls, and gives them results of the right shape.

    A sum over ranks is this rank's tensor times the number of ranks, a gather repeats this rank's share, and each rank
    sends this one what it sends to itself. So shapes and the order of calls are those of real ranks with the same
    batch; values are not, once experts on other ranks take part.

    Args:
        rank: this rank's number in the group.
        ranks: the ranks of the group, in order.
        calls: gets an entry for each collective.
        speech: what rank 0 tells the others.
    """

    def __init__(self, rank: int, ranks: Sequence[int], calls: list[Call], speech: "Speech") -> None:
        super().__init__(rank, len(ranks))
        self._mine, self._ranks, self._calls, self._speech = rank, tuple(ranks), calls, speech

    def getBackendName(self) -> str:  # noqa: N802, D102  # torch's name
        return NAME

    @property
    def group_name(self) -> str:
        """The name by which torch's functional collectives find the group."""
        return str(dist.distributed_c10d._world.pg_names[self])

    def allreduce(self, tensors: list[Tensor], opts: Any = None) -> Any:  # noqa: D102
        return self._reduced("all_reduce", tensors, opts)

    def allreduce_coalesced(self, tensors: list[Tensor], opts: Any = None) -> Any:  # noqa: D102
        return self._reduced("all_reduce", tensors, opts)

    def reduce(self, tensors: list[Tensor], opts: Any = None) -> Any:  # noqa: D102
        return self._reduced("reduce", tensors, opts)

    def broadcast(self, tensors: list[Tensor], opts: Any = None) -> Any:  # noqa: D102
        for tensor in tensors:
            self._log("broadcast", tensor)
            if self._ranks[opts.rootRank] == 0 and tensor.numel() <= _SPOKEN and not tensor.is_floating_point():
                self._speech.pass_on(tensor, is_speaker=self._mine == opts.rootRank)
        return _done(tensors)

    def barrier(self, opts: Any = None) -> Any:  # noqa: D102
        return _done([])

    def allgather(self, outputs: list[list[Tensor]], inputs: list[Tensor], opts: Any = None) -> Any:  # noqa: D102
        for shares, mine in zip(outputs, inputs, strict=True):
            self._log("all_gather", mine)
            for share in shares:
                share.copy_(mine)
        return _done(outputs)

    def all_gather_single(self, output: Tensor, mine: Tensor, opts: Any = None) -> Any:  # noqa: D102
        self._log("all_gather", mine)
        if output.untyped_storage().data_ptr() != mine.untyped_storage().data_ptr():
            output.view(len(self._ranks), -1).copy_(_sane(mine).reshape(1, -1))
        # Otherwise the shares of the others are already there.
        return _done([output])

    def all_gather_single_coalesced(self, outputs: list[Tensor], inputs: list[Tensor], opts: Any = None) -> Any:  # noqa: D102
        for output, mine in zip(outputs, inputs, strict=True):
            self.all_gather_single(output, mine, opts)
        return _done(outputs)

    def reduce_scatter(self, outputs: list[Tensor], inputs: list[list[Tensor]], opts: Any = None) -> Any:  # noqa: D102
        for output, shares in zip(outputs, inputs, strict=True):
            self._log("reduce_scatter", torch.cat([share.reshape(-1) for share in shares]))
            self._sum(output.copy_(shares[self._mine]), opts)
        return _done(outputs)

    def reduce_scatter_single(self, output: Tensor, whole: Tensor, opts: Any = None) -> Any:  # noqa: D102
        self._log("reduce_scatter", whole)
        self._sum(output.copy_(whole.reshape(len(self._ranks), -1)[self._mine].view_as(output)), opts)
        return _done([output])

    def reduce_scatter_single_coalesced(self, outputs: list[Tensor], inputs: list[Tensor], opts: Any = None) -> Any:  # noqa: D102
        for output, whole in zip(outputs, inputs, strict=True):
            self.reduce_scatter_single(output, whole, opts)
        return _done(outputs)

    def all_to_all_single(  # noqa: D102
        self, output: Tensor, mine: Tensor, received: list[int], sent: list[int], opts: Any = None
    ) -> Any:
        del received, opts
        self._log("all_to_all", mine)
        rows = len(mine) // len(self._ranks)
        start, count = (sum(sent[: self._mine]), sent[self._mine]) if sent else (self._mine * rows, rows)
        own = _sane(mine[start : start + count])
        # Experts on other ranks send back a different number of rows than this rank sends to itself.
        output.copy_(own[torch.arange(len(output)) % count]) if count else output.zero_()
        return _done([output])

    def gather(self, outputs: list[list[Tensor]], inputs: list[Tensor], opts: Any = None) -> Any:  # noqa: D102
        for mine in inputs:
            self._log("gather", mine)
        for shares in outputs:
            for share in shares:
                share.copy_(inputs[0])
        return _done(outputs)

    # Names of these methods in older versions of torch.
    _allgather_base = all_gather_single
    allgather_into_tensor_coalesced = all_gather_single_coalesced
    _reduce_scatter_base = reduce_scatter_single
    reduce_scatter_tensor_coalesced = reduce_scatter_single_coalesced
    alltoall_base = all_to_all_single

    def _reduced(self, operation: str, tensors: list[Tensor], options: Any) -> Any:
        for tensor in tensors:
            self._log(operation, tensor)
            self._sum(tensor, options)
        return _done(tensors)

    def _sum(self, tensor: Tensor, options: Any) -> None:
        if options.reduceOp == ReduceOp.SUM:
            tensor.copy_(_sane(tensor)).mul_(len(self._ranks))

    def _log(self, operation: str, tensor: Tensor) -> None:
        self._calls.append(Call(operation, self._ranks, tuple(tensor.shape), str(tensor.dtype).removeprefix("torch.")))


@contextmanager
def connected(rank: int, size: int, speech: Speech) -> Iterator[list[Call]]:
    """Be a rank among copies of itself inside the block.

    Yields:
        The calls so far; the list grows.
    """
    calls: list[Call] = []

    def create(options: Any, _: Any) -> Loopback:
        ranks = options.global_ranks_in_group or range(size)
        return Loopback(options.group_rank, ranks, calls, speech)

    if not hasattr(dist.Backend, NAME.upper()):
        dist.Backend.register_backend(NAME, create, extended_api=True, devices=["cpu"])
    dist.init_process_group(NAME, store=_c10d.HashStore(), rank=rank, world_size=size, timeout=timedelta(minutes=1))
    try:
        yield calls
    finally:
        if dist.is_initialized():  # DeepSpeed destroys it, too
            dist.destroy_process_group()


def _sane(tensor: Tensor) -> Tensor:
    """Bound values: padding of shares is uninitialized memory, and as weights would make some ranks skip a step."""
    return tensor.nan_to_num(0.0, 0.0, 0.0).clamp(-_LARGEST, _LARGEST) if tensor.is_floating_point() else tensor


def _done(value: Any) -> Any:
    future: Future[Any] = Future()
    future.set_result(value)
    return _c10d._create_work_from_future(future)
