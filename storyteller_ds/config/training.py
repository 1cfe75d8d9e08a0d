"""How the model is trained: optimizer, schedule, batches, precision, records."""

import re
from typing import Literal, Self

from pydantic import Field, model_validator

from storyteller_ds.config.base import Section


class OptimizerConfig(Section):
    """The optimizer."""

    kind: Literal["adamw", "muon"] = "adamw"
    """AdamW (Loshchilov and Hutter 2019); or Muon for hidden matrices (Jordan et al. 2024), AdamW for the rest."""
    lr: float = Field(1e-3, gt=0)
    """Peak learning rate (weight units per step)."""
    embedding_lr_ratio: float = Field(1.0, gt=0)
    """Learning rate of the embeddings, in multiples of lr. A row is updated only where its token occurs, so embeddings
    want a higher rate. Leave it at 1 with tied embeddings, which are also the output projection (dimensionless)."""
    output_lr_ratio: float = Field(1.0, gt=0)
    """Learning rate of an output projection that is not tied to the embedding, in multiples of lr (dimensionless)."""
    beta1: float = Field(0.9, ge=0, lt=1)
    """Decay of the first moment (per step)."""
    beta2: float = Field(0.95, ge=0, lt=1)
    """Decay of the second moment (per step)."""
    momentum: float = Field(0.95, ge=0, lt=1)
    """Decay of Muon's momentum (per step)."""
    expert_period: int = Field(1, ge=1)
    """Muon updates the experts' matrices every so many steps, with an update that many times as large; the momentum
    sees every gradient. Orthogonalizing all experts costs more than training the two that a token uses (optimizer
    steps)."""
    eps: float = Field(1e-8, gt=0)
    """Added to the square root of the second moment (gradient units)."""
    weight_decay: float = Field(0.1, ge=0)
    """Decoupled decay of matrices, multiplied by lr (per step); norms and biases are never decayed."""
    grad_clip_norm: float = Field(1.0, ge=0)
    """The gradient is scaled down to this norm where it is larger (gradient units); 0: no clipping."""


class ScheduleConfig(Section):
    """The learning rate over the run, as a fraction of optimizer.lr."""

    kind: Literal["cosine", "linear", "one_cycle", "constant"] = "cosine"
    """How it falls to min_lr_ratio at train.max_steps, or at train.max_minutes if that comes first: along half a
    cosine, linearly, or not at all. one_cycle also rises along half a cosine, from 1/25 of the peak (Smith and Topin
    2017, in torch's form)."""
    warmup_steps: int = Field(50, ge=0)
    """Length of the warm-up, which is linear from 0 except for one_cycle (optimizer steps)."""
    decay_fraction: float = Field(1.0, gt=0, le=1)
    """Share of the run after the warm-up, at its end, in which the learning rate falls; until then it stays at the peak
    (warm-up, stable, decay: Hu et al. 2024, 2404.06395) (fraction)."""
    min_lr_ratio: float = Field(0.1, ge=0, le=1)
    """Learning rate at the end, as a fraction of the peak (dimensionless)."""


class TrainConfig(Section):
    """How long to train, in which batches, and what to measure meanwhile."""

    max_steps: int = Field(1000, ge=1)
    """Length of the run (optimizer steps)."""
    max_minutes: float | None = Field(None, gt=0)
    """Time limit of the run, after which it saves a checkpoint and ends (minutes). It adds up the time of all processes
    that continued the run under a limit. If time runs out before the steps, the learning rate follows the clock, and
    the run is not reproducible bit for bit. null: no limit."""
    global_batch_size: int = Field(32, ge=1)
    """Sequences per optimizer step over all ranks (sequences). If only the two fields below are given, it is their
    product times the number of ranks, even if a preset sets another value."""
    micro_batch_size: int | None = Field(None, ge=1)
    """Sequences per rank in one forward pass (sequences); null: derived from the other two fields."""
    gradient_accumulation_steps: int | None = Field(None, ge=1)
    """Micro-batches per rank and optimizer step (micro-batches); null: derived, 1 if micro_batch_size allows."""
    log_every_steps: int = Field(1, ge=1)
    """Steps between two train lines in metrics.jsonl (optimizer steps)."""
    eval_every_steps: int = Field(100, ge=0)
    """Steps between two validations (optimizer steps); 0: only at the end."""
    eval_batches: int | None = Field(None, ge=1)
    """Validate on this many global batches at most, from the beginning of the validation text and the same every time
    (batches); null: the whole text. At the end of a run the whole text is scored too, as final_val_loss and so on."""
    early_stop_patience: int = Field(0, ge=0)
    """Training ends after this many validations in a row without a better val_loss (validations); 0: never. Counting
    starts over if eval_batches or global_batch_size changes, since losses on different texts are not comparable."""
    max_bad_steps: int = Field(3, ge=1)
    """A step with a non-finite loss or gradient is skipped. After this many in a row, the run goes back to its newest
    checkpoint and leaves out the samples seen since (optimizer steps)."""
    max_rollbacks: int = Field(2, ge=0)
    """How often a run may go back to a checkpoint before it stops with exit code 3 (rollbacks)."""
    loss_spike_policy: Literal["report", "roll_back", "off"] = "report"
    """What to do about a spike of the training loss: report and count it, go back as for bad steps, or do not check."""
    loss_spike_window: int = Field(128, ge=8)
    """Number of earlier losses that a loss is compared with; before there are that many, no loss is a spike
    (optimizer steps)."""
    loss_spike_threshold: float = Field(10.0, gt=0)
    """A loss this far above their median is a spike (standard deviations, estimated as 1.4826 times the median absolute
    deviation)."""
    sample_every_steps: int = Field(0, ge=0)
    """Steps between two sets of sample stories in samples.md (optimizer steps); 0: only at the end."""
    sample_prompts: tuple[str, ...] = ("Once upon a time", "One day,", "There was a little")
    """Beginnings of the sample stories."""
    sample_tokens: int | None = Field(None, ge=1)
    """Longest sample story (tokens); null: until it ends or the context is full."""
    callbacks: tuple[str, ...] = ()
    """Your own callbacks, each as module:Class; the module may be in the working directory."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Compile each block with torch.compile; auto: on CUDA cards with Triton, but not under ZeRO-3, whose hooks gather
    weights inside a block, nor with layers of DeepSpeed's own. The first steps then take a minute. On a CPU a compiled
    step is not faster."""
    profile_steps: str | None = None
    """Range of steps, such as 10-13, that rank 0 profiles: a trace (for chrome://tracing or ui.perfetto.dev) and a
    table of the most expensive operators, in the run's folder `profile`; null: none."""
    hang_timeout_minutes: float = Field(20.0, ge=0)
    """How long a rank may make no progress before all ranks are ended and print the stacks of their threads (minutes);
    0: forever. It must be longer than a save and than the first step with its compilation, and shorter than
    parallel.timeout_minutes, so that the stacks are printed before a collective gives up."""

    @model_validator(mode="after")
    def _profile_is_possible(self) -> Self:
        written = self.profile_steps
        if written is not None and re.fullmatch(r"[1-9]\d{0,15}-[1-9]\d{0,15}", written) is None:
            raise ValueError(f"profile_steps={written} is not FIRST-LAST; write it as 10-13")
        if self.profiled is not None and self.profiled[0] > self.profiled[1]:
            raise ValueError(f"profile_steps={written} ends before it begins; write it as 10-13")
        return self

    @property
    def profiled(self) -> tuple[int, int] | None:
        """The first and the last step of profile_steps."""
        if self.profile_steps is None:
            return None
        first, _, last = self.profile_steps.partition("-")
        return int(first), int(last)


class ParallelConfig(Section):
    """How the run is distributed over processes."""

    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where tensors live; auto: CUDA, then MPS, then CPU."""
    ep_size: int | Literal["auto"] = "auto"
    """Ranks that share one set of experts; must divide moe.num_experts and the number of ranks; auto: the largest that
    does."""
    strategy: Literal["auto", "local", "expert_parallel", "autoep", "stock"] = "auto"
    """How the experts are distributed; auto: autoep if the DeepSpeed JSON has expert_parallel, else expert_parallel
    under ZeRO-0 to 2, else local. stock is DeepSpeed's own layer, for comparison."""
    zero_stage: int | None = Field(None, ge=0, le=3)
    """ZeRO stage, from the DeepSpeed JSON; null: no DeepSpeed."""
    nvme_path: str | None = None
    """Folder on a fast local disk, for a DeepSpeed JSON that offloads to NVMe with "nvme_path": "auto"."""
    self_test: bool = False
    """Before training, compare one step of a small copy of the model on these ranks with one device; if they disagree,
    the run does not start."""
    timeout_minutes: float = Field(30.0, gt=0)
    """How long a rank waits for the others in a collective, or for a sign of life from a rank that prepares text,
    before it gives up (minutes). The preparation itself has no limit."""

    @model_validator(mode="after")
    def _ep_size_positive(self) -> Self:
        if isinstance(self.ep_size, int) and self.ep_size < 1:
            raise ValueError(f"ep_size={self.ep_size} is not a number of ranks; use 1 or more, or auto")
        return self


class PrecisionConfig(Section):
    """Number formats."""

    dtype: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Format of the residual stream and of matrix products. auto: bf16 on CUDA cards whose matrix units support it
    (compute capability 8.0, Ampere, and newer), fp16 on those of 7.0 and 7.5 (Volta, Turing; fp32 under ZeRO-0, which
    does not scale the loss), fp32 elsewhere. Weights are rounded to it where they are used; master weights, moments,
    statistics of norms, the router's logits, softmax and the loss are fp32, on one device and under every ZeRO stage
    (table: docs/precision.md). fp16 scales the loss (Micikevicius et al. 2018, sec. 3.2)."""


class CheckpointConfig(Section):
    """When the run is saved. The last step is always saved."""

    every_steps: int = Field(0, ge=0)
    """Steps between two checkpoints (optimizer steps); 0: only the last step."""
    asynchronous: bool = True
    """Write in the background, from a copy in memory; false: training waits. The run always waits for the last one."""
    keep_last: int | None = Field(None, ge=1)
    """How many of the newest checkpoints are kept (checkpoints); null: all."""
    keep_every_steps: int = Field(0, ge=0)
    """With keep_last: also keep every checkpoint whose step is a multiple of this (optimizer steps); 0: none."""
    keep_best: int = Field(1, ge=0)
    """With keep_last: also keep the checkpoints with the lowest val_bpb, of those that were validated (checkpoints).
    Scores from before and after a change of eval_batches are not comparable: the best of each are kept."""
    on_error: Literal["stop", "continue"] = "stop"
    """If a checkpoint cannot be written: stop with exit code 2, or warn and continue. If it is the last one, the run
    always stops."""


class TrackingConfig(Section):
    """Where metrics go besides metrics.jsonl."""

    report: bool = True
    """When the run ends, write report.html and report.md into its folder."""
    wandb: Literal["auto", "online", "offline", "disabled"] = "auto"
    """Weights & Biases; auto: as WANDB_MODE says, else online after `wandb login`, else offline."""
    project: str = "storyteller"
    """Project on Weights & Biases and experiment on MLflow; WANDB_PROJECT applies if this is not set."""
    run_name: str | None = None
    """Name of the run on Weights & Biases and MLflow; null: WANDB_NAME, or a name they choose."""
    wandb_checkpoint: bool = False
    """At the end, upload the best checkpoint without its optimizer state to Weights & Biases as an artifact."""
    tensorboard: bool = False
    """Write event files for TensorBoard to `tensorboard` in the run folder; needs the package tensorboard."""
    mlflow: bool = False
    """Log to MLflow: to MLFLOW_TRACKING_URI, else to `mlruns` in the run folder; needs the package mlflow."""
