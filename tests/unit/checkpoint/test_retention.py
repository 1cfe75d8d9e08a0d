"""Which steps are kept, and that none is lost in the process."""

import itertools
import json
import shutil
from pathlib import Path

import pytest
import torch

from storyteller_ds.checkpoint import retention
from storyteller_ds.checkpoint.manifest import Manifest
from storyteller_ds.checkpoint.read import newest_valid, open_checkpoint
from storyteller_ds.checkpoint.retention import clear_leftovers, delete_superseded, put_in_place, steps_to_keep
from storyteller_ds.checkpoint.train_state import TrainState
from storyteller_ds.checkpoint.write import Contents
from storyteller_ds.config.run import RunConfig
from storyteller_ds.config.training import CheckpointConfig
from storyteller_ds.distributed.world import World
from storyteller_ds.engines.single import SingleEngine
from storyteller_ds.training.callbacks.checkpoints import Checkpoints
from tests.support.checkpoints import write_checkpoint

RUN = RunConfig.model_validate(
    {
        "model": {"hidden_size": 8, "num_layers": 1, "num_heads": 2, "intermediate_size": 8},
        "data": {"sequence_length": 8},
        "tokenizer": {"vocab_size": 8},
        "parallel": {"device": "cpu"},
    }
)
SCORES = {10: 1.5, 20: 1.2, 30: None, 40: 1.3, 50: None, 60: 1.4}
"""val_bpb of the steps of a run; two were not validated."""


def saved_at(step: int, bpb: float | None, tokens: int | None = None) -> Manifest:
    values = {"format": 1, "step": step, "topology": {"world_size": 1}, "files": {}}
    return Manifest.model_validate({**values, "val_bpb": bpb, "val_tokens": tokens})


def keep(last: int | None = None, every: int = 0, best: int = 0) -> CheckpointConfig:
    return CheckpointConfig(keep_last=last, keep_every_steps=every, keep_best=best)


@pytest.mark.parametrize(
    ("config", "kept"),
    [
        (keep(), {10, 20, 30, 40, 50, 60}),
        (keep(every=20, best=1), {10, 20, 30, 40, 50, 60}),
        (keep(1), {60}),
        (keep(2), {50, 60}),
        (keep(6), {10, 20, 30, 40, 50, 60}),
        (keep(100), {10, 20, 30, 40, 50, 60}),
        (keep(1, every=30), {30, 60}),
        (keep(1, every=7), {60}),
        (keep(1, every=20), {20, 40, 60}),
        (keep(1, best=1), {20, 60}),
        (keep(1, best=2), {20, 40, 60}),
        (keep(1, best=9), {10, 20, 40, 60}),
        (keep(2, every=30, best=1), {20, 30, 50, 60}),
    ],
)
def test_what_is_kept(config, kept):
    saved = [saved_at(step, bpb) for step, bpb in SCORES.items()]
    for order in itertools.islice(itertools.permutations(saved), 0, None, 97):
        assert steps_to_keep(order, config) == kept


def test_nothing_saved_and_nothing_scored_are_no_trouble():
    assert steps_to_keep([], keep(1, best=1)) == set()
    assert steps_to_keep([saved_at(1, None)], keep(1, best=3)) == {1}
    # With equal scores, the earlier step is the best.
    assert steps_to_keep([saved_at(1, 2.0), saved_at(2, 2.0), saved_at(3, 3.0)], keep(1, best=1)) == {1, 3}


def test_the_best_is_sought_on_each_text_apart():
    """Step 30 ends a run in the old format, scored on the whole text; the run continued on another part of it."""
    saved = [
        saved_at(10, 1.3, 640),
        saved_at(20, 1.2, 640),
        saved_at(30, 1.5, None),
        saved_at(40, 0.9, 320),
        saved_at(50, 1.0, 320),
    ]
    assert steps_to_keep([*saved, saved_at(60, None)], keep(1, best=1)) == {20, 30, 40, 60}


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("original")
    engine = SingleEngine(RUN, World(0, 0, 1, 1), torch.device("cpu"))
    for step, bpb in SCORES.items():
        run = {"run": RUN.model_dump(mode="json")}
        write_checkpoint(engine, folder, step, Contents({"state": {}}, run, "{}", "c", {"world_size": 1}, bpb))
    return folder


@pytest.fixture
def steps(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "checkpoints"))


def left(steps: Path) -> list[str]:
    return sorted(path.name for path in steps.iterdir())


def test_what_need_not_be_kept_is_deleted(steps):
    gone = delete_superseded(steps, keep(1, every=30, best=1), newest=60)
    assert sorted(path.name for path in gone) == ["step_00000010", "step_00000040", "step_00000050"]
    assert left(steps) == ["step_00000020", "step_00000030", "step_00000060"]
    assert open_checkpoint(steps / "step_00000020").manifest.val_bpb == 1.2


def test_the_step_just_written_stays_also_if_there_are_later_ones(steps):
    # As after going back to an earlier step by hand.
    delete_superseded(steps, keep(1), newest=30)
    assert left(steps) == ["step_00000030", "step_00000060"]


def test_damaged_steps_neither_count_nor_are_touched(steps):
    (steps / "step_00000060" / "manifest.json").unlink()
    (steps / "step_00000050" / "trainer.json").write_text("")
    delete_superseded(steps, keep(1), newest=40)
    assert left(steps) == ["step_00000040", "step_00000050", "step_00000060"]
    assert newest_valid(steps, lambda line: None).step == 40


def test_a_kill_while_deleting_leaves_no_half_step(steps, monkeypatch):
    def killed(path: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(retention.shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            retention.delete(steps / "step_00000060")
    assert newest_valid(steps, pytest.fail).step == 50
    clear_leftovers(steps)
    assert left(steps) == [f"step_{step:08d}" for step in (10, 20, 30, 40, 50)]


def test_a_kill_while_a_step_is_replaced_loses_neither(steps):
    new = steps / "step_00000060.tmp"
    shutil.copytree(steps / "step_00000060", new)
    (steps / "step_00000060").rename(steps / "step_00000060.replaced")  # the kill comes before the second rename
    clear_leftovers(steps)
    assert newest_valid(steps, pytest.fail).step == 60
    assert len(left(steps)) == len(SCORES)


def test_a_refused_rename_puts_the_old_step_back(steps, monkeypatch):
    new = Path(shutil.copytree(steps / "step_00000060", steps / "step_00000060.tmp"))
    rename = Path.rename

    def refuse(self: Path, target: Path) -> Path:
        if self == new:
            raise OSError(5, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(OSError, match="Input/output error"):
        put_in_place(new, steps / "step_00000060")
    assert newest_valid(steps, pytest.fail).step == 60


def test_links_are_no_leftovers(steps, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("x")
    (steps / "step_00000070.tmp").symlink_to(outside)
    clear_leftovers(steps)
    assert (outside / "precious").exists()


def test_a_run_keeps_the_last_and_the_best(tmp_path):
    engine = SingleEngine(RUN, World(0, 0, 1, 1), torch.device("cpu"))
    made = Contents({}, {"run": RUN.model_dump(mode="json")}, "{}", "c", {"world_size": 1})
    config = CheckpointConfig(every_steps=1, keep_last=2, keep_best=1)
    hook = Checkpoints(engine, tmp_path, config, made, lambda line: None)
    hook.on_start(TrainState())
    for step, bpb in enumerate([1.5, 1.2, None, 1.3, None, 1.4], start=1):
        if bpb is not None:
            # The better score on the whole text is no reason to keep the last step.
            final = {"final_val_bpb": 0.1} if step == 6 else {}
            hook.on_eval({"step": step, "val_bpb": bpb, "val_tokens": 64, **final})
        hook.on_step_end(TrainState(step=step), last=step == 6)
    assert left(tmp_path) == ["step_00000002", "step_00000005", "step_00000006"]
    manifests = [json.loads((tmp_path / name / "manifest.json").read_text()) for name in left(tmp_path)]
    assert [(one["val_bpb"], one["val_tokens"]) for one in manifests] == [(1.2, 64), (None, None), (1.4, 64)]
    assert [open_checkpoint(tmp_path / name).manifest.val_tokens for name in left(tmp_path)] == [64, None, 64]


def test_an_old_step_that_cannot_be_deleted_is_a_warning(tmp_path, monkeypatch):
    engine = SingleEngine(RUN, World(0, 0, 1, 1), torch.device("cpu"))
    made = Contents({}, {"run": RUN.model_dump(mode="json")}, "{}", "c", {"world_size": 1})
    said: list[str] = []
    hook = Checkpoints(engine, tmp_path, CheckpointConfig(keep_last=1), made, said.append)
    hook.on_step_end(TrainState(step=1), last=True)

    def refuse(folder: Path) -> None:
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(retention, "delete", refuse)
    hook.on_step_end(TrainState(step=2), last=True)
    assert [line.startswith("warning: an old checkpoint could not be deleted") for line in said] == [False, True, False]
    assert left(tmp_path) == ["step_00000001", "step_00000002"]
