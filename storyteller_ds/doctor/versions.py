"""What must be the same on every machine of a run; `python -m storyteller_ds.doctor.versions` prints it as JSON."""

import hashlib
import importlib.metadata
import json
import platform
from pathlib import Path

_PACKAGES = ("torch", "deepspeed", "numpy")
_ROOT = Path(__file__).parents[1]


def versions_here() -> dict[str, str]:
    """Versions, and a fingerprint of this package's code; does not load torch."""
    facts = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            facts[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            facts[name] = "not installed"
    return {**facts, "storyteller_ds": code_fingerprint(_ROOT)}


def code_fingerprint(root: Path) -> str:
    """A fingerprint of all Python files below a folder and their relative paths."""
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(root).as_posix()}\n{len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()[:12]


if __name__ == "__main__":
    print(json.dumps(versions_here()))
