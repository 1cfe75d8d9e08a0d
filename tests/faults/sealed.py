"""Files as a careful attacker would make them: all sizes and digests match."""

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from storyteller_ds.checkpoint.manifest import hash_file
from storyteller_ds.checkpoint.names import MANIFEST
from storyteller_ds.untrusted import seal_of


class Bomb:
    """An object that creates the folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.mkdir, (str(self.folder),)


def bombs(marker: Path) -> dict[str, bytes]:
    """Files that create the folder `marker` when they are unpickled: a plain pickle, and one from torch.save."""
    zipped = marker.with_name("bomb.pt")
    torch.save(Bomb(marker), zipped)
    made = {"pickle": pickle.dumps(Bomb(marker)), "torch.save": zipped.read_bytes()}
    zipped.unlink()
    pickle.loads(made["pickle"])  # control: it is a bomb
    marker.rmdir()
    return made


def change_manifest(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a checkpoint's manifest and seal it again."""
    manifest = json.loads((folder / MANIFEST).read_text())
    change(manifest)
    (folder / MANIFEST).write_text(json.dumps({**manifest, "seal": seal_of(manifest)}))


def replace_sealed(folder: Path, name: str, content: bytes) -> None:
    """Replace a file of a checkpoint and update its manifest to match."""
    (folder / name).write_bytes(content)
    if name != MANIFEST:
        change_manifest(
            folder, lambda manifest: manifest["files"].update({name: hash_file(folder / name).model_dump()})
        )
