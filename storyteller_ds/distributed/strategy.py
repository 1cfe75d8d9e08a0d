"""How the experts are distributed over the ranks, chosen from the configs by one table."""

from typing import Literal

from storyteller_ds.config.load import LoadedConfig, plainly_named
from storyteller_ds.config.run import RunConfig
from storyteller_ds.errors import ConfigError

Strategy = Literal["local", "expert_parallel", "autoep", "stock"]

# ZeRO stage (None: no DeepSpeed) -> what parallel.strategy may be; the first is what "auto" means.
_POSSIBLE: dict[int | None, tuple[Strategy, ...]] = {
    None: ("local",),
    0: ("expert_parallel", "local", "stock"),
    1: ("expert_parallel", "local", "stock"),
    2: ("expert_parallel", "local", "stock"),
    3: ("local", "autoep"),
}
DESCRIPTIONS: dict[Strategy, str] = {
    "local": "every rank has all experts",
    "expert_parallel": "experts spread over {ep_size} rank(s)",
    "autoep": "experts spread over {ep_size} rank(s) by AutoEP",
    "stock": "DeepSpeed's own MoE layer over {ep_size} rank(s)",
}


def choose_strategy(run: RunConfig, loaded: LoadedConfig | None = None) -> Strategy:
    """The strategy of a run; `loaded` is where its config came from, for the messages.

    Raises:
        ConfigError: this one does not go with the ZeRO stage, the experts or the model.
    """
    stage, wanted, ep_size = run.parallel.zero_stage, run.parallel.strategy, run.parallel.ep_size
    possible = _POSSIBLE[stage]
    field = "parallel.strategy"
    named, typed = (loaded.named(field), loaded.typed(field)) if loaded else (plainly_named(run, field), field)
    if run.moe.num_experts == 0:
        if wanted not in ("auto", "local"):
            raise ConfigError(f"{named}, but the model has no experts (moe.num_experts=0); remove {typed}")
        return "local"
    if stage == 3 and wanted in ("auto", "local") and ep_size not in ("auto", 1):
        raise ConfigError(
            f"parallel.ep_size={ep_size} under plain ZeRO-3 cannot work: it keeps every expert on every rank; "
            "use --ds_config ds_configs/zero3_autoep.json, or ds_configs/zero2.json"
        )
    chosen = possible[0] if wanted == "auto" else wanted
    if chosen not in possible:
        raise ConfigError(_refusal(stage, chosen))
    _check_model(run, chosen)
    return chosen


def _refusal(stage: int | None, strategy: Strategy) -> str:
    if stage is None:
        return f"parallel.strategy={strategy} needs DeepSpeed; add --ds_config ds_configs/zero2.json, or use local"
    if strategy == "autoep":
        return f"AutoEP is for ZeRO-3, and this is ZeRO-{stage}; use --ds_config ds_configs/zero3_autoep.json"
    return (
        f"parallel.strategy={strategy} is not possible under ZeRO-{stage}; use parallel.strategy=local, "
        "or --ds_config ds_configs/zero3_autoep.json, or ds_configs/zero2.json"
    )


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
            f"DeepSpeed's own gating renormalises for moe.top_k=2 only, and it is {run.moe.top_k}; "
            "set moe.top_k=2 or leave out parallel.strategy=stock"
        )
