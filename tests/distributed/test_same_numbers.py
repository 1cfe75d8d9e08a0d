"""The promise: the same run gives the same numbers on every topology."""

from pathlib import Path

import pytest

from storyteller_ds.testing.distributed import run_command, train_command
from storyteller_ds.testing.runs import read_metrics, read_state, relative_difference

STEPS = 20
TOLERANCE = 1e-5
RUN = (
    "data.builtin_stories=600",
    "data.sequence_length=64",
    "tokenizer.vocab_size=512",
    "model.hidden_size=64",
    "model.num_layers=2",
    "model.intermediate_size=96",
    "train.global_batch_size=8",
    f"train.max_steps={STEPS}",
    "train.eval_batches=2",
    "train.eval_every_steps=10",
    "train.sample_tokens=5",
    "checkpoint.every_steps=10",
    "schedule.warmup_steps=5",
    "tracking.wandb=disabled",
    "--quiet",
)
TOPOLOGIES = {
    "ep1_zero1": (2, "zero1", "parallel.ep_size=1"),
    "ep1_zero2": (2, "zero2", "parallel.ep_size=1"),
    "ep2_zero2": (2, "zero2", "parallel.ep_size=2"),
}


def train(folder: Path, ranks: int, ds_config: str | None, *arguments: str) -> Path:
    outcome = run_command(train_command(ranks, ds_config, "--output_dir", str(folder), *RUN, *arguments), 240)
    assert outcome.exit_code == 0, outcome.stderr
    return folder


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("single"), 1, None)


@pytest.fixture(scope="module", params=TOPOLOGIES)
def other(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp(request.param), *TOPOLOGIES[request.param])


def assert_close(a: float, b: float, what: str) -> None:
    assert abs(a - b) <= TOLERANCE * abs(b), f"{what}: {a} and {b} differ by {abs(a - b) / abs(b):.1e}"


def test_losses_and_gradient_norms_agree(single: Path, other: Path):
    ours, reference = read_metrics(other), read_metrics(single)
    assert [line["step"] for line in ours] == [line["step"] for line in reference]
    assert max(line["step"] for line in ours) == STEPS
    for line, expected in zip(ours, reference, strict=True):
        assert line.keys() == expected.keys()
        for field in ("train_loss", "grad_norm", "balance_loss", "z_loss", "router_entropy", "val_loss", "val_bpb"):
            if field in expected:
                assert_close(line[field], expected[field], f"{field} of step {line['step']}")


def test_weights_and_moments_agree_after_the_steps(single: Path, other: Path):
    ours, reference = read_state(other, STEPS), read_state(single, STEPS)
    assert ours.keys() == reference.keys()
    for name, tensor in reference.items():
        difference = relative_difference(ours[name], tensor)
        assert difference <= TOLERANCE, f"{name} differs by {difference:.1e}"


def test_another_seed_does_not_agree(single: Path, tmp_path: Path):
    """Without this the comparison could be of nothing."""
    other = read_metrics(train(tmp_path, 1, None, "seed=1"))
    assert abs(other[0]["train_loss"] - read_metrics(single)[0]["train_loss"]) > 100 * TOLERANCE
