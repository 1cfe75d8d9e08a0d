"""Dense twins match the mixture in compute or parameters and see the same batches; a verdict names the difference."""

import pytest

from storyteller_ds.bench.finished import Run
from storyteller_ds.bench.quality import Outcome
from storyteller_ds.bench.twins import MIXTURE, SAME_COMPUTE, SAME_PARAMETERS, twins_of
from storyteller_ds.bench.worth import difference, verdict
from storyteller_ds.config.run import RunConfig
from storyteller_ds.errors import ConfigError, UserError
from storyteller_ds.model.decoder import Decoder

WIDE = ("model.intermediate_size=320", "data.builtin_stories=60")


def runs(config: str, *overrides: str) -> dict[str, RunConfig]:
    twins = twins_of(config, overrides, (1.0,))
    return {recipe.name: recipe.load(twins.overrides).run for recipe in twins.recipes}


def parameters(run: RunConfig) -> int:
    return sum(parameter.numel() for parameter in Decoder(run).parameters())


@pytest.mark.parametrize(
    ("config", "overrides"),
    [
        ("quickstart", ()),
        ("quickstart", WIDE),
        ("quickstart", ("moe.every_n_layers=2", "moe.top_k=3", "model.tie_embeddings=true")),
        ("quickstart", ("model.size=1M",)),
        ("tiny_test", ("model.activation=gelu", "model.bias=true")),
    ],
)
def test_work_and_parameters_are_those_of_the_mixture(config, overrides):
    found = runs(config, *overrides)
    mixture = found[MIXTURE]
    assert all(run.moe_layers == 0 for name, run in found.items() if name != MIXTURE)
    model, moe = mixture.model, mixture.moe
    # By hand: the width of top_k experts, and the router, whose E rows cost as much as a width of E / products.
    products = 3 if model.activation == "swiglu" else 2
    widths = [
        moe.top_k * model.intermediate_size + moe.num_experts / products
        if moe.is_moe_layer(layer)
        else model.intermediate_size
        for layer in range(model.num_layers)
    ]
    assert abs(found[SAME_COMPUTE].model.intermediate_size - sum(widths) / len(widths)) <= 4
    step = 8 * model.hidden_size * products * model.num_layers
    assert abs(parameters(found[SAME_PARAMETERS]) - parameters(mixture)) <= step
    assert parameters(found[SAME_COMPUTE]) < parameters(mixture) - step


def test_everything_else_is_the_same():
    found = runs("quickstart", *WIDE, "optimizer.lr=0.004", "seed=5")
    for name in (SAME_COMPUTE, SAME_PARAMETERS):
        ours, theirs = (run.model_dump(mode="json") for run in (found[MIXTURE], found[name]))
        ours["moe"]["num_experts"], ours["model"]["intermediate_size"] = 0, theirs["model"]["intermediate_size"]
        assert ours == theirs


def test_what_is_no_mixture_is_refused():
    with pytest.raises(UserError, match="is dense; give a mixture"):
        twins_of("quickstart_dense", (), (1.0,))
    with pytest.raises(ConfigError):
        twins_of("quickstart", ("optimizer.lrr=1",), (1.0,))


def outcome(*scores: float) -> Outcome:
    return Outcome([Run(0.01, seed, bpb, 100, 1000) for seed, bpb in enumerate(scores)], [])


def test_the_difference_is_paired_by_seed():
    # Seeds differ far more than the models do, so only a paired comparison can tell the models apart.
    ours, theirs = outcome(1.0, 1.1, 1.2), outcome(1.01, 1.112, 1.213)
    found = difference(ours, theirs)
    parts = [1.0 / 1.01 - 1, 1.1 / 1.112 - 1, 1.2 / 1.213 - 1]
    mean = sum(parts) / 3
    deviation = (sum((part - mean) ** 2 for part in parts) / 2) ** 0.5
    assert found.part == pytest.approx(mean)
    assert found.half_width == pytest.approx(4.303 * deviation / 3**0.5)
    assert found.is_clear
    assert not difference(outcome(1.0, 1.1), outcome(1.1, 1.0)).is_clear
    assert difference(outcome(1.0), outcome(1.1)).half_width is None


@pytest.mark.parametrize(
    ("compute", "parameters", "said"),
    [
        ((1.1, 1.2, 1.3), (1.2, 1.3, 1.4), "it is worth it here."),
        ((0.9, 1.0, 1.1), (1.2, 1.3, 1.4), "it is not worth it here."),
        ((1.1, 1.2, 1.3), (1.1, 1.0, 1.2), "the seeds do not tell them apart."),
        ((1.1,), (1.2,), "one seed does not say how much of that is chance."),
    ],
)
def test_the_verdict(compute, parameters, said):
    ours = outcome(*(1.0, 1.1, 1.2)[: len(compute)])
    found = {MIXTURE: ours, SAME_COMPUTE: outcome(*compute), SAME_PARAMETERS: outcome(*parameters)}
    line = verdict(found, "5 minutes")
    assert line.startswith("After 5 minutes on this machine the mixture has ")
    assert line.endswith(said)
    assert ("fewer" in line) == (compute[0] > 1.0 or parameters[0] > 1.0)
