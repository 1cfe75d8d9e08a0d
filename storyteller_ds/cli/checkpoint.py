"""storyteller checkpoint: inspect, verify and compare checkpoints, and delete those that are not needed."""

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click
from rich.console import Console
from rich.filesize import decimal

from storyteller_ds.checkpoint import names
from storyteller_ds.checkpoint.read import Checkpoint, find_checkpoint, open_checkpoint, step_folders, why_none
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
    rows = [found.row() for found in _look(path)]
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    # Scores on equal numbers of tokens are on the same text; others are not comparable.
    print(f"{'step':>8} {'val_bpb':>8} {'on tokens':>9} {'size':>12} ranks  EP ZeRO  {'written':<16}  state")
    for row in rows:
        size = None if row["bytes"] is None else decimal(row["bytes"])
        ranks, ep, zero = (_cell(row["topology"].get(name)) for name in ("world_size", "ep_size", "zero_stage"))
        _print(
            f"{_cell(row['step']):>8} {_cell(row['val_bpb'], '.4f'):>8} {_cell(row['val_tokens'], ','):>9} "
            f"{_cell(size):>12} {ranks:>5} {ep:>3} {zero:>4}  {row['written'][:16]}  "
            f"{row['problem'] or _state(row['weights_only'])}"
        )


@checkpoint.command()
@_path
@_as_json
def verify(path: Path, as_json: bool) -> None:
    """Read every file and compare it with the manifest; files that the manifest does not list count as damage.

    Exits 2 if anything is wrong with any step, and names the file. A step without the optimizer's files is "weights
    only", which is enough to generate.
    """
    found = list(_look(path, thorough=True, strict=True))
    problems = [each.problem for each in found if each.problem]
    if as_json:
        print(json.dumps([each.row() for each in found], indent=2))
    else:
        for each in found:
            _print(each.problem or f"{each.folder}: {_state(each.weights_only)}, {len(each.files)} files")
    if problems:
        raise CheckpointError(problems[0] + (f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""))


@checkpoint.command()
@_path
@_as_json
def show(path: Path, as_json: bool) -> None:
    """Show one step, of a run folder the newest valid one: progress, topology, files, tensors, settings."""
    found = _find(path)
    weights = found.open_weights()
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
        "parameters": sum(map(math.prod, weights.shapes.values())),
        "files": {name: entry.bytes for name, entry in found.files(found.parts)},
        "weights": {name: list(shape) for name, shape in weights.shapes.items()},
        "run": found.read_json(names.CONFIG).get("run"),
    }
    if as_json:
        print(json.dumps(what, indent=2))
        return
    _print_tree(what)


@checkpoint.command()
@_path
@click.option("--keep_last", type=click.IntRange(1), required=True, help="Newest steps to keep.")
@click.option("--keep_every_steps", type=click.IntRange(0), default=0, help="Also keep multiples of this step.")
@click.option(
    "--keep_best",
    type=click.IntRange(0),
    default=1,
    show_default=True,
    help="Also keep this many with the lowest val_bpb.",
)
@click.option("--dry_run", is_flag=True, help="Only print what would be deleted.")
@_as_json
def prune(path: Path, keep_last: int, keep_every_steps: int, keep_best: int, dry_run: bool, as_json: bool) -> None:
    """Delete old steps of a run. Only complete steps are counted and deleted, and one always stays.

    A step with weights only is not complete: it cannot continue training.
    """
    if (path / names.MANIFEST).exists():
        raise CheckpointError(f"{path} is a step folder; give the run folder")
    keep = CheckpointConfig(keep_last=keep_last, keep_every_steps=keep_every_steps, keep_best=keep_best)
    # Verified by content: a step with a flipped bit must not be the reason to delete a good one.
    found = list(_look(path, thorough=True))
    whole = [each.checkpoint for each in found if each.checkpoint and not each.problem and not each.weights_only]
    kept = steps_to_keep((one.manifest for one in whole), keep)
    gone = [one.folder for one in whole if one.step not in kept]
    for folder in [] if dry_run else gone:
        delete(folder)
    what = {
        "deleted": [str(folder) for folder in gone],
        "damaged": [str(each.folder) for each in found if each.problem],
        "weights_only": [str(each.folder) for each in found if each.weights_only and not each.problem],
    }
    if as_json:
        print(json.dumps({**what, "dry_run": dry_run}, indent=2))
        return
    titles = ("would delete" if dry_run else "deleted", "left alone, damaged:", f"left alone, {_WEIGHTS_ONLY}:")
    for title, folders in zip(titles, what.values(), strict=True):
        for name in folders:
            _print(f"{title} {name}")
    print(f"{len(whole) - len(gone)} kept, {len(gone)} {'to delete' if dry_run else 'deleted'}")


@checkpoint.command()
@click.argument("a", type=UserPath())
@click.argument("b", type=UserPath())
@_as_json
def diff(a: Path, b: Path, as_json: bool) -> None:
    """Compare two steps: settings, topology, and each tensor (largest difference, absolute and relative to A's)."""
    from storyteller_ds.checkpoint.diff import diff as difference_of  # imported here: it imports torch

    first, second = _find(a), _find(b)
    difference = difference_of(first, second)
    if as_json:
        print(json.dumps({"a": str(first.folder), "b": str(second.folder), **dataclasses.asdict(difference)}, indent=2))
        return
    _print(f"A {first.folder}\nB {second.folder}")
    _print_difference(difference)


def _find(path: Path) -> Checkpoint:
    """The step at `path`, or the newest valid step of a run folder, verified."""
    return find_checkpoint(path, lines_to(Console(stderr=True)), parts=None)


class _Found(NamedTuple):
    """A step folder, and what is wrong with it."""

    folder: Path
    checkpoint: Checkpoint | None
    problem: str | None

    @property
    def weights_only(self) -> bool:
        """Whether the step has no optimizer files."""
        return self.checkpoint is not None and self.checkpoint.parts == names.WEIGHTS

    @property
    def files(self) -> Mapping[str, int]:
        """Sizes of the files of its parts (bytes)."""
        return (
            {name: entry.bytes for name, entry in self.checkpoint.files(self.checkpoint.parts)}
            if self.checkpoint
            else {}
        )

    def row(self) -> dict[str, Any]:
        """Everything about the step, for JSON output."""
        manifest = self.checkpoint and self.checkpoint.manifest
        return {
            "folder": str(self.folder),
            "step": manifest and manifest.step,
            "val_bpb": manifest and manifest.val_bpb,
            "val_tokens": manifest and manifest.val_tokens,
            "bytes": self.checkpoint and self.checkpoint.bytes,
            "topology": manifest.topology.model_dump() if manifest else {},
            "written": datetime.fromtimestamp(self.folder.stat().st_mtime).isoformat(" ", "seconds"),
            "weights_only": self.weights_only,
            "problem": self.problem,
        }


def _look(path: Path, thorough: bool = False, strict: bool = False) -> Iterator[_Found]:
    """The steps at `path`, newest first.

    Args:
        path: a step folder, or a folder of step folders.
        thorough: also read and check the contents of their files.
        strict: treat files that the manifest does not list as a problem.
    """
    folders = [path]
    if not (path / names.MANIFEST).exists():
        folders = step_folders(path / names.CHECKPOINTS) or step_folders(path)
    if not folders:
        raise CheckpointError(f"no checkpoint at {path}: {why_none(path, 'it has no step folders')}")
    for folder in folders:
        found = problem = None
        try:
            found = open_checkpoint(folder)
            found.verify_name()
            (found.verify if thorough else found.verify_sizes)(found.parts)
            if strict and (unknown := found.unknown_files()):
                problem = f"checkpoint {folder}: {', '.join(unknown)} is not in its {names.MANIFEST}; remove it"
        except CheckpointError as error:
            problem = str(error)
        yield _Found(folder, found, problem)


def _state(weights_only: bool) -> str:
    return _WEIGHTS_ONLY if weights_only else "ok"


def _cell(value: Any, form: str = "") -> str:
    return "-" if value is None else format(value, form)


def _print(line: str) -> None:
    """Print a line that may contain text from an untrusted file."""
    print(for_terminal(line))


def _print_tree(value: Mapping[str, Any], indent: str = "") -> None:
    for key, inner in value.items():
        if isinstance(inner, Mapping):
            _print(f"{indent}{key}:")
            _print_tree(inner, indent + "  ")
        else:
            _print(f"{indent}{key}: {inner if isinstance(inner, str) else json.dumps(inner)}")


def _print_difference(difference: "Difference") -> None:
    print("step: {} -> {}".format(*difference.steps))
    for title, fields in (("topology", difference.topology), ("setting", difference.settings)):
        for field, (a, b) in fields.items():
            _print(f"{title} {field}: {json.dumps(a)} -> {json.dumps(b)}")
    if not difference.same_corpus:
        print("corpus: another")
    for only_there, where in ((difference.only_in_a, "A"), (difference.only_in_b, "B")):
        for name in only_there:
            _print(f"tensor {name}: only in {where}")
    _print(f"tensors: {difference.equal} equal bit for bit, {len(difference.tensors)} differ")
    # Largest differences first, with NaN at the top.
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
