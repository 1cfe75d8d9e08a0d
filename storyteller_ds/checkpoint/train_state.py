"""The progress of a run."""

import dataclasses
import math
from dataclasses import dataclass
from typing import ClassVar

from pydantic import ConfigDict, NonNegativeFloat, NonNegativeInt


@dataclass(frozen=True)
class TrainState:
    """Everything about progress that a resumed run must know; the same on every rank.

    Read from trainer.json by pydantic, which rejects values of other types and unknown fields.
    """

    __pydantic_config__: ClassVar = ConfigDict(extra="forbid", allow_inf_nan=False)

    step: NonNegativeInt = 0
    """Optimizer steps done."""
    samples: NonNegativeInt = 0
    """Training sequences seen; the position in the sample order."""
    tokens: NonNegativeInt = 0
    """Training tokens seen."""
    best_val_loss: float | None = None
    """Lowest validation loss so far (nats per token)."""
    evals_since_best: NonNegativeInt = 0
    """Validations since then."""
    skipped_steps: NonNegativeInt = 0
    """Steps in `step` that changed no weight: the fp16 gradient overflowed, or loss or gradient was not finite."""
    bad_steps: NonNegativeInt = 0
    """Steps so far whose loss or gradient was not finite, including undone ones."""
    bad_steps_in_a_row: NonNegativeInt = 0
    """Consecutive bad steps up to this one."""
    loss_spikes: NonNegativeInt = 0
    """Steps so far whose loss was far above those before it, including undone ones."""
    recent_losses: tuple[float, ...] = ()
    """Finite training losses of the latest steps (nats per token), oldest first; at most loss_spike_window."""
    rollbacks: NonNegativeInt = 0
    """How often the run went back to a checkpoint because of bad steps or loss spikes."""
    undone_steps: NonNegativeInt = 0
    """Optimizer steps that rollbacks have undone; `step + undone_steps` never decreases."""
    best_val_tokens: int | None = None
    """Number of tokens, from the beginning of the validation text, that best_val_loss is the mean over; a loss over a
    different number is not compared with it. None: not known, as in checkpoints of older versions."""
    elapsed_s: NonNegativeFloat = 0.0
    """Time spent in training while train.max_minutes was set, by the clock of rank 0 (s)."""

    def __post_init__(self) -> None:
        if self.updates < 0:
            raise ValueError(f"{self.skipped_steps} skipped of {self.step} steps")

    @property
    def updates(self) -> int:
        """How often the weights have changed."""
        return self.step - self.skipped_steps

    @property
    def attempts(self) -> int:
        """Steps attempted so far, including undone ones; orders the records of a run."""
        return self.step + self.undone_steps

    def after_step(self, samples: int, tokens: int, skipped: bool = False) -> "TrainState":
        """The state one optimizer step later."""
        return dataclasses.replace(
            self,
            step=self.step + 1,
            samples=self.samples + samples,
            tokens=self.tokens + tokens,
            skipped_steps=self.skipped_steps + skipped,
        )

    def after_eval(self, val_loss: float, val_tokens: int) -> "TrainState":
        """After validating the first `val_tokens` targets; a loss over a new number of them counts as best."""
        is_best = self.best_val_loss is None or val_tokens != self.best_val_tokens or val_loss < self.best_val_loss
        if is_best and math.isfinite(val_loss):
            return dataclasses.replace(self, best_val_loss=val_loss, best_val_tokens=val_tokens, evals_since_best=0)
        return dataclasses.replace(self, evals_since_best=self.evals_since_best + 1)

    def after_rollback(self, checkpoint: "TrainState") -> "TrainState":
        """The state after going back from here to a checkpoint.

        Steps go back, along with the weights, the schedule and the validations. Samples and tokens do not: data seen
        since the checkpoint is not seen again. Nor do the time spent and the counts of what went wrong.
        """
        return dataclasses.replace(
            checkpoint,
            samples=self.samples,
            tokens=self.tokens,
            bad_steps=self.bad_steps,
            bad_steps_in_a_row=0,
            loss_spikes=self.loss_spikes,
            rollbacks=self.rollbacks + 1,
            undone_steps=self.undone_steps + self.step - checkpoint.step,
            elapsed_s=self.elapsed_s,
        )
