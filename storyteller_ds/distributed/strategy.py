"""How the experts are distributed over the ranks, chosen from the configs by one table."""

from typing import Literal

from storyteller_ds.config.load import LoadedConfig
from storyteller_ds.config.run import RunConfig
from storyteller_ds.errors import ConfigError

Strategy = Literal["local", "expert_parallel", "autoep", "stock"]

_WITHOUT_ZERO3 = (0, 1, 2)
_STAGES: dict[Strategy, tuple[int | None, ...]] = {
    "local": (None, 0, 1, 2, 3),
    "expert_parallel": _WITHOUT_ZERO3,
    "stock": _WITHOUT_ZERO3,
    "autoep": (3,),
}
"""The ZeRO stages under which each strategy is possible (None: no DeepSpeed)."""


def choose_strategy(run: RunConfig, loaded: LoadedConfig | None = None) -> Strategy:
    """The strategy of a run; `loaded` is where its config came from, for the messages.

    Raises:
        ConfigError: the chosen strategy does not fit the ZeRO stage, the experts or the model.
    """
    stage, wanted = run.parallel.zero_stage, run.parallel.strategy
    loaded, field = loaded or LoadedConfig.of(run), "parallel.strategy"
    if run.moe.num_experts == 0:
        if wanted not in ("auto", "local"):
            raise ConfigError(
                f"{loaded.named(field)}, but the model has no experts (moe.num_experts=0); remove {loaded.typed(field)}"
            )
        return "local"
    if wanted == "auto":
        return "expert_parallel" if stage in _WITHOUT_ZERO3 else "local"
    if stage not in _STAGES[wanted]:
        raise ConfigError(
            f"parallel.strategy={wanted} is not possible {'without DeepSpeed' if stage is None else f'in ZeRO-{stage}'}"
            f"; use --ds_config ds_configs/{'zero3_autoep' if wanted == 'autoep' else 'zero2'}.json, or "
            "parallel.strategy=local"
        )
    _check_model(run, wanted)
    return wanted


def _check_model(run: RunConfig, strategy: Strategy) -> None:
    if strategy == "autoep" and (run.model.bias or run.model.activation != "swiglu"):
        raise ConfigError(
            "AutoEP has only experts of the form swiglu without biases; set model.activation=swiglu "
            "model.bias=false, or use --ds_config ds_configs/zero2.json"
        )
    if strategy in ("autoep", "stock") and run.moe.noisy_gating:
        raise ConfigError(
            f"moe.noisy_gating does not work with parallel.strategy={strategy}; set moe.noisy_gating=false, "
            "or use --ds_config ds_configs/zero2.json"
        )
    if strategy == "stock" and run.moe.top_k != 2:
        raise ConfigError(
            f"DeepSpeed's own gating renormalizes for moe.top_k=2 only, and it is {run.moe.top_k}; "
            "set moe.top_k=2 or leave out parallel.strategy=stock"
        )
