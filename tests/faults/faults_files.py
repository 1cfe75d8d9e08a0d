"""Checkpoints that are damaged or have extra files, and runs whose settings have changed."""

import os
import shutil
from pathlib import Path

from .case import PAIR, SINGLE, Case
from .registry import fault

PASSED_OVER = "that step is skipped and the reason logged; the one before continues bit for bit"
IGNORED = "never read; the newest step continues bit for bit"
FILES = {
    "weights": "weights-00000-of-00001.safetensors",
    "optimizer": "optimizer-00000-of-00001.safetensors",
    "rng": "rng-00000-of-00001.safetensors",
    "trainer.json": "trainer.json",
    "config.json": "config.json",
    "tokenizer.json": "tokenizer.json",
    "manifest.json": "manifest.json",
}


def _continues_from(case: Case, step: int, *said: str) -> None:
    case.last_good_is(step)
    case.continues_exactly(SINGLE, said=(*said, f"continuing from .*step_{step:08d}$"))
    if said:
        case.saw("logged")


for _kind, _name in FILES.items():

    @fault(f"one bit flipped in {_kind}", PASSED_OVER, quick=_kind in ("weights", "trainer.json"))
    def _(case: Case, name: str = _name) -> None:
        case.copy_of_undisturbed(SINGLE, 8)
        path = case.step_folder(8) / name
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
        _continues_from(case, 4, f"passing over a checkpoint: .*step_00000008.*{name}")


@fault("a shard truncated by one byte", PASSED_OVER)
def _(case: Case) -> None:
    case.copy_of_undisturbed(SINGLE, 8)
    path = case.step_folder(8) / FILES["weights"]
    os.truncate(path, path.stat().st_size - 1)
    _continues_from(case, 4, f"passing over a checkpoint: .*step_00000008.*{path.name}")


@fault("the shard of one rank missing", PASSED_OVER)
def _(case: Case) -> None:
    case.copy_of_undisturbed(PAIR, 8)
    name = "optimizer-00001-of-00002.safetensors"
    (case.step_folder(8) / name).unlink()
    case.last_good_is(4)
    said = (f"passing over a checkpoint: .*step_00000008.*{name}", "continuing from .*step_00000004$")
    case.continues_exactly(PAIR, said=said)
    case.saw("logged")


@fault("a shard replaced by a link to the same bytes elsewhere", PASSED_OVER)
def _(case: Case) -> None:
    case.copy_of_undisturbed(SINGLE, 8)
    path = case.step_folder(8) / FILES["weights"]
    path.rename(case.folder / "elsewhere")
    path.symlink_to(case.folder / "elsewhere")
    _continues_from(case, 4, f"passing over a checkpoint: .*step_00000008.*{path.name}")


@fault("every checkpoint damaged", "the run starts over, says so, and keeps the old records in previous-1")
def _(case: Case) -> None:
    case.copy_of_undisturbed(SINGLE, 8)
    for step in (4, 8):
        (case.step_folder(step) / FILES["weights"]).unlink()
    case.continues_exactly(SINGLE, said=("passing over .*_00000008", "passing over .*_00000004", "previous-1"))
    assert (case.run_folder / "previous-1" / "checkpoints" / "step_00000008").is_dir()


@fault("an extra shard in the folder", IGNORED)
def _(case: Case) -> None:
    case.copy_of_undisturbed(SINGLE, 8)
    for name in ("weights-00001-of-00002.safetensors", "weights-00000-of-00001.bin", "optimizer.pt"):
        shutil.copy(case.step_folder(8) / FILES["weights"], case.step_folder(8) / name)
    _continues_from(case, 8)


@fault("an unfinished checkpoint, and half a line of metrics", IGNORED)
def _(case: Case) -> None:
    case.copy_of_undisturbed(SINGLE, 8)
    shutil.copytree(case.step_folder(8), case.checkpoints / "step_00000012.tmp")
    with (case.run_folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 13, "tok')
    _continues_from(case, 8)
    assert not list(case.checkpoints.glob("*.tmp"))


@fault("pointer files, stale and hostile: latest, and steps that are links, files or numbers without end", IGNORED)
def _(case: Case) -> None:
    case.copy_of_undisturbed(SINGLE, 8)
    for name, content in (("latest", "step_00000004"), ("latest_checkpointed_iteration.txt", "../../../etc/passwd")):
        (case.checkpoints / name).write_text(content)
        (case.run_folder / name).write_text(content)
    _copy_of_step(case, case.folder / "outside" / "step_00000099")
    (case.checkpoints / "step_00000099").symlink_to(case.folder / "outside" / "step_00000099")
    (case.checkpoints / "best").symlink_to(case.folder / "outside")
    (case.checkpoints / "step_00000100").write_text("step_00000004")
    for name in ("step_" + "9" * 200, "step_\u0663", "step_-1", "step_"):
        (case.checkpoints / name).mkdir()
    _continues_from(case, 8)


def _copy_of_step(case: Case, folder: Path) -> None:
    folder.parent.mkdir()
    shutil.copytree(case.step_folder(4), folder)


@fault("a step folder under the name of another step", PASSED_OVER)
def _(case: Case) -> None:
    case.copy_of_undisturbed(SINGLE, 8)
    shutil.copytree(case.step_folder(4), case.step_folder(11))
    _continues_from(case, 8, "passing over a checkpoint: .*step_00000011 holds step 4")


CHANGES = {
    "hidden_size": (("model.hidden_size=32",), "model.hidden_size was 16, now 32"),
    "experts": (("moe.num_experts=8",), "moe.num_experts was 4, now 8"),
    "tokenizer": (("tokenizer.vocab_size=320",), "tokenizer.vocab_size was 300, now 320"),
    "dataset": (("data.builtin_stories=310",), "the corpus or its tokenizer is another"),
    "seed": (("seed=7",), "seed was .*, now 7"),
}


@fault("another model, tokenizer, dataset or seed", "exit 2 and one line with the field and both values", quick=True)
def _(case: Case) -> None:
    case.copy_of_undisturbed(SINGLE, 8)
    for arguments, line in CHANGES.values():
        case.ended(case.train(SINGLE, *arguments), 2, f"cannot continue .*{line}.*--resume never")
    case.last_good_is(8)
    case.continues_exactly(SINGLE)


@fault("another learning rate and length", "the run continues, and notes both")
def _(case: Case) -> None:
    case.copy_of_undisturbed(SINGLE, 8)
    run = case.train(SINGLE, "optimizer.lr=2e-3", "train.max_steps=16", quiet=False)
    case.ended(run, 0)
    for field in ("optimizer.lr", "train.max_steps"):
        assert field in run.stderr, run.stderr
    case.last_good_is(16)
