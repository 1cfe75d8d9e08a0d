"""Loading models into little free memory, which is simulated."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from storyteller_ds.checkpoint.quantized import stored_bytes
from storyteller_ds.checkpoint.read import open_checkpoint
from storyteller_ds.config.run import RunConfig
from storyteller_ds.errors import OutOfMemory, UserError
from storyteller_ds.generation import fit
from storyteller_ds.generation.fastest import weights_dtype
from storyteller_ds.generation.load import load_decoder, load_story_model
from storyteller_ds.model.decoder import Decoder
from storyteller_ds.model.init import init_parameters
from tests.support.quantized import write_quantized

CPU = torch.device("cpu")
RUN = RunConfig.model_validate({
    "model": {"hidden_size": 64, "num_layers": 2, "num_heads": 2, "intermediate_size": 64},
    "moe": {"num_experts": 4},
    "data": {"sequence_length": 16},
    "tokenizer": {"kind": "char", "vocab_size": 32},
})  # fmt: skip


@pytest.fixture
def steps(tmp_path: Path) -> dict[int | None, Path]:
    """One model in fp32, 8 bits and 4 bits."""
    decoder = Decoder(RUN)
    init_parameters(decoder, RUN.model, 3)
    return {bits: write_quantized(tmp_path / f"{bits} bits", RUN, decoder, bits) for bits in (None, 8, 4)}


@pytest.fixture
def give(steps, monkeypatch: pytest.MonkeyPatch) -> Callable[[int | None, int], None]:
    """A function that leaves a device `short` bytes less than the weights need in this many bits."""
    shapes = open_checkpoint(steps[None]).open_weights().shapes

    def free(bits: int | None, short: int) -> None:
        monkeypatch.setattr(fit, "free_bytes", lambda device: stored_bytes(shapes, bits) - short)

    return free


@pytest.mark.parametrize("bits", [None, 8, 4])
def test_what_fits_to_the_last_byte_is_loaded_and_what_does_not_is_refused(steps, give, bits):
    give(bits, 0)
    load_decoder(steps[bits], CPU, lambda line: None)
    give(bits, 1)
    with pytest.raises(OutOfMemory, match="the weights need"):
        load_decoder(steps[bits], CPU, lambda line: None)


def test_the_refusal_names_the_bits_that_would_fit(steps, give):
    give(None, 1)
    with pytest.raises(OutOfMemory) as caught:
        load_story_model(steps[None], CPU, pytest.fail)
    # 133,952 numbers: 133,120 of them in int8, with 2,080 scales, and 832 still in fp32.
    needed = free = "535.8 kB"
    fewer = "144.8 kB"
    assert str(caught.value) == (
        f"{steps[None]}: the weights need {needed} in fp32, and cpu has {free} free; in 8 bits they need {fewer}: "
        "storyteller quantize --bits 8, where there is room for all of them"
    )
    give(8, 1)
    for bits in (None, 8):
        with pytest.raises(OutOfMemory, match=r"in 4 bits they need .* quantize --bits 4"):
            load_story_model(steps[bits], CPU, pytest.fail)
    give(4, 1)
    for step in steps.values():
        with pytest.raises(OutOfMemory, match=r"free some, or use another device or a smaller model$"):
            load_story_model(step, CPU, pytest.fail)


def test_quantized_weights_stay_so_where_fp32_does_not_fit(steps, give):
    tokens = torch.tensor([[1, 2, 3]])
    give(None, 0)
    roomy = load_decoder(steps[8], CPU, pytest.fail).decoder
    give(None, 1)
    said: list[str] = []
    tight = load_decoder(steps[8], CPU, said.append).decoder
    (line,) = said
    assert line.startswith("the weights stay in 8 bits: in fp32 they would need ")
    with torch.no_grad():
        assert torch.equal(tight(tokens)[0], roomy(tokens)[0])
    bytes_of = [sum(p.numel() * p.element_size() for p in each.parameters()) for each in (tight, roomy)]
    assert bytes_of[0] < bytes_of[1] / 2


def test_in_bf16_weights_need_half(steps, monkeypatch):
    half = stored_bytes(open_checkpoint(steps[None]).open_weights().shapes, None) // 2
    monkeypatch.setattr(fit, "free_bytes", lambda device: half)
    model = load_story_model(steps[None], CPU, pytest.fail, "bf16")
    assert sum(p.numel() * p.element_size() for p in model.decoder.parameters()) == half
    assert model.stepper is None  # compiled code is for fp32
    assert (
        load_story_model(steps[8], CPU, pytest.fail, "bf16").decoder.blocks[0].ffn_norm.weight.dtype == torch.bfloat16
    )
    monkeypatch.setattr(fit, "free_bytes", lambda device: half - 1)
    with pytest.raises(OutOfMemory, match=r"need 267.9 kB in bf16"):
        load_story_model(steps[None], CPU, pytest.fail, "bf16")


def test_auto_is_the_format_of_training_on_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (8, 0))
    gpu = torch.device("cuda")
    assert weights_dtype(RUN, gpu, "auto") == torch.bfloat16
    assert weights_dtype(RUN, gpu, "fp32") == torch.float32
    in_fp32 = RunConfig.model_validate({**RUN.model_dump(), "precision": {"dtype": "fp32"}})
    assert weights_dtype(in_fp32, gpu, "auto") == torch.float32
    assert weights_dtype(RUN, CPU, "auto") == torch.float32
    with pytest.raises(UserError, match="precision 'fp8' is not known; use auto, fp32 or bf16"):
        weights_dtype(RUN, CPU, "fp8")
