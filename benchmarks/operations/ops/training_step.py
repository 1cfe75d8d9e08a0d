"""A whole optimizer step of a small mixture-of-experts decoder: ours against transformers' Mixtral.

Forward, backward, gradient clipping, fused AdamW. Neither side has router losses, which the two compute differently.
Bound by the matrix products.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from benchmarks.operations.case import Candidate, Case, Implementation, Named, Size, Unavailable, leaf
from benchmarks.operations.decoder_reference import MARGIN, DecoderReference
from benchmarks.operations.flops import DecoderShape, step_flops
from benchmarks.operations.goals import Goal
from benchmarks.operations.limits import MATRIX_PRODUCT, matrix_products
from benchmarks.operations.ops import moe_layer
from benchmarks.operations.peers import transformers_mixtral

if TYPE_CHECKING:
    from storyteller_ds.config.run import RunConfig

SHAPES: dict[Size, DecoderShape] = {
    "cpu": DecoderShape(6, 256, 512, 8, 2, heads=8, kv_heads=4, vocabulary=4096, sequence=256, batch=8),
    "tiny": DecoderShape(2, 16, 8, 4, 2, heads=4, kv_heads=2, vocabulary=40, sequence=8, batch=2),
}
LR = 1e-5
"""Small, so that the model stays close to the one that was checked."""
MIXTRAL = "transformers Mixtral"
GOALS: dict[Size, list[Goal]] = {
    "cpu": [
        Goal("at least 1.2x transformers' Mixtral", "training_step", "step", 1.2, peers=(MIXTRAL,)),
        Goal("at least 0.68 of the matrix product rate", "training_step", "step", 0.68, limit=MATRIX_PRODUCT),
    ]
}


@dataclass(frozen=True)
class Problem:
    """The weights that both sides start from, and the batch."""

    shape: DecoderShape
    run: "RunConfig"
    weights: Named
    token_BS: Tensor
    target_BS: Tensor
    """Targets of the step that is checked, as token_BS is its tokens."""

    def endless_batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Tokens and targets of the timed steps: different each time, as in training, so that experts get different
        numbers of rows. The same for every implementation."""
        generator = torch.Generator().manual_seed(1)
        size = (self.shape.batch, self.shape.sequence + 1)
        while True:
            stream = torch.randint(self.shape.vocabulary, size, generator=generator)
            yield stream[:, :-1].contiguous(), stream[:, 1:].contiguous()


def cases(size: Size, device: torch.device) -> Iterator[Case]:
    """The suite's single case; none for a GPU.

    Raises:
        Unavailable: storyteller_ds cannot be imported here.
    """
    if size not in SHAPES:
        return
    shape = SHAPES[size]
    try:
        problem = draw(shape)
    except ModuleNotFoundError as error:
        raise Unavailable(f"not available: storyteller_ds needs {error.name}") from None
    flops = step_flops(shape)
    rates = matrix_products(moe_layer.PRODUCTS[size], torch.float32, device)
    yield Case(
        op="training_step",
        name="{layers} layers D={D} I={I} E={E} K={K} V={vocabulary} S={sequence} B={batch} fp32".format(
            **shape._asdict()
        ),
        shape={**shape._asdict(), "dtype": "fp32"},
        directions=["step"],
        reference=partial(exact, problem),
        implementations=[
            Implementation("ours", "ours", partial(ours, problem), "storyteller_ds SingleEngine"),
            Implementation(f"{MIXTRAL}, eager", "peer", partial(mixtral, problem, "eager")),
            Implementation(f"{MIXTRAL}, grouped_mm", "peer", partial(mixtral, problem, "grouped_mm")),
        ],
        limits=rates,
        work={"step": {rate.name: sum(flops.values()) for rate in rates}},
        dtype=torch.float32,
        device=device,
        rounds=10,
        tokens=shape.tokens,
        details={"flops": flops},
    )


def draw(shape: DecoderShape) -> Problem:
    """The config's own initial weights, and a batch in which no router is nearly tied."""
    from storyteller_ds.config import load_config
    from storyteller_ds.model.decoder import Decoder
    from storyteller_ds.model.init import init_parameters

    run = load_config(overrides=overrides(shape)).run
    decoder = Decoder(run)
    init_parameters(decoder, run.model, run.seed)
    weights = {name: parameter.detach() for name, parameter in decoder.named_parameters()}
    generator = torch.Generator().manual_seed(0)
    while True:
        stream = torch.randint(shape.vocabulary, (shape.batch, shape.sequence + 1), generator=generator)
        problem = Problem(shape, run, weights, stream[:, :-1].contiguous(), stream[:, 1:].contiguous())
        reference = _reference(problem, {name: tensor.double() for name, tensor in weights.items()})
        with torch.no_grad():
            reference.logits(problem.token_BS)
        if reference.nearest_tie > MARGIN:
            return problem


def overrides(shape: DecoderShape) -> list[str]:
    """What a user would write on the command line for this model and batch: Mixtral's block, and AdamW."""
    return [
        *("model.qk_norm=false", "model.tie_embeddings=true", "optimizer.kind=adamw"),
        *("optimizer.embedding_lr_ratio=1", "optimizer.output_lr_ratio=1"),
        f"model.hidden_size={shape.D}",
        f"model.num_layers={shape.layers}",
        f"model.num_heads={shape.heads}",
        f"model.num_kv_heads={shape.kv_heads}",
        f"model.intermediate_size={shape.I}",
        f"moe.num_experts={shape.E}",
        f"moe.top_k={shape.K}",
        "moe.every_n_layers=1",
        "moe.balance_loss_coef=0",
        "moe.z_loss_coef=0",
        f"tokenizer.vocab_size={shape.vocabulary}",
        f"data.sequence_length={shape.sequence}",
        f"train.global_batch_size={shape.batch}",
        "precision.dtype=fp32",
        f"optimizer.lr={LR}",
    ]


def exact(problem: Problem) -> Candidate:
    """The fp64 reference."""
    leaves = {name: leaf(tensor, torch.float64) for name, tensor in problem.weights.items()}
    reference = _reference(problem, leaves)
    return Candidate(lambda: {"loss": reference.loss(problem.token_BS, problem.target_BS)}, leaves)


def ours(problem: Problem) -> Candidate:
    """`storyteller_ds.engines.single.SingleEngine`, as `storyteller train` runs it."""
    from storyteller_ds.data.batching.micro_batch import MicroBatch
    from storyteller_ds.distributed.world import World
    from storyteller_ds.engines.single import SingleEngine
    from storyteller_ds.engines.step import train_step
    from storyteller_ds.model.canonical import placed_parameters

    engine = SingleEngine(problem.run, World(0, 0, 1, 1), problem.token_BS.device)
    leaves: Named = {placed.name: placed.parameter for placed in placed_parameters(engine.decoder)}
    batches = problem.endless_batches()

    def forward() -> Named:
        share, _ = engine.loss_module(problem.token_BS, problem.target_BS, problem.target_BS.numel(), 1)
        return {"loss": share}

    return Candidate(forward, leaves, step=lambda: train_step(engine, [MicroBatch(*next(batches))], LR))


def mixtral(problem: Problem, experts: str) -> Candidate:
    """transformers' Mixtral in the usual training loop, with the optimizer settings of our run."""
    run, shape = problem.run, problem.shape
    model = transformers_mixtral.model(shape, problem.weights, experts, run.model.norm_eps, run.model.rope_theta)
    leaves: Named = {transformers_mixtral.canonical_name(name): p for name, p in model.named_parameters()}
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in model.parameters() if p.dim() > 1], "weight_decay": run.optimizer.weight_decay},
            {"params": [p for p in model.parameters() if p.dim() == 1], "weight_decay": 0.0},
        ],
        lr=LR,
        betas=(run.optimizer.beta1, run.optimizer.beta2),
        eps=run.optimizer.eps,
        fused=True,
    )

    batches = problem.endless_batches()

    def loss_of(token_BS: Tensor, target_BS: Tensor) -> Tensor:
        # Its loss accepts targets that are already shifted, like ours.
        loss: Tensor = model(input_ids=token_BS, labels=target_BS, shift_labels=target_BS).loss
        return loss

    def forward() -> Named:
        return {"loss": loss_of(problem.token_BS, problem.target_BS)}

    def step() -> float:
        loss = loss_of(*next(batches))
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), run.optimizer.grad_clip_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return Candidate(forward, leaves, step=step)


def _reference(problem: Problem, weights: Named) -> DecoderReference:
    return DecoderReference(problem.shape, weights, problem.run.model.norm_eps, problem.run.model.rope_theta)
