"""The planner's byte counts against those of real tensors."""

import dataclasses

import pytest
import torch

from storyteller_ds.bench.roofline import random_batches
from storyteller_ds.config import load_config
from storyteller_ds.distributed.plan import make_plan
from storyteller_ds.distributed.world import World
from storyteller_ds.engines.single import SingleEngine
from storyteller_ds.engines.step import train_step
from storyteller_ds.model.decoder import empty_decoder
from storyteller_ds.planning.activations import Activations
from storyteller_ds.planning.memory import memory_of
from storyteller_ds.planning.weights import groups_of
from storyteller_ds.planning.zero import way_to_keep

SMALL = ("data.sequence_length=128", "train.global_batch_size=4", "tokenizer.vocab_size=512", "precision.dtype=fp32")
BLOCKS = {
    "mixture": (),
    "dense": ("moe.num_experts=0",),
    "gpt2": (
        "moe.num_experts=0", "model.norm=layernorm", "model.position=learned", "model.activation=gelu",
        "model.bias=true", "model.qk_norm=false",
    ),
    "nanochat": ("model.value_embeddings=true", "model.residual_scales=true", "model.activation=relu2"),
    "grouped heads": ("moe.num_experts=0", "model.num_kv_heads=2", "model.qk_norm=false"),
}  # fmt: skip


def saved_bytes(engine, batch):
    """Return the bytes of all storages that autograd keeps at the loss, except the parameters."""
    parameters = {p.untyped_storage().data_ptr() for p in engine.decoder.parameters()}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)  # held, so that no address is reused
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        engine.loss_module(batch.token_BS, batch.target_BS, 1, 1)
    return sum(size for size, _ in kept.values())


@pytest.mark.parametrize("settings", BLOCKS.values(), ids=BLOCKS)
def test_activations_are_what_autograd_keeps(settings):
    run = load_config(None, [*SMALL, *settings]).run
    plan = make_plan(run, 1)
    engine = SingleEngine(run, World(0, 0, 1, 1), torch.device("cpu"))
    acts = Activations(run, plan, "cpu", 4, cast=False)
    planned = acts.base() + sum(acts.kept(block) for block in range(run.model.num_layers)) + acts.loss_kept()
    planned -= acts.tokens * run.model.hidden_size * 4  # the input of the loss exists, but is not kept
    assert saved_bytes(engine, random_batches(run, plan)[0]) == pytest.approx(planned, rel=0.04)


@pytest.mark.parametrize("mode", ["block", "selective"])
def test_checkpointing_keeps_less(mode):
    run = load_config(None, [*SMALL, f"model.activation_checkpointing={mode}"]).run
    acts = Activations(run, make_plan(run, 1), "cpu", 4, cast=False)
    assert acts.kept(0) < acts.saved(0)
    assert acts.kept(0) + acts.again(0) == acts.saved(0)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_weights_and_moments_of_one_device_are_exact(kind):
    run = load_config(None, [*SMALL, f"optimizer.kind={kind}"]).run
    plan = make_plan(run, 1)
    engine = SingleEngine(run, World(0, 0, 1, 1), torch.device("cpu"))
    for _ in range(2):
        train_step(engine, random_batches(run, plan), 1e-3)
    parts = memory_of(run, None, plan, "cpu", "fp32").parts
    assert parts["parameters"] == sum(p.nbytes for p in engine.decoder.parameters())
    moments = [t for state in engine.optimizer.state.values() for name, t in state.items() if name != "step"]
    assert parts["optimizer state"] == sum(t.nbytes for t in moments)


@pytest.mark.parametrize("ep_size", [1, 2, 4])
def test_each_rank_has_its_share_of_the_experts(ep_size):
    run = load_config(None, [*SMALL, f"parallel.ep_size={ep_size}"], ds_config="zero1", ranks=4).run
    groups = groups_of(run, make_plan(run, 4))
    experts = sum(p.numel() for name, p in empty_decoder(run).named_parameters() if ".experts." in name)
    here = sum(w.numel for group in groups for w in group.weights if ".experts." in w.name)
    assert here == experts // ep_size
    assert {group.ranks for group in groups if ".experts." in group.weights[0].name} == {4 // ep_size}


def kept_by(stage, ranks, **zero):
    run = load_config(None, [*SMALL, "moe.num_experts=0"], ds_config="zero2" if stage else None, ranks=ranks).run
    plan = make_plan(run, ranks)
    return way_to_keep(stage)(groups_of(run, plan), run.model.num_layers, 4, ranks, False, zero)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_more_ranks_have_less_state_each(stage):
    two, four = kept_by(stage, 2), kept_by(stage, 4)
    assert four.optimizer() < 0.51 * two.optimizer()
    assert (four.parameters() < two.parameters()) == (stage == 3)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_an_offloaded_optimizer_is_in_the_hosts_memory(stage):
    here, there = kept_by(stage, 2), kept_by(stage, 2, offload_optimizer={"device": "cpu"})
    assert there.optimizer() == 0
    assert there.host() >= here.optimizer()


def test_a_larger_bucket_needs_more():
    small, large = (kept_by(2, 2, reduce_bucket_size=size).buffers(0) for size in (1000, 2000))
    assert large - small == 4 * 1000


def test_an_offload_that_is_turned_off_is_none():
    run = load_config(None, SMALL, ds_config="zero2", ranks=2).run
    plan = make_plan(run, 2)
    off = {"zero_optimization": {"offload_optimizer": {"device": "none"}}}
    assert memory_of(run, off, plan, "cuda", "bf16") == memory_of(run, {}, plan, "cuda", "bf16")


def test_longer_and_larger_batches_need_more():
    def total(sequences, length):
        run = load_config(None, [f"train.global_batch_size={sequences}", f"data.sequence_length={length}"]).run
        return memory_of(run, None, make_plan(run, 1), "cuda", "bf16").total

    assert total(8, 256) < total(16, 256) < total(16, 512)


def test_half_precision_has_fp32_weights_besides():
    run = load_config(None, SMALL, ds_config="zero1").run
    full, half = (memory_of(run, {}, make_plan(run, 1), "cuda", dtype).parts for dtype in ("fp32", "bf16"))
    assert full["optimizer state"] == half["optimizer state"]
    assert full["parameters"] == 2 * half["parameters"]


def test_a_memory_is_the_sum_of_its_parts():
    run = load_config(None, SMALL).run
    memory = memory_of(run, None, make_plan(run, 1), "cpu", "fp32")
    assert memory.total == sum(memory.parts.values())
    assert dataclasses.asdict(memory)["moment"]
