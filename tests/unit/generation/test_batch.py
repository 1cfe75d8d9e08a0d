"""Texts continued in one batch give the same tokens as each continued alone."""

import pytest
import torch

from storyteller_ds.generation.batch import Batch
from storyteller_ds.generation.decode import Continuation, generate_ids
from storyteller_ds.generation.sampling import SamplingConfig
from storyteller_ds.generation.torch_stepper import TorchStepper
from storyteller_ds.model.attention import document_mask
from tests.unit.generation.conftest import CONTEXT, KINDS, VOCAB

PROMPTS = [[3, 1, 4, 1, 5], [9], [2, 6, 5, 3, 5, 8, 9, 7, 9, 3, 2, 3], [8, 4, 6]]
CONFIGS = [
    SamplingConfig(temperature=0),
    SamplingConfig(temperature=1.0, seed=5),
    SamplingConfig(temperature=1.3, seed=6, top_k=7, repetition_penalty=1.2),
    SamplingConfig(temperature=0.9, seed=7, max_new_tokens=4),
]
STOP = 11


def alone(model, stop=STOP) -> list[list[int]]:
    return [list(generate_ids(*model, p, c, stop)) for p, c in zip(PROMPTS, CONFIGS, strict=True)]


def batch(model, stop=STOP, way: str = "torch") -> Batch:
    if way == "torch":
        texts = TorchStepper(*model).texts()
    else:
        pytest.importorskip("numba")
        from storyteller_ds.generation.fast.packed import PackedDecoder

        texts = PackedDecoder(*model).texts()
    return Batch([Continuation(model[0], p, c, stop) for p, c in zip(PROMPTS, CONFIGS, strict=True)], texts)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stop", [None, STOP])
@pytest.mark.parametrize("way", ["torch", "machine code"])
def test_together_they_are_as_each_alone(poisoned_memory, make_model, kind, stop, way):
    model = make_model(kind)
    together = batch(model, stop, way)
    found = [list(together.ids(text)) for text in range(len(PROMPTS))]
    assert found == alone(model, stop)
    if stop is None:
        assert [len(ids) for ids in found] == [CONTEXT - 5 + 1, CONTEXT, CONTEXT - 12 + 1, 4]


def test_in_whatever_order_they_are_read(make_model):
    model = make_model("mixture rope")
    together = batch(model, None)
    streams = [together.ids(text) for text in range(len(PROMPTS))]
    found: list[list[int]] = [[] for _ in streams]
    generator = torch.Generator().manual_seed(0)
    for text in torch.randint(len(streams), (200,), generator=generator).tolist():
        found[text] += [chosen for chosen in [next(streams[text], None)] if chosen is not None]
    assert found == alone(model, None)


def test_what_nobody_reads_any_more_is_not_computed(make_model, monkeypatch):
    decoder, run = make_model("mixture rope")
    sizes = []
    forward = decoder.forward
    monkeypatch.setattr(
        decoder,
        "forward",
        lambda token_BS, *rest, **more: sizes.append(len(token_BS)) or forward(token_BS, *rest, **more),
    )
    together = batch((decoder, run), None)
    streams = [together.ids(text) for text in range(len(PROMPTS))]
    for stream in streams:
        next(stream)
    for stream in streams[1:]:
        stream.close()
    rest = list(streams[0])
    assert sizes == [4, *[1] * len(rest)]


def test_padding_is_seen_by_nobody_and_sees_itself():
    mask = document_mask(torch.tensor([[-2, -1, 0, 1], [0, 1, 2, 0]]))
    expected = [
        [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1]],
        [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [0, 0, 0, 1]],
    ]
    assert mask[:, 0].int().tolist() == expected
    after = document_mask(torch.tensor([[1], [3], [0]]), start=3)
    assert after[:, 0, 0].int().tolist() == [[0, 0, 1, 1], [1, 1, 1, 1], [0, 0, 0, 1]]


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_what_the_padding_says_changes_nothing(make_model, kind, one_thread):
    # Padding is routed to experts too: the rows per expert decide how threads split, and so round, a product.
    decoder, _ = make_model(kind)
    token_BS = torch.randint(VOCAB, (1, 10), generator=torch.Generator().manual_seed(1))
    position_BS = torch.arange(10)[None] - 3
    first = decoder(token_BS, position_BS=position_BS)[0][:, 3:]
    token_BS[:, :3] = (token_BS[:, :3] + 7) % VOCAB
    assert torch.equal(decoder(token_BS, position_BS=position_BS)[0][:, 3:], first)
    torch.testing.assert_close(decoder(token_BS[:, 3:])[0], first, rtol=1e-4, atol=1e-5)
