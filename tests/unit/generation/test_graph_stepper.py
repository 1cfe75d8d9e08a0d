"""The fixed-shape step, which a GPU records and replays; on a CPU the same operators run one by one."""

import pytest
import torch
from storyteller_kernels.dispatch import Backend

from storyteller_ds.generation import fastest, graph_stepper
from storyteller_ds.generation.decode import generate_ids
from storyteller_ds.generation.graph_stepper import GraphStepper
from storyteller_ds.generation.sampling import SamplingConfig
from storyteller_ds.generation.torch_stepper import TorchStepper
from storyteller_ds.model.moe import experts
from tests.support.grouped_experts import grouped_experts
from tests.support.host_reads import HostReads
from tests.unit.generation.conftest import CONTEXT, KINDS, VOCAB

SAMPLING = [{"temperature": 0}, {"seed": 5}, {"seed": 6, "top_k": 10, "top_p": 0.9}]


@pytest.fixture(params=KINDS)
def model(request, make_model):
    return make_model(request.param)


@pytest.mark.parametrize("room", [4, 256])
@pytest.mark.parametrize("sampling", SAMPLING, ids=str)
def test_the_same_tokens_as_with_growing_shapes(model, sampling, room, monkeypatch):
    monkeypatch.setattr(graph_stepper, "CACHED_AT_FIRST", room)
    decoder, run = model
    config = SamplingConfig(**sampling)
    expected = list(generate_ids(decoder, run, [1, 2, 3], config, None))
    assert list(generate_ids(decoder, run, [1, 2, 3], config, None, stepper=GraphStepper(decoder, run))) == expected
    assert len(expected) == CONTEXT - 3 + 1


@torch.no_grad()
def test_every_step_has_the_logits_of_the_whole_text(model, monkeypatch):
    monkeypatch.setattr(graph_stepper, "CACHED_AT_FIRST", 8)
    decoder, run = model
    tokens = torch.randint(VOCAB, (CONTEXT,), generator=torch.Generator().manual_seed(1)).tolist()
    expected_SV = decoder(torch.tensor([tokens]))[0][0]
    stepper = GraphStepper(decoder, run)
    stepper.begin(tokens[::-1], CONTEXT)  # leftovers of an earlier text must not matter
    found = [stepper.begin(tokens[:5], CONTEXT).clone(), *(stepper.step(token).clone() for token in tokens[5:])]
    torch.testing.assert_close(torch.stack(found), expected_SV[4:], rtol=0, atol=2e-5 * float(expected_SV.abs().max()))


def test_texts_that_slide(make_model):
    decoder, run = make_model("mixture rope")
    config = SamplingConfig(seed=5, max_new_tokens=60, past_context="slide")
    expected = list(generate_ids(decoder, run, [1, 2, 3], config, None))
    assert list(generate_ids(decoder, run, [1, 2, 3], config, None, stepper=GraphStepper(decoder, run))) == expected


def test_two_texts_at_a_time(make_model):
    decoder, run = make_model("dense rope")
    first = GraphStepper(decoder, run)
    second = first.another()
    expected = [first.begin([1, 2], 9).clone(), first.step(3).clone()]
    first.begin([1, 2], 9)
    second.begin([7, 8, 9], 9)
    second.step(5)
    assert torch.equal(first.step(3), expected[1])


@torch.no_grad()
def test_no_step_is_read_by_the_host(model, monkeypatch):
    monkeypatch.setattr(experts, "expert_mlp", grouped_experts)
    decoder, run = model
    stepper = GraphStepper(decoder, run)
    stepper.begin([1, 2, 3], CONTEXT)
    with HostReads() as reads:
        for token in range(8):
            stepper.step(token)
    assert reads.number == 0


@torch.no_grad()
def test_weights_in_bf16_compute_what_weights_that_are_cast_do(model):
    decoder, run = model
    decoder.dtype = torch.bfloat16
    cast = TorchStepper(decoder, run)
    expected = [cast.begin([1, 2, 3], CONTEXT), *(cast.step(token) for token in range(8))]
    decoder.to(torch.bfloat16).dtype = None
    held = TorchStepper(decoder, run)
    found = [held.begin([1, 2, 3], CONTEXT), *(held.step(token) for token in range(8))]
    assert found[0].dtype == torch.bfloat16
    assert torch.equal(torch.stack(found), torch.stack(expected))


def test_a_mixture_on_a_gpu_without_triton_is_read_by_the_host(make_model, monkeypatch):
    monkeypatch.setattr(fastest, "is_fast", lambda device, dtype: False)
    monkeypatch.setattr(torch.Tensor, "device", torch.device("cuda"))
    monkeypatch.setattr(fastest, "GraphStepper", lambda decoder, run: "graph")
    for name, found in (("triton", "graph"), ("reference", None)):
        monkeypatch.setattr(fastest, "backend", lambda name=name: Backend(name, ""))
        assert fastest.fastest_stepper(*make_model("mixture rope"), pytest.fail) == found
        assert fastest.fastest_stepper(*make_model("dense rope"), pytest.fail) == "graph"


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_a_graph_gives_the_bits_of_its_operators(model, dtype, monkeypatch):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    monkeypatch.setattr(graph_stepper, "CACHED_AT_FIRST", 8)
    decoder, run = model
    decoder.to("cuda", dtype)
    graph, plain = GraphStepper(decoder, run), GraphStepper(decoder, run)
    for begun in ([1, 2, 3], [4, 5]):  # the second text replays the graph of the first
        assert torch.equal(graph.begin(begun, CONTEXT), plain.begin(begun, CONTEXT))
        for token in range(CONTEXT - len(begun)):
            place = torch.tensor([len(begun) + token], device="cuda")
            plain._have_room(len(begun) + token + 1)
            expected_V = plain._forward(torch.tensor([[token]], device="cuda"), place)
            assert torch.equal(graph.step(token), expected_V)
