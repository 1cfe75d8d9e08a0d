"""Finding and reading a checkpoint: its manifest, the integrity of its files, and its tensors."""

import os
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from storyteller_ds.checkpoint import names
from storyteller_ds.checkpoint.manifest import MAX_STEP, FileEntry, Manifest, hash_file
from storyteller_ds.checkpoint.tensor_files import TensorFiles
from storyteller_ds.config.files import as_mapping
from storyteller_ds.config.load import flatten
from storyteller_ds.errors import CheckpointError
from storyteller_ds.untrusted import UntrustedFileError, read_json, seal_of
from storyteller_ds.validation_errors import first_problem

if TYPE_CHECKING:
    from storyteller_ds.checkpoint.quantized import Weights  # listing checkpoints does not need torch


class WeightsOnlyError(CheckpointError):
    """An intact checkpoint that only ever had weights, where more is needed."""


@dataclass(frozen=True)
class Checkpoint:
    """A step folder whose manifest has been read. Get one from open_checkpoint."""

    folder: Path
    manifest: Manifest

    @property
    def step(self) -> int:
        """Optimizer steps done when it was written."""
        return self.manifest.step

    @property
    def world_size(self) -> int:
        """Number of ranks that wrote it."""
        return self.manifest.topology.world_size

    @property
    def parts(self) -> tuple[str, ...]:
        """names.PARTS, or names.WEIGHTS if the optimizer files were left out, as in a copy made for sharing."""
        optimizer = [name for name in self.manifest.files if name.startswith("optimizer-")]
        return names.PARTS if any(os.path.lexists(self.folder / name) for name in optimizer) else names.WEIGHTS

    @property
    def bytes(self) -> int:
        """Size of the files of its parts, without the manifest (bytes)."""
        return sum(entry.bytes for _, entry in self.files(self.parts))

    def settings(self) -> dict[str, Any]:
        """The run config that wrote it: full field names, such as `model.hidden_size`, and their values.

        Raises:
            CheckpointError, ConfigError: it cannot be read, or is not a run config.
        """
        return flatten(as_mapping(self.read_json(names.CONFIG).get("run"), f"{self.folder / names.CONFIG}, run"))

    def read_json(self, name: str) -> dict[str, Any]:
        """A JSON file of the checkpoint.

        Raises:
            CheckpointError: it cannot be read, or is not a JSON object.
        """
        return _read_object(self.folder / name)

    def files(self, parts: Sequence[str]) -> list[tuple[str, FileEntry]]:
        """Names and manifest entries of the files of these parts, and of those that belong to no part."""
        others = tuple(f"{part}-" for part in names.PARTS if part not in parts)
        return [(name, entry) for name, entry in self.manifest.files.items() if not name.startswith(others)]

    def verify(self, parts: Sequence[str] = names.PARTS) -> None:
        """Compare size and sha256 of every file with the manifest.

        Args:
            parts: which of names.PARTS are needed; files of the others may be missing or contain anything.

        Raises:
            CheckpointError: a file is missing or differs; names it.
        """
        self.verify_sizes(parts)
        for name, expected in self.files(parts):
            try:
                found = hash_file(self.folder / name)
            except OSError as error:
                raise CheckpointError(
                    f"checkpoint {self.folder}: {name} cannot be read ({error.strerror}); use another step"
                ) from None
            if found != expected:
                raise self._damaged(name)

    def verify_name(self) -> None:
        """Check that a folder named like a step has the name of its own step.

        Raises:
            CheckpointError: it has the name of another step.
        """
        name = self.folder.resolve().name
        if name.startswith(names.STEP_PREFIX) and name != names.step_folder_name(self.step):
            raise CheckpointError(f"{self.folder} holds step {self.step}; give it its own name back")

    def verify_sizes(self, parts: Sequence[str] = names.PARTS) -> None:
        """Check, without reading the files, that they exist, are regular files, and have the sizes in the manifest.

        Args:
            parts: as for verify.

        Raises:
            CheckpointError: a file fails the check; names it.
        """
        if parts != names.WEIGHTS and not any(name.startswith("optimizer-") for name in self.manifest.files):
            raise WeightsOnlyError(
                f"checkpoint {self.folder} is an imported, a pruned or a quantized model, with weights only: enough to "
                "generate, not to continue training; choose another --output_dir or --resume, or begin with it: "
                "--init_from"
            )
        for name, expected in self.files(parts):
            try:
                _refuse_link(self.folder / name)
                size = (self.folder / name).stat().st_size
            except OSError:
                raise CheckpointError(
                    f"checkpoint {self.folder}: {name} is missing{self._what_is_left(name)}; use another step"
                ) from None
            if size != expected.bytes:
                raise self._damaged(name)

    def unknown_files(self) -> list[str]:
        """Names of files in the folder that are not in the manifest; they are never read."""
        known = {names.MANIFEST, *self.manifest.files}
        return sorted(path.name for path in self.folder.iterdir() if path.name not in known)

    def open_weights(self, finite: bool = True) -> "Weights":
        """The weights in fp32, even if they are stored in fewer bits.

        Args:
            finite: refuse infinities and NaNs when they are read.

        Raises:
            CheckpointError: as for open_tensors, or a quantized weight is not complete.
        """
        from storyteller_ds.checkpoint.quantized import Weights  # imports torch, see above

        return Weights(self.open_tensors("weights"), finite)

    def open_tensors(self, part: str) -> TensorFiles:
        """The tensors of `weights`, `optimizer` or `rng` as they are stored, each read on access.

        Raises:
            CheckpointError: a file is not a safetensors file, or two files have a tensor of the same name.
        """
        files = sorted(name for name in self.manifest.files if name.startswith(f"{part}-"))
        return TensorFiles([self.folder / name for name in files])

    def _what_is_left(self, missing: str) -> str:
        weights_only = self.parts == names.WEIGHTS and missing.startswith(names.PARTS[1:])
        return ", it has weights only: enough to generate, not to continue training" if weights_only else ""

    def _damaged(self, name: str) -> CheckpointError:
        return CheckpointError(
            f"checkpoint {self.folder}: {name} is damaged, it differs from the manifest; use another step"
        )


def find_checkpoint(path: Path, log: Callable[[str], None], parts: Sequence[str] | None = names.PARTS) -> Checkpoint:
    """The checkpoint at `path`, which is a step folder, or a run folder for its newest valid step.

    Args:
        path: path of the folder.
        log: gets a line about each step that is skipped.
        parts: the parts needed: names.WEIGHTS to generate, all to continue training; None: those that it has.

    Raises:
        CheckpointError: there is none, or it is damaged or lacks a part.
    """
    if (path / names.MANIFEST).exists():
        checkpoint = open_checkpoint(path)
        checkpoint.verify(checkpoint.parts if parts is None else parts)
        return checkpoint
    found = newest_valid(path / names.CHECKPOINTS, log, parts) or newest_valid(path, log, parts)
    if found is None:
        if steps := step_folders(path / names.CHECKPOINTS) or step_folders(path):
            try:
                return _open_valid(steps[0], parts)
            except CheckpointError as error:
                raise CheckpointError(f"no valid checkpoint at {path}: {error}") from None
        raise CheckpointError(f"no checkpoint at {path}: {why_none(path, 'it has no valid checkpoint')}")
    return found


def is_of_another_tool(path: Path) -> bool:
    """Whether a folder has a model's config.json but is neither a step folder nor a run folder of ours."""
    is_ours = (path / names.MANIFEST).exists() or (path / names.CHECKPOINTS).exists()
    return (path / names.CONFIG).is_file() and not is_ours


def _open_valid(folder: Path, parts: Sequence[str] | None) -> Checkpoint:
    """A step of a run; see find_checkpoint."""
    checkpoint = open_checkpoint(folder)
    checkpoint.verify_name()
    checkpoint.verify(checkpoint.parts if parts is None else parts)
    return checkpoint


def newest_valid(
    checkpoints: Path, log: Callable[[str], None], parts: Sequence[str] | None = names.PARTS
) -> Checkpoint | None:
    """The newest step whose files of `parts` match its manifest; damaged steps are skipped and logged.

    See find_checkpoint for the arguments.

    No pointer file (`latest` and the like) is read: it may be stale, or written by somebody else.

    Raises:
        WeightsOnlyError: more than weights is needed, and the steps found are of an imported, pruned or quantized
            model.
    """
    seen = step_folders(checkpoints)
    weights_only: WeightsOnlyError | None = None
    for folder in seen:
        try:
            checkpoint = _open_valid(folder, parts)
        except WeightsOnlyError as error:
            weights_only = weights_only or error
            continue
        except CheckpointError as error:
            log(f"passing over a checkpoint: {error}")
            continue
        if unknown := checkpoint.unknown_files():
            log(f"{folder} has files that its manifest does not know; they are not read: {', '.join(unknown)}")
        return checkpoint
    # A run that keeps few checkpoints may have replaced all of them in the meantime.
    if set(step_folders(checkpoints)) - set(seen):
        return newest_valid(checkpoints, log, parts)
    if weights_only is not None:  # a run that starts over would move the model aside
        raise weights_only
    return None


def open_checkpoint(folder: Path) -> Checkpoint:
    """Open a step folder: read its manifest and check that the file names in it are those of a checkpoint.

    Raises:
        CheckpointError: there is no valid manifest, so the checkpoint does not exist.
    """
    values = _read_object(folder / names.MANIFEST)
    try:
        manifest = Manifest.model_validate(values)
    except ValidationError as error:
        raise _no_checkpoint(folder, f"is damaged ({first_problem(error)})") from None
    if manifest.format != names.FORMAT_VERSION:
        raise CheckpointError(
            f"{folder} has checkpoint format {manifest.format}; this version reads {names.FORMAT_VERSION}"
        )
    if values.get("seal") != seal_of(values):
        raise _no_checkpoint(folder, "was changed or damaged")
    files, world_size = manifest.files, manifest.topology.world_size
    if world_size > len(files):  # checked before that many names are generated
        raise _no_checkpoint(folder, f"is damaged ({len(files)} files of {world_size} ranks)")
    expected = _expected_files(world_size)
    missing = expected - files.keys()
    # An imported, pruned or quantized model has weights only.
    if missing and missing != _shards(names.PARTS[1:], world_size):
        raise _no_checkpoint(folder, f"has no {min(missing)}")
    # Only names that we write are accepted, so none can point outside the folder.
    if unknown := sorted(files.keys() - expected):
        raise CheckpointError(
            f"{folder}: its {names.MANIFEST} names {unknown[0]!r}, which is not a file of a checkpoint; do not trust it"
        )
    return Checkpoint(folder, manifest)


def _no_checkpoint(folder: Path, why: str) -> CheckpointError:
    return CheckpointError(f"{folder} is not a checkpoint: its {names.MANIFEST} {why}; use another step")


def _read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file of a step folder."""
    try:
        _refuse_link(path)
        value = read_json(path)
    except OSError as error:
        raise CheckpointError(
            f"{path.parent} is not a checkpoint: no readable {path.name} ({error.strerror})"
        ) from None
    except UntrustedFileError as error:
        raise CheckpointError(f"{path.parent} is not a checkpoint, it is damaged: {error}; use another step") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path.parent} is not a checkpoint: its {path.name} is damaged; use another step")
    return value


def _refuse_link(path: Path) -> None:
    # A symlink instead of a file would let the checkpoint refer to files elsewhere.
    if not stat.S_ISREG(path.lstat().st_mode):
        raise CheckpointError(f"checkpoint {path.parent}: {path.name} is not a plain file; do not trust it")


def _expected_files(world_size: int) -> set[str]:
    """Every file of a checkpoint written by this many ranks, except its manifest."""
    shards = _shards(names.PARTS, world_size)
    return {names.TRAINER, names.CONFIG, names.TOKENIZER} | shards


def why_none(path: Path, none_in_it: str) -> str:
    """Why there is no checkpoint at a path, and what to give instead; `none_in_it` is the reason for a folder."""
    give = "give a run folder or a step folder"
    if path.is_file():
        return f"it is a file; {give}"
    if any(path.glob("*.safetensors")):
        return (
            f"{none_in_it}, only weights without a {names.MANIFEST}; of a step folder, copy everything but "
            "optimizer-* and rng-*"
        )
    return f"{none_in_it if path.exists() else 'there is no such folder'}; {give}"


def step_folders(checkpoints: Path, after: int = -1) -> list[Path]:
    """Folders that look like steps later than `after`, newest first, without unfinished ones (.tmp)."""
    found = []
    for path in checkpoints.glob(f"{names.STEP_PREFIX}*"):
        number = path.name.removeprefix(names.STEP_PREFIX)
        if path.is_dir() and not path.is_symlink() and _is_number(number):
            found.append((int(number), path))
    return [path for step, path in sorted(found, reverse=True) if step > after]


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= len(str(MAX_STEP))


def _shards(parts: Sequence[str], world_size: int) -> set[str]:
    return {names.shard_name(part, rank, world_size) for part in parts for rank in range(world_size)}
