"""Reading the tensors of a checkpoint: several safetensors files as one mapping, each tensor loaded on access."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from safetensors import SafetensorError, safe_open

from storyteller_ds.errors import CheckpointError
from storyteller_ds.untrusted import UntrustedFileError, open_regular

if TYPE_CHECKING:
    from torch import Tensor  # listing checkpoints does not need torch


DTYPES = ("F32", "U8", "I8")
"""safetensors dtypes that occur in a checkpoint: weights and moments, RNG state, quantized weights."""


class TensorEntry(NamedTuple):
    """One tensor in the header of a safetensors file."""

    dtype: str
    shape: tuple[int, ...]


class TensorFiles(Mapping[str, "Tensor"]):
    """Several safetensors files read as one mapping of names to tensors.

    Args:
        paths: the files, at least one, all in one folder. They are memory-mapped, not read: safetensors rejects a
            header that does not match the length of its file before anything is allocated.

    Raises:
        CheckpointError: a file is not a safetensors file, two have a tensor of the same name, or a tensor has a dtype
            that no checkpoint has.
    """

    def __init__(self, paths: list[Path]) -> None:
        self.folder = paths[0].parent
        self.headers: dict[str, TensorEntry] = {}
        """dtype and shape of every tensor, known before any is loaded."""
        self._home: dict[str, safe_open] = {}
        for path in paths:
            try:
                file = _opened(path)
            except (SafetensorError, UntrustedFileError, OSError) as error:
                raise CheckpointError(f"{self.folder}: {path.name} is damaged: {error}; use another step") from None
            for name in file.keys():  # noqa: SIM118  # safe_open is not a mapping
                tensor = file.get_slice(name)
                entry = TensorEntry(tensor.get_dtype(), tuple(tensor.get_shape()))
                if name in self._home:
                    raise CheckpointError(f"{self.folder}: {path.name} has {name} a second time; do not trust it")
                if entry.dtype not in DTYPES:
                    raise CheckpointError(
                        f"{self.folder}: {path.name} has {name}, which is {entry.dtype}; do not trust it"
                    )
                self._home[name], self.headers[name] = file, entry

    def __iter__(self) -> Iterator[str]:
        return iter(self._home)

    def __len__(self) -> int:
        return len(self._home)

    def __getitem__(self, name: str) -> "Tensor":
        tensor: Tensor = self._home[name].get_tensor(name)
        return tensor

    def check(self, expected: Mapping[str, TensorEntry]) -> None:
        """Check that the files hold exactly these tensors, before any is loaded.

        Raises:
            CheckpointError: one is missing, is not expected, or has another shape or dtype; names it.
        """
        for name in sorted(self._home.keys() | expected.keys()):
            if name not in self._home:
                problem = "is missing"
            elif name not in expected:
                problem = "belongs to no parameter of the model"
            elif (found := self.headers[name]) != (wanted := expected[name]):
                problem = f"is {found.dtype}{list(found.shape)}, and the model has {wanted.dtype}{list(wanted.shape)}"
            else:
                continue
            raise CheckpointError(f"checkpoint {self.folder}: tensor {name} {problem}; use another step")


def _opened(path: Path) -> safe_open:
    with open_regular(path) as file:  # the library takes UTF-8 paths only, and the file's need not be
        return safe_open(f"/dev/fd/{file.fileno()}", framework="pt")
