"""The rows of the table can run, and each differs from its reference only in topology."""

import pytest

from storyteller_ds.certify.rows import IN_BF16, IN_FP32, PRESET, ROWS, RUN, STEPS, Row, Tolerances, place, select
from storyteller_ds.certify.run import traffic_problem
from storyteller_ds.certify.traffic import routed_bytes
from storyteller_ds.cli.certify import certify
from storyteller_ds.config import load_config
from storyteller_ds.config.load import LoadedConfig
from storyteller_ds.distributed.plan import make_plan
from storyteller_ds.errors import UserError

BY_NAME = {row.name: row for row in ROWS}
TOPOLOGY_SECTIONS = {"parallel", "train"}


def loaded(row: Row) -> LoadedConfig:
    return load_config(PRESET, [*RUN, *row.overrides], ds_config=row.deepspeed)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_row_can_be_planned_and_is_its_references_run(row: Row):
    run = loaded(row).run
    plan = make_plan(run, row.ranks)
    assert plan.world_size * plan.micro_batch_size * plan.accumulation_steps == run.train.global_batch_size
    assert run.train.max_steps == STEPS
    if row.fits_one_card:
        make_plan(run, 1)
    if row.reference is not None:
        reference = loaded(BY_NAME[row.reference]).run
        theirs = reference.model_dump(exclude=TOPOLOGY_SECTIONS)
        assert run.model_dump(exclude=TOPOLOGY_SECTIONS) == theirs
        assert run.train.global_batch_size == reference.train.global_batch_size


def test_the_table_has_every_topology():
    names = [row.name for row in ROWS]
    assert len(set(names)) == len(names)
    stages = {row.deepspeed["zero_optimization"]["stage"] for row in ROWS if row.deepspeed is not None}
    assert stages == {0, 1, 2, 3}
    assert {"ep1", "ep2", "ep4", "autoep", "stock", "passes2", "passes4"} <= set(names)
    in_bf16 = {row.name for row in ROWS if "precision.dtype=bf16" in row.overrides and row.reference}
    assert {row.name for row in ROWS if row.tolerances == IN_BF16} == in_bf16
    assert {row.tolerances for row in ROWS if row.name not in in_bf16} == {IN_FP32, Tolerances.same(0.0)}
    assert set(IN_FP32) == {1e-5}
    for number, row in enumerate(ROWS):
        assert row.reference is None or row.reference in names[:number], "a reference runs first"


@pytest.mark.parametrize("only", ["", ",", " "])
def test_only_without_a_row_is_not_all_of_them(only: str):
    with pytest.raises(UserError, match="names no row; name one of single, "):
        certify.main(["--only", only], standalone_mode=False)


def test_only_brings_the_references_along():
    assert [row.name for row in select(["zero2"])] == ["single", "zero2"]
    assert [row.name for row in select(["passes4", "ep2"])] == ["single", "ep2", "single_sequence", "passes4"]
    assert [row.name for row in select([])] == [row.name for row in ROWS]
    with pytest.raises(UserError, match=r"zer2: there is no such row; did you mean 'zero2'\?"):
        select(["zer2"])


@pytest.mark.parametrize(
    ("cards", "expected"),
    [
        (0, {("single", "cpu", 1), ("zero1", "cpu", 2), ("ep4", "cpu", 4)}),
        # One card: rows that are meaningful as one rank run on it; the others keep their ranks on the CPU.
        (1, {("single", "cpu", 1), ("single", "cuda", 1), ("zero1", "cuda", 1), ("ep4", "cpu", 4)}),
        (2, {("single", "cpu", 1), ("single", "cuda", 1), ("zero1", "cuda", 2), ("ep4", "cpu", 4)}),
        (4, {("single", "cuda", 1), ("zero1", "cuda", 2), ("ep4", "cuda", 4)}),
    ],
)
def test_rows_go_where_there_are_cards_for_all_ranks(cards: int, expected: set[tuple[str, str, int]]):
    placed = place(select(["zero1", "ep4"]), cards)
    assert {(p.row.name, p.device, p.ranks) for p in placed} == expected
    before: set[tuple[str, str]] = set()
    for placement in placed:
        assert placement.row.reference is None or (placement.row.reference, placement.device) in before
        before.add((placement.row.name, placement.device))


def test_routed_bytes_counted_one_by_one():
    run = load_config(PRESET, [*RUN, "moe.every_n_layers=2", "model.num_layers=4"]).run
    total = 0
    for _step in range(3):
        for _token in range(run.train.global_batch_size * run.data.sequence_length):
            for _layer in (1, 3):
                for _choice in range(run.moe.top_k):
                    for _way in ("there", "back"):
                        for _pass in ("forward", "backward"):
                            total += 4 * run.model.hidden_size
    assert routed_bytes(run, 3) == total


def test_traffic_is_judged_where_it_is_promised():
    ep2, stock = BY_NAME["ep2"], BY_NAME["stock"]
    assert traffic_problem(ep2, 4, 1.0005) is None
    assert "1.030" in str(traffic_problem(ep2, 4, 1.03))
    assert "0.500" in str(traffic_problem(ep2, 4, 0.5))
    assert "nothing went through" in str(traffic_problem(ep2, 4, None))
    # DeepSpeed's own exchange pads; a single rank has no peer to exchange with.
    assert traffic_problem(stock, 2, 2.4) is None
    assert traffic_problem(BY_NAME["zero2"], 1, None) is None
