"""The recipes that `storyteller bench quality` compares."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from storyteller_ds.config.load import LoadedConfig, load_config

WARMUP_STEPS = 30
"""Longest warm-up, or a tenth of the run if that is less: some recipes are made for days, and within minutes their
learning rate would never have risen."""
MICRO_BATCH_TOKENS = 8192
"""Larger batches are accumulated: some recipes are made for GPUs with more memory than a laptop. This changes only
random draws, and a mixture's balance loss, which is computed for each micro-batch."""
_TUNED, _FOR_DAYS = (0.5, 1.0, 2.0), (1.0, 3.0, 10.0)
"""Multiples of a recipe's learning rate to try. Recipes made for longer runs and larger batches need larger ones."""
_FILES = Path(__file__).parent / "recipes"


@dataclass(frozen=True)
class Recipe:
    """A model and how it is trained."""

    name: str
    what: str
    """Description for the table."""
    factors: tuple[float, ...] = _FOR_DAYS
    preset: str | None = None
    """A preset or a file; None: the one with the recipe's name."""
    changes: tuple[str, ...] = ()
    """Overrides of the preset, as `section.field=value`."""
    validations: int = 0
    """Number of validations during the run, on a part of the text."""

    @property
    def config(self) -> str:
        """The value of `--config`."""
        file = _FILES / f"{self.name}.yaml"
        return self.preset or (str(file) if file.exists() else self.name)

    def load(self, overrides: Sequence[str]) -> LoadedConfig:
        """Its run config.

        Raises:
            ConfigError: an override is invalid.
        """
        return load_config(self.config, [*self.changes, *overrides])

    def rates(self) -> list[float]:
        """The learning rates to try (weight units per step)."""
        return [float(f"{factor * self.load([]).run.optimizer.lr:.3g}") for factor in self.factors]

    def overrides(self, steps: int, lr: float, seed: int) -> list[str]:
        """Overrides for one run: its length, rate and seed, and nothing but training and validations until its end."""
        run = self.load([]).run
        most, batch = max(1, MICRO_BATCH_TOKENS // run.data.sequence_length), run.train.global_batch_size
        micro = max(size for size in range(1, most + 1) if batch % size == 0)
        return [
            *([f"train.micro_batch_size={micro}"] if batch > most else []),
            f"train.max_steps={steps}",
            f"schedule.warmup_steps={min(run.schedule.warmup_steps, WARMUP_STEPS, steps // 10)}",
            f"optimizer.lr={lr:g}",
            f"seed={seed}",
            f"train.eval_every_steps={max(1, steps // self.validations) if self.validations else 0}",
            *("train.early_stop_patience=0", "checkpoint.every_steps=0"),
            *("train.sample_every_steps=0", "train.sample_prompts=[]", "tracking.wandb=disabled"),
            "tracking.report=false",
        ]


RECIPES = (
    Recipe("mixture", "our default: 8 experts, top-2", _TUNED, "quickstart"),
    Recipe("dense", "our dense default", _TUNED, "quickstart_dense"),
    Recipe("nanochat_mixture", "our default with nanochat's value embeddings", _TUNED),
    Recipe("nanochat", "nanochat's dense model and optimizer", _TUNED, "nanochat_dense"),
    Recipe("adamw_mixture", "our default before it was tuned", _TUNED),
    Recipe("gpt2_adamw", "GPT-2 of this size, AdamW, cosine"),
    Recipe("tok105", "TinyStories on Modal"),
    Recipe("basic", "Basic LLM Training"),
    Recipe("storyllm", "StoryLLM"),
    Recipe("nanogpt_dense", "dense twin of NanoGPT with Mixture of Experts"),
    Recipe("nanogpt_moe", "NanoGPT with Mixture of Experts"),
)
OURS = "mixture"
SUPERSEDED = ("tok105", "basic", "storyllm", "nanogpt_dense", "nanogpt_moe")
"""Recipes of the systems that this one replaces."""
