"""The whole description of a run."""

from typing import Self

from pydantic import Field, model_validator

from storyteller_ds.config.base import Section
from storyteller_ds.config.data import DataConfig, TokenizerConfig
from storyteller_ds.config.model import ModelConfig, MoEConfig
from storyteller_ds.config.training import (
    CheckpointConfig,
    OptimizerConfig,
    ParallelConfig,
    PrecisionConfig,
    ScheduleConfig,
    TrackingConfig,
    TrainConfig,
)


class RunConfig(Section):
    """Everything that decides the numbers of a run, and where its records go."""

    seed: int = Field(0, ge=0, lt=2**63)
    """Start of every random stream: weights, order of batches, dropout, samples."""
    model: ModelConfig = ModelConfig()
    """The decoder."""
    moe: MoEConfig = MoEConfig()
    """Its mixture-of-experts layers."""
    data: DataConfig = DataConfig()
    """The text."""
    tokenizer: TokenizerConfig = TokenizerConfig()
    """The tokens."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """The update rule."""
    schedule: ScheduleConfig = ScheduleConfig()
    """The learning rate over time."""
    train: TrainConfig = TrainConfig()
    """The loop."""
    parallel: ParallelConfig = ParallelConfig()
    """Devices and ranks."""
    precision: PrecisionConfig = PrecisionConfig()
    """Number formats."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """Saving."""
    tracking: TrackingConfig = TrackingConfig()
    """Records."""

    @model_validator(mode="after")
    def _sequence_fits_context(self) -> Self:
        if self.data.sequence_length > self.context_length:
            raise ValueError(
                f"data.sequence_length={self.data.sequence_length} is longer than "
                f"model.context_length={self.context_length}; shorten the one or lengthen the other"
            )
        return self

    @property
    def moe_layers(self) -> int:
        """Number of MoE layers; 0: the model is dense, and the moe section has no effect."""
        return sum(self.moe.is_moe_layer(layer) for layer in range(self.model.num_layers))

    @property
    def context_length(self) -> int:
        """Longest sequence the model accepts (tokens), with the default filled in."""
        return self.model.context_length or self.data.sequence_length
