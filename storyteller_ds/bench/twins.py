"""A mixture and its dense twins: what `storyteller compare` trains."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from storyteller_ds.bench.compared import Recipe
from storyteller_ds.config.load import load_config
from storyteller_ds.config.run import RunConfig
from storyteller_ds.errors import UserError
from storyteller_ds.model.counts import count_parameters, product_weights

MIXTURE, SAME_COMPUTE, SAME_PARAMETERS = "mixture", "dense_same_compute", "dense_same_parameters"
_VALIDATIONS = 8
_WIDTH_STEP = 8
"""Widths of the dense feed-forward layers are multiples of this."""
_OF_THE_LAYERS = ("moe.", "model.intermediate_size=", "model.size=")


class Twins(NamedTuple):
    """The recipes, and the overrides that all of them have in common."""

    recipes: tuple[Recipe, ...]
    overrides: tuple[str, ...]


def twins_of(config: str, overrides: Sequence[str], factors: tuple[float, ...]) -> Twins:
    """A mixture, a dense model with as much work per token, and one with as many parameters.

    The dense ones differ only in the width of their feed-forward layers: the first has as many matrix products per
    token as the mixture, including the router's, and the second as many parameters.

    Args:
        config: preset or file.
        overrides: `section.field=value`.
        factors: multiples of the learning rate to try.

    Raises:
        ConfigError: an override is invalid.
        UserError: the config is not a mixture.
    """
    run = load_config(config, overrides).run
    if not run.moe_layers:
        raise UserError(f"{config} is dense; give a mixture, such as quickstart, to compare with its dense twins")
    of_layers = tuple(each for each in overrides if each.startswith(_OF_THE_LAYERS))
    common = tuple(each for each in overrides if each not in of_layers)

    def dense(size: Callable[[RunConfig], float]) -> tuple[str, ...]:
        def of(width: int) -> float:
            model = run.model.model_copy(update={"intermediate_size": width})
            return size(run.model_copy(update={"model": model, "moe": run.moe.model_copy(update={"num_experts": 0})}))

        # The size is linear in the width.
        slope = (of(2 * _WIDTH_STEP) - of(_WIDTH_STEP)) / _WIDTH_STEP
        width = _WIDTH_STEP + (size(run) - of(_WIDTH_STEP)) / slope
        width = max(1, round(width / _WIDTH_STEP)) * _WIDTH_STEP
        return (*of_layers, "moe.num_experts=0", f"model.intermediate_size={width}")

    def recipe(name: str, what: str, changes: tuple[str, ...]) -> Recipe:
        return Recipe(name, what, factors, config, changes, _VALIDATIONS)

    experts = f"{run.moe.num_experts} experts, top-{run.moe.top_k}"
    recipes = (
        recipe(MIXTURE, f"{config}: {experts}", of_layers),
        recipe(SAME_COMPUTE, "dense, as much work per token", dense(product_weights)),
        recipe(SAME_PARAMETERS, "dense, as many parameters", dense(lambda other: count_parameters(other).total)),
    )
    return Twins(recipes, common)
