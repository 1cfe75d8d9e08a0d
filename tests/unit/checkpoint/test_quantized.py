"""Quantized weights on disk are read back unchanged, or refused in one line."""

import json
import math
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from storyteller_ds.checkpoint.diff import diff
from storyteller_ds.checkpoint.manifest import hash_file
from storyteller_ds.checkpoint.quantized import Weights, quantized_tensors, stored_bytes
from storyteller_ds.checkpoint.read import find_checkpoint, newest_valid, open_checkpoint
from storyteller_ds.checkpoint.tensor_files import TensorFiles
from storyteller_ds.config.run import RunConfig
from storyteller_ds.errors import CheckpointError
from storyteller_ds.generation.load import load_decoder
from storyteller_ds.model.decoder import Decoder
from storyteller_ds.model.init import init_parameters
from storyteller_ds.model.quantized import bits_of, dequantize, quantize
from storyteller_ds.untrusted import seal_of
from tests.support.quantized import write_quantized

CPU = torch.device("cpu")
KIND = {torch.int8: torch.uint8, torch.uint8: torch.int8}
SHARD = "weights-00000-of-00001.safetensors"
UP, NORM = "blocks.0.ffn.experts.gate_up_proj", "final_norm.weight"
RUN = RunConfig.model_validate({
    "model": {"hidden_size": 32, "num_layers": 1, "num_heads": 2, "intermediate_size": 24, "tie_embeddings": False},
    "moe": {"num_experts": 2, "top_k": 1},
    "data": {"sequence_length": 8},
    "tokenizer": {"kind": "char", "vocab_size": 32},
})  # fmt: skip


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    decoder = Decoder(RUN)
    init_parameters(decoder, RUN.model, 1)
    return decoder


@pytest.fixture(params=[8, 4])
def bits(request) -> int:
    return request.param


@pytest.fixture
def step(tmp_path: Path, decoder: Decoder, bits: int) -> Path:
    return write_quantized(tmp_path / "run", RUN, decoder, bits)


@pytest.mark.parametrize("as_stored", [False, True])
def test_what_is_read_is_what_was_rounded(step, decoder, bits, as_stored):
    weights = {name: p.detach() for name, p in decoder.named_parameters()}
    chosen = bits_of({name: tuple(weight.shape) for name, weight in weights.items()}, bits)
    checkpoint = find_checkpoint(step.parents[1], pytest.fail, ("weights",))
    stored = checkpoint.open_weights()
    loaded = load_decoder(step, CPU, pytest.fail, as_stored).decoder
    assert stored.bits == bits
    assert {name: stored.shapes[name] for name in stored} == {name: tuple(w.shape) for name, w in weights.items()}
    for name, weight in weights.items():
        expected = dequantize(quantize(weight, chosen[name])) if name in chosen else weight
        assert torch.equal(stored[name], expected)
        owner, _, last = name.rpartition(".")
        assert torch.equal(getattr(loaded.get_submodule(owner), last), expected)
    room = stored_bytes(stored.shapes, bits)
    assert room == sum(t.numel() * t.element_size() for t in quantized_tensors(weights, bits).values())
    header = int.from_bytes((step / SHARD).read_bytes()[:8], "little") + 8
    assert (step / SHARD).stat().st_size == header + room


def test_two_precisions_are_compared_weight_by_weight(tmp_path, step, decoder, bits):
    plain = write_quantized(tmp_path / "plain", RUN, decoder, None)
    difference = diff(open_checkpoint(plain), open_checkpoint(step))
    assert difference.only_in_a == difference.only_in_b == []
    assert {one.name for one in difference.tensors} == set(bits_of(open_checkpoint(plain).open_weights().shapes, bits))
    assert all(one.relative < {8: 0.005, 4: 0.08}[bits] for one in difference.tensors)
    assert difference.equal == 5, "two norms, the last one, router and embedding"


def resealed(step: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> Path:
    tensors = load_file(step / SHARD)
    change(tensors)
    (step / SHARD).unlink()
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, step / SHARD)
    return seal(step)


def seal(step: Path) -> Path:
    manifest = json.loads((step / "manifest.json").read_text())
    manifest["files"][SHARD] = hash_file(step / SHARD).model_dump()
    manifest["seal"] = seal_of(manifest)
    (step / "manifest.json").write_text(json.dumps(manifest))
    return step


def refusal(step: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_decoder(step, CPU, lambda line: None)
    assert "\n" not in str(caught.value)
    return str(caught.value)


CHANGES = {
    "no scale": lambda t, values: t.pop(f"scale/{UP}"),
    "no values": lambda t, values: t.pop(values),
    "both": lambda t, values: t.update({UP: torch.zeros(2, 48, 32)}),
    "one group fewer": lambda t, values: t.update({f"scale/{UP}": t[f"scale/{UP}"][..., :0]}),
    "scale of one expert": lambda t, values: t.update({f"scale/{UP}": t[f"scale/{UP}"][:1]}),
    "scale in bytes": lambda t, values: t.update({f"scale/{UP}": t[f"scale/{UP}"].to(torch.uint8)}),
    "values as another kind of bytes": lambda t, values: t.update({values: t[values].view(KIND[t[values].dtype])}),
    "values of one expert": lambda t, values: t.update({values: t[values][:1], f"scale/{UP}": t[f"scale/{UP}"][:1]}),
    "a vector": lambda t, values: t.update({values: t[values].flatten()}),
    "a number": lambda t, values: t.update({values: torch.zeros((), dtype=t[values].dtype)}),
    "not quantized": lambda t, values: (t.pop(values), t.pop(f"scale/{UP}"), t.update({UP: torch.zeros(2, 48, 32)})),
    "a norm, too": lambda t, values: (
        t.update({f"int8/{NORM}": torch.ones(1, 32, dtype=torch.int8), f"scale/{NORM}": t.pop(NORM)[:1, None]}),
    ),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_what_does_not_belong_together_is_refused(step, bits, change):
    line = refusal(resealed(step, lambda tensors: change(tensors, f"int{bits}/{UP}")))
    assert str(step) in line
    assert UP in line or NORM in line


def test_the_same_without_a_change_is_read(step):
    load_decoder(resealed(step, lambda tensors: None), CPU, pytest.fail)  # the control of the test above


@pytest.mark.parametrize("place", [0, 9, 100, -1])
def test_a_changed_byte_is_found(step, place):
    content = bytearray((step / SHARD).read_bytes())
    content[place] ^= 1
    (step / SHARD).write_bytes(content)
    assert f"{SHARD} is damaged" in refusal(step)


@pytest.mark.parametrize("length", [0, 7, 8, 200, -1])
def test_a_file_that_is_cut_off_is_found(step, length):
    content = (step / SHARD).read_bytes()[:length]
    (step / SHARD).write_bytes(content)
    assert f"{SHARD} is damaged" in refusal(step)
    assert f"{SHARD} is damaged" in refusal(seal(step)), "also where the manifest agrees"


def test_a_name_that_promises_a_terabyte_takes_no_memory(step, bits):
    header = {f"int{bits}/{UP}": {"dtype": "I8", "shape": [2**20, 2**20], "data_offsets": [0, 2**40]}}
    text = json.dumps(header).encode()
    content = struct.pack("<Q", len(text)) + text
    (step / SHARD).write_bytes(content)
    assert "is damaged" in refusal(seal(step))


@pytest.mark.parametrize("bits", [None, 8, 4])
def test_training_cannot_go_on_from_an_imported_or_a_quantized_model(tmp_path, decoder, bits):
    step = write_quantized(tmp_path / "run", RUN, decoder, bits)
    for look in (
        lambda: find_checkpoint(step, pytest.fail),
        lambda: find_checkpoint(step.parents[1], pytest.fail),
        lambda: newest_valid(step.parent, pytest.fail),
    ):
        with pytest.raises(CheckpointError, match=r"quantized model, with weights only: .*not to continue training"):
            look()
    assert newest_valid(step.parent, pytest.fail, ("weights",)).folder == step


def test_a_weight_that_is_no_number_is_named(decoder):
    weights = {name: p.detach().clone() for name, p in decoder.named_parameters()}
    weights[UP][1, 2, 3] = float("inf")
    with pytest.raises(CheckpointError, match=f"{UP} cannot be quantized: it is not finite"):
        quantized_tensors(weights, 4)


def test_weights_that_are_not_finite_are_refused_by_name(tmp_path):
    save_file({"blocks.0.ffn.router.weight": torch.tensor([[1.0, math.nan]])}, tmp_path / "weights.safetensors")
    weights = Weights(TensorFiles([tmp_path / "weights.safetensors"]))
    with pytest.raises(CheckpointError, match=r"blocks\.0\.ffn\.router\.weight has numbers that are not finite"):
        weights["blocks.0.ffn.router.weight"]


def test_scales_that_are_not_finite_are_refused_by_name(step, bits):
    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        tensors[f"scale/{UP}"].view(-1)[3] = math.inf

    with pytest.raises(CheckpointError, match=f"{UP} has numbers that are not finite"):
        load_decoder(resealed(step, spoil), CPU, pytest.fail)
