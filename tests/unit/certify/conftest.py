"""Made-up results: nothing is trained here."""

import pytest
import torch

from storyteller_ds.certify.results import Results, StepNumbers
from storyteller_ds.certify.traffic import Traffic


@pytest.fixture
def results() -> Results:
    generator = torch.Generator().manual_seed(0)
    weights = {name: torch.randn(4, 3, generator=generator) for name in ("embedding", "blocks.0.router", "final_norm")}
    return Results(
        steps=[StepNumbers(6.0 - 0.1 * i, 1.0 + i, 1.1, 0.2, 2.0) for i in range(3)],
        weights=weights,
        logits_BSV=torch.randn(2, 3, 5, generator=generator),
        traffic=Traffic(1000, 10),
        peak_memory_bytes=2**30,
        step_time_s=0.01,
        smallest_margin=1e-4,
    )
