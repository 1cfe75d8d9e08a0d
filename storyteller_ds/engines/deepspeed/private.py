"""All undocumented parts of DeepSpeed 0.19.8 that we use, each behind one function.

No other module of ours touches such members; tests/unit/engines/deepspeed/test_private.py checks that, and checks every
member used here against the installed DeepSpeed. Run that test first when the pinned version changes.
"""

import contextlib
import math
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from storyteller_ds.errors import ConfigError

WEIGHT = "weight"
"""The kind of state that is a parameter's fp32 value; other kinds are names of moments in the optimizer's state."""

# --- start -----------------------------------------------------------------------------------------------------------


def use_no_compiled_collectives() -> None:
    """Let gloo run the collectives on a CPU; DeepSpeed has no setting to avoid a minute of compiling its own."""
    import deepspeed.ops

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def allow_fp16_on_cpu() -> None:
    """Let a CPU train in fp16; DeepSpeed allows it only on CPUs that are fast at it, and has no setting for it."""
    import deepspeed

    deepspeed.accelerator.get_accelerator().is_fp16_supported = lambda: True


# --- MoE layers ------------------------------------------------------------------------------------------------------


def expert_group(ep_size: int) -> dist.ProcessGroup | None:
    """This rank's expert-parallel group, for which DeepSpeed exports no accessor; None without MoE layers."""
    from deepspeed.utils import groups

    group: dist.ProcessGroup | None = groups._get_expert_parallel_group_dict().get(f"ep_size_{ep_size}")
    return group


def remove_gate_and_experts(layer: Any) -> None:
    """Remove gate and experts, which cannot be chosen, from a deepspeed.moe.layer.MoE; it still holds the groups."""
    del layer.deepspeed_moe.gate.wg, layer.deepspeed_moe.experts


def mark_as_expert(parameter: nn.Parameter, layer: Any) -> None:
    """Make DeepSpeed reduce a parameter's gradient over the ranks with the same experts; its marks are undocumented."""
    parameter.allreduce = False  # type: ignore[attr-defined]
    parameter.group_name = layer.expert_group_name  # type: ignore[attr-defined]


def gate_weight_of(layer: Any) -> Tensor:
    """[E, D], the router's weight in an unmodified deepspeed.moe.layer.MoE."""
    weight: Tensor = layer.deepspeed_moe.gate.wg.weight
    return weight


def stock_parameter(name: str) -> tuple[str, int]:
    """Identify a parameter of an unmodified deepspeed.moe.layer.MoE by its name in the layer.

    Returns:
        ("router.weight", 0), or ("experts." and its name within the expert, the expert's number on this rank).
    """
    inside = name.removeprefix("deepspeed_moe.")
    if inside == "gate.wg.weight":
        return "router.weight", 0
    number, _, rest = inside.removeprefix("experts.deepspeed_experts.").partition(".")
    return f"experts.{rest}", int(number)


@contextlib.contextmanager
def autoep_router(router: Callable[..., nn.Module], model: nn.Module, num_experts: int, top_k: int) -> Iterator[None]:
    """Make AutoEP use this router when it replaces the MoE layers of `model`; it offers no choice of router.

    Args:
        router: takes AutoEP's settings for a router as keywords; the module has a linear layer `gate`.
        model: gets the attribute `config` that AutoEP reads, as Hugging Face's models have it.
        num_experts: experts per layer.
        top_k: experts per token.
    """
    from deepspeed.module_inject import auto_ep_layer

    model.config = SimpleNamespace(  # type: ignore[assignment]
        model_type="storyteller", num_experts=num_experts, num_experts_per_tok=top_k
    )
    theirs = auto_ep_layer.TokenChoiceTopKRouter
    auto_ep_layer.TokenChoiceTopKRouter = router
    try:
        yield
    finally:
        auto_ep_layer.TokenChoiceTopKRouter = theirs


# --- steps and the loss scale ----------------------------------------------------------------------------------------


def prepare_skipping(optimizer: Any, stage: int) -> None:
    """Let the training loop, not DeepSpeed, count skipped steps; call on ZeRO's optimizer before the first step.

    At the lowest loss scale DeepSpeed would raise an exception without a message for users. In bf16 it searches all
    gradients for non-finite numbers before it computes their norm, which `guarded_norm` makes unnecessary.

    Raises:
        ConfigError: the DeepSpeed JSON turns off the norm that steps are checked by.
    """
    optimizer.loss_scaler.raise_error_at_min_scale = False
    if stage < 3:
        if not optimizer.compute_grad_norm:
            raise ConfigError(
                "without the gradient's norm a non-finite gradient would go unnoticed; remove "
                "zero_optimization.compute_grad_norm from the DeepSpeed JSON"
            )
        optimizer.check_grad_overflow = optimizer.dtype == torch.float16


@contextlib.contextmanager
def guarded_norm(optimizer: Any, stage: int, is_loss_finite: bool) -> Iterator[None]:
    """Make the ZeRO step in this context skip if the gradient's norm or the loss is not finite.

    DeepSpeed computes the norm over all ranks before it changes a weight. If the norm is not finite, it skips the step
    as for an overflow in fp16, but under ZeRO-1 and 2 in bf16 only if `check_grad_overflow` is set; it never skips for
    the loss.
    """
    name = "scaled_global_norm" if stage < 3 else "_get_norm_groups"
    theirs = getattr(optimizer, name)

    def norm_of_all() -> Tensor:
        norm: Tensor = theirs()
        if not is_loss_finite:
            norm = torch.full_like(norm, math.inf)
        # Set only here, to forbid the step: set earlier, it would make DeepSpeed search all gradients.
        optimizer.check_grad_overflow = always_checked or not math.isfinite(norm)
        return norm

    def norms_of_groups() -> list[Tensor]:
        norms: list[Tensor] = theirs()
        return norms if is_loss_finite else [torch.full_like(norm, math.inf) for norm in norms]

    always_checked = stage < 3 and optimizer.check_grad_overflow
    setattr(optimizer, name, norm_of_all if stage < 3 else norms_of_groups)
    try:
        yield
    finally:
        delattr(optimizer, name)  # restores the method of the class
        if stage < 3:
            optimizer.check_grad_overflow = always_checked


def loss_scale(optimizer: Any) -> tuple[float, int]:
    """The loss scale, and the steps since it last changed or overflowed; DeepSpeed exposes only the scale."""
    scaler = optimizer.loss_scaler
    return scaler.cur_scale, scaler.cur_iter - scaler.last_overflow_iter - 1 if scaler.dynamic else 0


def set_loss_scale(optimizer: Any, scale: float, good_steps: int) -> None:
    """Continue with these if the scale is dynamic; DeepSpeed sets them only from its own checkpoints."""
    scaler = optimizer.loss_scaler
    if scaler.dynamic:
        scaler.cur_scale, scaler.cur_iter, scaler.last_overflow_iter = scale, good_steps, -1


def scale_can_fall(optimizer: Any) -> bool:
    """Whether an overflow would lower the loss scale."""
    scaler = optimizer.loss_scaler
    return bool(scaler.dynamic and scaler.cur_scale > scaler.min_scale)


def remember_loss_scale(optimizer: Any) -> Callable[[], None]:
    """A function that resets the loss scaler to its present state."""
    before = dict(vars(optimizer.loss_scaler))
    return lambda: vars(optimizer.loss_scaler).update(before)


# --- state of ZeRO-1 and 2 -------------------------------------------------------------------------------------------


class FlatPartition(NamedTuple):
    """This rank's part of the flat fp32 weights of one group of parameters."""

    vector: Tensor
    parameters: list[nn.Parameter]
    ranks: dist.ProcessGroup
    """The ranks that share the group."""


class Fragment(NamedTuple):
    """The part of a parameter that lies in this rank's flat partition; empty if numel is 0."""

    start: int
    """Index of its first entry in the parameter."""
    start_in_vector: int
    """Index of that entry in the partition."""
    numel: int


def flat_partitions(zero: Any) -> list[FlatPartition]:
    """The partitions of all groups; DeepSpeed's accessors give single parameters, and none before the first step."""
    parts = zip(zero.single_partition_of_fp32_groups, zero.bit16_groups, zero.real_dp_process_group, strict=True)
    return [FlatPartition(*part) for part in parts]


def fragment_of(parameter: nn.Parameter) -> Fragment:
    """The part of a parameter that this rank has."""
    link: Any = parameter._hp_mapping  # type: ignore[attr-defined]
    if link is None:
        return Fragment(0, 0, 0)
    return Fragment(link.lp_fragment_address.start, link.hp_fragment_address.start, link.lp_fragment_address.numel)


def read_fragment(parameter: nn.Parameter, kind: str) -> Tensor:
    """This rank's part of a parameter: its fp32 values (WEIGHT), or those of a moment."""
    values: Tensor = parameter._hp_mapping.get_hp_fragment(None if kind == WEIGHT else kind)  # type: ignore[attr-defined]
    return values


def link_moments(zero: Any) -> None:
    """Let DeepSpeed's documented accessors find the moments of all groups.

    DeepSpeed links state to parameters only once, after the first step of the first group, so it misses the other
    groups, and before any step all of them.
    """
    zero._hp_optimizer_states_linked = False
    zero._lazy_init_hp_params_optimizer_state()


def update_weights(zero: Any) -> None:
    """Copy the fp32 weights into the model; DeepSpeed has no documented call for this."""
    zero.update_lp_params()


# --- state of ZeRO-3 -------------------------------------------------------------------------------------------------


def sub_groups(zero: Any) -> list[Tensor]:
    """The fp32 weights on this rank, one flat vector per sub-group; empty if they are on NVMe."""
    vectors: list[Tensor] = zero.fp32_partitioned_groups_flat
    return vectors


def sub_group_partitions(zero: Any) -> Iterator[tuple[Tensor, list[tuple[nn.Parameter, Fragment]], dist.ProcessGroup]]:
    """Each sub-group's vector, the fragments of its parameters in it, and the ranks that share the parameters."""
    for vector, parameters in zip(sub_groups(zero), zero.fp16_groups, strict=True):
        fragments, start_in_vector = [], 0
        for parameter in parameters:
            size = parameter.ds_tensor.ds_numel  # the same on all ranks; the last one's may end in padding
            start = zero._get_param_partition_rank(parameter) * size
            numel = max(0, min(size, parameter.ds_numel - start))
            fragments.append((parameter, Fragment(start, start_in_vector, numel) if numel else Fragment(0, 0, 0)))
            start_in_vector += size
        yield vector, fragments, parameters[0].ds_process_group


@contextlib.contextmanager
def in_memory(zero: Any, number: int, changed: bool) -> Iterator[None]:
    """Keep a sub-group's weights and moments in memory, fetched from NVMe if needed; no documented call does this.

    Args:
        zero: the optimizer.
        number: number of the sub-group.
        changed: whether the block changes them.
    """
    if zero._swappable_optimizer_subgroup(number):
        zero._optimizer_states_and_gradient_swap_in(number)
    with _put_back(zero, number, changed):
        yield


@contextlib.contextmanager
def _put_back(zero: Any, number: int, changed: bool) -> Iterator[None]:
    """After the block, write back to NVMe what was fetched and changed; after an error the files stay as they were."""
    put_back = zero._release_swap_buffers
    try:
        yield
        if changed:
            put_back = zero._optimizer_states_and_gradient_swap_out
    finally:
        if zero._swappable_optimizer_subgroup(number):
            put_back(number)


def write_partition(zero: Any, parameter: nn.Parameter, kind: str, value: Tensor) -> None:
    """Replace this rank's part of a parameter's weight or moment by the same part of the whole `value`.

    DeepSpeed's documented setters read past the end of a tensor that cannot be divided evenly among the ranks, and
    refuse weights that are on NVMe.
    """
    partition, number = zero._get_fp32_opt_state_partition(
        parameter, release_swap_buffers=False, optim_state_key=None if kind == WEIGHT else kind
    )
    with _put_back(zero, number, changed=True):
        begin = zero._get_param_partition_rank(parameter) * partition.numel()
        mine = value.flatten()[begin : begin + partition.numel()]
        partition.detach()[: mine.numel()].copy_(mine)  # the rest is padding


def update_partitioned_weights(zero: Any) -> None:
    """Copy the fp32 weights into the model, wherever they are; DeepSpeed has no documented call for this."""
    zero._partition_all_parameters()
    for number in range(len(zero.fp16_groups)):
        with in_memory(zero, number, changed=False):
            zero._reassign_or_swap_out_partitioned_parameters(number)
    if zero.persistent_parameters:
        zero.persistent_parameters[0].all_gather(zero.persistent_parameters)
