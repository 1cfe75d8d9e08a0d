"""When a rank counts as hanging, and what it reports then."""

import os
import threading

import pytest
import torch

from storyteller_ds.checkpoint.train_state import TrainState
from storyteller_ds.distributed.heartbeat import progress_made
from storyteller_ds.distributed.supervision.child import report_step
from storyteller_ds.distributed.world import World
from storyteller_ds.errors import EXIT_DONE, EXIT_TRAINING_STOPPED
from storyteller_ds.training.callbacks import watchdog as module
from storyteller_ds.training.callbacks.watchdog import Watchdog
from tests.support.distributed import wait_until

LIMIT_MIN = 10.0
LOOK_S = 10.0


class Rank:
    """A rank with its own clock, whose progress the test controls."""

    def __init__(self, minutes: float = LIMIT_MIN) -> None:
        self.time, self.made = 0.0, 0
        self.watchdog = Watchdog(3, minutes, lambda: self.made, lambda: self.time)

    def overdue_after(self, seconds: float) -> bool:
        for _ in range(round(seconds / LOOK_S)):
            self.time += LOOK_S
            overdue = self.watchdog.is_overdue()
        return overdue


def test_standing_still_is_noticed_when_the_time_is_over():
    rank = Rank()
    assert not rank.overdue_after(60 * LIMIT_MIN - LOOK_S)
    assert rank.overdue_after(LOOK_S)


def test_any_progress_starts_the_time_again():
    rank = Rank()
    for _ in range(5):
        assert not rank.overdue_after(60 * LIMIT_MIN - LOOK_S)
        rank.made += 1
        assert not rank.overdue_after(LOOK_S)


def test_zero_is_for_ever():
    assert not Rank(0.0).overdue_after(1e6)


@pytest.mark.parametrize("jump_s", [86400.0, -86400.0])
def test_a_job_that_was_suspended_goes_on(jump_s: float):
    """Neither a suspension nor a clock that jumps by a day counts: the process could not run in that time."""
    rank = Rank()
    assert not rank.overdue_after(60.0)
    rank.time += jump_s
    assert not rank.overdue_after(60 * LIMIT_MIN - 60.0 - 3 * LOOK_S)
    assert rank.overdue_after(4 * LOOK_S)  # control: idle time before and after still counts


def test_collectives_and_steps_are_progress():
    world = World(0, 0, 1, 1)
    for action in (lambda: world.all_reduce_sum(torch.ones(1)), lambda: world.on_main(int), lambda: report_step(1)):
        before = progress_made()
        action()
        assert progress_made() > before


def stuck_in_here(enough: threading.Event) -> None:
    enough.wait(60)


def test_it_says_where_all_threads_stand_and_leaves(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "SECONDS_FOR_THE_OTHERS", 0.0)
    read, write = os.pipe()
    enough, left = threading.Event(), []
    thread = threading.Thread(target=stuck_in_here, args=[enough])
    thread.start()
    watchdog = Watchdog(3, 0.001, lambda: 0, leave=left.append, stderr=write)
    watchdog.on_start(TrainState())
    assert wait_until(lambda: bool(left), 60)
    watchdog.on_end(EXIT_DONE)
    enough.set()
    thread.join()
    os.close(write)
    with os.fdopen(read) as pipe:
        logged = pipe.read()
    assert left == [EXIT_TRAINING_STOPPED]
    assert logged.startswith("storyteller: rank 3 on ")
    assert "in stuck_in_here\n" in logged
    assert "in test_it_says_where_all_threads_stand_and_leaves\n" in logged


def test_a_run_that_gets_on_is_left_alone():
    count = iter(range(10**9))
    left: list[int] = []
    looked = 0

    def progress() -> int:
        nonlocal looked
        looked = next(count)
        return looked

    watchdog = Watchdog(0, 0.001, progress, leave=left.append)
    watchdog.on_start(TrainState())
    assert wait_until(lambda: looked > 50, 60)  # over twice the limit
    watchdog.on_end(EXIT_DONE)
    assert left == []


def test_in_a_library_it_only_reports():
    read, write = os.pipe()
    watchdog = Watchdog(0, 0.001, lambda: 0, leave=None, stderr=write)
    watchdog.on_start(TrainState())
    assert b"min (train.hang_timeout_minutes); its threads:" in os.read(read, 1 << 16)
    watchdog.on_end(EXIT_DONE)
    os.close(read)
    os.close(write)
