"""DeepSpeed: its stock MoE layer and gate, and the layer of AutoEP, each on one rank.

One rank exchanges nothing, so no process group is needed.
"""

import logging
import os
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from benchmarks.operations.case import Candidate, Named, leaf
from benchmarks.operations.moe_problem import MoEProblem, of_module, swiglu
from benchmarks.operations.peers import package

DROPLESS = {"drop_tokens": False, "use_rts": False, "top2_2nd_expert_sampling": False}
"""Neither drops tokens nor samples second experts, so that it routes as we do. These are options, not defaults."""
CAPACITY_1 = {"capacity_factor": 1.0, "use_rts": False, "top2_2nd_expert_sampling": False}


class SwiGLUExpert(nn.Module):
    """An expert as DeepSpeed wants it: a module that it copies for each expert."""

    def __init__(self, D: int, I: int) -> None:
        super().__init__()
        self.gate_up = nn.Linear(D, 2 * I, bias=False)
        self.down = nn.Linear(I, D, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] to [..., D]."""
        out: Tensor = self.down(swiglu(self.gate_up(x)))
        return out


def stock_layer(problem: MoEProblem, **options: object) -> Candidate:
    """`deepspeed.moe.layer.MoE` with a module per expert, every expert's rows padded to the largest count."""
    _prepare()
    _, D, I, E, K = problem.shape
    layer = package("deepspeed.moe.layer").MoE(D, SwiGLUExpert(D, I), num_experts=E, k=K, **options)
    layer = layer.to(problem.x_TD)
    inner = layer.deepspeed_moe
    weights = {"router": inner.gate.wg.weight}
    with torch.no_grad():
        inner.gate.wg.weight.copy_(problem.router_ED)
        for e, expert in enumerate(inner.experts.deepspeed_experts):
            expert.gate_up.weight.copy_(problem.gate_up_EHD[e])
            expert.down.weight.copy_(problem.down_EDI[e])
            weights |= {f"gate_up.{e}": expert.gate_up.weight, f"down.{e}": expert.down.weight}

    def stacked(gradients: Named) -> Named:
        stacks = {name: torch.stack([gradients[f"{name}.{e}"] for e in range(E)]) for name in ("gate_up", "down")}
        return {"x": gradients["x"], "router": gradients["router"], **stacks}

    return of_module(problem, layer, weights, stacked)


def stock_gate(problem: MoEProblem) -> Candidate:
    """`deepspeed.moe.sharded_moe.TopKGate`, dropless, as the stock layer calls it: [K, T] experts, slots, shares."""
    _prepare()
    _, D, _, E, K = problem.shape
    gate = package("deepspeed.moe.sharded_moe").TopKGate(D, E, K, **DROPLESS).to(problem.x_TD)
    with torch.no_grad():
        gate.wg.weight.copy_(problem.router_ED)
    x = leaf(problem.x_TD)

    def forward() -> Named:
        _, _, _, expert_KT, slot_KT, weight_KT, count_E = gate(x, None, True)
        return {"expert_KT": expert_KT, "slot_KT": slot_KT, "weight_KT": weight_KT, "count_E": count_E}

    def outputs(raw: Named) -> Named:
        weight_TE = torch.zeros(len(x), E, dtype=raw["weight_KT"].dtype, device=x.device)
        return {
            "gate weight": weight_TE.scatter(1, raw["expert_KT"].t().long(), raw["weight_KT"].t()),
            "count": raw["count_E"],
        }

    return Candidate(forward, {"x": x, "router": gate.wg.weight}, outputs)


def autoep_layer(problem: MoEProblem) -> Candidate:
    """The layer that AutoEP puts in place of an MoE layer: stacked experts, with torch's grouped product on CUDA."""
    _prepare()
    auto_ep, config = package("deepspeed.module_inject.auto_ep"), package("deepspeed.module_inject.auto_ep_config")
    _, D, _, E, K = problem.shape
    block = nn.Module()
    block.router = nn.Linear(D, E, bias=False)
    block.router.weight = nn.Parameter(problem.router_ED.clone())
    block.experts = nn.Module()
    block.experts.gate_up_proj = nn.Parameter(problem.gate_up_EHD.clone())
    block.experts.down_proj = nn.Parameter(problem.down_EDI.clone())
    model = nn.Module()
    model.moe = block
    # It reads a Hugging Face config.
    model.config = SimpleNamespace(model_type="benchmark", num_experts=E, num_experts_per_tok=K)  # type: ignore[assignment]
    json = {
        "enabled": True,
        "autoep_size": 1,
        "use_grouped_mm": problem.x_TD.is_cuda and problem.x_TD.dtype == torch.bfloat16,
        "moe_layer_pattern": "moe",
        "router_pattern": "router",
        "expert_pattern": "experts",
        "expert_w1": "gate_up_proj",
        "expert_w2": "down_proj",
        "expert_w3": None,
        "num_experts_attr": "num_experts",
        "top_k_attr": "num_experts_per_tok",
        "score_func": "softmax",
        "route_norm": True,
        "score_apply": "post",
        "expert_activation": "swiglu",
    }
    replacer = auto_ep.AutoEP(model, config.parse_autoep_config(json))
    replacer.replace_moe_layers(replacer.ep_parser(), ep_size=1, ep_rank=0)
    layer = model.get_submodule("moe").to(problem.x_TD.device)
    weights = {name: layer.get_parameter(f"experts.{name}") for name in ("w1", "w2", "w3")}
    weights["router"] = layer.get_parameter("router.gate.weight")

    def joined(gradients: Named) -> Named:
        gate_up = torch.cat([gradients["w1"], gradients["w3"]], dim=1)
        return {"x": gradients["x"], "router": gradients["router"], "gate_up": gate_up, "down": gradients["w2"]}

    return of_module(problem, layer, weights, joined)


def _prepare() -> None:
    """Import DeepSpeed quietly, after choosing the accelerator, which it looks for on import."""
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
    package("deepspeed")
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
