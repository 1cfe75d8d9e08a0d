"""linear, and the CPU products under it, against fp64 loops over rows."""

import subprocess
import sys

import pytest
import torch
from storyteller_kernels import cpu_products, linear
from storyteller_kernels.cpu_products import BLAS, ONEDNN, row_blocks, window_around
from torch import Tensor

from tests.support.tolerances import BF16, EXACT, SIMPLE, assert_within

every_way = pytest.mark.parametrize("implementation", ["reference", "cpu", "onednn"], indirect=True)
with_and_without_bias = pytest.mark.parametrize("bias", [False, True], ids=["plain", "bias"])
SHAPES = {
    "no rows": (0, 5, 3),
    "one row": (1, 7, 4),
    "less than a block": (15, 33, 40),
    "a block": (16, 8, 24),
    "a block and a rest": (23, 40, 17),
    "many": (1000, 33, 65),
}
every_shape = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)


def inputs(rows: int, width: int, height: int, bias: bool) -> list[Tensor]:
    torch.manual_seed(rows + width)
    shapes = [(rows, width), (height, width), (height,)]
    return [torch.randn(shape, requires_grad=True) for shape in shapes[: 2 + bias]]


def reference(x_RD: Tensor, weight_HD: Tensor, bias_H: Tensor | None = None) -> Tensor:
    y_RH = torch.stack([(weight_HD.double() * x_D.double()).sum(dim=1) for x_D in x_RD]) if len(x_RD) else None
    if y_RH is None:
        y_RH = x_RD.double() @ weight_HD.double().t()
    return y_RH if bias_H is None else y_RH + bias_H.double()


@every_way
@every_shape
@with_and_without_bias
def test_forward_and_gradients(poisoned_memory, implementation, shape, bias):
    tensors = inputs(*shape, bias)
    y_RH, expected_RH = linear(*tensors), reference(*tensors)
    assert_within(y_RH, expected_RH, SIMPLE)
    cotangent_RH = torch.randn_like(y_RH)
    grads = torch.autograd.grad(y_RH, tensors, cotangent_RH)
    for grad, expected in zip(grads, torch.autograd.grad(expected_RH, tensors, cotangent_RH.double()), strict=True):
        assert_within(grad, expected, SIMPLE)


@every_way
def test_leading_dimensions_and_strides(implementation):
    x_RD, weight_HD = inputs(48, 20, 30, bias=False)
    x_BSD = x_RD.detach().view(4, 12, 20).transpose(0, 1).requires_grad_()
    turned_HD = weight_HD.detach().t().contiguous().t().requires_grad_()
    y_BSH = linear(x_BSD, turned_HD)
    assert y_BSH.shape == (12, 4, 30)
    expected = x_BSD.double() @ turned_HD.double().t()
    assert_within(y_BSH, expected, SIMPLE)
    cotangent = torch.randn(4, 12, 30).transpose(0, 1)
    grads = torch.autograd.grad(y_BSH, [x_BSD, turned_HD], cotangent)
    wanted = torch.autograd.grad(expected, [x_BSD, turned_HD], cotangent.double())
    for grad, one in zip(grads, wanted, strict=True):
        assert_within(grad, one, SIMPLE)


@every_way
def test_only_the_gradients_that_are_asked_for(implementation):
    tensors = inputs(40, 8, 6, bias=True)
    cotangent_RH = torch.randn(40, 6)
    every = torch.autograd.grad(linear(*tensors), tensors, cotangent_RH)
    for wanted in range(3):
        some = [tensor.detach().requires_grad_(i == wanted) for i, tensor in enumerate(tensors)]
        linear(*some).backward(cotangent_RH)
        assert [tensor.grad is not None for tensor in some] == [i == wanted for i in range(3)]
        assert_within(some[wanted].grad, every[wanted], EXACT)


@every_way
def test_twice_is_the_same_bits(implementation):
    tensors = inputs(*SHAPES["many"], bias=True)
    cotangent_RH = torch.randn(1000, 65)
    runs = []
    for _ in range(2):
        y_RH = linear(*tensors)
        runs.append((y_RH, *torch.autograd.grad(y_RH, tensors, cotangent_RH)))
    for first, second in zip(*runs, strict=True):
        assert_within(first, second, EXACT)


@every_way
def test_other_number_formats(implementation):
    x_RD, weight_HD = (tensor.detach() for tensor in inputs(32, 24, 16, bias=False))
    assert_within(linear(x_RD.double(), weight_HD.double()), reference(x_RD, weight_HD), 1e-12)
    low_RH = linear(x_RD.bfloat16(), weight_HD.bfloat16())
    assert low_RH.dtype == torch.bfloat16
    assert_within(low_RH, reference(x_RD.bfloat16(), weight_HD.bfloat16()), BF16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_within(linear(x_RD, weight_HD), low_RH, EXACT)


@pytest.mark.parametrize("implementation", ["onednn"], indirect=True)
def test_onednn_really_has_the_products(implementation):
    tensors = inputs(32, 24, 16, bias=False)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        linear(*tensors).sum().backward()
    counts = {event.key: event.count for event in profile.key_averages()}
    assert counts.get("mkldnn::_linear_pointwise") == 2
    assert counts.get("aten::convolution_backward") == 1
    assert "aten::mm" not in counts


@pytest.mark.parametrize("implementation", ["onednn"], indirect=True)
def test_blocks_are_nearly_everything_and_of_few_sizes(implementation):
    sizes = set()
    for rows in range(cpu_products.IMAGES, 4096):
        parts = list(row_blocks(rows, torch.empty(8, 8)))
        assert [i for part, _ in parts for i in range(part.start, part.stop)] == list(range(rows))
        (block, products), *_ = parts
        assert products is ONEDNN
        assert block.stop % cpu_products.IMAGES == 0
        if rows >= 256:
            assert rows - block.stop < rows / 16
            sizes.add(block.stop)
    assert len(sizes) <= 16 * 4, "16 between a power of two and the next"


@pytest.mark.parametrize("implementation", ["onednn"], indirect=True)
def test_windows_hold_the_rows_and_few_others_and_are_of_few_sizes(implementation):
    sizes = set()
    for count in range(1, 2048):
        for start in (0, 7, 2048 - count):
            total = max(2048, start + count)
            window, products = window_around(slice(start, start + count), total, torch.empty(8, 8))
            size = window.stop - window.start
            assert products is ONEDNN
            assert 0 <= window.start <= start
            assert start + count <= window.stop <= total
            assert size % cpu_products.IMAGES == 0
            assert size - count < max(cpu_products.IMAGES, count / 16)
            if count > 512:
                sizes.add(size)
    assert len(sizes) <= 32 * 2 + 1, "32 between a power of two and the next"


@pytest.mark.parametrize("implementation", ["onednn"], indirect=True)
def test_rows_without_neighbors_enough_go_to_blas(implementation):
    rows = slice(0, 17)
    assert window_around(rows, 31, torch.empty(8, 8)) == (rows, BLAS)
    assert window_around(rows, 32, torch.empty(8, 8)) == (slice(0, 32), ONEDNN)


@pytest.mark.parametrize("implementation", ["onednn"], indirect=True)
def test_another_processor_or_format_has_one_block_for_blas(implementation, monkeypatch):
    assert list(row_blocks(100, torch.empty(8, 8, dtype=torch.float64))) == [(slice(0, 100), BLAS)]
    monkeypatch.setattr(cpu_products, "onednn_is_faster", lambda: False)
    assert list(row_blocks(100, torch.empty(8, 8))) == [(slice(0, 100), BLAS)]
    assert list(row_blocks(0, torch.empty(8, 8))) == [(slice(0, 0), BLAS)]


@pytest.mark.parametrize(
    ("vendor", "capability", "faster"),
    [
        ("AuthenticAMD", "AVX512", True),
        ("GenuineIntel", "AVX512", False),
        ("AuthenticAMD", "AVX2", False),
        (None, "AVX512", False),
    ],
)
def test_which_processors_gain(monkeypatch, tmp_path, vendor, capability, faster):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    description = tmp_path / "cpuinfo"
    if vendor is not None:
        description.write_text(f"processor\t: 0\nvendor_id\t: {vendor}\n")
    monkeypatch.setattr(cpu_products, "PROCESSOR", description)
    assert cpu_products.onednn_is_faster.__wrapped__() == faster


def test_a_torch_without_the_private_operation_has_blas(monkeypatch, tmp_path):
    test_which_processors_gain(monkeypatch, tmp_path, "AuthenticAMD", "AVX512", True)
    monkeypatch.setattr(cpu_products, "ONEDNN_PRODUCTS", ())
    assert not cpu_products.onednn_is_faster.__wrapped__()


def test_numbers_do_not_depend_on_how_many_threads_share_the_work():
    # One rank of several has fewer threads. The bits may differ, but the numbers must agree.
    code = (
        "import sys, torch; torch.set_num_threads(int(sys.argv[1])); torch.manual_seed(0);"
        "from storyteller_kernels import linear;"
        "print(linear(torch.randn(512, 256), torch.randn(256, 256)).double().abs().sum().item())"
    )
    sums = [
        float(subprocess.run([sys.executable, "-c", code, str(n)], capture_output=True, check=True, timeout=120).stdout)
        for n in (1, 2)
    ]
    assert abs(sums[0] - sums[1]) <= 1e-6 * sums[0]


@pytest.mark.parametrize("implementation", ["onednn"], indirect=True)
@pytest.mark.parametrize(("width", "height"), [(1024, 64), (64, 1000), (700, 513)])
def test_long_sums_are_as_exact_as_those_of_blas(implementation, width, height):
    # The results of two topologies differ by the rounding of their products, and after 20 steps by 20 times as much.
    tensors = inputs(512, width, height, bias=True)
    cotangent_RH = torch.randn(512, height)
    wide = [tensor.detach().double().requires_grad_() for tensor in tensors]
    y_RH, exact_RH = linear(*tensors), wide[0] @ wide[1].t() + wide[2]
    grads = torch.autograd.grad(y_RH, tensors, cotangent_RH)
    exact = torch.autograd.grad(exact_RH, wide, cotangent_RH.double())
    for one, wanted in zip([y_RH, *grads], [exact_RH, *exact], strict=True):
        assert (one.double() - wanted).norm() <= 4e-7 * wanted.norm()


@pytest.mark.parametrize("implementation", ["onednn"], indirect=True)
def test_uncut_they_would_not_be(implementation, monkeypatch):
    monkeypatch.setattr(cpu_products, "LONGEST_SUM", 10**6)
    with pytest.raises(AssertionError):
        test_long_sums_are_as_exact_as_those_of_blas("onednn", 1024, 64)
