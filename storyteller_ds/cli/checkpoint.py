"""storyteller checkpoint: look at checkpoints, check them, compare them, delete those that nobody needs."""

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click
from rich.console import Console

from storyteller_ds.checkpoint import names
from storyteller_ds.checkpoint.read import Checkpoint, open_checkpoint, step_folders, why_none
from storyteller_ds.checkpoint.retention import delete, steps_to_keep
from storyteller_ds.cli.group import Group
from storyteller_ds.cli.paths import UserPath
from storyteller_ds.config.training import CheckpointConfig
from storyteller_ds.console import lines_to
from storyteller_ds.errors import CheckpointError
from storyteller_ds.untrusted import for_terminal

if TYPE_CHECKING:
    from storyteller_ds.checkpoint.diff import Difference

_SHOWN_TENSORS = 20
_WEIGHTS_ONLY = "weights only"

_path = click.argument("path", type=UserPath())
_as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group(cls=Group)
def checkpoint() -> None:
    """List, verify, show, compare and prune checkpoints. PATH is a run folder or a step folder."""


@checkpoint.command()
@_path
@_as_json
def ls(path: Path, as_json: bool) -> None:
    """List the steps, newest first. Sizes are compared with the manifest, contents are not; see verify."""
    rows = [_row(found) for found in _look(_folders(path), thorough=False)]
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    # Scores of as many tokens are of the same text; others are not comparable.
    print(f"{'step':>8} {'val_bpb':>8} {'on tokens':>9} {'size':>12} ranks  EP ZeRO  {'written':<16}  state")
    for row in rows:
        bpb = "-" if row["val_bpb"] is None else f"{row['val_bpb']:.4f}"
        tokens = "-" if row["val_tokens"] is None else f"{row['val_tokens']:,}"
        topology = {"world_size": "-", "ep_size": "-", **row["topology"]}
        zero = topology.get("zero_stage")
        _print(
            f"{row['step'] if row['step'] is not None else '-':>8} {bpb:>8} {tokens:>9} {_size(row['bytes']):>12} "
            f"{topology['world_size']:>5} {topology['ep_size']!s:>3} {'-' if zero is None else zero!s:>4}  "
            f"{row['written'][:16]}  {row['problem'] or _state(row['weights_only'])}"
        )


@checkpoint.command()
@_path
@_as_json
def verify(path: Path, as_json: bool) -> None:
    """Read every file and compare it with the manifest; a file that the manifest does not know is a fault, too.

    Exits 2 if anything is wrong with any step, and names the file. A step without the optimizer's files is "weights
    only", which is enough to generate.
    """
    found = [_strict(each) for each in _look(_folders(path), thorough=True)]
    if as_json:
        print(json.dumps([_row(each) for each in found], indent=2))
    else:
        for each in found:
            _print(each.problem or f"{each.folder}: {_state(each.weights_only)}, {each.files} files")
    problems = [each.problem for each in found if each.problem]
    if problems:
        raise CheckpointError(problems[0] + (f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""))


@checkpoint.command()
@_path
@_as_json
def show(path: Path, as_json: bool) -> None:
    """Show one step, of a run folder the newest valid one: progress, topology, files, tensors, settings."""
    found = _find(path)
    weights = found.open_tensors("weights")
    what = {
        "folder": str(found.folder),
        "weights_only": found.parts == names.WEIGHTS,
        "step": found.step,
        "val_bpb": found.manifest.val_bpb,
        "val_tokens": found.manifest.val_tokens,
        **found.read_json(names.TRAINER),
        "topology": found.manifest.topology.model_dump(),
        "dataset_fingerprint": found.manifest.dataset_fingerprint,
        "config_fingerprint": found.manifest.config_fingerprint,
        "parameters": sum(math.prod(entry.shape) for entry in weights.headers.values()),
        "files": {name: entry.bytes for name, entry in found.files(found.parts)},
        "weights": {name: list(weights.headers[name].shape) for name in weights},
        "run": found.read_json(names.CONFIG).get("run"),
    }
    if as_json:
        print(json.dumps(what, indent=2))
        return
    _print_tree(what)


@checkpoint.command()
@_path
@click.option("--keep_last", type=click.IntRange(1), required=True, help="Newest steps to keep.")
@click.option("--keep_every_steps", type=click.IntRange(0), default=0, help="Also keep every so many steps.")
@click.option("--keep_best", type=click.IntRange(0), default=1, show_default=True, help="Also keep the lowest val_bpb.")
@click.option("--dry_run", is_flag=True, help="Only print what would be deleted.")
@_as_json
def prune(path: Path, keep_last: int, keep_every_steps: int, keep_best: int, dry_run: bool, as_json: bool) -> None:
    """Delete old steps of a run. Only whole ones are counted and deleted, and one of them always stays.

    A step that has weights only is not whole: training could not be continued from it.
    """
    if (path / names.MANIFEST).exists():
        raise CheckpointError(f"{path} is a step folder; give the run folder")
    keep = CheckpointConfig(keep_last=keep_last, keep_every_steps=keep_every_steps, keep_best=keep_best)
    # Verified by content: a step with a flipped bit must not be the reason to delete a good one.
    found = list(_look(_folders(path), thorough=True))
    whole = [each.checkpoint for each in found if each.checkpoint and not each.problem and not each.weights_only]
    kept = steps_to_keep((one.manifest for one in whole), keep)
    gone = [one.folder for one in whole if one.step not in kept]
    for folder in [] if dry_run else gone:
        delete(folder)
    damaged = [str(each.folder) for each in found if each.problem]
    weights_only = [str(each.folder) for each in found if each.weights_only and not each.problem]
    if as_json:
        deleted = [str(folder) for folder in gone]
        rows = {"deleted": deleted, "damaged": damaged, "weights_only": weights_only, "dry_run": dry_run}
        print(json.dumps(rows, indent=2))
        return
    for folder in gone:
        _print(f"{'would delete' if dry_run else 'deleted'} {folder}")
    for state, folders in (("damaged", damaged), (_WEIGHTS_ONLY, weights_only)):
        for folder_name in folders:
            _print(f"left alone, {state}: {folder_name}")
    print(f"{len(whole) - len(gone)} kept, {len(gone)} {'to delete' if dry_run else 'deleted'}")


@checkpoint.command()
@click.argument("a", type=UserPath())
@click.argument("b", type=UserPath())
@_as_json
def diff(a: Path, b: Path, as_json: bool) -> None:
    """Compare two steps: settings, topology, and each tensor (largest difference, absolute and relative to A's)."""
    from storyteller_ds.checkpoint.diff import diff as difference_of  # torch, see _find

    first, second = _find(a), _find(b)
    difference = difference_of(first, second)
    if as_json:
        print(json.dumps({"a": str(first.folder), "b": str(second.folder), **dataclasses.asdict(difference)}, indent=2))
        return
    _print(f"A {first.folder}\nB {second.folder}")
    _print_difference(difference)


def _find(path: Path) -> Checkpoint:
    """The step that `path` means, of a run folder the newest valid one, verified."""
    from storyteller_ds.checkpoint.resume import find_checkpoint  # torch, for which --help and ls need not wait

    return find_checkpoint(path, lines_to(Console(stderr=True)), parts=None)


class _Found(NamedTuple):
    """A step folder, and what is wrong with it."""

    folder: Path
    checkpoint: Checkpoint | None
    problem: str | None

    @property
    def weights_only(self) -> bool:
        """Whether the optimizer's files have been left out."""
        return self.checkpoint is not None and self.checkpoint.parts == names.WEIGHTS

    @property
    def files(self) -> int:
        """How many files its parts are."""
        return len(self.checkpoint.files(self.checkpoint.parts)) if self.checkpoint else 0


def _folders(path: Path) -> list[Path]:
    """The step folders that `path` means, newest first."""
    if (path / names.MANIFEST).exists():
        return [path]
    folders = step_folders(path / names.CHECKPOINTS) or step_folders(path)
    if not folders:
        raise CheckpointError(f"no checkpoint at {path}: {why_none(path, 'it has no step folders')}")
    return folders


def _look(folders: Iterable[Path], thorough: bool) -> Iterable[_Found]:
    for folder in folders:
        found = None
        try:
            found = open_checkpoint(folder)
            found.verify_name()
            if thorough:
                found.verify(found.parts)
            else:
                found.verify_sizes(found.parts)
            problem = None
        except CheckpointError as error:
            problem = str(error)
        yield _Found(folder, found, problem)


def _strict(found: _Found) -> _Found:
    """Also report files that the manifest does not know."""
    if found.checkpoint is None or found.problem or not (unknown := found.checkpoint.unknown_files()):
        return found
    problem = f"checkpoint {found.folder}: {', '.join(unknown)} is not in its {names.MANIFEST}; remove it"
    return found._replace(problem=problem)


def _row(found: _Found) -> dict[str, Any]:
    written = datetime.fromtimestamp(found.folder.stat().st_mtime).isoformat(" ", "seconds")
    one = found.checkpoint
    return {
        "folder": str(found.folder),
        "step": one.step if one else None,
        "val_bpb": one.manifest.val_bpb if one else None,
        "val_tokens": one.manifest.val_tokens if one else None,
        "bytes": one.bytes if one else None,
        "topology": one.manifest.topology.model_dump() if one else {},
        "written": written,
        "weights_only": found.weights_only,
        "problem": found.problem,
    }


def _state(weights_only: bool) -> str:
    return _WEIGHTS_ONLY if weights_only else "ok"


def _size(size: int | None) -> str:
    return "-" if size is None else f"{size / 2**20:,.1f} MiB"


def _print(line: str) -> None:
    """Print a line that may hold text from a stranger's file."""
    print(for_terminal(line))


def _print_tree(value: Mapping[str, Any], indent: str = "") -> None:
    for key, inner in value.items():
        if isinstance(inner, Mapping):
            _print(f"{indent}{key}:")
            _print_tree(inner, indent + "  ")
        else:
            _print(f"{indent}{key}: {inner if isinstance(inner, str) else json.dumps(inner)}")


def _print_difference(difference: "Difference") -> None:
    before, after = difference.steps
    _print(f"step: {before}" if before == after else f"step: {before} -> {after}")
    for title, fields in (("topology", difference.topology), ("setting", difference.settings)):
        for field, (a, b) in fields.items():
            _print(f"{title} {field}: {json.dumps(a)} -> {json.dumps(b)}")
    if not difference.same_corpus:
        print("corpus: another")
    for only_there, where in ((difference.only_in_a, "A"), (difference.only_in_b, "B")):
        for name in only_there:
            _print(f"tensor {name}: only in {where}")
    _print(f"tensors: {difference.equal} equal bit for bit, {len(difference.tensors)} differ")
    # The largest differences first; those that are no number before all.
    worst = sorted(difference.tensors, key=lambda one: math.inf if one.relative is None else one.relative, reverse=True)
    for one in worst[:_SHOWN_TENSORS]:
        if one.shapes[0] != one.shapes[1]:
            _print(f"  {one.name}: shape {list(one.shapes[0])} -> {list(one.shapes[1])}")
        else:
            _print(f"  {one.name}: max abs {_number(one.max_abs)}, relative {_number(one.relative)}")
    if len(worst) > _SHOWN_TENSORS:
        _print(f"  ... and {len(worst) - _SHOWN_TENSORS} more (--json has all)")


def _number(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.3e}"
