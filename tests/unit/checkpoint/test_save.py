"""Saving while training continues gives the same bytes and guarantees as when training waits."""

import errno
import resource
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from storyteller_ds.checkpoint import rank_state
from storyteller_ds.checkpoint import write as writing
from storyteller_ds.checkpoint.read import newest_valid, open_checkpoint
from storyteller_ds.checkpoint.train_state import TrainState
from storyteller_ds.checkpoint.write import Contents, Save
from storyteller_ds.config.run import RunConfig
from storyteller_ds.config.training import CheckpointConfig
from storyteller_ds.distributed.world import World
from storyteller_ds.engines.single import SingleEngine
from storyteller_ds.errors import CheckpointError, StorytellerError
from storyteller_ds.training.callbacks.checkpoints import Checkpoints
from tests.support.checkpoints import write_checkpoint

SECONDS = 60
"""Far more than anything here takes; a longer wait is a hang."""
RUN = RunConfig.model_validate(
    {
        "model": {"hidden_size": 8, "num_layers": 1, "num_heads": 2, "intermediate_size": 8},
        "moe": {"num_experts": 2, "top_k": 1},
        "data": {"sequence_length": 8},
        "tokenizer": {"vocab_size": 8},
        "parallel": {"device": "cpu"},
    }
)


def contents(world_size: int = 1) -> Contents:
    return Contents({"state": {"step": 1}}, {"run": RUN.model_dump(mode="json")}, "{}", "c", {"world_size": world_size})


def engine(world: Any = None) -> SingleEngine:
    return SingleEngine(RUN, world or World(0, 0, 1, 1), torch.device("cpu"))


def train_on(engine: SingleEngine) -> None:
    """Change every weight, and draw random numbers."""
    with torch.no_grad():
        for parameter in engine.decoder.parameters():
            parameter.add_(1.0)
    torch.rand(3)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


class Gate:
    """Stands in for safetensors' save_file: waits until it is opened, then saves or fails."""

    def __init__(self, patch: pytest.MonkeyPatch, error: OSError | None = None) -> None:
        self.entered, self.opened, self.error, self.save_file = (
            threading.Event(),
            threading.Event(),
            error,
            rank_state.save_file,
        )
        patch.setattr(rank_state, "save_file", self)

    def __call__(self, tensors: dict[str, torch.Tensor], path: Path) -> None:
        self.entered.set()
        assert self.opened.wait(SECONDS)
        if self.error is not None:
            raise self.error
        self.save_file(tensors, path)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    return Gate(monkeypatch)


@pytest.mark.parametrize(("copied", "same"), [(True, True), (False, False)])
def test_what_training_does_meanwhile_is_not_saved(tmp_path, monkeypatch, copied, same):
    # Not copied is the control: it shows that the test would notice.
    trained = engine()
    torch.manual_seed(3)
    expected = files(write_checkpoint(trained, tmp_path / "sync", 7, contents()))
    gate = Gate(monkeypatch)
    (tmp_path / "async").mkdir()
    torch.manual_seed(3)
    save = Save(trained, tmp_path / "async", 7, contents(), copied)
    assert gate.entered.wait(SECONDS)
    assert not save.done()
    train_on(trained)
    gate.opened.set()
    assert (files(save.finish()) == expected) is same


def hook(checkpoints: Path, said: list[str], trained: SingleEngine | None = None, **config: object) -> Checkpoints:
    made = Checkpoints(
        trained or engine(),
        checkpoints,
        CheckpointConfig.model_validate({"every_steps": 2, **config}),
        contents(),
        said.append,
    )
    made.on_start(TrainState())
    return made


def names(checkpoints: Path) -> list[str]:
    return sorted(path.name for path in checkpoints.iterdir())


def test_training_goes_on_while_a_checkpoint_is_written_and_it_is_said_when_it_is_there(tmp_path, gate):
    said: list[str] = []
    saving = hook(tmp_path, said)
    saving.on_step_end(TrainState(step=2), last=False)
    saving.on_step_end(TrainState(step=3), last=False)
    assert (names(tmp_path), said) == (["step_00000002.tmp"], [])
    assert newest_valid(tmp_path, said.append) is None
    gate.opened.set()
    saving.on_step_end(TrainState(step=4), last=False)  # waits for step 2
    assert said == [f"saved {tmp_path / 'step_00000002'}"]
    saving.on_step_end(TrainState(step=5), last=True)  # waits for step 4, and for itself
    assert said[1:] == [f"saved {tmp_path / name}" for name in ("step_00000004", "step_00000005")]
    assert names(tmp_path) == ["step_00000002", "step_00000004", "step_00000005"]


def test_without_asynchronous_it_is_there_when_the_step_ends(tmp_path):
    said: list[str] = []
    hook(tmp_path, said, asynchronous=False).on_step_end(TrainState(step=2), last=False)
    assert said == [f"saved {tmp_path / 'step_00000002'}"]


def full(*arguments: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def wait_until_written(saving: Checkpoints) -> None:
    assert saving._saving is not None
    saving._saving._state.exception(SECONDS)
    assert saving._saving._place is not None
    saving._saving._place.exception(SECONDS)


@pytest.mark.parametrize("asynchronous", [True, False])
def test_a_failure_stops_training_at_the_next_step(tmp_path, monkeypatch, asynchronous):
    said: list[str] = []
    saving = hook(tmp_path, said, asynchronous=asynchronous)
    saving.on_step_end(TrainState(step=2), last=False)
    if asynchronous:
        wait_until_written(saving)
        saving.on_step_end(TrainState(step=3), last=False)
    monkeypatch.setattr(rank_state, "flush_to_disk", full)
    if asynchronous:
        saving.on_step_end(TrainState(step=4), last=False)
        wait_until_written(saving)
    message = r"step_00000004 could not be written: No space left .* with room .*run again"
    with pytest.raises(CheckpointError, match=message):
        saving.on_step_end(TrainState(step=5 if asynchronous else 4), last=False)
    assert names(tmp_path) == ["step_00000002"]
    saving.on_end(3)
    assert newest_valid(tmp_path, said.append).step == 2
    assert said == [f"saved {tmp_path / 'step_00000002'}"]


@pytest.mark.parametrize("asynchronous", [True, False])
def test_a_failure_is_a_warning_if_the_user_wants_and_the_next_one_is_written(tmp_path, monkeypatch, asynchronous):
    said: list[str] = []
    saving = hook(tmp_path, said, asynchronous=asynchronous, on_error="continue")
    with monkeypatch.context() as patch:
        patch.setattr(rank_state, "flush_to_disk", full)
        saving.on_step_end(TrainState(step=2), last=False)
        if asynchronous:
            wait_until_written(saving)
    saving.on_step_end(TrainState(step=3), last=False)
    assert len(said) == 1
    assert said[0].startswith("warning: checkpoint")
    assert said[0].endswith("training goes on")
    saving.on_step_end(TrainState(step=4), last=True)
    assert said[1:] == [f"saved {tmp_path / 'step_00000004'}"]


@pytest.mark.parametrize("on_error", ["stop", "continue"])
def test_the_last_one_must_be_written(tmp_path, monkeypatch, on_error):
    saving = hook(tmp_path, [], on_error=on_error)
    monkeypatch.setattr(rank_state, "flush_to_disk", full)
    with pytest.raises(CheckpointError, match="No space left"):
        saving.on_step_end(TrainState(step=1), last=True)
    assert names(tmp_path) == []


def test_an_earlier_failure_does_not_keep_the_last_from_being_written(tmp_path, monkeypatch):
    said: list[str] = []
    saving = hook(tmp_path, said)
    with monkeypatch.context() as patch:
        patch.setattr(rank_state, "flush_to_disk", full)
        saving.on_step_end(TrainState(step=2), last=False)
        wait_until_written(saving)
    saving.on_step_end(TrainState(step=3), last=True)
    assert names(tmp_path) == ["step_00000003"]
    assert [line.split()[0] for line in said] == ["warning:", "saved"]


def test_when_training_fails_the_checkpoint_on_its_way_is_finished(tmp_path, gate):
    said: list[str] = []
    saving = hook(tmp_path, said)
    saving.on_step_end(TrainState(step=2), last=False)
    gate.opened.set()
    saving.on_end(3)
    assert said == [f"saved {tmp_path / 'step_00000002'}"]
    assert newest_valid(tmp_path, said.append).step == 2


@pytest.mark.parametrize("asynchronous", [True, False])
def test_an_interrupted_run_is_saved_once_and_waited_for(tmp_path, asynchronous):
    said: list[str] = []
    saving = hook(tmp_path, said, asynchronous=asynchronous)
    saving.on_step_end(TrainState(step=2), last=False)
    saving.on_interrupt(TrainState(step=2))  # being written, or in place
    assert said == [f"saved {tmp_path / 'step_00000002'}"]
    saving.on_step_end(TrainState(step=3), last=False)
    saving.on_interrupt(TrainState(step=3))
    assert said[1:] == [f"saved {tmp_path / 'step_00000003'}"]


def test_an_interrupted_run_saves_again_what_has_just_failed(tmp_path, monkeypatch):
    said: list[str] = []
    saving = hook(tmp_path, said)
    with monkeypatch.context() as patch:
        patch.setattr(rank_state, "flush_to_disk", full)
        saving.on_step_end(TrainState(step=2), last=False)
        wait_until_written(saving)
    saving.on_interrupt(TrainState(step=2))
    assert [line.split()[0] for line in said] == ["warning:", "saved"]
    monkeypatch.setattr(rank_state, "flush_to_disk", full)
    saving.on_step_end(TrainState(step=3), last=False)
    with pytest.raises(CheckpointError, match="No space left"):
        saving.on_interrupt(TrainState(step=3))


def test_too_little_room_is_seen_before_anything_is_written(tmp_path, monkeypatch):
    write_checkpoint(engine(), tmp_path, 1, contents())
    monkeypatch.setattr(writing.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1000}))
    monkeypatch.setattr(rank_state, "save_file", lambda *arguments: pytest.fail("wrote all the same"))
    with pytest.raises(CheckpointError, match=r"no space left, .* MiB are needed and 0.00 MiB are free"):
        write_checkpoint(engine(), tmp_path, 2, contents())
    assert names(tmp_path) == ["step_00000001"]


def test_a_limit_on_the_size_of_files_is_an_error_and_not_the_end_of_the_process(tmp_path):
    write_checkpoint(engine(), tmp_path, 1, contents())
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(CheckpointError, match=r"File too large.*; earlier checkpoints .* ulimit -f"):
            write_checkpoint(engine(), tmp_path, 2, contents())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert names(tmp_path) == ["step_00000001"]
    assert newest_valid(tmp_path, print).step == 1


@pytest.mark.parametrize("where", ["rank state", "manifest", "rename"])
def test_every_refusal_of_the_disk_leaves_the_earlier_step_and_says_what_to_do(tmp_path, monkeypatch, where):
    write_checkpoint(engine(), tmp_path, 1, contents())

    def refuse(*arguments: object) -> None:
        raise OSError(errno.EROFS, "refused")

    module, name = {
        "rank state": (rank_state, "save_file"),
        "manifest": (writing, "write_flushed"),
        "rename": (writing, "put_in_place"),
    }[where]
    monkeypatch.setattr(module, name, refuse)
    with pytest.raises(CheckpointError, match=r"refused; earlier checkpoints are untouched; .*run again"):
        write_checkpoint(engine(), tmp_path, 2, contents())
    assert names(tmp_path) == ["step_00000001"]


def test_what_lies_below_a_vanished_mount_is_not_written_to(tmp_path):
    checkpoints = tmp_path / "mounted" / "checkpoints"
    saving = hook(checkpoints, [])
    checkpoints.parent.rename(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match=r"No such file or directory; .* the disk must be there"):
        saving.on_step_end(TrainState(step=2), last=False)
    assert not checkpoints.parent.exists()


def test_killed_between_manifest_and_rename_there_is_no_step_and_the_rest_is_removed(tmp_path):
    for step in (2, 4):
        write_checkpoint(engine(), tmp_path, step, contents())
    (tmp_path / "step_00000004").rename(tmp_path / "step_00000004.tmp")  # as it was before the rename
    assert open_checkpoint(tmp_path / "step_00000004.tmp").step == 4
    assert newest_valid(tmp_path, print).step == 2
    saving = hook(tmp_path, [])
    assert names(tmp_path) == ["step_00000002"]
    saving.on_step_end(TrainState(step=4), last=True)
    assert newest_valid(tmp_path, print).step == 4


class Meeting:
    """Lets threads act as ranks: a barrier does what World does with collectives."""

    def __init__(self, size: int) -> None:
        self.size, self.barrier, self.told = size, threading.Barrier(size), [None] * size

    def exchange(self, rank: int, value: object) -> list[Any]:
        self.told[rank] = value
        self.barrier.wait(SECONDS)
        told = list(self.told)
        self.barrier.wait(SECONDS)
        return told


class ThreadWorld:
    """World for one of the ranks of a Meeting."""

    def __init__(self, meeting: Meeting, rank: int) -> None:
        self.meeting, self.rank, self.size, self.local_rank = meeting, rank, meeting.size, rank

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def together(self, action: Callable[[], Any]) -> list[Any]:
        try:
            mine: tuple[Any, Any] = (None, action())
        except StorytellerError as error:
            mine = (error, None)
        outcomes = self.meeting.exchange(self.rank, mine)
        for failure, _ in outcomes:
            if failure is not None:
                raise failure
        return [result for _, result in outcomes]

    def on_main(self, action: Callable[[], Any]) -> Any:
        return self.together(action if self.is_main else lambda: None)[0]

    def all_reduce_sum(self, tensor: torch.Tensor) -> torch.Tensor:
        return torch.stack(self.meeting.exchange(self.rank, tensor.clone())).sum(0)


def on_ranks(action: Callable[[SingleEngine], Any], ranks: int = 2) -> list[Any]:
    """Run `action` on this many ranks at once; returns the result of each, or the text of its CheckpointError."""
    meeting = Meeting(ranks)
    engines = [engine() for _ in range(ranks)]
    for rank, each in enumerate(engines):
        each.world = ThreadWorld(meeting, rank)  # type: ignore[assignment]

    def outcome(each: SingleEngine) -> Any:
        try:
            return action(each)
        except CheckpointError as error:
            return str(error)

    with ThreadPoolExecutor(ranks) as pool:
        return [job.result(SECONDS) for job in [pool.submit(outcome, each) for each in engines]]


def test_each_rank_writes_a_share_and_together_they_are_the_state(tmp_path):
    folders = on_ranks(lambda each: Save(each, tmp_path, 5, contents(2), copy=True).finish())
    assert set(folders) == {tmp_path / "step_00000005"}
    checkpoint = newest_valid(tmp_path, print)
    assert sorted(checkpoint.manifest.files) == sorted(set(names(checkpoint.folder)) - {"manifest.json"})
    alone = open_checkpoint(write_checkpoint(engine(), tmp_path / "alone", 5, contents()))
    for part in ("weights", "optimizer"):
        shares, whole = checkpoint.open_tensors(part), alone.open_tensors(part)
        assert sorted(shares) == sorted(whole)
        assert all(torch.equal(shares[name], whole[name]) for name in whole)


@pytest.mark.parametrize("failing", [0, 1])
def test_a_rank_that_cannot_write_is_heard_by_all_and_nobody_waits_for_ever(tmp_path, monkeypatch, failing):
    write_checkpoint(engine(), tmp_path, 1, contents())
    save_file = rank_state.save_file

    def fail_on_one(tensors: dict[str, torch.Tensor], path: Path) -> None:
        if f"-{failing:05d}-of-" in path.name:
            full()
        save_file(tensors, path)

    monkeypatch.setattr(rank_state, "save_file", fail_on_one)

    def poll_and_finish(each: SingleEngine) -> Path:
        save = Save(each, tmp_path, 5, contents(2), copy=True)
        while not save.done():  # a failure on one rank ends this loop on all of them
            pass
        return save.finish()

    first, second = on_ranks(poll_and_finish)
    assert first == second
    assert "No space left" in first
    assert names(tmp_path) == ["step_00000001"]


def test_a_rank_that_is_gone_is_waited_for_only_so_long(tmp_path):
    def alone(each: SingleEngine) -> Any:
        save = Save(each, tmp_path, 5, contents(2), copy=True)
        return save.finish_alone(0.2)

    def gone(each: SingleEngine) -> None:
        # It was there when the save began, but wrote nothing.
        each.world.on_main(lambda: None)

    outcomes = on_ranks(lambda each: alone(each) if each.world.is_main else gone(each))
    assert "was not finished: rank 1 did not write" in outcomes[0]
    assert names(tmp_path) == []


def test_without_the_other_ranks_a_checkpoint_that_all_have_written_is_finished(tmp_path):
    assert on_ranks(lambda each: Save(each, tmp_path, 5, contents(2), copy=True).finish_alone(SECONDS)) == [
        tmp_path / "step_00000005",
        tmp_path / "step_00000005",
    ]
    assert newest_valid(tmp_path, print).step == 5
