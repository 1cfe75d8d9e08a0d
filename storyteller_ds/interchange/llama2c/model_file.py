"""model.bin of llama2.c: a header and the weights of a Llama, in fp32 or in int8 with a scale for each group.

Source: karpathy/llama2.c, export.py (legacy_export is version 0, version1_export, version2_export), run.c and runq.c.
"""

import math
import os
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, NamedTuple

import torch
from torch import Tensor

from storyteller_ds.config.load import parse_run_config
from storyteller_ds.config.run import RunConfig
from storyteller_ds.errors import UserError
from storyteller_ds.interchange.huggingface.families import family_of
from storyteller_ds.interchange.imported import decoder_with
from storyteller_ds.interchange.layout import with_halves, with_neighbors
from storyteller_ds.model.decoder import Decoder
from storyteller_ds.untrusted import UntrustedFileError, open_regular

VERSIONS = {"fp32": 0, "q8_0": 2}
"""Format of the weights -> version of the file that is written. Version 1, fp32 with another header, is only read."""
_MAGIC = 0x616B3432
_HEADER_BYTES = 256
"""Size of the header in versions 1 and 2 (bytes)."""
_GROUP = 64
"""Numbers that share a scale; halved until it divides the sizes."""
_FIXED = {"model.norm_eps": 1e-5, "model.rope_theta": 10_000.0}
"""What llama2.c computes with, whatever the file says."""


class Sizes(NamedTuple):
    """The sizes in the header."""

    dim: int
    hidden_dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    vocab_size: int
    seq_len: int


class Layout(NamedTuple):
    """The rest of the header."""

    version: int
    group: int
    """Numbers that share a scale (version 2)."""


class Part(NamedTuple):
    """A tensor of the file."""

    ours: str
    """The canonical tensor that it is or is part of; empty: a table of the rotary embedding."""
    shape: tuple[int, ...]
    rows: slice = slice(None)
    """Rows of the canonical tensor."""
    heads: int = 0
    """Number of heads in which a rotary embedding rotates neighboring features; 0: no rotary embedding."""

    def is_quantized(self, version: int) -> bool:
        """Whether it is stored in int8."""
        return version == 2 and len(self.shape) > 1


def check_config(run: RunConfig) -> None:
    """Check that llama2.c computes what a run config describes.

    Raises:
        UserError: it does not.
    """
    if (family := family_of(run)).model_type != "llama":
        raise UserError(f"llama2.c computes a dense Llama, and this is a {family.architecture}; export it as hf")
    for name, wanted in _FIXED.items():
        section, _, field = name.partition(".")
        if (value := getattr(getattr(run, section), field)) != wanted:
            raise UserError(f"llama2.c computes with {name}={wanted:g}, and the model has {value:g}; export it as hf")


def write_model(run: RunConfig, weights: Mapping[str, Tensor], path: Path, dtype: str) -> None:
    """Write a file.

    Args:
        run: run config of the model, which has passed check_config.
        weights: by canonical name, fp32, on the CPU.
        path: the file to write.
        dtype: a key of VERSIONS; norms stay fp32.
    """
    model = run.model
    vocabulary = run.tokenizer.vocab_size
    sizes = Sizes(
        model.hidden_size,
        model.intermediate_size,
        model.num_layers,
        model.num_heads,
        model.kv_heads,
        vocabulary if model.tie_embeddings or VERSIONS[dtype] else -vocabulary,
        run.context_length,
    )
    # A power of two that divides the sizes: runq.c goes through activations in these groups, too.
    layout = Layout(VERSIONS[dtype], math.gcd(_GROUP, model.hidden_size, model.intermediate_size))
    with path.open("wb") as file:
        if layout.version:
            file.write(struct.pack("<Ii7i?i", _MAGIC, layout.version, *sizes, model.tie_embeddings, layout.group))
            file.write(bytes(_HEADER_BYTES - file.tell()))
        else:
            file.write(struct.pack("<7i", *sizes))
        for part in _parts(run, layout.version):
            if not part.ours:
                file.write(_bytes_of(_rotary_tables(run.context_length, model.head_dim)))
                continue
            tensor = weights[part.ours][part.rows]
            if part.heads:
                tensor = with_neighbors(tensor, part.heads)
            if part.is_quantized(layout.version):
                for each in quantize(tensor, layout.group):
                    file.write(_bytes_of(each))
            else:
                file.write(_bytes_of(tensor))


def read_model(path: Path) -> tuple[RunConfig, Decoder]:
    """Read the model in a file, in eval mode, fp32.

    Raises:
        UserError: it cannot be read, is not of the kind or the size that its header says, or is damaged.
    """
    try:
        with open_regular(path) as file:
            run, layout = _read_header(file, path)
            parts = list(_parts(run, layout.version))
            expected = file.tell() + sum(_size(part, layout) for part in parts)
            if (found := os.fstat(file.fileno()).st_size) != expected:  # before memory is allocated
                raise UserError(
                    f"{path} has {found:,} bytes, and after its first ones it is a model of {expected:,}; it is cut "
                    "off, or no file of llama2.c's"
                )
            return run, decoder_with(run, lambda shapes: _read_weights(file, path, parts, layout, shapes))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); give the model.bin of llama2.c") from None
    except UntrustedFileError as error:
        raise UserError(f"{error}; give the model.bin of llama2.c") from None


def quantize(weight: Tensor, group: int) -> tuple[Tensor, Tensor]:
    """Numbers in int8 and the fp32 scale of each group, with which its largest number becomes 127.

    Args:
        weight: fp32; the size of its last dimension is a multiple of the group.
        group: numbers that share a scale.
    """
    grouped = weight.reshape(-1, group)
    scale = grouped.abs().amax(dim=1, keepdim=True) / 127
    tiny = torch.finfo(torch.float32).tiny  # a group of zeros has the scale 0
    return (grouped / scale.clamp(min=tiny)).round().to(torch.int8), scale


def _read_header(file: BinaryIO, path: Path) -> tuple[RunConfig, Layout]:
    head = file.read(_HEADER_BYTES)
    if len(head) < _HEADER_BYTES:
        raise UserError(f"{path} has {len(head)} bytes, too few for a file of llama2.c's")
    magic, version = struct.unpack_from("<Ii", head)
    if magic == _MAGIC:
        if version not in (1, 2):
            raise UserError(f"{path} is of version {version}; of llama2.c's, versions 0, 1 and 2 are read")
        *numbers, tied, group = struct.unpack_from("<7i?i", head, 8)
        layout = Layout(version, group)
    else:
        numbers, layout = list(struct.unpack_from("<7i", head)), Layout(0, 0)
        tied = numbers[5] > 0
        numbers[5] = abs(numbers[5])
        file.seek(struct.calcsize("<7i"))
    sizes = Sizes(*numbers)
    for name, number in sizes._asdict().items():
        if number < 1:
            raise UserError(f"{path} has {name}={number} in its header; it is damaged, or no file of llama2.c's")
    if layout.version == 2 and (group < 1 or sizes.dim % group or sizes.hidden_dim % group):
        raise UserError(f"{path} has groups of {group} numbers, which do not divide its sizes; it is damaged")
    model = {
        "hidden_size": sizes.dim,
        "intermediate_size": sizes.hidden_dim,
        "num_layers": sizes.n_layers,
        "num_heads": sizes.n_heads,
        "num_kv_heads": sizes.n_kv_heads,
        "tie_embeddings": tied,
    }
    settings = {
        "model": {**model, **{name.partition(".")[2]: value for name, value in _FIXED.items()}},
        "moe": {"num_experts": 0},
        "data": {"sequence_length": sizes.seq_len},
        "tokenizer": {"vocab_size": sizes.vocab_size},
    }
    return parse_run_config(settings, str(path)), layout


def _read_weights(
    file: BinaryIO, path: Path, parts: list[Part], layout: Layout, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, Tensor]:
    weights = {name: torch.empty(shape) for name, shape in shapes.items()}
    for part in parts:
        content = bytearray(file.read(_size(part, layout)))
        if not part.ours:
            continue  # llama2.c ignores them, too
        if part.is_quantized(layout.version):
            numbers = math.prod(part.shape)
            grouped = torch.frombuffer(content, dtype=torch.int8, count=numbers).reshape(-1, layout.group)
            # The scales may not begin at a multiple of four bytes.
            scales = torch.frombuffer(content[numbers:], dtype=torch.float32)
            tensor = grouped * scales[:, None]
        else:
            tensor = torch.frombuffer(content, dtype=torch.float32)
        if not tensor.isfinite().all():
            raise UserError(f"{path}: there are infinities or NaNs in {part.ours}; the file is damaged")
        tensor = tensor.reshape(part.shape)
        weights[part.ours][part.rows] = with_halves(tensor, part.heads) if part.heads else tensor
    return weights


def _parts(run: RunConfig, version: int) -> Iterator[Part]:
    """The tensors of a file, in file order."""
    model = run.model
    width, inner, vocabulary = model.hidden_size, model.intermediate_size, run.tokenizer.vocab_size
    keys = model.kv_heads * model.head_dim

    def of_layers(name: str, *shape: int, rows: slice = slice(None), heads: int = 0) -> list[Part]:
        return [Part(f"blocks.{layer}.{name}.weight", shape, rows, heads) for layer in range(model.num_layers)]

    embedding = [Part("embedding.weight", (vocabulary, width))]
    attention_norms, ffn_norms = of_layers("attention_norm", width), of_layers("ffn_norm", width)
    attention = [
        *of_layers("attention.q_proj", width, width, heads=model.num_heads),
        *of_layers("attention.k_proj", keys, width, heads=model.kv_heads),
        *of_layers("attention.v_proj", keys, width),
        *of_layers("attention.o_proj", width, width),
    ]
    ffn = [
        *of_layers("ffn.gate_up_proj", inner, width, rows=slice(inner)),
        *of_layers("ffn.down_proj", width, inner),
        *of_layers("ffn.gate_up_proj", inner, width, rows=slice(inner, None)),
    ]
    final_norm = [Part("final_norm.weight", (width,))]
    if version:
        yield from [*attention_norms, *ffn_norms, *final_norm, *embedding, *attention, *ffn]
    else:
        yield from [*embedding, *attention_norms, *attention, *ffn_norms, *ffn, *final_norm]
        yield Part("", (2, run.context_length, model.head_dim // 2))
    if not model.tie_embeddings:
        yield Part("lm_head.weight", (vocabulary, width))


def _size(part: Part, layout: Layout) -> int:
    """Size in the file (bytes)."""
    numbers = math.prod(part.shape)
    return numbers + 4 * (numbers // layout.group) if part.is_quantized(layout.version) else 4 * numbers


def _rotary_tables(context: int, head_dim: int) -> Tensor:
    """[2, context, head_dim / 2] cosines and sines, rounded as llama2.c's model.py rounds them."""
    theta = _FIXED["model.rope_theta"]
    frequency_H = 1.0 / theta ** (torch.arange(0, head_dim, 2).float() / head_dim)
    angle_SH = torch.outer(torch.arange(context), frequency_H)
    return torch.stack([angle_SH.cos(), angle_SH.sin()])


def _bytes_of(tensor: Tensor) -> bytes:
    return tensor.contiguous().numpy().tobytes()
