"""Expert groups and batch shares: what fits, and what is refused with a fix."""

import json

import pytest

from storyteller_ds.config import load_config
from storyteller_ds.config.run import RunConfig
from storyteller_ds.config.training import PrecisionConfig
from storyteller_ds.distributed.plan import ParallelPlan, make_plan
from storyteller_ds.errors import ConfigError


def run(experts: int = 8, zero_stage: int | None = 2, ep_size: object = "auto", **train: object) -> RunConfig:
    return RunConfig.model_validate(
        {
            "moe": {"num_experts": experts, "top_k": 1},
            "parallel": {"ep_size": ep_size, "zero_stage": zero_stage},
            "train": {"global_batch_size": 48, **train},
        }
    )


def refused(config: RunConfig, world_size: int) -> str:
    with pytest.raises(ConfigError) as caught:
        make_plan(config, world_size)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("experts", "world_size", "wanted", "expected"),
    [
        (8, 1, "auto", 1),
        (8, 2, "auto", 2),
        (8, 4, "auto", 4),
        (8, 6, "auto", 2),
        (8, 3, "auto", 1),
        (4, 16, "auto", 4),
        (6, 4, "auto", 2),
        (0, 4, "auto", 1),
        (0, 4, 1, 1),
        (8, 4, 1, 1),
        (8, 4, 2, 2),
        (8, 4, 4, 4),
        (12, 4, 2, 2),
    ],
)
def test_ep_size(experts, world_size, wanted, expected):
    plan = make_plan(run(experts, ep_size=wanted), world_size)
    assert plan.ep_size == expected
    assert plan.world_size == world_size
    assert world_size % plan.ep_size == 0
    assert experts % plan.ep_size == 0


@pytest.mark.parametrize(
    ("experts", "world_size", "wanted", "possible"),
    [(8, 4, 3, "1, 2, 4"), (8, 4, 8, "1, 2, 4"), (6, 4, 4, "1, 2"), (8, 1, 2, "1"), (8, 3, 3, "1"), (8, 6, 6, "1, 2")],
)
def test_an_ep_size_that_does_not_divide_is_refused_with_those_that_do(experts, world_size, wanted, possible):
    message = refused(run(experts, ep_size=wanted), world_size)
    assert f"parallel.ep_size={wanted} must divide moe.num_experts={experts} and the {world_size} rank(s)" in message
    assert f"use one of {possible}, or auto" in message


def test_a_dense_model_has_no_expert_groups():
    assert "remove parallel.ep_size" in refused(run(experts=0, ep_size=2), 2)


@pytest.mark.parametrize(
    ("micro", "accumulation", "world_size", "expected"),
    [
        (None, None, 1, (48, 1)),
        (None, None, 4, (12, 1)),
        (None, 3, 4, (4, 3)),
        (4, None, 1, (4, 12)),
        (4, None, 4, (4, 3)),
        (12, None, 4, (12, 1)),
        (4, 3, 4, (4, 3)),
        (48, 1, 1, (48, 1)),
        (1, None, 48, (1, 1)),
    ],
)
def test_batch_shares(micro, accumulation, world_size, expected):
    plan = make_plan(run(micro_batch_size=micro, gradient_accumulation_steps=accumulation), world_size)
    assert (plan.micro_batch_size, plan.accumulation_steps) == expected
    assert plan.micro_batch_size * plan.accumulation_steps * world_size == 48
    assert plan == ParallelPlan(world_size, "expert_parallel", plan.ep_size, *expected)


@pytest.mark.parametrize(
    ("micro", "accumulation", "world_size", "fix"),
    [
        (None, None, 5, "use a multiple of 5, for instance 50"),
        (None, 5, 2, "use a multiple of 10, for instance 50"),
        (None, None, 96, "use a multiple of 96, for instance 96"),
        (7, None, 1, "use a multiple of 7, for instance 49"),
        (16, None, 4, "use a multiple of 64, for instance 64"),
        (4, 4, 4, "= 64; leave one of the three out"),
    ],
)
def test_batch_shares_that_do_not_divide_are_refused_with_the_mend(micro, accumulation, world_size, fix):
    message = refused(run(micro_batch_size=micro, gradient_accumulation_steps=accumulation), world_size)
    assert "train.global_batch_size=48" in message
    assert fix in message


def test_sizes_that_do_not_fit_are_named_with_the_place_of_each(tmp_path):
    ds = tmp_path / "ds.json"
    ds.write_text('{"train_micro_batch_size_per_gpu": 3, "zero_optimization": {"stage": 2}}', encoding="utf-8")

    def refused_plan(*overrides: str) -> str:
        loaded = load_config("quickstart", overrides, ds_config=ds, ranks=2)
        with pytest.raises(ConfigError) as caught:
            make_plan(loaded.run, 2, loaded)
        return str(caught.value)

    # Names only the settings that were given, and where.
    assert refused_plan() == (
        "train.global_batch_size=8 (preset quickstart) cannot be split over train.micro_batch_size=3 "
        f"(train_micro_batch_size_per_gpu in {ds}) x 2 rank(s); use a multiple of 6, for instance 12"
    )
    assert refused_plan("train.global_batch_size=16", "train.gradient_accumulation_steps=2") == (
        "train.global_batch_size=16 is not train.micro_batch_size=3 "
        f"(train_micro_batch_size_per_gpu in {ds}) x train.gradient_accumulation_steps=2 x "
        "2 rank(s) = 12; leave one of the three out"
    )


def test_what_a_json_says_of_the_experts_is_named_by_its_key(tmp_path):
    ds = tmp_path / "ds.json"
    autoep = {"enabled": True, "autoep_size": 3}
    ds.write_text(json.dumps({"zero_optimization": {"stage": 3}, "expert_parallel": autoep}), encoding="utf-8")

    def refused_plan(*overrides: str) -> str:
        loaded = load_config("quickstart", overrides, ds_config=ds, ranks=2)
        with pytest.raises(ConfigError) as caught:
            make_plan(loaded.run, 2, loaded)
        return str(caught.value)

    assert f"parallel.ep_size=3 (expert_parallel.autoep_size in {ds}) must divide" in refused_plan()
    assert refused_plan("moe.num_experts=0") == (
        f"parallel.strategy=autoep (expert_parallel.enabled in {ds}), but the model has no experts "
        "(moe.num_experts=0); remove expert_parallel.enabled"
    )
    dense = refused_plan("moe.num_experts=0", "parallel.strategy=auto")
    assert dense.endswith("remove expert_parallel.autoep_size")
    assert refused_plan("moe.num_experts=0", "parallel.strategy=auto", "parallel.ep_size=2") == (
        "parallel.ep_size=2, but the model has no experts (moe.num_experts=0); remove parallel.ep_size"
    )


def test_several_ranks_need_a_deepspeed_config():
    assert make_plan(run(zero_stage=None), 1).world_size == 1
    assert "--ds_config ds_configs/zero2.json" in refused(run(zero_stage=None), 2)


def test_fp16_without_zero_is_refused_with_the_json_that_has_it():
    config = run(zero_stage=0).model_copy(update={"precision": PrecisionConfig(dtype="fp16")})
    assert "ds_configs/zero2_fp16.json" in refused(config, 2)


def test_replicated_experts_have_no_expert_groups():
    assert make_plan(run(zero_stage=3), 4).ep_size == 1
    config = run(zero_stage=2, ep_size=2)
    parallel = config.parallel.model_copy(update={"strategy": "local"})
    assert "remove parallel.ep_size" in refused(config.model_copy(update={"parallel": parallel}), 2)


def test_expert_parallelism_under_plain_zero3_names_the_json_that_has_it():
    assert "ds_configs/zero3_autoep.json" in refused(run(zero_stage=3, ep_size=2), 2)
