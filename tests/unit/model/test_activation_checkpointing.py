"""Recomputed blocks give bit-identical results and keep less memory; nothing is drawn or counted twice."""

import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from storyteller_kernels import cpu_products
from torch import Tensor, nn
from torch.utils import checkpoint as torch_checkpoint
from torch.utils._python_dispatch import TorchDispatchMode

from storyteller_ds.config.model import ModelConfig
from storyteller_ds.config.run import RunConfig
from storyteller_ds.model import activation_checkpointing
from storyteller_ds.model.decoder import Decoder
from storyteller_ds.model.loss import LossModule
from tests.support.tolerances import EXACT, SIMPLE, assert_within

MODES = ("block", "selective")
every_mode = pytest.mark.parametrize("mode", MODES)
MODELS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "mixtral": ({"num_kv_heads": 2}, {}),
    "noisy, with dropout": ({"dropout": 0.3}, {"noisy_gating": True}),
    "gpt2 with dropout, dense and MoE by turns": (
        {"norm": "layernorm", "position": "learned", "activation": "gelu", "bias": True, "dropout": 0.2},
        {"every_n_layers": 2, "top_k": 1},
    ),
    "dense": ({}, {"num_experts": 0}),
}
every_model = pytest.mark.parametrize(("model", "moe"), MODELS.values(), ids=MODELS)


class Passed:
    """All numbers that a forward and backward pass produces."""

    def __init__(self, run: RunConfig, make_decoder: Callable[..., Decoder], token_BS: Tensor) -> None:
        decoder = make_decoder(run).train()
        loss_module = LossModule(decoder, run.moe, lambda packed: packed, 1)
        torch.manual_seed(5)
        share, stats = loss_module(token_BS, token_BS.roll(-1, 1), token_BS.numel(), 1)
        # Draws between the two passes must not affect the recomputation, and it must not affect later draws.
        after_forward = torch.rand(())
        share.backward()
        self.numbers = {"loss": share, "after forward": after_forward, "after backward": torch.rand(())}
        self.numbers |= stats._asdict()
        self.numbers |= {name: p.grad for name, p in decoder.named_parameters() if p.grad is not None}

    def assert_same(self, other: "Passed") -> None:
        assert self.numbers.keys() == other.numbers.keys()
        for name, number in self.numbers.items():
            assert torch.equal(number, other.numbers[name]), name


def in_mode(make_run: Callable[..., RunConfig], mode: str, model: dict[str, Any], moe: dict[str, Any]) -> RunConfig:
    return make_run({**model, "activation_checkpointing": mode}, moe)


@every_mode
@every_model
def test_losses_statistics_and_gradients_are_the_same_bits(make_run, make_decoder, token_BS, mode, model, moe):
    plain = Passed(in_mode(make_run, "none", model, moe), make_decoder, token_BS)
    passed = Passed(in_mode(make_run, mode, model, moe), make_decoder, token_BS)
    assert len(plain.numbers) > 20
    passed.assert_same(plain)


@every_mode
def test_products_that_onednn_sums_in_parts(make_run, make_decoder, mode):
    """Regression test: oneDNN's second part was once added to the tensor that selective mode had kept."""
    model = {"hidden_size": 512, "intermediate_size": 512}
    token_BS = torch.arange(8 * 16).view(8, 16) % 61
    plain = Passed(in_mode(make_run, "none", model, {}), make_decoder, token_BS)
    Passed(in_mode(make_run, mode, model, {}), make_decoder, token_BS).assert_same(plain)


@every_mode
def test_without_the_random_state_dropout_would_differ(make_run, make_decoder, token_BS, mode, monkeypatch):
    """Negative control: the comparison above fails when the recomputation draws different random numbers."""
    real = torch_checkpoint.checkpoint

    def careless(*args: Any, **options: Any) -> Any:
        return real(*args, **{**options, "preserve_rng_state": False})

    # Dense, because in an MoE layer tokens would go to other experts and torch itself would raise an error.
    model, moe = {"dropout": 0.3}, {"num_experts": 0}
    plain = Passed(in_mode(make_run, "none", model, moe), make_decoder, token_BS)
    monkeypatch.setattr(activation_checkpointing.torch_checkpoint, "checkpoint", careless)
    passed = Passed(in_mode(make_run, mode, model, moe), make_decoder, token_BS)
    assert torch.equal(passed.numbers["loss"], plain.numbers["loss"])
    assert not torch.equal(passed.numbers["embedding.weight"], plain.numbers["embedding.weight"])
    with pytest.raises(AssertionError):
        passed.assert_same(plain)


@every_mode
def test_bf16_is_the_same_in_the_recomputation(make_run, make_decoder, token_BS, mode):
    def in_bf16(run: RunConfig) -> Decoder:
        decoder = make_decoder(run)
        decoder.dtype = torch.bfloat16
        return decoder

    def passed(mode: str) -> Passed:
        return Passed(in_mode(make_run, mode, {}, {}), in_bf16, token_BS)

    passed(mode).assert_same(passed("none"))


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the storages that operations under it have created and that are still alive."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        known = {id(a.untyped_storage()) for a in args if isinstance(a, Tensor)}
        result = operation(*args, **(kwargs or {}))
        for value in result if isinstance(result, tuple | list) else [result]:
            if isinstance(value, Tensor):
                storage = value.untyped_storage()
                if id(storage) not in known | self._seen:
                    self._count(storage)
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        size, key = storage.nbytes(), id(storage)
        self._seen.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)

        def freed() -> None:
            self._seen.discard(key)
            self.now -= size

        weakref.finalize(storage, freed)


def memory(run: RunConfig, make_decoder: Callable[..., Decoder], batch: int) -> tuple[int, int]:
    """Return the bytes kept from forward to backward pass, and the peak over both, excluding the gradients."""
    decoder = make_decoder(run).train()
    for parameter in decoder.parameters():
        parameter.grad = torch.zeros_like(parameter)
    token_BS = torch.zeros(batch, run.context_length, dtype=torch.int64)
    with LiveBytes() as live:
        logits_BSV, stats = decoder(token_BS)
        kept = live.now
        (logits_BSV.sum() + sum(s.z_sum for s in stats)).backward()
        del logits_BSV, stats
    assert live.now < kept / 10, "the count forgets nothing"
    return kept, live.peak


def test_each_mode_keeps_less_than_the_one_before(make_run, make_decoder):
    """With six MoE layers, the blocks' activations outweigh logits and embedding."""
    size = {"num_layers": 6, "hidden_size": 64, "intermediate_size": 64}
    kept, peak = {}, {}
    for mode in ("none", "selective", "block"):
        kept[mode], peak[mode] = memory(in_mode(make_run, mode, size, {}), make_decoder, 8)
    tokens, fp32 = 8 * 16, 4
    # In block mode, each block keeps its input, and its router's probabilities and their sums.
    assert kept["block"] < tokens * fp32 * (6 * (64 + 3 * 4) + 3 * 64 + 2 * 61)
    assert kept["block"] < 0.25 * kept["selective"]
    assert kept["selective"] < 0.7 * kept["none"]
    assert peak["block"] < peak["selective"] < peak["none"]


def test_scores_of_attention_without_a_fused_kernel_are_not_kept(make_run, make_decoder):
    """On CPUs, attention with dropout uses torch's composite form, whose [S, S] tables selective must not keep."""
    model = {"dropout": 0.1, "num_heads": 16}
    kept = {}
    for mode in ("none", "selective"):
        run = make_run({**model, "activation_checkpointing": mode}, {"num_experts": 0}, 64)
        kept[mode], _ = memory(run, make_decoder, 2)
    table = 2 * 16 * 64 * 64 * 4
    assert kept["none"] > 2 * 2 * table
    assert kept["selective"] < table


class Calls:
    """Counts how often each submodule begins and how often it ends."""

    def __init__(self, decoder: nn.Module) -> None:
        self.begun: dict[str, int] = {}
        self.ended: dict[str, int] = {}
        for name, module in decoder.named_modules():
            if name.startswith("blocks."):
                module.register_forward_pre_hook(self._count(self.begun, name))
                module.register_forward_hook(self._count(self.ended, name))

    @staticmethod
    def _count(counts: dict[str, int], name: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            counts[name] = counts.get(name, 0) + 1

        return hook


@every_mode
def test_every_submodule_that_begins_ends(make_run, make_decoder, token_BS, mode):
    """ZeRO-3 gathers weights when a module begins and releases them when it ends."""
    decoder = make_decoder(in_mode(make_run, mode, {}, {})).train()
    calls = Calls(decoder)
    logits_BSV, _ = decoder(token_BS)
    logits_BSV.sum().backward()
    assert calls.begun == calls.ended
    assert {calls.begun[f"blocks.{i}.{part}"] for i in range(2) for part in ("ffn_norm", "ffn.experts", "dropout")} == {
        2,
        4,
    }


@every_mode
def test_evaluation_runs_every_block_once(make_run, make_decoder, token_BS, mode):
    plain = make_decoder(in_mode(make_run, "none", {}, {}))
    decoder = make_decoder(in_mode(make_run, mode, {}, {}))
    calls = Calls(decoder)
    with torch.no_grad():
        assert_within(decoder(token_BS)[0], plain(token_BS)[0], EXACT)
    assert set(calls.begun.values()) <= {1, 2}
    assert calls.begun["blocks.0"] == 1


class Counted(TorchDispatchMode):
    """Counts how often the given operations actually run."""

    def __init__(self, *operations: Any) -> None:
        super().__init__()
        self.operations, self.number = operations, 0

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.number += operation in self.operations
        return operation(*args, **(kwargs or {}))


def test_selective_multiplies_no_product_again(make_run, make_decoder, monkeypatch):
    monkeypatch.setattr(cpu_products, "MIN_MULTIPLICATIONS", 0)  # includes oneDNN's, on processors that have them
    operations = (torch.ops.aten.mm.default, torch.ops.aten.addmm.default, *cpu_products.ONEDNN_PRODUCTS)
    products = {}
    for mode in ("none", "selective", "block"):
        run = in_mode(make_run, mode, {"hidden_size": 64, "intermediate_size": 64}, {})
        decoder = make_decoder(run).train()
        with Counted(*operations) as counted:
            decoder(torch.zeros(8, run.context_length, dtype=torch.int64))[0].sum().backward()
        products[mode] = counted.number
    assert products["selective"] == products["none"] < products["block"]


class Exchange(torch.autograd.Function):
    """An all-to-all in a group of one rank."""

    @staticmethod
    def forward(ctx: Any, rows_ND: Tensor) -> Tensor:
        group = torch.distributed.group.WORLD
        sizes = [len(rows_ND)]
        result_ND = torch.ops._c10d_functional.all_to_all_single(rows_ND, sizes, sizes, group.group_name)
        return torch.ops._c10d_functional.wait_tensor(result_ND)

    @staticmethod
    def backward(ctx: Any, grad_ND: Tensor) -> Tensor:
        return Exchange.forward(ctx, grad_ND)


@pytest.fixture
def _one_rank() -> Iterator[None]:
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("_one_rank")
@pytest.mark.parametrize(("mode", "sent"), [("none", 4), ("selective", 4), ("block", 6)])
def test_selective_keeps_the_rows_that_came_from_other_ranks(mode, sent):
    """Rows go there and back in each pass; only block mode sends them there and back once more."""
    x_ND = torch.randn(5, 8, generator=torch.Generator().manual_seed(2)).requires_grad_()
    run_block = activation_checkpointing.BlockRunner(ModelConfig(activation_checkpointing=mode))
    with Counted(torch.ops._c10d_functional.all_to_all_single.default) as exchanges:
        y_ND = run_block(lambda x_ND: Exchange.apply(Exchange.apply(x_ND.sin()).sin()).sin(), x_ND)
        (grad_ND,) = torch.autograd.grad(y_ND.sum(), x_ND)
    assert exchanges.number == sent
    once = x_ND.sin()
    assert_within(grad_ND, x_ND.cos() * once.cos() * once.sin().cos(), SIMPLE)


class CountingCache:
    """Keeps everything it is given, like inference.kv_cache but with a gradient."""

    def __init__(self) -> None:
        self.k_BHSD = self.v_BHSD = torch.empty(0)

    def extend(self, k_BHSD: Tensor, v_BHSD: Tensor) -> tuple[Tensor, Tensor]:
        if self.k_BHSD.numel():
            k_BHSD = torch.cat([self.k_BHSD, k_BHSD], dim=2)
            v_BHSD = torch.cat([self.v_BHSD, v_BHSD], dim=2)
        self.k_BHSD, self.v_BHSD = k_BHSD, v_BHSD
        return k_BHSD, v_BHSD


@every_mode
def test_generation_with_a_cache_sees_each_position_once(make_run, make_decoder, token_BS, mode):
    """This holds with gradients enabled too, where recomputing a block would append the same keys again."""
    decoder = make_decoder(in_mode(make_run, mode, {}, {}))
    whole_BSV, _ = decoder(token_BS)
    caches = [CountingCache() for _ in decoder.blocks]
    first_BSV, _ = decoder(token_BS[:, :9], caches, 0)
    rest_BSV, _ = decoder(token_BS[:, 9:], caches, 9)
    assert_within(torch.cat([first_BSV, rest_BSV], dim=1), whole_BSV, SIMPLE)
    rest_BSV.sum().backward()
    assert {cache.k_BHSD.shape[2] for cache in caches} == {token_BS.shape[1]}
