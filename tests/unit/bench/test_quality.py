"""What bench quality runs, how it evaluates the results, and how it resumes; the runs themselves are faked."""

import dataclasses
import json
import shutil
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from storyteller_ds.bench import report
from storyteller_ds.bench.compared import RECIPES, Recipe
from storyteller_ds.bench.quality import RUNS, Comparison
from storyteller_ds.cli.bench import bench
from storyteller_ds.errors import InterruptedSafely, TrainingStopped, UserError

MIXTURE = Recipe("mixture", "ours", (0.5, 1.0, 2.0), "quickstart")
OTHER = Recipe("other", "theirs", (1.0, 3.0), "tiny_test")
SCORES = {
    "mixture": {0.5: 1.3, 1.0: 1.1, 2.0: 1.2},
    "other": {0.5: 2.1, 1.0: 2.0, 3.0: 1.5},
}
"""Score of each recipe for each learning rate factor."""

PACES = {"mixture": 0.5, "other": 0.25}
"""Seconds per step."""


class Player:
    """Stands in for `storyteller train`: writes the records of a run whose score depends on recipe, rate and seed."""

    def __init__(self) -> None:
        self.played: list[str] = []
        self.code = 0
        self.logs = True
        self.threads: list[str | None] = []
        self.together: threading.Barrier | None = None

    def __call__(self, command: list[str], check: bool, env: dict[str, str]) -> subprocess.CompletedProcess[bytes]:
        folder = Path(command[command.index("--output_dir") + 1])
        self.played.append(folder.name)
        if "pace" not in folder.parts:
            self.threads.append(env.get("OMP_NUM_THREADS"))
            if self.together is not None:
                self.together.wait(timeout=30)
        if self.code == 0:
            name = folder.name.split("-")[0]
            recipe = next(each for each in (MIXTURE, OTHER) if each.name == name)
            run = recipe.load(command[command.index("--output_dir") + 2 :]).run
            factor = round(run.optimizer.lr / recipe.load([]).run.optimizer.lr, 3)
            folder.mkdir(parents=True)
            (folder / "config.json").write_text(json.dumps({"run": run.model_dump(mode="json")}))
            steps = run.train.max_steps
            # Step times alternate, as with optimizer.expert_period=2, and ten steps were disturbed.
            took = [PACES[name] * (0.5 if n % 2 else 1.5) * (9 if 30 <= n < 40 else 1) for n in range(steps)]
            records = [
                {"step": n + 1, "train_loss": 3.0, "step_time_s": took[n], "tokens": 64 * (n + 1)} for n in range(steps)
            ]
            if not self.logs:
                records = []
            bpb = SCORES[name][factor] + 0.01 * run.seed
            records.append({"step": steps, "tokens": 64 * steps, "final_val_bpb": bpb})
            (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        return subprocess.CompletedProcess(command, self.code)


@pytest.fixture
def player(monkeypatch: pytest.MonkeyPatch) -> Player:
    found = Player()
    monkeypatch.setattr("storyteller_ds.bench.ordinary.subprocess.run", found)
    return found


@pytest.fixture
def comparison(tmp_path: Path) -> Callable[..., Comparison]:
    def make(minutes: float = 2, seeds: int = 3, at_once: int = 1) -> Comparison:
        return Comparison([MIXTURE, OTHER], minutes, seeds, ["data.sequence_length=32"], tmp_path, at_once=at_once)

    return make


def test_the_best_rate_gets_the_other_seeds(player, comparison):
    found = comparison().run(lambda _: None)
    assert [run.bpb for run in found["mixture"].best] == pytest.approx([1.1, 1.11, 1.12])
    assert [run.bpb for run in found["mixture"].others] == [1.3, 1.2]
    assert found["other"].bpb == pytest.approx(1.51)
    lr = OTHER.load([]).run.optimizer.lr
    assert found["other"].rates == pytest.approx([lr, 3 * lr])
    assert len(player.played) == 3 * 2 + 3 + 2 + 2 + 2
    assert {(run.steps, run.tokens) for run in found["mixture"].best} == {(240, 240 * 64)}
    assert {(run.steps, run.tokens) for run in found["other"].best} == {(480, 480 * 64)}


def test_runs_too_short_for_a_logged_step_count(player, comparison):
    comparison().pace(lambda _: None)
    player.logs = False
    found = comparison().run(lambda _: None)
    assert {(run.steps, run.tokens) for run in found["mixture"].best} == {(240, 240 * 64)}


def test_each_line_says_how_many_runs_are_over(player, comparison):
    lines: list[str] = []
    comparison().run(lines.append)
    over = [line.split(",")[0] for line in lines if "bits per byte" in line]
    assert over == [f"[{number}/9" for number in range(1, 10)]


def test_recipes_are_timed_in_turn_and_what_disturbed_one_window_does_not_count(player, comparison):
    pace = comparison().pace(lambda _: None)
    assert player.played == [f"{name}-{turn}" for turn in range(3) for name in ("mixture", "other")]
    assert pace.seconds_per_step == pytest.approx(PACES)
    assert comparison().pace(lambda _: None) == pace
    assert len(player.played) == 6


def test_what_was_timed_with_other_settings_is_not_used(player, comparison, tmp_path):
    comparison().pace(lambda _: None)
    other = Comparison([MIXTURE], 2, 3, ["data.sequence_length=64"], tmp_path)
    with pytest.raises(UserError, match=r"pace.json was measured with .*sequence_length=32"):
        other.pace(lambda _: None)


def test_recipes_run_at_once_with_their_share_of_the_cores(player, comparison, monkeypatch):
    monkeypatch.setattr("storyteller_ds.bench.ordinary.usable_cores", lambda: 6)
    alone = comparison().run(lambda _: None)
    (comparison().folder / RUNS).unlink()
    for folder in comparison().folder.glob("*-lr*"):
        shutil.rmtree(folder)
    player.threads = []
    player.together = threading.Barrier(2)
    pair = Comparison(
        [MIXTURE, dataclasses.replace(OTHER, factors=(1.0, 3.0, 0.5))],
        2,
        3,
        ["data.sequence_length=32"],
        comparison().folder,
        at_once=2,
    )
    assert pair.run(lambda _: None)["mixture"] == alone["mixture"]
    assert set(player.threads) == {"3"}


def test_what_is_finished_is_not_run_again(player, comparison):
    first = comparison().run(lambda _: None)
    interrupted, player.played = player.played[10], []
    shutil.rmtree(comparison().folder / interrupted)
    (comparison().folder / RUNS).unlink()
    assert comparison().run(lambda _: None) == first
    assert player.played == [interrupted]


def test_two_files_are_enough_to_go_on_elsewhere(player, comparison):
    first = comparison().run(lambda _: None)
    interrupted, player.played = player.played[10], []
    for folder in comparison().folder.iterdir():
        if folder.is_dir():
            shutil.rmtree(folder)
    runs = json.loads((comparison().folder / RUNS).read_text())
    del runs[interrupted]
    (comparison().folder / RUNS).write_text(json.dumps(runs))
    assert comparison().run(lambda _: None) == first
    assert player.played == [interrupted]


def test_runs_with_other_settings_are_not_taken_for_these(player, comparison):
    comparison().run(lambda _: None)
    with pytest.raises(UserError, match=r"mixture-lr\S+-seed0 has a run with schedule.warmup_steps=24, now 12"):
        comparison(minutes=1).run(lambda _: None)


@pytest.mark.parametrize(
    ("code", "error"), [(75, InterruptedSafely), (130, InterruptedSafely), (2, TrainingStopped), (1, TrainingStopped)]
)
def test_a_run_that_ends_early_ends_the_comparison(player, comparison, code, error):
    comparison().pace(lambda _: None)
    player.played, player.code = [], code
    with pytest.raises(error, match="mixture-lr"):
        comparison().run(lambda _: None)
    assert len(player.played) == 1


def test_the_report_has_means_spreads_and_distances(player, comparison, tmp_path):
    found, pace = comparison().run(lambda _: None), comparison().pace(lambda _: None)
    page = report.as_page(comparison(), pace, found, "storyteller bench quality", "quality.png")
    ours = next(line for line in page.splitlines() if line.startswith("| mixture"))
    theirs = next(line for line in page.splitlines() if line.startswith("| other"))
    assert "1.1100 ± 0.0100" in ours
    assert "+0.0%" in ours
    assert "1.5100 ± 0.0100" in theirs
    assert "+36.0%" in theirs
    assert report.verdict(found) == ["mixture is 26.5% below other"]
    document = json.loads(report.as_json(comparison(), pace, found, "storyteller bench quality"))
    assert document["recipes"]["other"]["best"][0]["bpb"] == 1.5
    report.save_plot(2, found, tmp_path / "quality.png")
    assert (tmp_path / "quality.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_every_recipe_can_be_run(recipe):
    rates = recipe.rates()
    assert len(rates) == 3
    run = recipe.load([*recipe.overrides(70, rates[0], 1), "data.sequence_length=64", "model.context_length=2048"]).run
    assert run.schedule.warmup_steps <= 7
    assert (run.train.max_steps, run.train.max_minutes) == (70, None)
    assert (run.optimizer.lr, run.seed) == (rates[0], 1)
    assert run.train.global_batch_size == recipe.load([]).run.train.global_batch_size
    micro = run.train.micro_batch_size or run.train.global_batch_size
    assert micro * recipe.load([]).run.data.sequence_length <= 8192


def test_an_unknown_recipe_is_refused():
    result = CliRunner().invoke(bench, ["quality", "--only", "mixtur"])
    assert "no recipe is called 'mixtur'; did you mean 'mixture'?" in str(result.exception)
