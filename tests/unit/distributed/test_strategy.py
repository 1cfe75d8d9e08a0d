"""How the experts are spread: the whole table, and the fix for everything that is not in it."""

import itertools

import pytest

from storyteller_ds.config.run import RunConfig
from storyteller_ds.distributed.strategy import choose_strategy
from storyteller_ds.errors import ConfigError

STAGES = (None, 0, 1, 2, 3)
STRATEGIES = ("auto", "local", "expert_parallel", "autoep", "stock")
CHOSEN = {
    (None, "auto"): "local",
    (None, "local"): "local",
    **{(stage, "auto"): "expert_parallel" for stage in (0, 1, 2)},
    **{(stage, same): same for stage in (0, 1, 2) for same in ("local", "expert_parallel", "stock")},
    (3, "auto"): "local",
    (3, "local"): "local",
    (3, "autoep"): "autoep",
}


def run(stage: int | None, strategy: str, **sections: object) -> RunConfig:
    return RunConfig.model_validate({"parallel": {"zero_stage": stage, "strategy": strategy}, **sections})


def refused(config: RunConfig) -> str:
    with pytest.raises(ConfigError) as caught:
        choose_strategy(config)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(("stage", "strategy"), list(itertools.product(STAGES, STRATEGIES)))
def test_the_table(stage, strategy):
    if (stage, strategy) in CHOSEN:
        assert choose_strategy(run(stage, strategy)) == CHOSEN[stage, strategy]
    else:
        assert "ds_configs/" in refused(run(stage, strategy)), "the fix names a JSON that works"


@pytest.mark.parametrize("stage", STAGES)
def test_a_dense_model_has_no_experts_to_spread(stage):
    dense = {"moe": {"num_experts": 0}}
    assert choose_strategy(run(stage, "auto", **dense)) == "local"
    assert "remove parallel.strategy" in refused(run(stage, "expert_parallel", **dense))


@pytest.mark.parametrize(
    ("strategy", "stage", "sections", "fix"),
    [
        ("autoep", 3, {"model": {"activation": "gelu"}}, "model.activation=swiglu"),
        ("autoep", 3, {"model": {"bias": True}}, "model.bias=false"),
        ("autoep", 3, {"moe": {"noisy_gating": True}}, "moe.noisy_gating=false"),
        ("stock", 2, {"moe": {"noisy_gating": True}}, "moe.noisy_gating=false"),
        ("stock", 2, {"moe": {"top_k": 1}}, "moe.top_k=2"),
    ],
)
def test_models_that_deepspeeds_layers_cannot_compute_are_refused(strategy, stage, sections, fix):
    assert fix in refused(run(stage, strategy, **sections))
    # Our own layers can.
    assert choose_strategy(run(2, "expert_parallel", **sections)) == "expert_parallel"
