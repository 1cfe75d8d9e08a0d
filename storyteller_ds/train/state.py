"""How far a run has come."""

import dataclasses
import math
from dataclasses import dataclass


@dataclass(frozen=True)
class TrainState:
    """Everything about progress that a resumed run must know; the same on every rank."""

    step: int = 0
    """Optimizer steps done."""
    samples: int = 0
    """Training sequences seen; the position in the order of samples."""
    tokens: int = 0
    """Training tokens seen."""
    best_val_loss: float | None = None
    """Lowest validation loss so far (nats per token)."""
    evals_since_best: int = 0
    """Validations since then."""
    skipped_steps: int = 0
    """Steps among them that changed no weight, because the fp16 gradient overflowed."""

    @property
    def updates(self) -> int:
        """Times that the weights have changed."""
        return self.step - self.skipped_steps

    def after_step(self, samples: int, tokens: int, skipped: bool = False) -> "TrainState":
        """One optimizer step later."""
        return dataclasses.replace(
            self,
            step=self.step + 1,
            samples=self.samples + samples,
            tokens=self.tokens + tokens,
            skipped_steps=self.skipped_steps + skipped,
        )

    def after_eval(self, val_loss: float) -> "TrainState":
        """After a validation."""
        is_best = self.best_val_loss is None or val_loss < self.best_val_loss
        if is_best and math.isfinite(val_loss):
            return dataclasses.replace(self, best_val_loss=val_loss, evals_since_best=0)
        return dataclasses.replace(self, evals_since_best=self.evals_since_best + 1)
