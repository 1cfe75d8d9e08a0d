"""What a signal does, depending on its number, its time and the phase of the run."""

import os
import signal
import threading

import pytest
import torch

from storyteller_ds.distributed.supervision.signals import ASKING_TO_END, outside_training
from storyteller_ds.distributed.world import World
from storyteller_ds.errors import Interrupted, InterruptedAfterSave, InterruptedSafely
from storyteller_ds.training import interruption
from storyteller_ds.training.interruption import SECONDS_OF_ONE_EVENT, ProcessInterruption
from tests.support.distributed import wait_until

TERM, USR1, INT, HUP = ASKING_TO_END
CPU = torch.device("cpu")
ALONE = World(0, 0, 1, 1)
WAIT_S = 30


class Run:
    """A run with its own clock that records the exit codes it would have ended with."""

    def __init__(self, reports: bool = True) -> None:
        self.time = 0.0
        self.left_with: list[int] = []
        self.logged: list[str] = []
        self.interruption = ProcessInterruption(self.logged.append, lambda: self.time, self.left_with.append, reports)

    def receive(self, *signals: tuple[float, int]) -> None:
        for self.time, number in signals:
            self.interruption.receive(number)

    def agrees(self, world: World = ALONE) -> bool:
        return self.interruption.agreed(world, CPU)


@pytest.mark.parametrize("number", ASKING_TO_END)
def test_in_training_a_signal_waits_for_the_step(number):
    run = Run()
    with run.interruption.in_training():
        assert not run.agrees()
        run.receive((0.0, number))
        assert run.agrees()
        error = run.interruption.after_save(12)
    assert isinstance(error, InterruptedAfterSave)
    assert error.exit_code == 75
    assert str(error) == f"interrupted by {number.name}; saved step 12; run again to continue"
    assert (run.left_with, len(run.logged)) == ([], 1)


def test_one_rank_signalled_is_all_ranks_asked():
    class TwoMore(World):
        """Two other ranks, one of them warned and one asked to end."""

        def all_reduce_sum(self, tensor):
            return tensor + torch.tensor([1, 1, 0, 0])

    run = Run()
    with run.interruption.in_training():
        assert run.agrees(TwoMore(0, 0, 3, 3))
        assert "interrupted by SIGTERM and SIGUSR1; " in str(run.interruption.after_save(1))
        assert not run.agrees(ALONE)  # control


@pytest.mark.parametrize(
    ("signals", "code"),
    [
        ([(0.0, TERM), (0.0, TERM), (SECONDS_OF_ONE_EVENT - 0.1, TERM)], None),  # launcher, supervisor, a slow one
        ([(0.0, INT), (0.1, TERM)], None),  # Ctrl-C, then from the launcher, which got it too
        ([(0.0, TERM), (SECONDS_OF_ONE_EVENT, TERM)], 143),
        ([(0.0, TERM), (5.0, INT)], 130),
        ([(0.0, INT), (5.0, INT)], 130),
        ([(0.0, USR1), (90.0, TERM)], None),  # a warning, then the signal that it warned of
        ([(0.0, USR1), (90.0, USR1)], None),
        ([(0.0, USR1), (90.0, TERM), (95.0, TERM)], 143),
        ([(0.0, HUP), (0.1, HUP), (9.0, HUP)], None),  # a closed terminal: from the kernel, and from the shell
        ([(0.0, HUP), (9.0, TERM)], None),  # then the machine shuts down
        ([(0.0, HUP), (9.0, TERM), (14.0, TERM)], 143),
    ],
)
def test_a_second_signal_ends_at_once(signals, code, capfd):
    run = Run()
    with run.interruption.in_training():
        run.receive(*signals)
        assert run.left_with == ([] if code is None else [code])
        assert run.agrees()
    assert ("ended at once" in capfd.readouterr().err) == (code is not None)


def test_after_the_save_nothing_can_be_lost():
    run = Run()
    with run.interruption.in_training():
        run.receive((0.0, TERM))
        run.agrees()
        run.interruption.after_save(1)
        run.receive((30.0, TERM))
    assert run.left_with == [75]


@pytest.mark.parametrize(("number", "error", "code"), [(number, InterruptedSafely, 75) for number in (TERM, USR1, HUP)])
def test_outside_training_a_scheduler_may_start_it_again(number, error, code):
    assert isinstance(outside_training(number), error)
    assert outside_training(number).exit_code == code


def test_outside_training_ctrl_c_is_for_good():
    assert isinstance(outside_training(INT), Interrupted)
    assert outside_training(INT).exit_code == 130


def test_a_signal_just_before_training_is_not_forgotten():
    run = Run()
    run.receive((0.0, TERM))
    with pytest.raises(InterruptedSafely), run.interruption.in_training():
        pass


def raised_in_main_thread(number: int) -> BaseException | None:
    try:
        os.kill(os.getpid(), number)
        threading.Event().wait(WAIT_S)
    except (Interrupted, InterruptedSafely) as error:
        return error
    return None


@pytest.mark.parametrize("number", ASKING_TO_END)
def test_outside_training_a_real_signal_unwinds_the_main_thread(number):
    with Run().interruption:
        error = raised_in_main_thread(number)
    assert type(error) is type(outside_training(number))


@pytest.mark.parametrize("reports", [True, False])
def test_a_main_thread_that_does_not_unwind_is_left(capfd, monkeypatch, reports):
    monkeypatch.setattr(interruption, "SECONDS_TO_UNWIND", 0.5)
    run = Run(reports)
    with run.interruption:
        assert raised_in_main_thread(TERM) is not None
        assert run.left_with == []
        assert wait_until(lambda: run.left_with == [75], WAIT_S)
    assert ("interrupted by SIGTERM" in capfd.readouterr().err) == reports


def test_a_main_thread_that_unwinds_is_not(monkeypatch):
    monkeypatch.setattr(interruption, "SECONDS_TO_UNWIND", 0.5)
    run = Run()
    with run.interruption:
        assert raised_in_main_thread(TERM) is not None
    assert not wait_until(lambda: run.left_with != [], 1)


def test_a_real_signal_in_training_interrupts_nothing():
    run = Run()
    with run.interruption, run.interruption.in_training():
        os.kill(os.getpid(), TERM)
        assert wait_until(run.agrees, WAIT_S)
    assert run.left_with == []


def test_handlers_are_put_back():
    before = [signal.getsignal(number) for number in ASKING_TO_END]
    fd = signal.set_wakeup_fd(-1)
    threads = threading.active_count()
    with Run().interruption:
        assert [signal.getsignal(number) for number in ASKING_TO_END] != before  # control
        raised_in_main_thread(TERM)
    assert [signal.getsignal(number) for number in ASKING_TO_END] == before
    assert signal.set_wakeup_fd(fd) == -1
    assert threading.active_count() == threads
