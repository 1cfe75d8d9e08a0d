"""State that ZeRO-3 keeps on NVMe: fetched, and put back or given back, whatever happens in between."""

from typing import Any

import pytest
import torch
from torch import nn

zero_state = pytest.importorskip("deepspeed") and pytest.importorskip("storyteller_ds.engines.deepspeed.zero_state")


class Swapped:
    """DeepSpeed's ZeRO-3 optimizer as far as it is asked here: one sub-group, on NVMe or not."""

    def __init__(self, on_nvme: bool) -> None:
        self.on_nvme = on_nvme
        self.calls: list[str] = []
        self.partition = torch.zeros(4)

    def _swappable_optimizer_subgroup(self, number: int) -> bool:
        return self.on_nvme

    def _optimizer_states_and_gradient_swap_in(self, number: int) -> None:
        self.calls.append("in")

    def _optimizer_states_and_gradient_swap_out(self, number: int) -> None:
        self.calls.append("out")

    def _release_swap_buffers(self, number: int) -> None:
        self.calls.append("release")

    def _get_fp32_opt_state_partition(self, parameter: Any, **_: Any) -> tuple[torch.Tensor, int]:
        if self.on_nvme:
            self.calls.append("in")
        return self.partition, 0

    def _get_param_partition_rank(self, parameter: Any) -> int:
        return 0


class BodyError(Exception):
    """Raised in the block."""


@pytest.mark.parametrize(
    ("changed", "fails", "expected"),
    [(True, False, "out"), (False, False, "release"), (True, True, "release"), (False, True, "release")],
)
def test_what_was_fetched_leaves_memory_whether_the_block_fails_or_not(changed, fails, expected):
    zero = Swapped(on_nvme=True)
    state = zero_state._AllPartitions(zero)
    try:
        with state._in_memory(0, changed):
            assert zero.calls == ["in"]
            if fails:
                raise BodyError
    except BodyError:
        assert fails
    # A half-made change is not written: NVMe has what it had.
    assert zero.calls == ["in", expected]


@pytest.mark.parametrize("fails", [True, False])
def test_what_is_in_memory_stays_there(fails):
    zero = Swapped(on_nvme=False)
    try:
        with zero_state._AllPartitions(zero)._in_memory(0):
            if fails:
                raise BodyError
    except BodyError:
        pass
    assert zero.calls == []


def test_a_value_that_does_not_fit_leaves_no_buffers_behind():
    zero = Swapped(on_nvme=True)
    parameter = nn.Parameter(torch.zeros(4))
    zero_state._AllPartitions(zero).write(parameter, "weight", torch.ones(4))
    assert zero.calls == ["in", "out"]
    assert zero.partition.tolist() == [1.0] * 4
    with pytest.raises(AttributeError):
        zero_state._AllPartitions(zero).write(parameter, "weight", torch.ones(4).numpy())  # type: ignore[arg-type]
    assert zero.calls == ["in", "out", "in", "release"]
