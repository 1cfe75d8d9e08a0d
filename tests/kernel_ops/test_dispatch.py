"""The choice of implementation, for the process and for each call."""

import re
import sys
from collections.abc import Iterator

import pytest
import torch
from storyteller_kernels import dispatch, rms_norm, route
from storyteller_kernels.dispatch import Backend, backend, runs_on_triton

VARIABLE = "STORYTELLER_KERNELS"


@pytest.fixture(autouse=True)
def _fresh_choice(monkeypatch) -> Iterator[None]:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    backend.cache_clear()
    yield
    backend.cache_clear()


@pytest.fixture
def new_gpu(monkeypatch) -> None:
    """Make torch report a suitable GPU."""
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Imaginary 100")


def replace_probe(monkeypatch, failure: Exception | None) -> None:
    """Make the trial kernel succeed, or fail with this exception."""
    pytest.importorskip("triton.errors")

    def run() -> None:
        if failure is not None:
            raise failure

    monkeypatch.setattr(dispatch, "_run_smallest_kernel", run)


@pytest.mark.parametrize("value", ["Reference", "trition", "", "auto "])
def test_an_unknown_value_is_refused_with_the_known_ones(monkeypatch, value):
    monkeypatch.setenv(VARIABLE, value)
    with pytest.raises(ValueError, match=rf"{VARIABLE}={value} .*auto.*triton.*reference"):
        backend()


def test_reference_is_chosen_when_asked_for(monkeypatch, new_gpu):
    monkeypatch.setenv(VARIABLE, "reference")
    assert backend() == Backend("reference", f"{VARIABLE}=reference")


def test_the_default_is_auto(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    default = backend()
    backend.cache_clear()
    monkeypatch.setenv(VARIABLE, "auto")
    assert backend() == default


def test_the_choice_is_made_once(monkeypatch):
    monkeypatch.setenv(VARIABLE, "reference")
    first = backend()
    monkeypatch.setenv(VARIABLE, "nonsense")
    assert backend() is first


def test_auto_takes_triton_where_it_works(monkeypatch, new_gpu):
    monkeypatch.delenv(VARIABLE, raising=False)
    replace_probe(monkeypatch, None)
    assert backend() == Backend("triton", "auto on Imaginary 100")


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("torch.version.cuda", None, "without CUDA"),
        ("torch.cuda.is_available", lambda: False, "no CUDA device"),
        ("torch.cuda.get_device_capability", lambda: (7, 5), "Imaginary 100 .* 7.5.* 8.0"),
    ],
)
def test_a_device_that_does_not_suit(monkeypatch, new_gpu, recwarn, name, value, reason):
    replace_probe(monkeypatch, AssertionError("not even tried"))
    monkeypatch.setattr(name, value)
    monkeypatch.setenv(VARIABLE, "auto")
    assert backend().name == "reference"
    assert re.search(reason, backend().reason)
    assert not recwarn.list, "nothing is wrong with such a machine"
    backend.cache_clear()
    monkeypatch.setenv(VARIABLE, "triton")
    with pytest.raises(RuntimeError, match=f"{VARIABLE}=triton is not possible: .*{reason}"):
        backend()


@pytest.mark.parametrize("failure", [RuntimeError("no C compiler"), OSError("no ptxas"), "CompilationError"])
def test_a_triton_that_does_not_work_is_reported(monkeypatch, new_gpu, failure):
    if failure == "CompilationError":
        failure = pytest.importorskip("triton.errors").TritonError("bad kernel")
    replace_probe(monkeypatch, failure)
    monkeypatch.setenv(VARIABLE, "auto")
    with pytest.warns(RuntimeWarning, match=str(failure)):
        choice = backend()
    assert choice.name == "reference"
    assert str(failure) in choice.reason
    backend.cache_clear()
    monkeypatch.setenv(VARIABLE, "triton")
    with pytest.raises(RuntimeError, match=str(failure)):
        backend()


def test_a_missing_triton_is_named_with_its_install_command(monkeypatch, new_gpu):
    for module in [name for name in sys.modules if name.partition(".")[0] == "triton"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.setenv(VARIABLE, "auto")
    with pytest.warns(RuntimeWarning, match="pip install"):
        assert backend().name == "reference"


def test_in_the_interpreter_only_a_wish_for_triton_gives_it(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setenv(VARIABLE, "auto")
    assert backend().name == "reference"
    backend.cache_clear()
    monkeypatch.setenv(VARIABLE, "triton")
    assert backend().name == "triton"
    assert "interpreter" in backend().reason


def test_which_tensors_suit(triton_device):
    x = torch.ones(2, 2, device=triton_device)
    assert runs_on_triton(x, x.bfloat16(), x.half())
    assert not runs_on_triton(x, x.double())
    assert not runs_on_triton(x, x.to("meta"))
    assert not runs_on_triton(x.to("meta"), x.to("meta"))


def test_the_reference_takes_what_does_not_suit(triton_device):
    x_TD, weight_ED = torch.randn(3, 4, device=triton_device, requires_grad=True), torch.randn(2, 4)
    weight_ED = weight_ED.to(triton_device)
    for dtype, ours in [(torch.float32, True), (torch.float64, False)]:
        normed_TD = rms_norm(x_TD.to(dtype), weight_ED[0].to(dtype), 1e-5)
        routing = route(x_TD.to(dtype), weight_ED.to(dtype), 1)
        # The result of rms_norm is a view of the operator's result.
        (normed, _), *_ = normed_TD.grad_fn.next_functions or [(normed_TD.grad_fn, 0)]
        assert ("storyteller_rms_norm" in normed.name()) == ours
        assert ("storyteller_route" in routing.prob_TE.grad_fn.name()) == ours


def test_reference_means_reference_for_every_call(triton_device, monkeypatch):
    monkeypatch.setenv(VARIABLE, "reference")
    backend.cache_clear()
    assert not runs_on_triton(torch.ones(1, device=triton_device))
