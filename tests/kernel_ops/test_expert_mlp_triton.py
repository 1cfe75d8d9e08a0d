"""What holds for the Triton expert MLP alone; test_expert_mlp.py tests what holds for every implementation."""

import pytest
import torch
from storyteller_kernels import expert_mlp, permute
from storyteller_kernels.expert_mlp import reference
from torch import Tensor

from tests.support.tolerances import BF16, EXACT, SIMPLE, assert_within

COUNTS = [70, 0, 129, 1, 0]


def plain(x_ND: Tensor, up_EHD: Tensor, down_EDI: Tensor, counts: list[int]) -> Tensor:
    """Compute expert by expert, in fp64."""
    outputs = []
    for x_RD, up_HD, down_DI in zip(x_ND.double().split(counts), up_EHD.double(), down_EDI.double(), strict=True):
        gate_RI, value_RI = (x_RD @ up_HD.t()).chunk(2, dim=1)
        outputs.append((gate_RI / (1 + torch.exp(-gate_RI)) * value_RI) @ down_DI.t())
    return torch.cat(outputs)


def operands(rows: int, experts: int, width: int, inner: int, dtype: torch.dtype) -> list[Tensor]:
    """Return rows, up and down, scaled so that all intermediate values are near 1."""
    torch.manual_seed(rows + width)
    shapes = [(rows, width), (experts, 2 * inner, width), (experts, width, inner)]
    scales = [1.0, width**-0.5, inner**-0.5]
    return [torch.randn(s).mul(scale).to(dtype).requires_grad_() for s, scale in zip(shapes, scales, strict=True)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("library", [False, True], ids=["own product", "torch's product"])
def test_other_activations_and_biases_on_both_products(poisoned_memory, triton_device, library, dtype):
    from storyteller_kernels.expert_mlp import grouped

    if library and triton_device == "cuda" and dtype != torch.bfloat16:
        pytest.skip("torch's product is for bf16 on a GPU")
    with torch.device(triton_device):
        x_ND, up_EHD, down_EDI = (t.detach() for t in operands(sum(COUNTS), len(COUNTS), 136, 72, dtype))
        biases = [torch.randn(len(COUNTS), width).to(dtype) for width in (72, 136)]
        tensors = [t.requires_grad_() for t in (x_ND, up_EHD[:, :72].contiguous(), down_EDI, *biases)]
        cotangent_ND = torch.randn(sum(COUNTS), 136).to(dtype)
        end_E = torch.tensor(COUNTS).cumsum(0, dtype=torch.int32)
        out_ND = grouped.expert_mlp(*tensors[:3], end_E, "gelu", *tensors[3:], library=library)
        actual = value_and_gradients(out_ND, tensors, cotangent_ND)
        wide = [t.double() for t in tensors]
        expected_ND = reference.expert_mlp(wide[0], COUNTS, wide[1], wide[2], "gelu", wide[3], wide[4])
        expected = value_and_gradients(expected_ND, tensors, cotangent_ND)
    for one, wanted in zip(actual, expected, strict=True):
        assert_within(one, wanted, SIMPLE if dtype == torch.float32 else BF16)


def value_and_gradients(out_ND: Tensor, tensors: list[Tensor], cotangent_ND: Tensor) -> list[Tensor]:
    return [out_ND, *torch.autograd.grad(out_ND, tensors, cotangent_ND.to(out_ND.dtype))]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("library", [False, True], ids=["own product", "torch's product"])
def test_both_products_on_whole_tiles(poisoned_memory, triton_device, library, dtype):
    from storyteller_kernels.expert_mlp import operators

    if library and triton_device == "cuda" and dtype != torch.bfloat16:
        pytest.skip("torch's product is for bf16 on a GPU")
    with torch.device(triton_device):
        tensors = operands(sum(COUNTS), len(COUNTS), 136, 72, dtype)
        cotangent_ND = torch.randn(sum(COUNTS), 136).to(dtype)
        end_E = torch.tensor(COUNTS).cumsum(0, dtype=torch.int32)
        out_ND = operators.expert_mlp(*tensors, end_E, library=library)
        actual = value_and_gradients(out_ND, tensors, cotangent_ND)
        expected = value_and_gradients(plain(*tensors, COUNTS), tensors, cotangent_ND)
    for one, wanted in zip(actual, expected, strict=True):
        assert_within(one, wanted, SIMPLE if dtype == torch.float32 else BF16)
    for e, count in enumerate(COUNTS):
        if count == 0:
            assert not actual[2][e].any()
            assert not actual[3][e].any()


@pytest.mark.parametrize(
    ("counts", "splits"), [([300, 0, 212], 8), ([16, 5, 0], 1), ([0, 0, 90], 1), ([64, 64, 64], 4)]
)
def test_a_gradient_of_weights_in_parts(poisoned_memory, triton_device, monkeypatch, counts, splits):
    from storyteller_kernels.expert_mlp import kernel

    small = kernel.Tile(rows=16, cols=16, depth=16, warps=4, stages=2)
    monkeypatch.setattr(kernel, "TILES", dict.fromkeys(kernel.TILES, small))
    monkeypatch.setattr(kernel, "SPLIT_BLOCKS", 1)
    monkeypatch.setattr(kernel, "processor_count", lambda _: 100)
    assert kernel._splits(sum(counts) // 3, 6, small, torch.device(triton_device)) == splits
    torch.manual_seed(0)
    with torch.device(triton_device):
        grad_NO, x_NC = torch.randn(sum(counts), 20), torch.randn(sum(counts), 9)
        end_E = torch.tensor(counts).cumsum(0, dtype=torch.int32)
        actual_EOC = kernel.weight_gradient(grad_NO, x_NC, end_E, None)
    expected = [g.double().t() @ x.double() for g, x in zip(grad_NO.split(counts), x_NC.split(counts), strict=True)]
    assert_within(actual_EOC, torch.stack(expected), SIMPLE)


@pytest.mark.parametrize("copy_first", [False, True])
def test_gathering_in_the_load_changes_no_bit(triton_device, monkeypatch, copy_first):
    if copy_first:
        # As where torch's product is used, the tokens are copied; here, our own product takes the copy.
        from storyteller_kernels.expert_mlp import operators

        monkeypatch.setattr(operators, "library_serves", lambda x, *_: x.shape[0] == 50)
    with torch.device(triton_device):
        x_TD, *weights = operands(50, 4, 40, 24, torch.float32)
        row_TK = torch.randperm(100).view(50, 2)
        token_N = row_TK.flatten().argsort() // 2
        count_E, cotangent_ND = torch.tensor([30, 0, 69, 1]), torch.randn(100, 40)
        gathered = expert_mlp(x_TD, count_E, *weights, "swiglu", token_N=token_N, row_TK=row_TK)
        copied = expert_mlp(permute(x_TD, token_N, row_TK), count_E, *weights, "swiglu")
        pairs = [value_and_gradients(out, [x_TD, *weights], cotangent_ND) for out in (gathered, copied)]
    for first, second in zip(*pairs, strict=True):
        assert_within(first, second, EXACT)


def test_what_is_kept_for_the_backward_pass(triton_device):
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.device(triton_device), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        x_TD, *weights = operands(10, 3, 16, 8, torch.float32)
        row_TK = torch.randperm(20).view(10, 2)
        token_N = row_TK.flatten().argsort() // 2
        expert_mlp(x_TD, torch.tensor([20, 0, 0]), *weights, "swiglu", token_N=token_N, row_TK=row_TK)
        # Besides inputs and row ends, only gate and up are kept: no gathered rows, no activation.
        inputs = {tensor.data_ptr() for tensor in (x_TD, *weights, row_TK, token_N)}
        assert [tuple(t.shape) for t in kept if t.data_ptr() not in inputs] == [(3,), (20, 16)]
        kept.clear()
        with torch.no_grad():
            expert_mlp(x_TD, torch.tensor([20, 0, 0]), *weights, "swiglu", token_N=token_N, row_TK=row_TK)
        assert kept == []


def test_which_calls_go_to_triton(triton_device, monkeypatch):
    from storyteller_kernels.expert_mlp import grouped, operators

    calls: list[torch.dtype] = []
    for module in (operators, grouped):
        monkeypatch.setattr(module, "expert_mlp", lambda x, *_, **__: calls.append(x.dtype))
    with torch.device(triton_device):
        x_ND, up_EHD, down_EDI = operands(6, 2, 5, 4, torch.float32)
        wide = [tensor.double() for tensor in (x_ND, up_EHD, down_EDI)]
        expert_mlp(x_ND, [4, 2], up_EHD, down_EDI, "swiglu")
        with torch.autocast(triton_device, dtype=torch.bfloat16):
            expert_mlp(x_ND, [4, 2], up_EHD, down_EDI, "swiglu")
        expert_mlp(x_ND, [4, 2], up_EHD[:, :4], down_EDI, "relu")
        expert_mlp(x_ND, [4, 2], up_EHD, down_EDI, "swiglu", torch.zeros(2, 8), torch.zeros(2, 5))
        assert calls == [torch.float32, torch.bfloat16, torch.float32, torch.float32]
        expert_mlp(wide[0], [4, 2], *wide[1:], "swiglu")
    assert len(calls) == 4


def test_the_host_never_reads_the_counts(triton_device, monkeypatch):
    def refuse(*_: object) -> None:
        raise AssertionError("the host read a tensor")

    with torch.device(triton_device):
        tensors, count_E = operands(6, 2, 5, 4, torch.float32), torch.tensor([4, 2])
        monkeypatch.setattr(Tensor, "tolist", refuse)
        with pytest.raises(AssertionError, match="the host read"):
            expert_mlp(tensors[0].double(), count_E, *(tensor.double() for tensor in tensors[1:]), "swiglu")
        expert_mlp(tensors[0], count_E, *tensors[1:], "swiglu").sum().backward()
        biases = torch.zeros(2, 4, requires_grad=True), torch.zeros(2, 5, requires_grad=True)
        expert_mlp(tensors[0], count_E, tensors[1][:, :4], tensors[2], "gelu", *biases).sum().backward()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("gather", [False, True])
def test_at_the_size_of_a_real_layer(gpu, dtype, gather):
    tokens, top_k, experts, width, inner = 8192, 2, 8, 1024, 2048
    with torch.device(gpu):
        x_TD, *weights = operands(tokens, experts, width, inner, dtype)
        # One expert gets no rows.
        expert_N = torch.rand(tokens, experts - 1).topk(top_k).indices.flatten()
        order_N = expert_N.argsort(stable=True)
        token_N, row_TK = order_N // top_k, order_N.argsort().view(tokens, top_k)
        count_E = expert_N.bincount(minlength=experts)
        cotangent_ND = torch.randn(tokens * top_k, width).to(dtype)

        def run() -> list[Tensor]:
            if gather:
                out_ND = expert_mlp(x_TD, count_E, *weights, "swiglu", token_N=token_N, row_TK=row_TK)
            else:
                out_ND = expert_mlp(permute(x_TD, token_N, row_TK), count_E, *weights, "swiglu")
            return value_and_gradients(out_ND, [x_TD, *weights], cotangent_ND)

        # The first run compiles.
        first = run()
        torch.cuda.set_sync_debug_mode("error")
        try:
            second = run()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        for one, other in zip(first, second, strict=True):
            assert_within(one, other, EXACT)
        expected_ND = plain(x_TD[token_N], *weights, count_E.tolist())
        for one, wanted in zip(first, value_and_gradients(expected_ND, [x_TD, *weights], cotangent_ND), strict=True):
            assert_within(one, wanted, BF16)
