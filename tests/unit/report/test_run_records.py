"""What is read from a run folder, complete or not."""

import json
import os

import pytest

from storyteller_ds.errors import UserError
from storyteller_ds.records.run_folder import RunFolder
from storyteller_ds.report import summary
from storyteller_ds.report.run_records import read_run
from tests.support.recorded_runs import eval_record, finished_run, train_record, write_run


def test_a_finished_run(tmp_path):
    run = read_run(finished_run(tmp_path / "fox"))
    assert (run.step, run.tokens, run.layers) == (60, 60 * 2048, [0, 1, 2, 3])
    assert [record["step"] for record in run.train] == [*range(1, 61)]
    assert run.last("final_val_bpb") == 1.1
    assert run.samples[0].step == 60
    assert run.missing == [f"no evaluation and atlas: storyteller report --measure {tmp_path / 'fox'}"]
    assert summary.sentence(run) == (
        "A mixture of 8 experts, top-2, 3.94M parameters, 1.58M active for a token. Finished after 60 steps. "
        "It predicts held-out stories with 1.1000 bits per byte."
    )
    tiles = {tile.label: tile.value for tile in summary.tiles(run)}
    assert tiles["bits per byte"] == "1.1000"
    assert tiles["time"] == "15 s"  # 60 steps of 0.25 s
    assert tiles["tokens/s"] == "8,000"
    assert summary.continuation(run) == "storyteller train --config quickstart"


def test_a_line_cut_short_and_a_loss_that_is_no_number(tmp_path):
    folder = write_run(tmp_path / "a", [train_record(1), train_record(2, train_loss=None)])
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "train_')
    run = read_run(folder)
    assert [record["step"] for record in run.train] == [1, 2]
    assert "1 line(s) of metrics.jsonl are not whole records, and passed over" in run.missing
    assert "the loss of 1 logged step(s) is not a finite number: gaps in the curves" in run.missing


def test_steps_that_were_undone_are_left_out(tmp_path):
    # At step 3 the run went back to step 1: the later lines of steps 2 and 3 are the valid ones.
    again = [train_record(step, seed=1, undone_steps=2) for step in (2, 3, 4)]
    evals = [eval_record(2, 1.7), eval_record(2, 1.6, undone_steps=2)]
    run = read_run(write_run(tmp_path / "a", [*(train_record(step) for step in (1, 2, 3)), *again, *evals]))
    assert [(record["step"], record["undone_steps"]) for record in run.train] == [(1, 0), (2, 2), (3, 2), (4, 2)]
    assert [record["val_bpb"] for record in run.evals] == [1.6]
    assert summary.incidents(run) == ["2 step(s) were undone by it"]


def test_time_of_steps_that_are_not_all_logged(tmp_path):
    run = read_run(write_run(tmp_path / "a", [train_record(step, step_time_s=2.0) for step in (10, 20, 30)]))
    assert summary.seconds_in_steps(run) == 60


def test_a_run_that_goes_on_says_so(tmp_path):
    folder = RunFolder(write_run(tmp_path / "a", [train_record(1)]))
    assert read_run(folder.path).is_being_written
    assert summary.state(read_run(folder.path)) == "Still training: 1 steps so far"
    folder.close()
    assert not read_run(folder.path).is_being_written
    assert summary.state(read_run(folder.path)) == "Stopped early, after 1 of 500 steps"


@pytest.mark.timeout(60)
def test_a_lock_that_is_a_fifo_is_not_waited_for(tmp_path):
    folder = write_run(tmp_path / "a", [train_record(1)])
    os.mkfifo(folder / ".lock")
    assert not read_run(folder).is_being_written


def test_what_is_not_there_is_named(tmp_path):
    folder = write_run(tmp_path / "a", [])
    missing = read_run(folder).missing
    assert any(line.startswith("no step is logged yet") for line in missing)
    assert any(line.startswith("nothing is validated yet") for line in missing)
    (folder / "config.json").write_text("{")
    (folder / "atlas.json").write_text(json.dumps({"tokens": "many"}))
    (folder / "evaluation.json").write_text("[")
    missing = read_run(folder).missing
    for what in ("the settings are not shown", "the atlas is not shown", "the evaluation is not shown"):
        assert any(line.startswith(what) for line in missing), what


def test_another_folder_is_refused(tmp_path):
    with pytest.raises(UserError, match="no run has written there"):
        read_run(tmp_path)
    with pytest.raises(UserError, match="is not a run folder"):
        read_run(tmp_path / "no")


def test_runs_are_compared_by_what_can_be(tmp_path):
    a, b = (read_run(finished_run(tmp_path / name, seed=i)) for i, name in enumerate("ab"))
    assert summary.same_tokenizer([a, b])
    assert summary.same_text([a, b])
    rows = dict(summary.comparison([a, b], same_tokens=True))
    assert rows["bits per byte, all held-out stories"] == ["1.1000", "1.1000"]
    assert rows["loss (nats per token)"] == ["2.2000", "2.2000"]
    assert summary.differences([a, b]) == []
    # With another tokenizer, losses are not compared; another text shows in the differences.
    (b.folder / "tokenizer.json").write_text("{ }")
    assert not summary.same_tokenizer([a, b])
    assert "loss (nats per token)" not in dict(summary.comparison([a, b], same_tokens=False))
    c = read_run(finished_run(tmp_path / "c", **{"data.builtin_stories": 300, "tracking.wandb": "offline"}))
    assert not summary.same_text([a, c])
    assert summary.differences([a, c]) == [("data.builtin_stories", ["20000", "300"])]
