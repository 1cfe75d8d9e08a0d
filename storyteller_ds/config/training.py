"""How the model is trained: optimizer, schedule, batches, precision, records."""

import re
from typing import Literal, Self

from pydantic import Field, model_validator

from storyteller_ds.config.base import Section


class OptimizerConfig(Section):
    """The rule that changes the weights."""

    kind: Literal["adamw", "muon"] = "adamw"
    """AdamW (Loshchilov and Hutter 2019); or Muon for hidden matrices (Jordan et al. 2024), AdamW for the rest."""
    lr: float = Field(1e-3, gt=0)
    """Peak learning rate (weight units per step)."""
    embedding_lr_ratio: float = Field(1.0, gt=0)
    """Learning rate of embeddings, in multiples of lr. A row moves only where its token occurs, and AdamW's step is
    no larger than the rate, so that it wants a higher one; not with tied embeddings, where it is the output projection
    too (dimensionless)."""
    output_lr_ratio: float = Field(1.0, gt=0)
    """Learning rate of an output projection that is not tied to the embedding, in multiples of lr (dimensionless)."""
    beta1: float = Field(0.9, ge=0, lt=1)
    """Decay of the first moment (per step)."""
    beta2: float = Field(0.95, ge=0, lt=1)
    """Decay of the second moment (per step)."""
    momentum: float = Field(0.95, ge=0, lt=1)
    """Decay of Muon's momentum (per step)."""
    expert_period: int = Field(1, ge=1)
    """Steps between two updates of the experts' matrices by Muon, each as many times as large; the momentum takes every
    gradient. A token trains two experts, and to orthogonalise all of them costs more than it does (optimizer steps)."""
    eps: float = Field(1e-8, gt=0)
    """Added to the root of the second moment (gradient units)."""
    weight_decay: float = Field(0.1, ge=0)
    """Decoupled decay of matrices, times lr (per step); norms and biases are never decayed."""
    grad_clip_norm: float = Field(1.0, ge=0)
    """Largest norm of the whole gradient before a step (gradient units); 0: no clipping."""


class ScheduleConfig(Section):
    """The learning rate over the run, as a fraction of optimizer.lr."""

    kind: Literal["cosine", "linear", "one_cycle", "constant"] = "cosine"
    """How it falls to min_lr_ratio at train.max_steps, or at train.max_minutes if that comes first: along half a
    cosine, along a line, or not at all. one_cycle is a cosine that rises along half a cosine too, from a 25th of the
    peak (Smith and Topin 2017, in torch's form)."""
    warmup_steps: int = Field(50, ge=0)
    """Steps of warm-up, linear from 0 but for one_cycle (optimizer steps)."""
    decay_fraction: float = Field(1.0, gt=0, le=1)
    """Last part of the run after the warm-up in which the learning rate falls; before that it stays at the peak
    (warm-up, stable, decay; Hu et al. 2024, 2404.06395) (fraction)."""
    min_lr_ratio: float = Field(0.1, ge=0, le=1)
    """Learning rate at the end, as a fraction of the peak (dimensionless)."""


class TrainConfig(Section):
    """How long, in what batches, and what is measured meanwhile."""

    max_steps: int = Field(1000, ge=1)
    """Length of the run (optimizer steps)."""
    max_minutes: float | None = Field(None, gt=0)
    """Length of the run in time, over all processes that continue it, those without a limit left out; it then ends with
    a checkpoint (minutes). The learning rate follows the clock where time runs out before the steps, so such a run is
    not reproducible bit by bit. null: no limit."""
    global_batch_size: int = Field(32, ge=1)
    """Sequences per optimizer step over all ranks (sequences); where only the two below are given, their product times
    the ranks, also where a preset sets another."""
    micro_batch_size: int | None = Field(None, ge=1)
    """Sequences per rank in one forward pass (sequences); null: derived from the other two."""
    gradient_accumulation_steps: int | None = Field(None, ge=1)
    """Micro-batches of a rank per optimizer step (micro-batches); null: derived, 1 if micro_batch_size allows."""
    log_every_steps: int = Field(1, ge=1)
    """Steps between two train lines in metrics.jsonl (optimizer steps)."""
    eval_every_steps: int = Field(100, ge=0)
    """Steps between two validations (optimizer steps); 0: only at the end."""
    eval_batches: int | None = Field(None, ge=1)
    """Validate on at most this many global batches from the beginning of the validation text, the same at every step
    (batches); null: all of it. The end of a run is scored on all of it too, as final_val_loss and the like."""
    early_stop_patience: int = Field(0, ge=0)
    """Validations in a row without a better val_loss before training ends (validations); 0: never. A run that is
    continued with another eval_batches or global_batch_size starts again: losses on other texts are not comparable."""
    max_bad_steps: int = Field(3, ge=1)
    """Steps in a row with a loss or gradient that is not finite, each of them skipped, at which the run goes back to
    its newest checkpoint and leaves out the samples seen since (optimizer steps)."""
    max_rollbacks: int = Field(2, ge=0)
    """Times that a run may go back because of its numbers before it stops with exit code 3 (rollbacks)."""
    loss_spike_policy: Literal["report", "roll_back", "off"] = "report"
    """When the training loss leaps: report and count it, go back as for bad steps, or do not check."""
    loss_spike_window: int = Field(128, ge=8)
    """Losses before a step that it is compared with; none is a spike until there are as many (optimizer steps)."""
    loss_spike_threshold: float = Field(10.0, gt=0)
    """Distance above their median from which a loss is a spike (standard deviations, as 1.4826 times the median
    absolute deviation)."""
    sample_every_steps: int = Field(0, ge=0)
    """Steps between two sets of sample stories in samples.md (optimizer steps); 0: only at the end."""
    sample_prompts: tuple[str, ...] = ("Once upon a time", "One day,", "There was a little")
    """What the sample stories begin with."""
    sample_tokens: int | None = Field(None, ge=1)
    """Longest sample story (tokens); null: to its end, or as long as the context has room."""
    callbacks: tuple[str, ...] = ()
    """Callbacks of your own, as module:Class each; a module may lie in the working directory."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Compile each block with torch.compile; auto: on CUDA cards with Triton, but not under ZeRO-3, whose hooks gather
    weights inside a block, nor with layers of DeepSpeed's own. The first steps then take a minute. On a CPU a compiled
    step is not faster."""
    profile_steps: str | None = None
    """Steps, as 10-13, of which rank 0 writes a trace (for chrome://tracing or ui.perfetto.dev) and a table of its most
    expensive operators into the folder `profile` of the run; null: none."""
    hang_timeout_minutes: float = Field(20.0, ge=0)
    """How long a rank may stand still before all are ended, with the stacks of their threads (minutes); 0: for ever.
    A save and the first step, with what it compiles, must fit in. Below parallel.timeout_minutes, so that there are
    stacks before a collective gives up."""

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
    """How the run is spread over processes."""

    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where tensors live; auto: CUDA, then MPS, then CPU."""
    ep_size: int | Literal["auto"] = "auto"
    """Ranks that share one set of experts; must divide moe.num_experts and the ranks; auto: the most that fits."""
    strategy: Literal["auto", "local", "expert_parallel", "autoep", "stock"] = "auto"
    """How the experts are spread; auto: expert_parallel under ZeRO-0 to 2, local otherwise, autoep where the DeepSpeed
    JSON has expert_parallel. stock is DeepSpeed's own layer, for comparison."""
    zero_stage: int | None = Field(None, ge=0, le=3)
    """ZeRO stage, from the DeepSpeed JSON; null: no DeepSpeed."""
    nvme_path: str | None = None
    """Folder on a fast local disk, for a DeepSpeed JSON that offloads to nvme with "nvme_path": "auto"."""
    self_test: bool = False
    """Before training, compare one step of a small copy of the model on these ranks with one device; on disagreement
    the run is not started."""
    timeout_minutes: float = Field(30.0, gt=0)
    """How long a rank waits for the others in a collective before it gives up, or for a sign of life where one of them
    prepares something (minutes). That itself may take as long as it likes."""

    @model_validator(mode="after")
    def _ep_size_positive(self) -> Self:
        if isinstance(self.ep_size, int) and self.ep_size < 1:
            raise ValueError(f"ep_size={self.ep_size} is not a number of ranks; use 1 or more, or auto")
        return self


class PrecisionConfig(Section):
    """Number formats."""

    dtype: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Format of the residual stream and of matrix products. auto: bf16 on CUDA cards whose matrix units take it
    (compute capability 8.0, Ampere, and newer), fp16 on those of 7.0 and 7.5 (Volta, Turing; fp32 under ZeRO-0, which
    does not scale the loss), fp32 elsewhere. Weights are rounded to it where they are used; master weights, moments,
    statistics of norms, the router's logits, softmax and the loss are fp32, on one device and under every ZeRO stage
    (table: docs/precision.md). fp16 scales the loss (Micikevicius et al. 2018, sec. 3.2)."""


class CheckpointConfig(Section):
    """When the run is saved. The last step is saved always."""

    every_steps: int = Field(0, ge=0)
    """Steps between two checkpoints (optimizer steps); 0: only the last step."""
    asynchronous: bool = True
    """Write while training goes on, from a copy in memory; false: training waits. The last is always waited for."""
    keep_last: int | None = Field(None, ge=1)
    """Newest checkpoints that are kept when another has been written (checkpoints); null: all of them."""
    keep_every_steps: int = Field(0, ge=0)
    """With keep_last: also keep those of every so many steps (optimizer steps); 0: none."""
    keep_best: int = Field(1, ge=0)
    """With keep_last: also keep those of the lowest val_bpb, of all that a validation fell on (checkpoints). Scores on
    another part of the text, after eval_batches has changed, are not compared: the best of each are kept."""
    on_error: Literal["stop", "continue"] = "stop"
    """When one cannot be written: stop with exit code 2, or warn and train on. If it is the last: always stop."""


class TrackingConfig(Section):
    """Where metrics go besides metrics.jsonl."""

    report: bool = True
    """When the run ends, write report.html and report.md into its folder."""
    wandb: Literal["auto", "online", "offline", "disabled"] = "auto"
    """Weights & Biases; auto: WANDB_MODE, else online after `wandb login`, offline otherwise."""
    project: str = "storyteller"
    """Project name on Weights & Biases, WANDB_PROJECT, if it is set and this is not; experiment on MLflow."""
    run_name: str | None = None
    """Run name on Weights & Biases and MLflow; null: WANDB_NAME, or chosen by them."""
    wandb_checkpoint: bool = False
    """At the end give the best checkpoint, without the optimizer's part, to Weights & Biases as an artifact."""
    tensorboard: bool = False
    """Event files for TensorBoard in the run folder's `tensorboard`; needs the package tensorboard."""
    mlflow: bool = False
    """A run in MLflow: MLFLOW_TRACKING_URI, else files in the run folder's `mlruns`; needs the package mlflow."""
