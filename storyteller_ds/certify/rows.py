"""What is certified: one small run on many topologies, as data.

Every row trains the same model on the same batches and differs from its reference only in its topology. `--only` takes
the names of rows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Self

from storyteller_ds.config.nearest import did_you_mean
from storyteller_ds.errors import UserError

PRESET = "tiny_test"
STEPS = 8
TRAFFIC_LIMIT = 1.02
"""Most bytes that an exchange may send for each byte that the routing needs."""


class Tolerances(NamedTuple):
    """Largest relative difference of each compared quantity."""

    loss: float
    grad_norm: float
    router: float
    weights: float
    logits: float

    @classmethod
    def same(cls, tolerance: float) -> Self:
        """The same tolerance for all quantities."""
        return cls(*[tolerance] * len(cls._fields))


IN_FP32 = Tolerances.same(1e-5)
"""See docs/decisions/0003."""
IN_BF16 = Tolerances(loss=2**-12, grad_norm=2**-8, router=2**-8, weights=2**-5, logits=2**-5)
"""With 8 significant bits; docs/precision.md explains each value."""

RUN = (
    "data.builtin_stories=200",
    "data.sequence_length=32",
    "tokenizer.vocab_size=512",
    "model.hidden_size=64",
    "model.num_layers=2",
    "model.intermediate_size=96",
    "optimizer.lr=1e-3",
    # Low enough that every step is clipped: a wrong gradient norm then shows in the weights too.
    "optimizer.grad_clip_norm=0.25",
    "schedule.warmup_steps=2",
    f"train.max_steps={STEPS}",
    "precision.dtype=fp32",
    "parallel.timeout_minutes=2",
    "seed=23",
)
"""Overrides of the preset, the same for every row.

Few tokens on purpose: if a token's second and third expert are equal to the last bit, two topologies may choose
differently (docs/decisions/0003). Among seeds 0 to 23, this is the one whose closest of 4,096 choices is the clearest:
by 9e-5 in the router's logits, which rounding changes by about 1e-7.
"""


@dataclass(frozen=True)
class Row:
    """One topology, and what it is compared with."""

    name: str
    why: str
    """What agreement of this row proves."""
    overrides: tuple[str, ...] = ()
    """In addition to RUN, as section.field=value."""
    deepspeed: Mapping[str, Any] | None = None
    """The DeepSpeed JSON; None: one process without DeepSpeed."""
    ranks: int = 2
    reference: str | None = "single"
    """Name of the row that it must agree with; None: it is only a reference."""
    tolerances: Tolerances = IN_FP32
    """How far it may be from its reference."""

    @property
    def exact_traffic(self) -> bool:
        """Whether experts are spread over ranks by an exchange that promises to send only the routed tokens."""
        return not {_EP_AUTO, _EP2, _EP4}.isdisjoint(self.overrides)

    @property
    def fits_one_card(self) -> bool:
        """Whether the row still proves something as one rank on a machine with a single CUDA GPU."""
        return not {_EP_AUTO, _EP1, _LOCAL}.isdisjoint(self.overrides)


def _zero(stage: int, **more: object) -> dict[str, Any]:
    """A ZeRO config with buckets so small that even this model fills many."""
    zero = {
        "stage": stage,
        "overlap_comm": False,
        "reduce_bucket_size": 20_000,
        "allgather_bucket_size": 20_000,
        **more,
    }
    return {"zero_optimization": zero}


# By default ZeRO-3 does not partition parameters this small; with 0 it partitions all of them.
_ZERO3 = {"stage3_param_persistence_threshold": 0}
_CPU = {"device": "cpu"}
_AUTOEP = {**_zero(3, **_ZERO3), "expert_parallel": {"enabled": True, "autoep_size": 2}}
_EP_AUTO, _EP1, _EP2, _EP4 = (f"parallel.ep_size={size}" for size in ("auto", 1, 2, 4))
_LOCAL, _STOCK = "parallel.strategy=local", "parallel.strategy=stock"
_BF16 = "precision.dtype=bf16"
_BY_SEQUENCE = "moe.balance_scope=sequence"
_RECIPE = (
    "optimizer.kind=muon",
    "optimizer.embedding_lr_ratio=10",
    "optimizer.output_lr_ratio=0.4",
    "optimizer.expert_period=2",
    "schedule.decay_fraction=0.65",
    "model.qk_norm=true",
    "model.tie_embeddings=false",
    "data.document_mask=true",
    "data.packing=best_fit",
    "model.value_embeddings=true",
    "model.residual_scales=true",
    "model.logit_softcap=15",
)
"""All non-default settings that affect the optimizer and gradients, at once."""

ROWS = (
    Row("single", "the reference: one process, no DeepSpeed", ranks=1, reference=None),
    Row("repeat", "the reference again: the same bits", ranks=1, tolerances=Tolerances.same(0.0)),
    Row("ep1", "data parallelism, all experts on every rank", (_EP1,), _zero(2)),
    Row("ep2", "experts over 2 ranks, in 2 data-parallel groups", (_EP2,), _zero(2), ranks=4),
    Row("ep4", "experts over 4 ranks", (_EP4,), _zero(2), ranks=4),
    Row("zero0", "nothing sharded, experts over 2 ranks", (_EP_AUTO,), _zero(0)),
    Row("zero1", "optimizer state sharded, experts over 2 ranks", (_EP_AUTO,), _zero(1)),
    Row("zero2", "gradients sharded too, experts over 2 ranks", (_EP_AUTO,), _zero(2)),
    Row("zero3", "all parameters sharded, including the experts", (_EP1,), _zero(3, **_ZERO3)),
    Row("zero2_offload", "ZeRO-2, optimizer on the CPU", (_EP1,), _zero(2, offload_optimizer=_CPU)),
    Row(
        "zero3_offload",
        "ZeRO-3, optimizer and parameters on the CPU",
        (_EP1,),
        _zero(3, **_ZERO3, offload_optimizer=_CPU, offload_param=_CPU),
    ),
    Row("autoep", "ZeRO-3 with experts over 2 ranks (AutoEP)", (_EP2,), _AUTOEP),
    Row("local", "data parallelism without DeepSpeed's MoE layer", (_LOCAL,), _zero(2)),
    Row("stock", "DeepSpeed's own gate and exchange", (_STOCK,), _zero(2)),
    Row(
        "single_sequence",
        "reference of passes2 and passes4: balance loss by sequence",
        (_BY_SEQUENCE,),
        ranks=1,
        reference=None,
    ),
    Row(
        "passes2",
        "2 accumulation steps, experts over 2 ranks",
        (_BY_SEQUENCE, "train.gradient_accumulation_steps=2", _EP2),
        _zero(2),
        reference="single_sequence",
    ),
    Row(
        "passes4",
        "4 accumulation steps in one process",
        (_BY_SEQUENCE, "train.gradient_accumulation_steps=4"),
        ranks=1,
        reference="single_sequence",
    ),
    Row("single_muon", "reference of the Muon rows, with document masks and qk-norm", _RECIPE, ranks=1, reference=None),
    Row(
        "muon",
        "Muon on matrices that ZeRO-2 has split, experts over 2 ranks",
        (*_RECIPE, _EP2),
        _zero(2),
        reference="single_muon",
    ),
    Row(
        "muon_zero3",
        "Muon on matrices of which each rank holds a part (ZeRO-3)",
        (*_RECIPE, _EP1),
        _zero(3, **_ZERO3),
        reference="single_muon",
    ),
    Row(
        "muon_autoep",
        "likewise, with experts over 2 of 4 ranks (AutoEP)",
        (*_RECIPE, _EP2),
        _AUTOEP,
        ranks=4,
        reference="single_muon",
    ),
    Row("single_bf16", "reference of the bf16 rows", (_BF16,), ranks=1, reference=None),
    *(
        Row(
            f"{name}_bf16",
            f"{what}, in bf16",
            (_BF16, ranks),
            _zero(stage, **more),
            reference="single_bf16",
            tolerances=IN_BF16,
        )
        for name, what, ranks, stage, more in (
            ("zero0", "fp32 weights cast where they are used, experts over 2 ranks", _EP_AUTO, 0, {}),
            ("zero1", "bf16 weights with fp32 master weights, experts over 2 ranks", _EP_AUTO, 1, {}),
            ("zero2", "likewise, gradients sharded", _EP_AUTO, 2, {}),
            ("zero3", "likewise, all parameters sharded", _EP1, 3, _ZERO3),
        )
    ),
)


def select(names: Sequence[str]) -> list[Row]:
    """The named rows and the references that they need, in the table's order; all rows if no names are given.

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


@dataclass(frozen=True)
class Placement:
    """A row and where it runs."""

    row: Row
    device: Literal["cpu", "cuda"]
    ranks: int


def place(rows: Sequence[Row], cards: int) -> list[Placement]:
    """Where each row runs on a machine with this many CUDA GPUs.

    Each rank gets one GPU; a row with too few GPUs runs on the CPU. A reference runs on every device on which a row is
    compared with it.
    """
    placed = []
    for row in rows:
        if row.ranks <= cards:
            placed.append(Placement(row, "cuda", row.ranks))
        elif cards and row.fits_one_card:
            placed.append(Placement(row, "cuda", 1))
        else:
            placed.append(Placement(row, "cpu", row.ranks))
    needed = {(p.row.reference, p.device) for p in placed}
    have = {(p.row.name, p.device) for p in placed}
    by_name = {row.name: row for row in rows}
    extra = [
        Placement(by_name[name], device, by_name[name].ranks)
        for name, device in sorted(needed - have, key=str)
        if name is not None
    ]
    return extra + placed
