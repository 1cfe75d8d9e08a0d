"""Made-up results; nothing is trained here."""

import pytest
import torch

from storyteller_ds.certify.compare import Results


def train_record(loss: float, grad_norm: float, step_time_s: float = 0.01) -> dict[str, float]:
    router = {"balance_loss": 1.1, "z_loss": 0.2, "router_entropy": 2.0}
    return {"train_loss": loss, "grad_norm": grad_norm, **router, "step_time_s": step_time_s}


@pytest.fixture
def results() -> Results:
    generator = torch.Generator().manual_seed(0)
    weights = {name: torch.randn(4, 3, generator=generator) for name in ("embedding", "blocks.0.router", "final_norm")}
    return Results(
        records=[train_record(6.0 - 0.1 * i, 1.0 + i) for i in range(3)],
        weights=weights,
        logits_BSV=torch.randn(2, 3, 5, generator=generator),
        sent_bytes=1010,
        peak_memory_bytes=2**30,
    )
