"""Manifests and JSON files of a checkpoint, changed on purpose and sealed again, are usable or refused in one line."""

import dataclasses
import hashlib
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from storyteller_ds.checkpoint.names import MANIFEST, step_folder_name
from storyteller_ds.checkpoint.read import find_checkpoint
from storyteller_ds.checkpoint.resume import check_same_run, restore
from storyteller_ds.checkpoint.train_state import TrainState
from storyteller_ds.checkpoint.write import Contents
from storyteller_ds.cli.main import storyteller
from storyteller_ds.config.run import RunConfig
from storyteller_ds.data.tokenizers.choose import train_tokenizer
from storyteller_ds.distributed.world import World
from storyteller_ds.engines.single import SingleEngine
from storyteller_ds.errors import StorytellerError
from storyteller_ds.generation.load import load_story_model
from storyteller_ds.untrusted import seal_of
from tests.support.checkpoints import write_checkpoint
from tests.support.mutations import mutated_bytes, mutated_value, put

SEED = 20250105
RUN = RunConfig.model_validate(
    {
        "model": {"hidden_size": 8, "num_layers": 1, "num_heads": 2, "intermediate_size": 8},
        "moe": {"num_experts": 2, "top_k": 1},
        "data": {"sequence_length": 8},
        "tokenizer": {"kind": "char", "vocab_size": 32},
        "parallel": {"device": "cpu"},
    }
)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def engine() -> SingleEngine:
    return SingleEngine(RUN, World(0, 0, 1, 1), CPU)


@pytest.fixture
def step(engine: SingleEngine, tmp_path: Path) -> Path:
    tokenizer = train_tokenizer(RUN.tokenizer, ["There was a dog."])
    trainer = {"state": dataclasses.asdict(TrainState(step=3, samples=6, tokens=48)), "loss_scale": None}
    config = {"run": RUN.model_dump(mode="json"), "deepspeed": None, "topology": {"world_size": 1}}
    contents = Contents(trainer, config, tokenizer.to_json(), "corpus", {"world_size": 1})
    write_checkpoint(engine, tmp_path / "checkpoints", 3, contents)
    return tmp_path / "checkpoints" / step_folder_name(3)


def use(step: Path, engine: SingleEngine) -> None:
    """Do everything that reads a checkpoint."""
    checkpoint = find_checkpoint(step, lambda line: None)
    model = load_story_model(step, CPU, lambda line: None)
    assert model.tokenizer.vocab_size <= model.run.tokenizer.vocab_size
    check_same_run(checkpoint, RUN, "corpus")
    state = restore(engine, checkpoint, 0)
    assert isinstance(state.step, int)


def look(step: Path, good: Path) -> None:
    """Run ls, verify, show and diff of `storyteller checkpoint`: done or refused, and no control characters printed."""
    for command in (("ls", step), ("verify", step), ("show", step), ("diff", step, good), ("diff", good, step)):
        result = CliRunner().invoke(storyteller, ["checkpoint", *map(str, command)])
        assert result.exception is None or isinstance(result.exception, StorytellerError), (command, result.exception)
        assert all(each.isprintable() for each in result.stdout.replace("\n", "")), command


def is_accepted(read: Callable[[], None]) -> bool:
    try:
        read()
    except StorytellerError:
        return False
    return True


def reseal(step: Path) -> None:
    manifest = json.loads((step / MANIFEST).read_text())
    for name in manifest["files"]:
        content = (step / name).read_bytes()
        manifest["files"][name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    manifest["seal"] = seal_of(manifest)
    put(step / MANIFEST, json.dumps(manifest).encode())


def fuzz(step: Path, engine: SingleEngine, name: str, count: int) -> None:
    rng = random.Random(SEED)
    use(step, engine)  # control: usable without changes
    good = Path(shutil.copytree(step, step.parents[1] / "good"))
    text, manifest = (step / name).read_bytes(), (step / MANIFEST).read_bytes()
    outcomes = []
    for _ in range(count):
        value = mutated_value(rng, json.loads(text))
        content = json.dumps(value).encode() if rng.random() < 0.8 else mutated_bytes(rng, text)
        if name != MANIFEST:
            put(step / MANIFEST, manifest)
            put(step / name, content)
            reseal(step)
        else:
            if isinstance(value, dict):
                value["seal"] = seal_of(value)
            put(step / name, json.dumps(value).encode() if rng.random() < 0.8 else content)
        outcomes.append(is_accepted(lambda: use(step, engine)))
        look(step, good)
    assert outcomes.count(False) / count > 0.1
    assert outcomes.count(True) > 0


JSON_FILES = ["manifest.json", "trainer.json", "config.json", "tokenizer.json"]


@pytest.mark.parametrize("name", JSON_FILES)
def test_40_changed_checkpoints_are_used_or_refused(step, engine, name):
    fuzz(step, engine, name, 40)


@pytest.mark.faults
@pytest.mark.parametrize("name", JSON_FILES)
def test_300_changed_checkpoints_are_used_or_refused(step, engine, name):
    fuzz(step, engine, name, 300)


def test_a_config_that_promises_a_large_model_takes_no_memory(step, engine):
    config = json.loads((step / "config.json").read_text())
    for field, value in {"hidden_size": 2**40, "num_layers": 2**40, "intermediate_size": 2**50}.items():
        changed = {**config, "run": {**config["run"], "model": {**config["run"]["model"], field: value}}}
        put(step / "config.json", json.dumps(changed).encode())
        reseal(step)
        assert not is_accepted(lambda: use(step, engine)), field


def test_a_tensor_of_another_shape_is_not_spread_over_the_parameter(step, engine):
    (path,) = step.glob("weights-*")
    tensors = load_file(path)
    name = next(name for name, tensor in tensors.items() if tensor.dim() == 2)
    (path.parent / path.name).unlink()
    save_file({**tensors, name: torch.ones(1, 1)}, path)  # copy_ would broadcast it
    reseal(step)
    with pytest.raises(StorytellerError, match=name):
        load_story_model(step, CPU, lambda line: None)
