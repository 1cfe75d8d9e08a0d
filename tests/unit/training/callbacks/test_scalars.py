"""Which numbers of a record go to trackers that accept nothing else."""

import pytest

from storyteller_ds.training.callbacks.scalars import scalars

RECORD = {
    "step": 3,
    "train_loss": 2.5,
    "grad_norm": None,
    "bad_steps": 1,
    "expert_load": [0.25, 0.75],
    "layer_z_loss": [0.5, None],
    "layer_expert_load": [[0.25, 0.75], [0.5, 0.5]],
    "note": "text",
}
NUMBERS = {"train_loss": 2.5, "bad_steps": 1.0}


@pytest.mark.parametrize(
    ("with_lists", "lists"),
    [(False, {}), (True, {"expert_load/0": 0.25, "expert_load/1": 0.75, "layer_z_loss/0": 0.5})],
)
def test_numbers_and_lists_of_numbers(with_lists, lists):
    assert scalars(RECORD, with_lists) == {**NUMBERS, **lists}
