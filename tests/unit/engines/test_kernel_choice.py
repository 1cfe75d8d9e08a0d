"""What a run reports about its kernels is what its operations do."""

import importlib

import pytest
import torch
from storyteller_kernels import dispatch
from storyteller_kernels.dispatch import ASKED_FOR, Backend

from storyteller_ds.config.run import RunConfig
from storyteller_ds.engines.kernel_choice import kernel_choice

GPU, CPU = torch.device("cuda", 0), torch.device("cpu")
TRITON = Backend("triton", "auto on Imaginary 100")
OLD_CARD = Backend("reference", "Tesla T4 has compute capability 7.5, the kernels need 8.0")
SLOW = "warning: experts run one after the other on this GPU, which is slow: "


@pytest.fixture
def chosen(monkeypatch):
    """Pretend that the process has chosen a backend, by default on a card with bf16."""

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
@pytest.mark.parametrize("model", [{}, {"activation": "gelu", "bias": True}, {"activation": "relu2"}])
@pytest.mark.parametrize("strategy", ["local", "expert_parallel", "stock"])
def test_nothing_is_added_where_everything_follows_the_choice(chosen, model, moe, dtype, strategy):
    chosen(TRITON)
    assert kernel_choice(run(model, moe, dtype), GPU, strategy) == ("triton (auto on Imaginary 100)", None)


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


@pytest.mark.parametrize("activation", ["swiglu", "gelu", "relu", "relu2"])
@pytest.mark.parametrize("has_biases", [False, True])
def test_what_is_said_of_experts_is_what_they_do(chosen, monkeypatch, activation, has_biases):
    """The operation's own dispatch agrees: any activation, with or without biases, runs on Triton."""
    operation = importlib.import_module("storyteller_kernels.expert_mlp")
    monkeypatch.setattr(operation, "runs_on_triton", lambda *_: True)
    biases = (torch.zeros(2, 8), torch.zeros(2, 8)) if has_biases else (None, None)
    chosen(TRITON)
    taken = operation._triton_operands(torch.zeros(3, 8), torch.zeros(2, 8, 8), torch.zeros(2, 8, 4), *biases)
    assert taken is not None
    assert kernel_choice(run({"activation": activation, "bias": has_biases}), GPU, "local")[1] is None
