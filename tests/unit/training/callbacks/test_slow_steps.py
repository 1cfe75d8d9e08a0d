"""What is reported when other programs use the cores."""

from storyteller_ds.training.callbacks.slow_steps import IN_A_ROW, SlowSteps


class Neighbors:
    """The cores that other programs seem to use."""

    cores_taken = 0.0


class Run:
    """A run whose steps the callback gets."""

    def __init__(self) -> None:
        self.neighbors, self.lines = Neighbors(), []
        self.hook = SlowSteps(self.neighbors, self.lines.append)

    def steps(self, count: int, seconds: float, taken: float) -> list[str]:
        self.neighbors.cores_taken = taken
        for _ in range(count):
            self.hook.on_train({"step_time_s": seconds})
        reported, self.lines[:] = list(self.lines), []
        return reported


def test_slow_steps_beside_another_program_are_reported_once_each_time():
    run = Run()
    assert run.steps(20, 0.2, taken=0.0) == []
    reported = run.steps(50, 0.5, taken=1.0)
    assert len(reported) == 1
    assert "other programs use 1.0 of this machine's cores" in reported[0]
    assert "2.5 times as long" in reported[0]
    assert run.steps(20, 0.2, taken=0.0) == []
    assert len(run.steps(20, 0.5, taken=1.0)) == 1


def test_nothing_is_reported_of_steps_that_are_slow_by_themselves():
    run = Run()
    run.steps(20, 0.2, taken=0.0)
    assert run.steps(50, 2.0, taken=0.0) == []


def test_nothing_is_reported_while_steps_are_as_fast_as_usual():
    run = Run()
    run.steps(20, 0.2, taken=0.0)
    assert run.steps(50, 0.25, taken=1.0) == []


def test_a_few_slow_steps_are_no_news():
    run = Run()
    run.steps(20, 0.2, taken=0.0)
    for _ in range(10):
        assert run.steps(IN_A_ROW - 1, 0.9, taken=1.0) == []
        assert run.steps(1, 0.2, taken=1.0) == []


def test_a_run_that_begins_on_a_busy_machine_says_so():
    reported = Run().steps(50, 0.5, taken=0.8)
    assert len(reported) == 1
    assert "other programs use 0.8" in reported[0]
    assert "times as long" not in reported[0]
