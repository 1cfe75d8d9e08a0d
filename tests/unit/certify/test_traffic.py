"""Bytes are counted where torch's all-to-all functions are called."""

import pytest
import torch
import torch.distributed as dist

from storyteller_ds.certify.traffic import counted


def test_activations_and_counts_are_counted(monkeypatch: pytest.MonkeyPatch):
    calls = []

    def exchange(output, input, *args, **kwargs):  # noqa: A002
        calls.append((output, input, args, kwargs))
        return "handle"

    def functional(rows, *args):
        calls.append((None, rows, args, {}))
        return rows

    monkeypatch.setattr(dist, "all_to_all_single", exchange)
    monkeypatch.setattr(torch.ops._c10d_functional, "all_to_all_single", functional)
    rows, counts = torch.zeros(5, 3), torch.zeros(4, dtype=torch.int64)
    with counted() as traffic:
        assert dist.all_to_all_single(rows, rows, [5], [5], group=None) == "handle"
        # The way DeepSpeed calls it.
        dist.all_to_all_single(output=rows, input=rows.bfloat16(), async_op=False)
        dist.all_to_all_single(counts, counts)
        # The way our MoE layer calls it.
        assert torch.ops._c10d_functional.all_to_all_single(rows[:2], [2], [2], "group") is not None
    sent = 5 * 3 * 4 + 5 * 3 * 2 + 2 * 3 * 4 + 4 * 8
    assert traffic.sent_bytes == sent
    # The arguments are passed on unchanged.
    assert calls[0][0] is rows
    assert calls[0][2:] == (([5], [5]), {"group": None})
    assert calls[3][2:] == (([2], [2], "group"), {})
    # Nothing is counted afterwards.
    assert torch.ops._c10d_functional.all_to_all_single is functional
    assert dist.all_to_all_single is exchange
    dist.all_to_all_single(rows, rows)
    assert traffic.sent_bytes == sent
