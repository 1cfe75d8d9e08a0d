"""A dry run finds what would keep ranks from taking a step together."""

import pytest

from storyteller_ds.config import load_config
from storyteller_ds.distributed.plan import make_plan
from storyteller_ds.errors import ConfigError
from storyteller_ds.planning.dry_run.loopback import Call
from storyteller_ds.planning.dry_run.rank import RankView
from storyteller_ds.planning.dry_run.run import cut, disagreements, dry_run, looked_at

ALL, PAIR, OTHERS = (0, 1, 2, 3), (0, 1), (2, 3)


def view(rank: int, *calls: Call) -> RankView:
    groups = tuple(sorted({call.ranks for call in calls}))
    return RankView(rank, groups, {}, 0, (), calls)


def healthy() -> list[RankView]:
    def of(rank: int) -> RankView:
        pair = PAIR if rank < 2 else OTHERS
        rows = 10 + rank  # differs by rank, as with a router
        return view(
            rank,
            Call("broadcast", ALL, (8, 4), "float32"),
            Call("all_to_all", pair, (rows, 4), "float32"),
            Call("reduce_scatter", ALL, (64,), "float32"),
        )

    return [of(rank) for rank in range(4)]


def changed(views: list[RankView], rank: int, i: int, **changes: object) -> list[RankView]:
    calls = [*views[rank].stepping]
    calls[i] = calls[i]._replace(**changes)
    views[rank] = view(rank, *calls)
    return views


def test_ranks_that_agree():
    assert [*disagreements(healthy())] == []


@pytest.mark.parametrize(
    ("i", "changes", "words"),
    [
        (
            0,
            {"shape": (8, 5)},
            "call 1 of rank 0 is broadcast of [8, 4] float32, and that of rank 3 broadcast of [8, 5]",
        ),
        (0, {"dtype": "bfloat16"}, "that of rank 3 broadcast of [8, 4] bfloat16"),
        (2, {"operation": "all_reduce"}, "call 2 of rank 0 is reduce_scatter of [64] float32, and that of rank 3 all_"),
        (1, {"shape": (10, 8)}, "of rank 3 all_to_all of [10, 8]"),
        (1, {"ranks": (1, 3)}, "uses the group of 2 ranks (1, 3), and rank 1, which is in it, does not"),
        (1, {"ranks": (0, 1)}, "rank 3 uses a group of 2 ranks (0, 1), which it is not a member of"),
    ],
)
def test_a_rank_that_does_something_else(i, changes, words):
    assert any(words in line for line in disagreements(changed(healthy(), 3, i, **changes)))


def test_a_call_that_one_rank_leaves_out_or_makes_later():
    views = healthy()
    first, exchange, last = views[2].stepping
    views[2] = view(2, first, exchange)
    assert any("rank 0 makes 2 calls, and rank 2 1" in line for line in disagreements(views))
    views[2] = view(2, last, exchange, first)
    assert any("call 1 of rank 0 is broadcast" in line for line in disagreements(views))


def test_which_ranks_are_looked_at():
    assert looked_at(64, 8) == [*range(8), *range(56, 64)]
    assert looked_at(4096, 1) == [0, 1, 4095]
    assert looked_at(64, 32) == [*range(8), *range(32, 40), 63]
    assert looked_at(2, 2) == [0, 1]
    assert looked_at(1, 1) == [0]


def test_what_repeats_is_left_out_and_said():
    overrides = [
        "train.global_batch_size=512",
        "model.hidden_size=1024",
        "model.num_layers=12",
        "data.sequence_length=512",
    ]
    loaded = load_config("quickstart", overrides, ds_config="zero3_nvme", ranks=64)
    small, left_out = cut(loaded, make_plan(loaded.run, 64, loaded))
    run = small.run
    assert (run.model.num_layers, run.data.sequence_length, run.train.global_batch_size) == (2, 128, 64)
    assert small.run.context_length == loaded.run.context_length
    assert small.run.model.hidden_size == 1024
    assert [line.split(" ")[0] for line in left_out] == ["2", "128", "1", "memory"]
    assert small.deepspeed["zero_optimization"]["offload_param"]["device"] == "cpu"


@pytest.mark.parametrize(
    ("ds_config", "overrides", "words"),
    [
        ("zero2", ["train.global_batch_size=63"], "63"),
        ("zero2", ["train.global_batch_size=64", "parallel.ep_size=3"], "ep_size"),
        ("zero3", ["train.global_batch_size=64", "parallel.ep_size=8"], "zero3_autoep"),
        ("zero0", ["train.global_batch_size=64", "precision.dtype=fp16"], "fp16"),
        (None, [], "--ds_config"),
    ],
)
def test_what_cannot_run_on_so_many_ranks_is_refused_before_a_process_starts(ds_config, overrides, words, monkeypatch):
    monkeypatch.setattr("storyteller_ds.planning.dry_run.run.ProcessPoolExecutor", None)
    with pytest.raises(ConfigError, match=words):
        dry_run(load_config("quickstart", overrides, ds_config=ds_config, ranks=64), 64, 8, lambda _: None)
