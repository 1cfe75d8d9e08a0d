"""Event files, read back by TensorBoard's own reader."""

from pathlib import Path

import pytest

from storyteller_ds.checkpoint.train_state import TrainState
from storyteller_ds.training.callbacks.callback import Sample
from storyteller_ds.training.callbacks.tensorboard_events import TensorBoardEvents

pytest.importorskip("tensorboard")


def record(step: int, undone_steps: int = 0) -> dict[str, object]:
    loads = [0.25, 0.75]
    return {
        "step": step,
        "train_loss": 10.0 - step,
        "grad_norm": None,
        "expert_load": loads,
        "undone_steps": undone_steps,
    }


def write(folder: Path, state: TrainState, steps: range, exit_code: int | None = 0) -> None:
    events = TensorBoardEvents(folder, pytest.fail)
    events.on_start(state)
    for step in steps:
        events.on_train(record(step, state.undone_steps))
    events.on_eval({"step": steps[-1], "val_loss": 5.0, "undone_steps": state.undone_steps})
    events.on_samples(TrainState(step=steps[-1]), [Sample("Once", " upon a time …")])
    if exit_code is not None:
        events.on_end(exit_code)
    else:
        events._writer.flush()


def read(folder: Path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(folder))
    accumulator.Reload()
    return accumulator


def values(folder: Path, tag: str) -> dict[int, float]:
    events = read(folder).Scalars(tag)
    steps = [event.step for event in events]
    assert len(steps) == len(set(steps)), "a step is doubled"
    return {event.step: event.value for event in events}


def test_numbers_come_back(tmp_path):
    write(tmp_path, TrainState(), range(1, 4))
    assert values(tmp_path, "train_loss") == {1: 9.0, 2: 8.0, 3: 7.0}
    assert values(tmp_path, "expert_load/1") == {1: 0.75, 2: 0.75, 3: 0.75}
    assert values(tmp_path, "val_loss") == {3: 5.0}
    assert "grad_norm" not in read(tmp_path).Tags()["scalars"]


def test_stories_come_back(tmp_path):
    write(tmp_path, TrainState(), range(1, 2))
    (event,) = read(tmp_path).Tensors("samples/0/text_summary")
    assert event.tensor_proto.string_val[0].decode() == "Once upon a time …"


@pytest.mark.parametrize("exit_code", [0, None], ids=["ended", "killed"])
def test_a_resumed_run_doubles_no_step(tmp_path, exit_code):
    write(tmp_path, TrainState(), range(1, 6), exit_code)
    write(tmp_path, TrainState(step=3), range(4, 8))
    assert values(tmp_path, "train_loss") == {step: 10.0 - step for step in range(1, 8)}
    assert values(tmp_path, "val_loss") == {7: 5.0}


def test_undone_steps_stay_in_front_of_those_that_replace_them(tmp_path):
    write(tmp_path, TrainState(), range(1, 4))
    write(tmp_path, TrainState(step=1, undone_steps=2), range(2, 4))
    assert values(tmp_path, "train_loss") == {1: 9.0, 2: 8.0, 3: 7.0, 4: 8.0, 5: 7.0}


def test_a_disk_that_refuses_ends_the_tracking_with_one_line(tmp_path):
    lines: list[str] = []
    events = TensorBoardEvents(tmp_path, lines.append)
    events.on_start(TrainState())

    class Refuses:
        def add_summary(self, *_):
            raise OSError(28, "No space left on device")

    events._writer.file_writer = Refuses()
    events.on_train(record(1))
    events.on_train(record(2))
    events.on_end(0)
    (line,) = lines
    assert "No space left" in line
    assert "\n" not in line
