"""What is certified: one small run on many topologies, as data.

Every row trains the same model on the same batches; it differs from its reference in its topology alone. A
row's name is what `--only` takes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from storyteller_ds.config.nearest import did_you_mean
from storyteller_ds.errors import UserError

PRESET = "tiny_test"
STEPS = 8
TOLERANCE = 1e-5
"""Largest relative difference in fp32 (docs/decisions/0003)."""
TRAFFIC_LIMIT = 1.02
"""Most bytes that an exchange may send for each byte that the routing asks for."""

RUN = (
    "data.source=builtin",
    "data.builtin_stories=200",
    "data.sequence_length=32",
    "tokenizer.kind=bpe",
    "tokenizer.vocab_size=512",
    "model.hidden_size=64",
    "model.num_layers=2",
    "model.num_heads=4",
    "model.num_kv_heads=2",
    "model.intermediate_size=96",
    "model.dropout=0",
    "moe.num_experts=8",
    "moe.top_k=2",
    "moe.every_n_layers=1",
    "optimizer.lr=1e-3",
    # Low enough that every step is clipped: a wrong gradient norm then shows in the weights too.
    "optimizer.grad_clip_norm=0.25",
    "schedule.warmup_steps=2",
    "train.global_batch_size=8",
    f"train.max_steps={STEPS}",
    "precision.dtype=fp32",
    "parallel.timeout_minutes=2",
    "seed=23",
)
"""Overrides of the preset, the same for every row.

Few tokens on purpose: where a token's second and third expert are equal to the last bit, two topologies may choose
differently (docs/decisions/0003). Of seeds 0 to 23 this is the one whose closest of 4,096 choices is the clearest: by
9e-5 in the router's logits, which rounding moves by about 1e-7.
"""


@dataclass(frozen=True)
class Row:
    """One topology, and what it is compared with."""

    name: str
    why: str
    """What agreement of this row proves."""
    ranks: int
    reference: str | None
    """Name of the row that it must agree with; None: it is only a reference."""
    overrides: tuple[str, ...] = ()
    """Beyond RUN, as section.field=value."""
    deepspeed: Mapping[str, Any] | None = None
    """The DeepSpeed JSON; None: one process without DeepSpeed."""
    tolerance: float = TOLERANCE
    """Largest relative difference of any compared number."""
    exact_traffic: bool = False
    """Whether the exchange promises to send the routed rows and no more (TRAFFIC_LIMIT)."""
    fits_one_card: bool = False
    """Whether the row still says something as one rank on a machine with a single CUDA card."""


def _zero(stage: int, **more: object) -> dict[str, Any]:
    """ZeRO with buckets so small that even this model fills many."""
    zero = {
        "stage": stage,
        "contiguous_gradients": True,
        "reduce_scatter": True,
        "overlap_comm": False,
        "reduce_bucket_size": 20_000,
        "allgather_bucket_size": 20_000,
        **more,
    }
    return {"zero_optimization": zero}


# By default ZeRO-3 leaves parameters of this size whole; 0 takes every one of them apart.
_ZERO3 = {"stage3_param_persistence_threshold": 0}
_ON_CPU = {"device": "cpu"}
_EVERY_SEQUENCE = "moe.balance_scope=sequence"
_MUON = "optimizer.kind=muon"

ROWS = (
    Row("single", "the reference: one process, no DeepSpeed", 1, None),
    Row("repeat", "the reference once more, to the bit", 1, "single", tolerance=0.0),
    Row(
        "ep1",
        "data parallel, every rank has all experts",
        2,
        "single",
        ("parallel.ep_size=1",),
        _zero(2),
        fits_one_card=True,
    ),
    Row(
        "ep2",
        "experts over 2 ranks, in 2 data-parallel groups",
        4,
        "single",
        ("parallel.ep_size=2",),
        _zero(2),
        exact_traffic=True,
    ),
    Row("ep4", "experts over 4 ranks", 4, "single", ("parallel.ep_size=4",), _zero(2), exact_traffic=True),
    *(
        Row(
            f"zero{stage}",
            what,
            2,
            "single",
            ("parallel.ep_size=auto",),
            _zero(stage),
            exact_traffic=True,
            fits_one_card=True,
        )
        for stage, what in (
            (0, "nothing sharded, experts over 2 ranks"),
            (1, "optimizer state sharded, experts over 2 ranks"),
            (2, "and gradients sharded, experts over 2 ranks"),
        )
    ),
    Row(
        "zero3",
        "every parameter sharded, stacked experts too",
        2,
        "single",
        ("parallel.ep_size=1",),
        _zero(3, **_ZERO3),
        fits_one_card=True,
    ),
    Row(
        "zero2_offload",
        "ZeRO-2, optimizer on the CPU",
        2,
        "single",
        ("parallel.ep_size=1",),
        _zero(2, offload_optimizer=_ON_CPU),
        fits_one_card=True,
    ),
    Row(
        "zero3_offload",
        "ZeRO-3, optimizer and parameters on the CPU",
        2,
        "single",
        ("parallel.ep_size=1",),
        _zero(3, **_ZERO3, offload_optimizer=_ON_CPU, offload_param=_ON_CPU),
        fits_one_card=True,
    ),
    Row(
        "autoep",
        "ZeRO-3 with experts over 2 ranks (AutoEP)",
        2,
        "single",
        ("parallel.ep_size=2",),
        {**_zero(3, **_ZERO3), "expert_parallel": {"enabled": True, "autoep_size": 2}},
        exact_traffic=True,
    ),
    Row(
        "local",
        "data parallel without any mixture layer of DeepSpeed's",
        2,
        "single",
        ("parallel.strategy=local",),
        _zero(2),
        fits_one_card=True,
    ),
    Row("stock", "DeepSpeed's own gate and exchange", 2, "single", ("parallel.strategy=stock",), _zero(2)),
    Row("single_sequence", "the reference of the splits: balance counted by sequence", 1, None, (_EVERY_SEQUENCE,)),
    Row(
        "passes2",
        "2 passes a step, experts over 2 ranks",
        2,
        "single_sequence",
        (_EVERY_SEQUENCE, "train.gradient_accumulation_steps=2", "parallel.ep_size=2"),
        _zero(2),
        exact_traffic=True,
    ),
    Row(
        "passes4",
        "4 passes a step in one process",
        1,
        "single_sequence",
        (_EVERY_SEQUENCE, "train.gradient_accumulation_steps=4"),
    ),
    Row("single_muon", "the reference of Muon", 1, None, (_MUON,)),
    Row(
        "muon",
        "matrices orthogonalised that ZeRO-2 has cut, experts over 2 ranks",
        2,
        "single_muon",
        (_MUON, "parallel.ep_size=2"),
        _zero(2),
        exact_traffic=True,
    ),
)


def select(names: Sequence[str]) -> list[Row]:
    """The named rows and the references that they need, in the table's order; all rows for no names.

    Raises:
        UserError: no row has that name.
    """
    by_name = {row.name: row for row in ROWS}
    for name in names:
        if name not in by_name:
            raise UserError(f"--only {name}: there is no such row{did_you_mean(name, by_name)}")
    wanted = set(names or by_name)
    wanted |= {reference for name in wanted if (reference := by_name[name].reference) is not None}
    return [row for row in ROWS if row.name in wanted]
