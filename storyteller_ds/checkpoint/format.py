"""What a checkpoint is on disk: a folder of safetensors and JSON, complete if and only if its manifest is.

step_00000100/
  weights-00000-of-00002.safetensors     canonical fp32 weights, each tensor in one of the files
  optimizer-00000-of-00002.safetensors   AdamW's moments: exp_avg/NAME and exp_avg_sq/NAME
  rng-00000-of-00002.safetensors         random streams of one rank
  trainer.json config.json tokenizer.json
  manifest.json                          written last: size and sha256 of every other file
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from storyteller_ds.errors import CheckpointError

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
TRAINER = "trainer.json"
CONFIG = "config.json"
TOKENIZER = "tokenizer.json"
PARTS = ("weights", "optimizer", "rng")
"""What each rank writes a file of."""
_STEP_PREFIX = "step_"


def step_folder_name(step: int) -> str:
    """Name of the folder of a step."""
    return f"{_STEP_PREFIX}{step:08d}"


def shard_name(part: str, rank: int, world_size: int) -> str:
    """Name of one rank's file of `weights`, `optimizer` or `rng`."""
    return f"{part}-{rank:05d}-of-{world_size:05d}.safetensors"


def hash_file(path: Path) -> dict[str, Any]:
    """Size and sha256 of a file, as they stand in the manifest."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"bytes": path.stat().st_size, "sha256": digest}


@dataclass(frozen=True)
class Checkpoint:
    """A step folder whose manifest has been read. Get one from open_checkpoint."""

    folder: Path
    manifest: Mapping[str, Any]

    @property
    def step(self) -> int:
        """Optimizer steps done when it was written."""
        return int(self.manifest["step"])

    @property
    def world_size(self) -> int:
        """Ranks that wrote it."""
        return int(self.manifest["topology"]["world_size"])

    def read_json(self, name: str) -> dict[str, Any]:
        """A JSON file of the checkpoint."""
        value: dict[str, Any] = json.loads((self.folder / name).read_text(encoding="utf-8"))
        return value

    def verify(self) -> None:
        """Compare size and sha256 of every file with the manifest.

        Raises:
            CheckpointError: a file is missing or differs; names it.
        """
        for name, expected in self.manifest["files"].items():
            path = self.folder / name
            if not path.is_file():
                raise CheckpointError(f"checkpoint {self.folder}: {name} is missing; use another step")
            if path.stat().st_size != expected["bytes"] or hash_file(path) != expected:
                raise CheckpointError(
                    f"checkpoint {self.folder}: {name} is damaged, it differs from the manifest; use another step"
                )

    def open_tensors(self, part: str) -> "TensorFiles":
        """The tensors of `weights`, `optimizer` or `rng`, read when they are asked for."""
        names = [name for name in self.manifest["files"] if name.startswith(f"{part}-")]
        return TensorFiles([self.folder / name for name in sorted(names)])


class TensorFiles:
    """Several safetensors files read as one mapping of names to tensors."""

    def __init__(self, paths: list[Path]) -> None:
        self._home = {}
        try:
            self._files = [safe_open(path, framework="pt") for path in paths]
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{paths[0].parent} has a damaged tensor file: {error}; use another step") from None
        for file in self._files:
            for name in file.keys():  # noqa: SIM118  # safe_open is no mapping
                self._home[name] = file

    def __iter__(self) -> Iterator[str]:
        return iter(self._home)

    def __getitem__(self, name: str) -> Tensor:
        tensor: Tensor = self._home[name].get_tensor(name)
        return tensor


def open_checkpoint(folder: Path) -> Checkpoint:
    """A step folder, after reading its manifest and checking that the names in it are plain.

    Raises:
        CheckpointError: there is no valid manifest, so the checkpoint does not exist.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        version, files = manifest["format"], manifest["files"]
        int(manifest["step"])
        expected = _expected_files(int(manifest["topology"]["world_size"]))
        plain = all(Path(name).name == name and {"bytes", "sha256"} <= entry.keys() for name, entry in files.items())
    except OSError as error:
        raise CheckpointError(f"{folder} is not a checkpoint: no readable {MANIFEST} ({error.strerror})") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise CheckpointError(f"{folder} is not a checkpoint: its {MANIFEST} is damaged; use another step") from None
    if version != FORMAT_VERSION:
        raise CheckpointError(f"{folder} has checkpoint format {version}; this version reads {FORMAT_VERSION}")
    if manifest.get("seal") != seal_of(manifest):
        raise CheckpointError(f"{folder} is not a checkpoint: its {MANIFEST} was changed or damaged; use another step")
    if missing := sorted(expected - files.keys()):
        raise CheckpointError(
            f"{folder} is not a whole checkpoint: its {MANIFEST} has no {missing[0]}; use another step"
        )
    if not plain:
        raise CheckpointError(f"{folder}: its {MANIFEST} names files outside the folder; do not trust it")
    return Checkpoint(folder, manifest)


def seal_of(manifest: Mapping[str, Any]) -> str:
    """sha256 of the manifest's other entries: the one file that no other file vouches for vouches for itself."""
    entries = {key: value for key, value in manifest.items() if key != "seal"}
    return hashlib.sha256(json.dumps(entries, sort_keys=True).encode()).hexdigest()


def _expected_files(world_size: int) -> set[str]:
    """Every file that a checkpoint of so many ranks has, its manifest aside."""
    shards = {shard_name(part, rank, world_size) for part in PARTS for rank in range(world_size)}
    return {TRAINER, CONFIG, TOKENIZER} | shards


def step_folders(checkpoints: Path) -> list[Path]:
    """Folders that look like steps, newest first; unfinished ones (.tmp) are not among them."""
    found = [
        path
        for path in checkpoints.glob(f"{_STEP_PREFIX}*")
        if path.is_dir() and path.name.removeprefix(_STEP_PREFIX).isdigit()
    ]
    return sorted(found, key=lambda path: int(path.name.removeprefix(_STEP_PREFIX)), reverse=True)
