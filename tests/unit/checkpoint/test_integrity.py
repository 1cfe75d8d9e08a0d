"""A checkpoint is valid as a whole or does not exist."""

import json
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from storyteller_ds.checkpoint import rank_state
from storyteller_ds.checkpoint.manifest import hash_file
from storyteller_ds.checkpoint.names import WEIGHTS as WEIGHTS_ALONE
from storyteller_ds.checkpoint.read import find_checkpoint, newest_valid, open_checkpoint, step_folders
from storyteller_ds.checkpoint.resume import check_tensors
from storyteller_ds.checkpoint.tensor_files import TensorFiles
from storyteller_ds.checkpoint.write import Contents
from storyteller_ds.config.run import RunConfig
from storyteller_ds.distributed.world import World
from storyteller_ds.engines.single import SingleEngine
from storyteller_ds.errors import CheckpointError
from storyteller_ds.untrusted import seal_of
from tests.support.checkpoints import write_checkpoint

WEIGHTS, OPTIMIZER, RNG = (f"{part}-00000-of-00001.safetensors" for part in ("weights", "optimizer", "rng"))
FILES = [WEIGHTS, OPTIMIZER, RNG, "trainer.json", "config.json", "tokenizer.json"]
RUN = RunConfig.model_validate(
    {
        "model": {"hidden_size": 8, "num_layers": 1, "num_heads": 2, "intermediate_size": 8},
        "moe": {"num_experts": 2, "top_k": 1},
        "data": {"sequence_length": 8},
        "tokenizer": {"vocab_size": 8},
        "parallel": {"device": "cpu"},
    }
)
CONTENTS = Contents({"state": {"step": 1}}, {"run": RUN.model_dump(mode="json")}, "{}", "corpus", {"world_size": 1})


def engine() -> SingleEngine:
    return SingleEngine(RUN, World(0, 0, 1, 1), torch.device("cpu"))


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("original")
    for step in (1, 20):
        write_checkpoint(engine(), folder, step, CONTENTS)
    return folder


@pytest.fixture
def steps(original: Path, tmp_path: Path) -> Path:
    """Steps 1 and 20, which a test may damage."""
    return Path(shutil.copytree(original, tmp_path / "checkpoints"))


def found(steps: Path) -> tuple[str | None, list[str]]:
    said: list[str] = []
    checkpoint = newest_valid(steps, said.append)
    return (checkpoint.folder.name if checkpoint else None), said


@pytest.mark.skipif(sys.platform == "darwin", reason="a file system there takes only UTF-8")
def test_a_folder_may_have_a_name_that_is_not_utf_8(original, tmp_path):
    old_disk = tmp_path / os.fsdecode(b"caf\xe9")
    steps = shutil.copytree(original, old_disk / "checkpoints")
    assert found(steps) == ("step_00000020", [])
    there, here = (TensorFiles([folder / "step_00000020" / WEIGHTS]) for folder in (steps, original))
    assert set(there) == set(here)
    assert all(torch.equal(there[name], here[name]) for name in here)


def test_the_folder_holds_what_the_format_says(steps):
    folder = steps / "step_00000020"
    assert sorted(path.name for path in folder.iterdir()) == sorted([*FILES, "manifest.json"])
    manifest = json.loads((folder / "manifest.json").read_text())
    assert sorted(manifest["files"]) == sorted(FILES)
    assert (manifest["step"], manifest["dataset_fingerprint"]) == (20, "corpus")
    names = [name for name, _ in engine().decoder.named_parameters()]
    assert "blocks.0.ffn.experts.gate_up_proj" in names
    with safe_open(folder / WEIGHTS, framework="pt") as file:
        assert sorted(file.keys()) == sorted(names)
        assert all(file.get_tensor(name).dtype == torch.float32 for name in names)
    with safe_open(folder / OPTIMIZER, framework="pt") as file:
        assert sorted(file.keys()) == sorted(f"{kind}/{name}" for kind in ("exp_avg", "exp_avg_sq") for name in names)


def test_the_newest_valid_step_is_found(steps):
    assert found(steps) == ("step_00000020", [])
    (steps / "step_00000300.tmp").mkdir()
    (steps / "step_x").mkdir()
    (steps / "step_00000400").write_text("a file")
    assert found(steps) == ("step_00000020", [])
    assert [path.name for path in step_folders(steps)] == ["step_00000020", "step_00000001"]
    assert found(steps / "nowhere") == (None, [])


def test_training_does_not_go_on_from_weights_alone(steps):
    (steps / "step_00000020" / OPTIMIZER).unlink()
    (steps / "step_00000020" / RNG).unlink()
    name, said = found(steps)
    assert name == "step_00000001"
    assert said == [
        f"passing over a checkpoint: checkpoint {steps}/step_00000020: {OPTIMIZER} is missing, it has weights only: "
        "enough to generate, not to continue training; use another step"
    ]
    assert find_checkpoint(steps, pytest.fail, WEIGHTS_ALONE).step == 20
    assert find_checkpoint(steps / "step_00000020", pytest.fail, WEIGHTS_ALONE).step == 20
    with pytest.raises(CheckpointError, match="weights only"):
        find_checkpoint(steps / "step_00000020", print)


@pytest.mark.parametrize("name", [WEIGHTS, "trainer.json", "config.json", "tokenizer.json"])
def test_weights_are_verified_also_where_they_are_enough(steps, name):
    flipped(steps / "step_00000020" / name, -1)
    with pytest.raises(CheckpointError, match=f"{name} is damaged"):
        find_checkpoint(steps / "step_00000020", print, WEIGHTS_ALONE)
    assert newest_valid(steps, lambda line: None, WEIGHTS_ALONE).step == 1


def test_where_no_step_is_valid_the_error_is_that_of_the_newest(steps):
    flipped(steps / "step_00000020" / "trainer.json", -1)
    flipped(steps / "step_00000001" / WEIGHTS, -1)
    with pytest.raises(CheckpointError, match=r"step_00000020\W.*trainer.json is damaged"):
        find_checkpoint(steps, lambda line: None, WEIGHTS_ALONE)
    (steps / "step_00000020").rename(steps / "step_00000021")
    with pytest.raises(CheckpointError, match="step_00000021"):
        find_checkpoint(steps, lambda line: None, WEIGHTS_ALONE)


@pytest.mark.parametrize("mask", [0o022, 0o002, 0o077], ids=oct)
def test_all_files_of_a_checkpoint_have_the_mode_that_the_umask_says(tmp_path, mask):
    before = os.umask(mask)
    try:
        folder = write_checkpoint(engine(), tmp_path, 1, CONTENTS)
    finally:
        os.umask(before)
    assert {path.name: oct(path.stat().st_mode & 0o777) for path in folder.iterdir()} == dict.fromkeys(
        [*FILES, "manifest.json"], oct(0o666 & ~mask)
    )


def flipped(path: Path, byte: int, bit: int = 0) -> None:
    content = bytearray(path.read_bytes())
    content[byte] ^= 1 << bit
    path.write_bytes(content)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["first bit", "last bit", "truncated", "extended", "emptied", "missing", "folder"])
def test_a_damaged_file_makes_the_step_invalid(steps, name, damage):
    path = steps / "step_00000020" / name
    content = path.read_bytes()
    if damage in ("first bit", "last bit"):
        flipped(path, 0 if damage == "first bit" else -1)
    else:
        path.unlink()
        replacement = {"truncated": content[:-1], "extended": content + b"\0", "emptied": b""}.get(damage)
        if replacement is not None:
            path.write_bytes(replacement)
        elif damage == "folder":
            path.mkdir()
    name_found, said = found(steps)
    assert name_found == "step_00000001"
    assert len(said) == 1
    assert name in said[0]
    assert "step_00000020" in said[0]
    assert "\n" not in said[0]
    with pytest.raises(CheckpointError, match=name):
        find_checkpoint(steps / "step_00000020", print)


@pytest.mark.parametrize("text", [None, "", "{", "[]", "null", '{"format": 1}', "\ufffd", '{"format": 1, "files": []}'])
def test_without_a_whole_manifest_there_is_no_checkpoint(steps, text):
    path = steps / "step_00000020" / "manifest.json"
    path.unlink() if text is None else path.write_text(text, encoding="utf-8")
    name_found, said = found(steps)
    assert name_found == "step_00000001"
    assert len(said) == 1
    assert "manifest.json" in said[0]


def changed_manifest(steps: Path, **changes: object) -> Path:
    folder = steps / "step_00000020"
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest.update(changes)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "sub/file", "..", "."])
def test_a_manifest_that_names_files_outside_is_refused(steps, name):
    outside = steps / "outside"
    outside.write_text("x")
    files = json.loads((steps / "step_00000020" / "manifest.json").read_text())["files"]
    changed_manifest(steps, files={**files, name: {"bytes": 1, "sha256": "0"}})
    assert found(steps)[0] == "step_00000001"
    with pytest.raises(CheckpointError):
        find_checkpoint(steps / "step_00000020", print)


def test_another_format_is_refused_by_its_number(steps):
    folder = changed_manifest(steps, format=2)
    with pytest.raises(CheckpointError, match="format 2; this version reads 1"):
        open_checkpoint(folder)


@pytest.mark.parametrize("name", [WEIGHTS, OPTIMIZER, RNG, "trainer.json", "config.json", "tokenizer.json"])
def test_a_manifest_that_leaves_a_file_out_is_not_valid(steps, name):
    files = json.loads((steps / "step_00000020" / "manifest.json").read_text())["files"]
    changed_manifest(steps, files={k: v for k, v in files.items() if k != name})
    (steps / "step_00000020" / name).unlink()
    assert found(steps)[0] == "step_00000001"


def test_a_flipped_bit_in_the_manifest_never_changes_what_it_means(steps):
    folder = steps / "step_00000020"
    path = folder / "manifest.json"
    whole = path.read_bytes()
    meaning = open_checkpoint(folder).manifest
    believed = []
    for byte in range(len(whole)):
        flipped(path, byte, bit=byte % 3)
        try:
            checkpoint = open_checkpoint(folder)
            # sha256 and sizes are compared with the files; only what no other check covers matters here.
            if checkpoint.manifest.files == meaning.files and checkpoint.manifest != meaning:
                checkpoint.verify()
                believed.append(checkpoint.manifest)
        except CheckpointError:
            pass
        path.write_bytes(whole)
    assert believed == []


def test_a_step_folder_under_another_name_is_not_that_step(steps):
    (steps / "step_00000020").rename(steps / "step_00000099")
    checkpoint = newest_valid(steps, lambda line: None)
    assert checkpoint is not None
    assert checkpoint.folder.name == f"step_{checkpoint.step:08d}"


def test_a_write_that_fails_leaves_the_earlier_checkpoints_and_no_new_one(steps, monkeypatch):
    for broken in ("save_file", "flush_to_disk"):
        with monkeypatch.context() as patch:

            def full(*args):
                raise OSError(28, "No space left on device")

            patch.setattr(rank_state, broken, full)
            with pytest.raises(CheckpointError, match="No space left on device; earlier checkpoints are untouched"):
                write_checkpoint(engine(), steps, 30, CONTENTS)
        assert found(steps) == ("step_00000020", [])
        assert not (steps / "step_00000030").exists()
    write_checkpoint(engine(), steps, 30, CONTENTS)  # replaces the .tmp that was left
    assert found(steps) == ("step_00000030", [])
    assert not list(steps.glob("*.tmp"))


def test_a_damaged_step_is_replaced_by_writing_it_again(steps):
    flipped(steps / "step_00000020" / WEIGHTS, -1)
    assert found(steps)[0] == "step_00000001"
    write_checkpoint(engine(), steps, 20, CONTENTS)
    assert found(steps) == ("step_00000020", [])


def sealed(folder: Path, **changes: object) -> Path:
    """The manifest as a stranger may write it: changed, with a matching seal."""
    manifest = json.loads((folder / "manifest.json").read_text()) | changes
    (folder / "manifest.json").write_text(json.dumps({**manifest, "seal": seal_of(manifest)}))
    return folder


@pytest.mark.parametrize(
    "name", ["../outside", "/etc/passwd", "sub/file", "..", ".", "", "weights-00000-of-00001.pt", "a\nb", "con\\x"]
)
def test_a_sealed_manifest_can_still_only_name_our_files(steps, name):
    files = json.loads((steps / "step_00000020" / "manifest.json").read_text())["files"]
    folder = sealed(steps / "step_00000020", files={**files, name: {"bytes": 1, "sha256": "0"}})
    with pytest.raises(CheckpointError, match="which is not a file of a checkpoint; do not trust it") as caught:
        open_checkpoint(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"step": -1},
        {"step": 10**40},
        {"step": True},
        {"step": "20"},
        {"step": 20.0},
        {"topology": {"world_size": 10**12}},  # would mean that many file names
        {"topology": {"world_size": 0}},
        {"topology": {"world_size": "1"}},
        {"topology": []},
        {"files": {}},
        {"files": {"trainer.json": {"bytes": -1, "sha256": "0"}}},
        {"files": {"trainer.json": {"bytes": 2**80, "sha256": "0"}}},
        {"files": {"trainer.json": {"bytes": 1, "sha256": 5}}},
        {"files": {"trainer.json": {"bytes": 1, "sha256": "0", "link": "/etc/passwd"}}},
    ],
)
def test_a_sealed_manifest_of_impossible_values_is_refused(steps, changes):
    folder = sealed(steps / "step_00000020", **changes)
    with pytest.raises(CheckpointError, match=r"manifest\.json is damaged"):
        open_checkpoint(folder)


def test_a_manifest_of_many_brackets_or_bytes_is_refused(steps):
    path = steps / "step_00000020" / "manifest.json"
    for text in ("[" * 200_000, '{"format": ' + "9" * 10_000 + "}", " " * 2**25 + "{}"):
        path.write_text(text)
        with pytest.raises(CheckpointError, match="not a checkpoint"):
            open_checkpoint(path.parent)


@pytest.mark.parametrize("name", [*FILES, "manifest.json"])
@pytest.mark.parametrize("target", ["a copy outside", "a copy inside", "a pipe"])
def test_a_link_or_a_pipe_in_place_of_a_file_is_refused(steps, tmp_path, name, target):
    path = steps / "step_00000020" / name
    if target == "a pipe":
        path.unlink()
        os.mkfifo(path)  # opening it would block forever
    else:
        place = tmp_path / "outside" if target == "a copy outside" else path.with_suffix(".copy")
        shutil.copy(path, place)
        path.unlink()
        path.symlink_to(place)
    name_found, said = found(steps)
    assert name_found == "step_00000001"
    assert f"{name} is not a plain file" in said[0]


def test_a_linked_step_folder_is_not_listed(steps, tmp_path):
    shutil.move(steps / "step_00000020", tmp_path / "moved")
    (steps / "step_00000020").symlink_to(tmp_path / "moved")
    assert found(steps) == ("step_00000001", [])


def test_a_file_too_many_is_named_and_not_read(steps):
    (steps / "step_00000020" / "weights-00001-of-00002.safetensors").write_bytes(b"\x80\x02")
    name_found, said = found(steps)
    assert name_found == "step_00000020"
    assert len(said) == 1
    assert "weights-00001-of-00002.safetensors" in said[0]
    assert sorted(open_checkpoint(steps / name_found).open_tensors("weights")) == sorted(
        name for name, _ in engine().decoder.named_parameters()
    )


@pytest.mark.parametrize("pointer", ["latest", "latest_checkpointed_iteration.txt", "last.ckpt", "checkpoint"])
@pytest.mark.parametrize("content", ["step_00000001", "1", "../../etc", "\x80\x02}q\x00.", "release"])
def test_no_pointer_file_is_believed(steps, pointer, content):
    (steps / pointer).write_text(content)
    (steps.parent / pointer).write_text(content)
    assert found(steps) == ("step_00000020", [])


def test_a_tensor_that_two_files_have_is_refused(tmp_path):
    paths = [tmp_path / f"weights-0000{rank}-of-00002.safetensors" for rank in (0, 1)]
    for path in paths:
        save_file({"a": torch.zeros(2), path.stem: torch.zeros(1)}, path)
    assert len(TensorFiles(paths[:1])) == 2
    with pytest.raises(CheckpointError, match=r"weights-00001-of-00002.safetensors has a a second time"):
        TensorFiles(paths)


def rewritten(steps: Path, name: str, tensors: dict[str, torch.Tensor]) -> Path:
    """A step in which a stranger has replaced a file, with a matching manifest."""
    folder = steps / "step_00000020"
    save_file(tensors, folder / name)
    files = json.loads((folder / "manifest.json").read_text())["files"]
    return sealed(folder, files={**files, name: hash_file(folder / name).model_dump()})


@pytest.mark.parametrize("part", ["weights", "optimizer"])
@pytest.mark.parametrize("change", ["shape", "dtype", "missing", "unknown", "nothing"])
def test_tensors_are_compared_with_the_model_before_any_is_loaded(steps, part, change):
    tensors = dict(open_checkpoint(steps / "step_00000020").open_tensors(part).items())
    name = sorted(tensors)[0]
    tensors |= {
        "shape": {name: tensors[name][:1].clone()},
        "dtype": {name: tensors[name].double()},
        "unknown": {"other": torch.zeros(1)},
    }.get(change, {})
    if change == "missing":
        del tensors[name]
    checkpoint = open_checkpoint(rewritten(steps, WEIGHTS if part == "weights" else OPTIMIZER, tensors))
    checkpoint.verify()
    if change == "nothing":
        check_tensors(checkpoint, RUN)
        return
    expected = {"shape": r"is F32\[1", "dtype": "is F64", "missing": "is missing", "unknown": "belongs to no parameter"}
    with pytest.raises(CheckpointError, match=expected[change]) as caught:
        check_tensors(checkpoint, RUN)
    assert (name if change != "unknown" else "other") in str(caught.value)
