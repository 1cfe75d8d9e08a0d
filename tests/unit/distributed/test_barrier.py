"""Ranks wait without a collective's timeout: as long as working ranks give signs of life, and no longer."""

import contextlib
import itertools
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch.distributed as dist

from storyteller_ds.distributed import barrier as module
from storyteller_ds.distributed.barrier import Barrier
from storyteller_ds.errors import InterruptedSafely, TrainingStopped
from storyteller_ds.meanwhile import meanwhile

SECONDS = 60


class Time:
    """A clock that advances by one second at each reading, and calls `then`."""

    def __init__(self) -> None:
        self.now = 0.0

    def then(self) -> None:
        """Replaced by tests."""

    def __call__(self) -> float:
        self.now += 1.0
        self.then()
        return self.now


@pytest.fixture
def store() -> dist.Store:
    return dist.HashStore()


@pytest.fixture(autouse=True)
def _no_long_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_TICK_S", 0.001)
    monkeypatch.setattr(module, "_LONGEST_PAUSE_S", 0.001)


def arrive(store: dist.Store, number: int, turn: int = 0) -> None:
    """Arrive at the barrier as another rank does."""
    store.set(f"{turn}/{number}", "")
    store.add(f"{turn}/arrived", 1)


@contextlib.contextmanager
def threads_end() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    for thread in set(threading.enumerate()) - before:
        thread.join(SECONDS)
        assert not thread.is_alive()


def on_threads(*actions: Any) -> None:
    with ThreadPoolExecutor(len(actions)) as pool:
        for job in [pool.submit(action) for action in actions]:
            job.result(SECONDS)


def test_nobody_passes_before_all_have_come(store):
    order: list[str] = []
    came = threading.Event()

    def first() -> None:
        barrier = Barrier(store, 0, 3, SECONDS)
        came.set()
        for turn in range(3):
            barrier.wait()
            order.append(f"passed {turn}")

    def late(number: int) -> None:
        barrier = Barrier(store, number, 3, SECONDS)
        came.wait(SECONDS)
        for turn in range(3):
            order.append(f"comes {turn}")
            barrier.wait()

    with threads_end():
        on_threads(first, lambda: late(1), lambda: late(2))
    for turn in range(3):
        assert order.index(f"passed {turn}") > max(i for i, each in enumerate(order) if each == f"comes {turn}")


def test_signs_of_life_are_waited_for_however_long_it_takes(store):
    """Silence may last 60 s; a sign is given every 30 s, and heard before the clock advances."""
    time = Time()
    barrier = Barrier(store, 0, 2, 60, time)

    def then() -> None:
        if time.now == 1800:
            arrive(store, 1)
        elif time.now % 30 == 0:
            signs = store.add("signs", 1)
            heard = threading.Event()
            while barrier._arrival is not None and barrier._arrival.signs != signs:
                assert not heard.wait(0.0005)

    time.then = then
    with threads_end():
        barrier.wait()
    assert time.now >= 1800


def test_silence_ends_it_and_names_who_is_silent(store):
    time = Time()
    arrive(store, 2)
    with pytest.raises(TrainingStopped) as stopped:
        Barrier(store, 0, 4, 60, time).wait()
    assert "rank 1, 3 gave no sign of life for 1 min (parallel.timeout_minutes)" in str(stopped.value)
    assert 60 <= time.now <= 63
    for number in (1, 3):
        arrive(store, number)  # so that the thread that queries the store ends


class StoppedStore:
    """The store of a stopped rank 0: it does not answer."""

    def __init__(self) -> None:
        self.goes_on = threading.Event()

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments: self.goes_on.wait(SECONDS) and 2


def test_rank_0_is_named_where_its_store_does_not_answer(monkeypatch):
    monkeypatch.setattr(module, "_ANSWER_S", 0.01)
    store = StoppedStore()
    with threads_end():
        with pytest.raises(TrainingStopped, match="rank 0 gave no sign of life"):
            Barrier(store, 1, 2, 60, Time()).wait()
        store.goes_on.set()


def test_a_rank_that_worked_is_not_held_up_by_a_store_that_does_not_answer(monkeypatch):
    monkeypatch.setattr(module, "SIGN_OF_LIFE_S", 0.0001)
    monkeypatch.setattr("storyteller_ds.meanwhile._LAST_CALL_S", 0.01)
    store = StoppedStore()
    asked = threading.Event()
    store.add = lambda *arguments: asked.set() or store.goes_on.wait(SECONDS)  # type: ignore[method-assign]
    with threads_end():
        with Barrier(store, 1, 2, 60).at_work():
            assert asked.wait(SECONDS)
        store.goes_on.set()


def test_where_the_store_is_gone_the_ranks_meet_in_the_collective_that_follows():
    def gone(*arguments: object) -> int:
        raise dist.DistNetworkError("Connection reset by peer")

    class Gone(StoppedStore):
        def __getattr__(self, name: str) -> Any:
            return gone

    with threads_end():
        barrier = Barrier(Gone(), 1, 2, 60)
        barrier.wait()
        barrier.wait()  # a run whose launcher was killed passes several until it is saved
        with Barrier(Gone(), 1, 2, 0.001).at_work():
            pass


def test_a_job_that_was_suspended_as_a_whole_goes_on(store):
    time = Time()
    ticks = itertools.count()

    def then() -> None:
        tick = next(ticks)
        if tick in (1, 3):
            time.now += 3600
        elif tick == 5:
            arrive(store, 1)

    time.then = then
    with threads_end():
        Barrier(store, 0, 2, 60, time).wait()


def test_called_away_by_a_signal_it_comes_back_and_counts_once(store):
    time = Time()
    barrier = Barrier(store, 0, 2, 60, time)

    def signalled() -> None:
        if time.now == 3:
            raise InterruptedSafely

    time.then = signalled
    with threads_end():
        with pytest.raises(InterruptedSafely):
            barrier.wait()
        with pytest.raises(TrainingStopped):  # rank 0 is not counted twice
            barrier.wait()
        assert store.add("0/arrived", 0) == 1
        arrive(store, 1)
        barrier.wait()


def test_the_store_does_not_grow(store):
    def run(number: int) -> None:
        barrier = Barrier(store, number, 2, SECONDS)
        for _ in range(50):
            barrier.wait()

    with threads_end():
        on_threads(lambda: run(0), lambda: run(1))
    assert store.num_keys() < 10


def test_a_rank_at_work_gives_signs_of_life_and_stops_with_it(store, monkeypatch):
    monkeypatch.setattr(module, "SIGN_OF_LIFE_S", 0.001)
    with Barrier(store, 0, 2, SECONDS).at_work():
        while store.add("signs", 0) < 3:
            pass
    assert not [thread for thread in threading.enumerate() if thread.name == "meanwhile"]


@pytest.mark.parametrize(("silence_s", "every_s"), [(1800, 10), (6, 1.2)])
def test_several_signs_fit_into_the_silence_allowed(store, monkeypatch, silence_s, every_s):
    asked: list[float] = []
    monkeypatch.setattr(module, "meanwhile", lambda action, every: asked.append(every))
    Barrier(store, 0, 2, silence_s).at_work()
    assert asked == [every_s]


def test_meanwhile_ends_when_its_block_raises():
    called = threading.Event()

    def fail() -> None:
        with meanwhile(called.set, 0.001):
            assert called.wait(SECONDS)
            raise ValueError("inside")

    with pytest.raises(ValueError, match="inside"):
        fail()
    assert not [thread for thread in threading.enumerate() if thread.name == "meanwhile"]
