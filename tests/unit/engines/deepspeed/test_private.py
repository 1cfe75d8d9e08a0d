"""The installed DeepSpeed has the undocumented members that we use, and they do what we rely on.

If a test here fails after a DeepSpeed upgrade, change the function of private.py that the test names.
"""

import ast
import contextlib
import inspect
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from storyteller_ds.config import load_config
from storyteller_ds.data.batching.micro_batch import MicroBatch
from storyteller_ds.distributed.plan import make_plan
from storyteller_ds.distributed.world import World
from storyteller_ds.errors import ConfigError
from tests.support.distributed import DS_CONFIGS

deepspeed = pytest.importorskip("deepspeed")
from storyteller_ds.engines.deepspeed import engine as engines  # noqa: E402
from storyteller_ds.engines.deepspeed import private  # noqa: E402

ROOM = Path(private.__file__).parent
CPU = torch.device("cpu")
ALONE = World(rank=0, local_rank=0, size=1, local_size=1)
SMALL = (
    "data.sequence_length=8",
    "tokenizer.vocab_size=32",
    "model.hidden_size=16",
    "model.num_heads=2",
    "model.num_kv_heads=1",
    "model.num_layers=1",
    "model.intermediate_size=16",
    "train.global_batch_size=2",
    "parallel.device=cpu",
)


@contextlib.contextmanager
def started(ds_config: str, *overrides: str) -> Iterator[Any]:
    """Our engine on one rank."""
    loaded = load_config(overrides=(*SMALL, *overrides), ds_config=DS_CONFIGS / f"{ds_config}.json")
    with ALONE.connected(CPU, 1):
        engine = engines.DeepSpeedEngine(loaded.run, loaded.deepspeed, make_plan(loaded.run, 1), ALONE, CPU)
        try:
            yield engine
        finally:
            engine.close()


def batch(seed: int = 0) -> MicroBatch:
    token = torch.randint(32, (2, 9), generator=torch.Generator().manual_seed(seed))
    return MicroBatch(token[:, :-1].contiguous(), token[:, 1:].contiguous())


def backward(engine: Any) -> None:
    engine.engine.train()
    one = batch()
    loss, _ = engine.engine(one.token_BS, one.target_BS, one.target_BS.numel(), 1)
    engine.engine.backward(loss)


# --- start -----------------------------------------------------------------------------------------------------------


def test_no_collectives_are_compiled(monkeypatch):
    from deepspeed.comm.torch import build_shm_op

    monkeypatch.setitem(deepspeed.ops.__compatible_ops__, "deepspeed_shm_comm", True)
    private.use_no_compiled_collectives()
    assert deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] is False
    # DeepSpeed checks this entry before it compiles them.
    assert "__compatible_ops__" in inspect.getsource(build_shm_op)


def test_fp16_on_a_cpu(monkeypatch):
    accelerator = deepspeed.accelerator.get_accelerator()
    assert callable(type(accelerator).is_fp16_supported)
    monkeypatch.setattr(accelerator, "is_fp16_supported", lambda: False)
    private.allow_fp16_on_cpu()
    assert accelerator.is_fp16_supported() is True


# --- MoE layers ------------------------------------------------------------------------------------------------------


def test_expert_parallel_layers():
    with started("zero2", "parallel.ep_size=1") as engine:
        layer = engine.decoder.blocks[0].ffn
        assert isinstance(layer, deepspeed.moe.layer.MoE)
        assert torch.distributed.get_process_group_ranks(private.expert_group(1)) == [0]
        assert private.expert_group(7) is None
        # No parameters of DeepSpeed's own gate and experts are left to train.
        assert not [name for name, _ in layer.named_parameters() if name.startswith("deepspeed_moe.")]
        for name, parameter in engine.decoder.named_parameters():
            assert deepspeed.moe.utils.is_moe_param(parameter) == (".experts." in name), name


def test_the_parameters_of_the_stock_layer():
    layer = deepspeed.moe.layer.MoE(8, nn.Linear(8, 8), num_experts=3, ep_size=1, k=2)
    found = {private.stock_parameter(name) for name, _ in layer.named_parameters()}
    experts = {(f"experts.{name}", number) for name in ("weight", "bias") for number in range(3)}
    assert found == {("router.weight", 0)} | experts
    assert private.gate_weight_of(layer).shape == (3, 8)


def test_autoep_builds_our_router():
    from deepspeed.module_inject import auto_ep_layer
    from deepspeed.moe.ep_router import TokenChoiceTopKRouter

    built = []
    model = nn.Module()
    with private.autoep_router(lambda **settings: built.append(settings) or nn.Module(), model, 4, 2):
        assert (model.config.num_experts, model.config.num_experts_per_tok) == (4, 2)
        auto_ep_layer.TokenChoiceTopKRouter(dim=8, num_experts=4, top_k=2)
    assert built == [{"dim": 8, "num_experts": 4, "top_k": 2}]
    assert auto_ep_layer.TokenChoiceTopKRouter is TokenChoiceTopKRouter
    # The settings with which AutoEP builds its own router.
    assert {"dim", "num_experts", "top_k"} <= inspect.signature(TokenChoiceTopKRouter).parameters.keys()
    assert "TokenChoiceTopKRouter(" in inspect.getsource(auto_ep_layer.AutoEPMoELayer)


# --- steps and the loss scale ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("ds_config", "precision"), [("zero1", "fp32"), ("zero2", "bf16"), ("zero3", "bf16")])
def test_the_guarded_norm_forbids_the_step(ds_config: str, precision: str):
    with started(ds_config, f"precision.dtype={precision}") as engine:
        stage, optimizer = engine.stage, engine.optimizer
        name = "scaled_global_norm" if stage < 3 else "_get_norm_groups"
        method = getattr(optimizer, name)
        for finite, skipped in ((True, False), (False, True), (True, False)):
            backward(engine)
            with private.guarded_norm(optimizer, stage, is_loss_finite=finite):
                engine.engine.step()
            assert engine.engine.was_step_applied() is not skipped
        assert getattr(optimizer, name) == method
        assert stage == 3 or optimizer.check_grad_overflow is False


def test_without_the_norm_nothing_is_checked():
    zero = SimpleNamespace(loss_scaler=SimpleNamespace(), compute_grad_norm=False)
    with pytest.raises(ConfigError, match="compute_grad_norm"):
        private.prepare_skipping(zero, 2)


def test_the_loss_scale():
    with started("zero2_fp16", "precision.dtype=fp16") as engine:
        optimizer = engine.optimizer
        assert optimizer.loss_scaler.raise_error_at_min_scale is False
        assert optimizer.check_grad_overflow is True
        private.set_loss_scale(optimizer, 1024.0, 5)
        assert private.loss_scale(optimizer) == (1024.0, 5)
        set_back = private.remember_loss_scale(optimizer)
        assert private.scale_can_fall(optimizer)
        for overflow in (True, False):
            optimizer.loss_scaler.update_scale(overflow)
        assert private.loss_scale(optimizer) == (512.0, 1)
        set_back()
        assert private.loss_scale(optimizer) == (1024.0, 5)
        private.set_loss_scale(optimizer, optimizer.loss_scaler.min_scale, 0)
        assert not private.scale_can_fall(optimizer)


def test_a_scale_that_does_not_move():
    with started("zero2", "precision.dtype=fp32") as engine:
        before = private.loss_scale(engine.optimizer)
        assert before[1] == 0
        private.set_loss_scale(engine.optimizer, 8.0, 3)
        assert private.loss_scale(engine.optimizer) == before
        assert not private.scale_can_fall(engine.optimizer)


# --- state -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ds_config", ["zero1", "zero2"])
def test_flat_partitions_and_their_fragments(ds_config: str):
    with started(ds_config) as engine:
        zero, parts = engine.optimizer, private.flat_partitions(engine.optimizer)
        assert {p for part in parts for p in part.parameters} == set(engine.decoder.parameters())
        engine.state.prepare()  # link_moments, before any step
        for part in parts:
            assert torch.distributed.get_process_group_ranks(part.ranks) == [0]
            for parameter in part.parameters:
                start, there, numel = private.fragment_of(parameter)
                assert (start, numel) == (0, parameter.numel())
                here = part.vector[there : there + numel]
                assert torch.equal(here, parameter.flatten())
                assert torch.equal(private.read_fragment(parameter, private.WEIGHT).flatten(), here)
                assert private.read_fragment(parameter, "exp_avg").count_nonzero() == 0
                here.detach().fill_(2.0)
        private.update_weights(zero)
        assert all((parameter == 2.0).all() for parameter in engine.decoder.parameters())
        parameter._hp_mapping = None
        assert private.fragment_of(parameter) == (0, 0, 0)


def test_partitions_of_everything():
    with started("zero3") as engine:
        zero = engine.optimizer
        engine.state.prepare()
        assert sum(vector.numel() for vector in private.sub_groups(zero)) >= sum(
            parameter.ds_numel for parameter in engine.decoder.parameters()
        )
        parameter = engine.decoder.embedding.weight
        for kind in (private.WEIGHT, "exp_avg"):
            private.write_partition(zero, parameter, kind, torch.full(parameter.ds_shape, 3.0))
            assert (engine.state.read(parameter, kind) == 3.0).all()
        private.update_partitioned_weights(zero)
        with deepspeed.zero.GatheredParameters([parameter]):
            assert (parameter == 3.0).all()


def test_what_is_on_nvme_is_fetched_and_put_back_by_members_that_exist():
    from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3 as Stage3

    for name in (
        "_swappable_optimizer_subgroup",
        "_optimizer_states_and_gradient_swap_in",
        "_optimizer_states_and_gradient_swap_out",
        "_release_swap_buffers",
        "_reassign_or_swap_out_partitioned_parameters",
    ):
        inspect.signature(getattr(Stage3, name)).bind("self", 0)
    inspect.signature(Stage3._get_fp32_opt_state_partition).bind(
        "self", "parameter", release_swap_buffers=False, optim_state_key=None
    )


class Swapped:
    """The part of DeepSpeed's ZeRO-3 optimizer that NVMe needs: one sub-group, on NVMe or not."""

    def __init__(self, on_nvme: bool) -> None:
        self.on_nvme = on_nvme
        self.calls: list[str] = []
        self.partition = torch.zeros(4)

    def _swappable_optimizer_subgroup(self, number: int) -> bool:
        return self.on_nvme

    def _optimizer_states_and_gradient_swap_in(self, number: int) -> None:
        self.calls.append("in")

    def _optimizer_states_and_gradient_swap_out(self, number: int) -> None:
        self.calls.append("out")

    def _release_swap_buffers(self, number: int) -> None:
        self.calls.append("release")

    def _get_fp32_opt_state_partition(self, parameter: Any, **_: Any) -> tuple[torch.Tensor, int]:
        if self.on_nvme:
            self.calls.append("in")
        return self.partition, 0

    def _get_param_partition_rank(self, parameter: Any) -> int:
        return 0


class BodyError(Exception):
    """Raised in the block."""


@pytest.mark.parametrize(
    ("changed", "fails", "expected"),
    [(True, False, "out"), (False, False, "release"), (True, True, "release"), (False, True, "release")],
)
def test_what_was_fetched_leaves_memory_whether_the_block_fails_or_not(changed, fails, expected):
    zero = Swapped(on_nvme=True)
    try:
        with private.in_memory(zero, 0, changed):
            assert zero.calls == ["in"]
            if fails:
                raise BodyError
    except BodyError:
        assert fails
    # A half-made change is not written: NVMe keeps what it had.
    assert zero.calls == ["in", expected]


@pytest.mark.parametrize("fails", [True, False])
def test_what_is_in_memory_stays_there(fails):
    zero = Swapped(on_nvme=False)
    try:
        with private.in_memory(zero, 0, changed=True):
            if fails:
                raise BodyError
    except BodyError:
        pass
    assert zero.calls == []


def test_a_value_that_does_not_fit_leaves_no_buffers_behind():
    zero = Swapped(on_nvme=True)
    parameter = nn.Parameter(torch.zeros(4))
    private.write_partition(zero, parameter, "weight", torch.ones(4))
    assert zero.calls == ["in", "out"]
    assert zero.partition.tolist() == [1.0] * 4
    with pytest.raises(AttributeError):
        private.write_partition(zero, parameter, "weight", torch.ones(4).numpy())  # type: ignore[arg-type]
    assert zero.calls == ["in", "out", "in", "release"]


# --- no other module -------------------------------------------------------------------------------------------------

UNDOCUMENTED = """
    __compatible_ops__ is_fp16_supported TokenChoiceTopKRouter auto_ep_layer ep_router deepspeed_moe deepspeed_experts
    expert_group_name allreduce ep_group loss_scaler cur_scale cur_iter last_overflow_iter min_scale overflow
    raise_error_at_min_scale compute_grad_norm check_grad_overflow scaled_global_norm
    single_partition_of_fp32_groups bit16_groups real_dp_process_group hp_fragment_address lp_fragment_address
    get_hp_fragment update_lp_params fp32_partitioned_groups_flat fp16_groups persistent_parameters
""".split()  # noqa: SIM905
"""Names without an underscore that are not documented either."""
TORCH_OWN = ("_c10d_functional",)


def undocumented_members(source: str) -> list[str]:
    """Return the members and modules in the source that only private.py may use."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute):
            of_self = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
            hidden = node.attr.startswith("_") and not of_self and node.attr not in TORCH_OWN
            names = [node.attr] if hidden or node.attr in UNDOCUMENTED else []
        elif isinstance(node, ast.ImportFrom):
            names = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
            names = [name for name in names if name in UNDOCUMENTED]
        else:
            continue
        # `__init__` and the like are Python's.
        found += [name for name in names if name == "__compatible_ops__" or not name.startswith("__")]
    return found


@pytest.mark.parametrize("module", [p for p in ROOM.rglob("*.py") if p.name != "private.py"], ids=lambda p: p.stem)
def test_no_other_module_touches_them(module: Path):
    assert undocumented_members(module.read_text(encoding="utf-8")) == []


def test_the_search_finds_what_it_looks_for():
    found = undocumented_members(Path(private.__file__).read_text(encoding="utf-8"))
    assert "_hp_mapping" in found
    assert "TokenChoiceTopKRouter" in found
    assert undocumented_members("from deepspeed.moe.ep_router import X\nengine.optimizer._step(engine.overflow)") == [
        "ep_router",
        "_step",
        "overflow",
    ]
    assert undocumented_members("self._mine()\nsuper().__init__()\ntorch.ops._c10d_functional.x") == []
