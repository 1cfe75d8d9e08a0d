"""Time left in a comparison: as planned at first, then scaled by how slow the finished runs were."""

from storyteller_ds.bench.remaining import Remaining

PLANNED_S, RUNS = {"short": 60.0, "long": 600.0}, {"short": 2, "long": 3}


def test_the_rest_takes_as_much_longer_than_planned_as_what_is_over():
    remaining = Remaining(PLANNED_S, RUNS, at_once=1)
    assert remaining.finish("short", 120) == "1/5, 1 h 2 min left"  # (60 + 3 * 600) * 2
    assert remaining.finish("long", 600) == "2/5, 31 min 30 s left"  # (60 + 2 * 600) * 1.5


def test_runs_that_share_the_machine_are_each_slower_and_fewer_in_turn():
    remaining = Remaining(PLANNED_S, RUNS, at_once=2)
    assert remaining.finish("long", 1200) == "1/5, 22 min 0 s left"  # (2 * 60 + 2 * 600) * 2 / 2


def test_what_was_over_before_says_nothing_of_the_pace():
    remaining = Remaining(PLANNED_S, RUNS, at_once=2)
    assert remaining.finish("long", None) == "1/5, 22 min 0 s left"
    for name in ("long", "long", "short", "short"):
        last = remaining.finish(name, None)
    assert last == "5/5, 0 s left"
