"""Stopping and resuming gives the same numbers, bit for bit, as an uninterrupted run."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from storyteller_ds.checkpoint import resume as resuming
from storyteller_ds.checkpoint import rng
from storyteller_ds.checkpoint.manifest import Topology
from storyteller_ds.checkpoint.read import Checkpoint, find_checkpoint, open_checkpoint
from storyteller_ds.checkpoint.resume import changed_settings, check_same_run, restore
from storyteller_ds.checkpoint.train_state import TrainState
from storyteller_ds.checkpoint.write import Contents
from storyteller_ds.config.run import RunConfig
from storyteller_ds.config.training import CheckpointConfig
from storyteller_ds.data.batching.batches import BatchSplit, TrainBatches
from storyteller_ds.data.shards import TokenStream
from storyteller_ds.distributed.world import World
from storyteller_ds.engines.single import SingleEngine
from storyteller_ds.engines.step import train_step
from storyteller_ds.errors import CheckpointError
from storyteller_ds.training.callbacks.checkpoints import Checkpoints
from tests.support.checkpoints import write_checkpoint
from tests.support.cut_stream import cut

BATCH, LENGTH, VOCAB = 2, 8, 32
CPU = torch.device("cpu")
SETTINGS = {
    "model": {"hidden_size": 16, "num_layers": 2, "num_heads": 2, "intermediate_size": 16, "dropout": 0.2},
    "moe": {"num_experts": 4, "top_k": 2, "noisy_gating": True},
    "data": {"sequence_length": LENGTH},
    "tokenizer": {"vocab_size": VOCAB},
    "train": {"global_batch_size": BATCH},
    "precision": {"dtype": "fp32"},
    "parallel": {"device": "cpu"},
}


def config(**changes: dict) -> RunConfig:
    return RunConfig.model_validate({**SETTINGS, **{k: {**SETTINGS.get(k, {}), **v} for k, v in changes.items()}})


def make_engine(seed: int = 0) -> SingleEngine:
    return SingleEngine(config().model_copy(update={"seed": seed}), World(0, 0, 1, 1), CPU)


def make_batches() -> TrainBatches:
    ids = np.random.default_rng(0).integers(0, VOCAB, 50 * LENGTH)
    return TrainBatches(cut(TokenStream([ids]), LENGTH), "corpus", 0, BatchSplit(0, 1, BATCH, 1))


def advance(engine: SingleEngine, state: TrainState, steps: int) -> tuple[TrainState, list[tuple[float, float]]]:
    results = []
    for _ in range(steps):
        result = train_step(engine, make_batches().step(state.samples), 1e-2)
        results.append((result.loss, result.grad_norm))
        state = state.after_step(BATCH, BATCH * LENGTH)
    return state, results


def snapshot(engine: SingleEngine) -> dict[tuple[str, str], torch.Tensor]:
    return {(kind, name): tensor.clone() for kind, name, tensor in engine.named_state()}


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def contents(state: TrainState, run: RunConfig) -> Contents:
    return Contents(
        trainer={"state": dataclasses.asdict(state)},
        config={"run": run.model_dump(mode="json")},
        tokenizer_json="{}",
        dataset_fingerprint="corpus",
        topology={"world_size": 1, "ep_size": 1},
    )


@pytest.fixture
def saved(tmp_path: Path):
    """Three steps, a checkpoint, and four more steps without a stop."""
    rng.seed_rng(0, 0, 0)
    engine = make_engine()
    state, _ = advance(engine, TrainState(), 3)
    state = state.after_eval(2.5, 64)
    checkpoint = open_checkpoint(write_checkpoint(engine, tmp_path / "checkpoints", 3, contents(state, engine.run)))
    at_save = snapshot(engine)
    _, results = advance(engine, state, 4)
    torch.manual_seed(12345)  # a restored run must not profit from the current RNG state
    return checkpoint, at_save, results, snapshot(engine)


def test_a_restored_run_is_the_uninterrupted_one_bit_for_bit(saved):
    checkpoint, at_save, results, at_end = saved
    engine = make_engine(seed=9)  # other weights, which must all be replaced
    assert not same(snapshot(engine), at_save)
    state = restore(engine, checkpoint, 0)
    assert state == TrainState(3, 3 * BATCH, 3 * BATCH * LENGTH, 2.5, 0, best_val_tokens=64)
    assert same(snapshot(engine), at_save)
    assert advance(engine, state, 4)[1] == results
    assert same(snapshot(engine), at_end)


@pytest.mark.parametrize("left_out", ["moments", "step count", "random streams", "cursor", "weights", "nothing"])
def test_leaving_out_any_part_would_be_noticed(saved, left_out):
    checkpoint, _, results, at_end = saved
    engine = make_engine()
    state = restore(engine, checkpoint, 0)
    kinds = {"moments": ("exp_avg", "exp_avg_sq"), "weights": ("weight",)}.get(left_out, ())
    now = snapshot(engine)
    engine.load_named_state(
        lambda kind, name: now[kind, name] * 0.5 if kind in kinds else now[kind, name],
        state.step,
        1 if left_out == "step count" else state.step,
        None,
    )
    if left_out == "random streams":
        torch.manual_seed(1)
    if left_out == "cursor":
        state = dataclasses.replace(state, samples=0)
    _, after = advance(engine, state, 4)
    # "nothing" shows that the difference comes from what was left out, not from this way of restoring.
    assert (after == results) == same(snapshot(engine), at_end) == (left_out == "nothing")


def without_moments(engine: SingleEngine, patch: pytest.MonkeyPatch) -> None:
    load = engine.load_named_state

    def load_weights_only(read, *rest):
        load(lambda kind, name: read(kind, name) * (kind == "weight"), *rest)

    patch.setattr(engine, "load_named_state", load_weights_only)


def without_weights(engine: SingleEngine, patch: pytest.MonkeyPatch) -> None:
    load, now = engine.load_named_state, snapshot(engine)
    patch.setattr(
        engine,
        "load_named_state",
        lambda read, *rest: load(lambda kind, name: now[kind, name] if kind == "weight" else read(kind, name), *rest),
    )


def without_step_count(engine: SingleEngine, patch: pytest.MonkeyPatch) -> None:
    load = engine.load_named_state
    patch.setattr(engine, "load_named_state", lambda read, steps, updates, scale: load(read, steps, 0, scale))


def without_random_streams(engine: SingleEngine, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(resuming, "set_rng_state", lambda device, streams: None)


def without_cursor(engine: SingleEngine, patch: pytest.MonkeyPatch) -> None:
    read = Checkpoint.read_json

    def without_samples(checkpoint: Checkpoint, name: str) -> dict[str, Any]:
        values = read(checkpoint, name)
        return {**values, "state": {**values["state"], "samples": 0}} if name == "trainer.json" else values

    patch.setattr(Checkpoint, "read_json", without_samples)


@pytest.mark.parametrize(
    ("leave_out", "exact"),
    [
        (without_moments, False),
        (without_weights, False),
        (without_step_count, False),
        (without_random_streams, False),
        (without_cursor, False),
        (lambda engine, patch: None, True),
    ],
)
def test_a_restore_that_forgets_anything_is_not_exact(saved, monkeypatch, leave_out, exact):
    checkpoint, _, results, at_end = saved
    engine = make_engine(seed=9)
    leave_out(engine, monkeypatch)
    _, after = advance(engine, restore(engine, checkpoint, 0), 4)
    assert (after == results) == same(snapshot(engine), at_end) == exact


def test_rolling_back_is_exact_and_waits_for_what_is_being_written(tmp_path):
    rng.seed_rng(0, 0, 0)
    engine, said = make_engine(), []
    hook = Checkpoints(
        engine,
        tmp_path,
        CheckpointConfig(every_steps=3),
        contents(TrainState(), engine.run),
        said.append,
    )
    assert hook.roll_back(0) is None
    state, _ = advance(engine, TrainState(), 3)
    at_save = snapshot(engine)
    hook.on_step_end(state, last=False)
    _, results = advance(engine, state, 4)
    assert hook.roll_back(0) == state
    assert said == [f"saved {tmp_path / 'step_00000003'}"]
    assert same(snapshot(engine), at_save)
    assert advance(engine, state, 4)[1] == results


@pytest.mark.parametrize(
    "trainer",
    [
        {},
        {"state": {}},
        {"state": {"step": 1, "surprise": 2}},
        {"state": 5},
        {"state": {"elapsed_s": -1.0}},
    ],
)
def test_progress_that_is_none_is_refused(saved, trainer):
    checkpoint = saved[0]
    (checkpoint.folder / "trainer.json").write_text(json.dumps(trainer))
    engine = make_engine()
    before = snapshot(engine)
    if trainer == {"state": {}}:  # every field has a default, like those that later versions add
        assert restore(engine, checkpoint, 0) == TrainState()
        return
    with pytest.raises(CheckpointError, match=r"trainer\.json does not say where the run was"):
        restore(engine, checkpoint, 0)
    assert same(snapshot(engine), before)


def test_random_streams_of_something_else_are_refused_before_anything_is_changed(saved):
    checkpoint = saved[0]
    save_file({"cpu": torch.zeros(3)}, checkpoint.folder / "rng-00000-of-00001.safetensors")
    engine = make_engine()
    before = snapshot(engine)
    with pytest.raises(CheckpointError, match="random streams"):
        restore(engine, checkpoint, 0)
    assert same(snapshot(engine), before)


def test_another_number_of_ranks_starts_new_streams_and_keeps_the_rest(saved):
    checkpoint, at_save, _, _ = saved
    by_two = Checkpoint(checkpoint.folder, checkpoint.manifest.model_copy(update={"topology": Topology(world_size=2)}))
    engine = make_engine()
    state = restore(engine, by_two, 0)
    assert same(snapshot(engine), at_save)
    first = advance(engine, state, 2)[1]
    restore(engine, by_two, 0)
    assert advance(engine, state, 2)[1] == first  # new, but the same every time
    restore(engine, by_two, 1)
    assert advance(engine, state, 2)[1] != first


def test_random_streams_differ_by_seed_step_and_rank():
    def drawn(*place: int) -> float:
        rng.seed_rng(*place)
        return torch.rand(()).item()

    places = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]
    assert len({drawn(*place) for place in places}) == 4
    assert drawn(0, 0, 0) == drawn(0, 0, 0)
    rng.seed_rng(2**63 - 1, 0, 0)
    state = rng.rng_state(CPU)
    first = torch.rand(5)
    rng.set_rng_state(CPU, state)
    assert torch.equal(torch.rand(5), first)


@pytest.mark.parametrize(
    ("section", "field", "value"),
    [
        ("model", "hidden_size", 32),
        ("model", "num_layers", 3),
        ("model", "num_kv_heads", 1),
        ("model", "activation", "gelu"),
        ("model", "rope_theta", 5000.0),
        ("moe", "num_experts", 8),
        ("moe", "top_k", 1),
        ("moe", "noisy_gating", False),
        ("tokenizer", "vocab_size", 64),
    ],
)
def test_another_model_is_refused_with_both_values(saved, section, field, value):
    checkpoint = saved[0]
    check_same_run(checkpoint, config(), "corpus")
    before = getattr(getattr(config(), section), field)
    with pytest.raises(CheckpointError) as caught:
        check_same_run(checkpoint, config(**{section: {field: value}}), "corpus")
    message = str(caught.value)
    assert f"{section}.{field} was {before}, now {value}" in message
    assert "--resume never" in message
    assert "\n" not in message


def test_all_differences_are_named_at_once_and_another_corpus_is_one(saved):
    with pytest.raises(CheckpointError) as caught:
        check_same_run(saved[0], config(moe={"top_k": 1}, model={"bias": True}), "other corpus")
    assert all(part in str(caught.value) for part in ("moe.top_k", "model.bias", "the corpus or its tokenizer"))
    assert "its text has changed" in str(caught.value)


def test_a_checkpoint_older_than_a_field_of_the_model_had_its_default(saved):
    settings = json.loads((saved[0].folder / "config.json").read_text())
    del settings["run"]["model"]["qk_norm"]
    (saved[0].folder / "config.json").write_text(json.dumps(settings))
    check_same_run(saved[0], config(), "corpus")
    assert "model.qk_norm was False, now True" in refusal(saved[0], "corpus", model={"qk_norm": True})


def test_the_fields_that_make_another_corpus_are_named(saved):
    with pytest.raises(CheckpointError) as caught:
        check_same_run(saved[0], config(data={"builtin_stories": 77}, tokenizer={"kind": "char"}), "other corpus")
    assert "data.builtin_stories was" in str(caught.value)
    assert "now 77" in str(caught.value)
    assert "tokenizer.kind was" in str(caught.value)


def refusal(checkpoint: Checkpoint, fingerprint: str, resume: str = "auto", **changes: dict) -> str:
    with pytest.raises(CheckpointError) as caught:
        check_same_run(checkpoint, config(**changes), fingerprint, resume)
    return str(caught.value)


def test_a_corpus_that_follows_from_another_vocabulary_has_no_other_text(saved):
    # Another vocab_size trains another tokenizer, which alone changes the fingerprint of the corpus.
    message = refusal(saved[0], "other corpus", tokenizer={"vocab_size": 64})
    assert f"tokenizer.vocab_size was {VOCAB}, now 64; put the old values back" in message
    assert "text" not in message.partition(": ")[2]
    assert "corpus" not in message.partition(": ")[2]


def test_where_the_tokens_lie_is_no_reason_for_another_corpus(saved):
    message = refusal(saved[0], "other corpus", data={"cache_dir": "/elsewhere", "streaming": True})
    assert "data.source is builtin as before, its text has changed)" in message
    assert "cache_dir" not in message
    given = {"tokenizer": {"path": "t.json"}, "data": {"validation": "v.txt"}}
    message = refusal(saved[0], "other corpus", **given)
    assert "tokenizer.path was None, now t.json" in message
    assert "has changed" not in message


def test_a_text_changed_in_place_may_be_any_of_those_named(tmp_path):
    run = config(data={"validation": "v.txt"}, tokenizer={"path": "t.json"})
    engine = SingleEngine(run, World(0, 0, 1, 1), CPU)
    checkpoint = open_checkpoint(write_checkpoint(engine, tmp_path, 1, contents(TrainState(step=1), run)))
    with pytest.raises(CheckpointError, match=r"changed, or that of data.validation=v.txt or tokenizer.path=t.json\)"):
        check_same_run(checkpoint, run, "other corpus")


def test_the_advice_is_about_the_flag_that_was_typed(saved):
    changes = {"moe": {"top_k": 1}}
    assert refusal(saved[0], "corpus", **changes).endswith("start over with another --output_dir or --resume never")
    # With --resume OTHER, a new --output_dir would change nothing.
    message = refusal(saved[0], "corpus", resume="runs/other", **changes)
    assert message.endswith("start over with --resume never in place of --resume runs/other")
    assert "--output_dir" not in message


def test_experts_that_no_layer_had_may_be_taken_out_of_the_config(tmp_path):
    before = config(moe={"every_n_layers": 9})
    assert before.moe_layers == 0
    engine = SingleEngine(before, World(0, 0, 1, 1), CPU)
    checkpoint = open_checkpoint(write_checkpoint(engine, tmp_path, 1, contents(TrainState(1), before)))
    check_same_run(
        checkpoint, config(moe={"every_n_layers": 1, "num_experts": 0, "noisy_gating": False}), "corpus", "auto"
    )
    with pytest.raises(CheckpointError, match=r"moe\.every_n_layers was 9, now 1"):
        check_same_run(checkpoint, config(moe={"every_n_layers": 1}), "corpus", "auto")


def test_what_only_changes_the_training_is_free(saved):
    free = {"model": {"dropout": 0.0, "init_std": 0.5}, "optimizer": {"lr": 0.5}, "train": {"max_steps": 5}}
    check_same_run(saved[0], config(**free), "corpus")
    assert changed_settings(saved[0], config()) == []
    assert changed_settings(saved[0], config(**free)) == [
        "model.dropout was 0.2, now 0.0",
        "model.init_std was 0.02, now 0.5",
        "optimizer.lr was 0.001, now 0.5",
        "train.max_steps was 1000, now 5",
    ]


def test_another_length_is_refused_where_positions_are_learned(tmp_path):
    # context_length is null in both and means data.sequence_length, so the table of positions has another shape.
    run = config(model={"position": "learned"})
    engine = SingleEngine(run, World(0, 0, 1, 1), CPU)
    checkpoint = open_checkpoint(write_checkpoint(engine, tmp_path, 1, contents(TrainState(step=1), run)))
    longer = config(model={"position": "learned"}, data={"sequence_length": 2 * LENGTH})
    with pytest.raises(CheckpointError, match=f"was {LENGTH}, now {2 * LENGTH}"):
        check_same_run(checkpoint, longer, "corpus")


def test_the_hook_saves_on_time_and_at_the_end(tmp_path):
    engine, said = make_engine(), []
    hook = Checkpoints(
        engine,
        tmp_path,
        CheckpointConfig(every_steps=2),
        contents(TrainState(), engine.run),
        said.append,
    )
    for step in range(1, 6):
        hook.on_step_end(TrainState(step=step), last=step == 5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_00000002", "step_00000004", "step_00000005"]
    assert said == [f"saved {tmp_path / name}" for name in ("step_00000002", "step_00000004", "step_00000005")]


def test_a_path_may_be_a_run_a_folder_of_steps_or_a_step(saved):
    folder = saved[0].folder
    for path in (folder, folder.parent, folder.parent.parent):
        assert find_checkpoint(path, print).folder == folder
    with pytest.raises(CheckpointError, match="there is no such folder"):
        find_checkpoint(folder.parent / "nowhere", print)
    (folder / "manifest.json").unlink()
    for path in (folder, folder.parent, folder.parent.parent):
        with pytest.raises(CheckpointError, match="no valid checkpoint"):
            find_checkpoint(path, lambda line: None)
    with pytest.raises(CheckpointError, match=r"only weights without a manifest\.json; .* copy everything but"):
        find_checkpoint(folder, print)
    with pytest.raises(CheckpointError, match=r"trainer\.json: it is a file; give a run folder or a step folder"):
        find_checkpoint(folder / "trainer.json", print)
