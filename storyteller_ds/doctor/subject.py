"""What the checks look at: a run that has not begun, its text, and the machine that it will run on."""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch

from storyteller_ds.config import LoadedConfig, RunConfig
from storyteller_ds.distributed.plan import ParallelPlan
from storyteller_ds.doctor.machine_facts import MachineFacts
from storyteller_ds.doctor.text_facts import TextFacts
from storyteller_ds.engines.precision import DTYPE_NAMES, run_dtype
from storyteller_ds.model import count_parameters
from storyteller_ds.model.counts import ParameterCount
from storyteller_ds.planning.memory import Memory, checkpoint_bytes, memory_of


@dataclass(frozen=True)
class Subject:
    """A run that has not begun."""

    loaded: LoadedConfig
    plan: ParallelPlan
    device: torch.device
    output_dir: Path
    text: TextFacts | None = None
    """None: the text was not read, for example a dataset on the hub."""
    is_new: bool = True
    """Whether it takes over nothing from another run, so that model and tokenizer can still be chosen."""
    config_text: str = ""
    """Text of the file or preset that --config names, including its comments."""
    machine: MachineFacts = field(default_factory=MachineFacts)

    @property
    def run(self) -> RunConfig:
        """Its config."""
        return self.loaded.run

    @cached_property
    def counts(self) -> ParameterCount:
        """Parameters of its model."""
        return count_parameters(self.run)

    @cached_property
    def memory(self) -> Memory:
        """Planned memory of a rank's tensors."""
        dtype = DTYPE_NAMES[self.dtype]
        return memory_of(self.run, self.loaded.deepspeed, self.plan, self.device.type, dtype)

    @cached_property
    def checkpoint_bytes(self) -> int:
        """Size of one checkpoint on disk."""
        return checkpoint_bytes(self.run, self.plan)

    @property
    def offloaded(self) -> dict[str, str]:
        """Section of the DeepSpeed JSON -> the device that it moves something to."""
        zero = (self.loaded.deepspeed or {}).get("zero_optimization") or {}
        devices = {name: (zero.get(name) or {}).get("device") for name in ("offload_optimizer", "offload_param")}
        return {name: device for name, device in devices.items() if device not in (None, "none", "auto")}

    @property
    def dtype(self) -> torch.dtype:
        """The number format that it computes in."""
        return run_dtype(self.run, self.device)
