"""Which checkpoints to keep, and replacing and deleting folders so that a partial one is never valid."""

import shutil
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from storyteller_ds.checkpoint.manifest import Manifest
from storyteller_ds.checkpoint.read import Checkpoint, open_checkpoint, step_folders
from storyteller_ds.config.training import CheckpointConfig
from storyteller_ds.durable import flush_to_disk
from storyteller_ds.errors import CheckpointError

_DELETING = ".deleting"
_REPLACED = ".replaced"
_UNFINISHED = ".tmp"


def steps_to_keep(saved: Iterable[Manifest], keep: CheckpointConfig) -> set[int]:
    """The last keep_last, multiples of keep_every_steps, and the keep_best best on each text; all without keep_last."""
    all_saved = sorted(saved, key=lambda one: one.step)
    if keep.keep_last is None:
        return {one.step for one in all_saved}
    kept = {one.step for one in all_saved[-keep.keep_last :]}
    if keep.keep_every_steps:
        kept |= {one.step for one in all_saved if one.step % keep.keep_every_steps == 0}
    scored: dict[int | None, list[tuple[float, int]]] = defaultdict(list)
    for one in all_saved:
        if one.val_bpb is not None:
            scored[one.val_tokens].append((one.val_bpb, one.step))
    return kept | {step for of_text in scored.values() for _, step in sorted(of_text)[: keep.keep_best]}


def best_step(checkpoints: Path) -> Checkpoint | None:
    """The step with the fewest bits per byte on the text of the newest score; without scores, the newest step.

    None if there is no checkpoint.
    """
    saved = intact(checkpoints)
    scored = [(one.manifest.val_bpb, one) for one in saved if one.manifest.val_bpb is not None]
    if not scored:
        return saved[0] if saved else None
    of_one_text = [s for s in scored if s[1].manifest.val_tokens == scored[0][1].manifest.val_tokens]
    return min(of_one_text, key=lambda s: s[0])[1]


def delete_superseded(checkpoints: Path, keep: CheckpointConfig, newest: int) -> list[Path]:
    """Delete what need not be kept after step `newest` has been written. Returns the deleted folders.

    The step just written is always kept: it is known to be complete. Folders that are not checkpoints or lack a file
    do not count and are not touched.
    """
    present = intact(checkpoints)
    kept = steps_to_keep((one.manifest for one in present), keep) | {newest}
    gone = [one.folder for one in present if one.step not in kept]
    for folder in gone:
        delete(folder)
    return gone


def intact(checkpoints: Path) -> list[Checkpoint]:
    """Steps with a valid manifest and files of the right sizes, newest first; only manifests are read."""
    found = []
    for folder in step_folders(checkpoints):
        try:
            checkpoint = open_checkpoint(folder)
            checkpoint.verify_name()
            checkpoint.verify_sizes()
        except CheckpointError:
            continue
        found.append(checkpoint)
    return found


def delete(folder: Path) -> None:
    """Delete a step folder; a single rename stops it from being a checkpoint, and readers then report missing files."""
    doomed = folder.with_name(folder.name + _DELETING)
    folder.rename(doomed)
    flush_to_disk(folder.parent)
    shutil.rmtree(doomed)


def put_in_place(unfinished: Path, final: Path) -> None:
    """Give a finished folder its final name; a damaged or older folder of the same step is deleted."""
    replaced = final.with_name(final.name + _REPLACED)
    if final.exists():
        final.rename(replaced)
    try:
        unfinished.rename(final)
    except OSError:
        if replaced.exists():
            replaced.rename(final)
        raise
    flush_to_disk(final.parent)
    if replaced.exists():
        shutil.rmtree(replaced)


def clear_leftovers(checkpoints: Path) -> None:
    """Remove what a killed run was writing or deleting; a folder that it was replacing gets its name back."""
    for path in sorted(checkpoints.glob("step_*")):
        if path.is_symlink() or not path.is_dir():
            continue
        if path.suffix == _REPLACED and not path.with_suffix("").exists():
            path.rename(path.with_suffix(""))
        elif path.suffix in (_UNFINISHED, _DELETING, _REPLACED):
            shutil.rmtree(path)
