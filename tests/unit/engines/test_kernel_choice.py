"""What a run says of its kernels is what its operations do."""

import importlib

import pytest
import torch
from storyteller_kernels import dispatch
from storyteller_kernels.dispatch import ASKED_FOR, Backend

from storyteller_ds.config.run import RunConfig
from storyteller_ds.engines import kernel_choice as choosing
from storyteller_ds.engines.kernel_choice import kernel_choice

GPU, CPU = torch.device("cuda", 0), torch.device("cpu")
TRITON = Backend("triton", "auto on Imaginary 100")
OLD_CARD = Backend("reference", "Tesla T4 has compute capability 7.5, the kernels need 8.0")
SLOW = "warning: experts run one after the other on this GPU, which is slow: "


@pytest.fixture
def chosen(monkeypatch):
    """The process has chosen this, on a card with bf16."""

    def install(backend: Backend, capability: tuple[int, int] = (9, 0)) -> None:
        monkeypatch.setattr(dispatch, "backend", lambda: backend)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)

    return install


def run(model=None, moe=None, dtype="auto", zero_stage=None) -> RunConfig:
    return RunConfig.model_validate(
        {
            "model": model or {},
            "moe": moe or {},
            "precision": {"dtype": dtype},
            "parallel": {"zero_stage": zero_stage},
        }
    )


@pytest.mark.parametrize("dtype", ["auto", "fp32", "fp16"])
@pytest.mark.parametrize("moe", [{}, {"num_experts": 0}, {"noisy_gating": True}])
def test_nothing_is_added_where_everything_follows_the_choice(chosen, moe, dtype):
    chosen(TRITON)
    assert kernel_choice(run(moe=moe, dtype=dtype), GPU, "local") == ("triton (auto on Imaginary 100)", None)


@pytest.mark.parametrize(
    ("model", "have"),
    [
        ({"activation": "gelu"}, "gelu"),
        ({"activation": "relu"}, "relu"),
        ({"bias": True}, "swiglu and biases"),
        ({"activation": "gelu", "bias": True}, "gelu and biases"),
    ],
)
@pytest.mark.parametrize("strategy", ["local", "expert_parallel", "stock"])
def test_experts_that_triton_has_not_are_named_and_warned_of(chosen, model, have, strategy):
    chosen(TRITON)
    description, warning = kernel_choice(run(model), GPU, strategy)
    assert description == "triton (auto on Imaginary 100), but experts one after the other in plain torch"
    assert warning == f"{SLOW}the kernels are for swiglu without biases, and these have {have}"
    # Dense layers are products of torch in any case.
    assert kernel_choice(run(model, {"num_experts": 0}), GPU, strategy) == ("triton (auto on Imaginary 100)", None)


def test_a_card_without_kernels_is_warned_of_too(chosen):
    chosen(OLD_CARD, (7, 5))
    description, warning = kernel_choice(run(), GPU, "local")
    assert description == f"reference ({OLD_CARD.reason})"
    assert warning == f"{SLOW}{OLD_CARD.reason}"
    assert kernel_choice(run(moe={"num_experts": 0}), GPU, "local")[1] is None


def test_norms_and_routers_beyond_the_kernels_are_named(chosen):
    chosen(TRITON)
    layernorm = kernel_choice(run({"norm": "layernorm"}), GPU, "local")
    assert layernorm == ("triton (auto on Imaginary 100), but norms in plain torch", None)
    wide = kernel_choice(run({"hidden_size": 8448, "num_heads": 66}, {"num_experts": 512}), GPU, "local")
    assert wide[0].endswith("but router in plain torch (more than 256 experts), norms in plain torch")


@pytest.mark.parametrize(("dtype", "slow"), [("bf16", False), ("fp32", True), ("fp16", True)])
def test_autoep_has_experts_of_its_own(chosen, dtype, slow):
    chosen(TRITON)
    description, warning = kernel_choice(run(dtype=dtype, zero_stage=3), GPU, "autoep")
    assert (warning is not None) == slow
    if slow:
        assert warning == f"{SLOW}AutoEP has a grouped product for bf16, not for {dtype}"
    assert "but experts" in description


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_on_a_cpu_half_precision_takes_the_plain_definitions(chosen, dtype):
    chosen(Backend("reference", "no CUDA device"))
    assert kernel_choice(run(), CPU, "local")[0].startswith("cpu (fp32 products by ")
    name = {"bf16": "bfloat16", "fp16": "float16"}[dtype]
    expected = f"reference (there are no kernels for {name} on the CPU)"
    assert kernel_choice(run({"activation": "gelu"}, dtype=dtype), CPU, "local") == (expected, None)
    chosen(ASKED_FOR)
    assert kernel_choice(run(), CPU, "local")[0] == f"reference ({ASKED_FOR.reason})"


def test_what_is_said_of_experts_is_what_they_do(chosen, monkeypatch):
    """The operation itself asks the same question, before any tensor."""
    operation = importlib.import_module("storyteller_kernels.expert_mlp")
    monkeypatch.setattr(operation, "runs_on_triton", lambda *_: True)
    x_ND, up_EHD, down_EDI = torch.zeros(3, 8), torch.zeros(2, 8, 8), torch.zeros(2, 8, 4)
    bias = torch.zeros(2, 8)
    chosen(TRITON)
    for activation in ("swiglu", "gelu", "relu"):
        for biases in ((None, None), (bias, bias)):
            model = {"activation": activation, "bias": biases[0] is not None}
            taken = operation._triton_operands(x_ND, up_EHD, down_EDI, activation, *biases)
            assert (taken is None) == (choosing.kernel_choice(run(model), GPU, "local")[1] is not None)
