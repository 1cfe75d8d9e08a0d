"""Reading the tensors of a checkpoint: one mapping over several safetensors files, nothing loaded unasked."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError, safe_open

from storyteller_ds.errors import CheckpointError
from storyteller_ds.untrusted import TensorEntry, UntrustedFileError, check_safetensors
from storyteller_ds.user_paths import is_utf8

if TYPE_CHECKING:
    from torch import Tensor  # looking at files and their headers does without


class TensorFiles(Mapping[str, "Tensor"]):
    """Several safetensors files read as one mapping of names to tensors.

    Args:
        paths: the files, at least one, all of one folder. They are mapped into memory, not read: a header that
            promises more than the file holds is refused before anything is allocated.

    Raises:
        CheckpointError: a file is no safetensors file, or two have a tensor of the same name.
    """

    def __init__(self, paths: list[Path]) -> None:
        self.folder = paths[0].parent
        self.headers: dict[str, TensorEntry] = {}
        """dtype and shape of every tensor, known before any is loaded."""
        self._home: dict[str, safe_open] = {}
        for path in paths:
            try:
                headers = check_safetensors(path)
                file = _opened(path)
            except (SafetensorError, UntrustedFileError, OSError) as error:
                raise CheckpointError(f"{self.folder}: {path.name} is damaged: {error}; use another step") from None
            for name in headers:
                if name in self._home:
                    raise CheckpointError(f"{self.folder}: {path.name} has {name} a second time; do not trust it")
                self._home[name] = file
            self.headers |= headers

    def __iter__(self) -> Iterator[str]:
        return iter(self._home)

    def __len__(self) -> int:
        return len(self._home)

    def __getitem__(self, name: str) -> "Tensor":
        tensor: Tensor = self._home[name].get_tensor(name)
        return tensor

    def check(self, expected: Mapping[str, tuple[int, ...]]) -> None:
        """See that the files hold exactly these tensors, as fp32, before any is loaded.

        Raises:
            CheckpointError: one is missing, is not expected, or has another shape or dtype; names it.
        """
        for name in sorted(self._home.keys() | expected.keys()):
            if name not in self._home:
                problem = "is missing"
            elif name not in expected:
                problem = "belongs to no parameter of the model"
            elif (found := self.headers[name]) != (wanted := TensorEntry("F32", expected[name])):
                problem = f"is {found.dtype}{list(found.shape)}, and the model has {wanted.dtype}{list(wanted.shape)}"
            else:
                continue
            raise CheckpointError(f"checkpoint {self.folder}: tensor {name} {problem}; use another step")


def _opened(path: Path) -> safe_open:
    if is_utf8(path):
        return safe_open(path, framework="pt")
    with path.open("rb") as file:  # under a name that the library takes
        return safe_open(f"/dev/fd/{file.fileno()}", framework="pt")
