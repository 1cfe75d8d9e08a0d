"""What bench quality runs, what it makes of the results, and how it goes on; the runs themselves are played."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from storyteller_ds.bench import report
from storyteller_ds.bench.compared import RECIPES, Recipe
from storyteller_ds.bench.quality import Comparison
from storyteller_ds.cli.bench import bench
from storyteller_ds.errors import InterruptedSafely, TrainingStopped, UserError

MIXTURE = Recipe("mixture", "ours", (0.5, 1.0, 2.0), "quickstart")
OTHER = Recipe("other", "theirs", (1.0, 3.0), "tiny_test")
SCORES = {("mixture", 0.5): 1.3, ("mixture", 1.0): 1.1, ("mixture", 2.0): 1.2, ("other", 1.0): 2.0, ("other", 3.0): 1.5}


class Player:
    """Stands for `storyteller train`: leaves the records of a run whose score depends on recipe, rate and seed."""

    def __init__(self) -> None:
        self.played: list[str] = []
        self.code = 0

    def __call__(self, command: list[str], check: bool) -> subprocess.CompletedProcess[bytes]:
        folder = Path(command[command.index("--output_dir") + 1])
        self.played.append(folder.name)
        if self.code == 0:
            name = folder.name.split("-")[0]
            recipe = next(each for each in (MIXTURE, OTHER) if each.name == name)
            run = recipe.load(command[command.index("--output_dir") + 2 :]).run
            factor = round(run.optimizer.lr / recipe.load([]).run.optimizer.lr, 3)
            folder.mkdir(parents=True)
            (folder / "config.json").write_text(json.dumps({"run": run.model_dump(mode="json")}))
            records = [{"step": n, "train_loss": 3.0, "step_time_s": n / 10, "tokens": 64 * n} for n in (1, 2, 3)]
            records.append({"step": 3, "final_val_bpb": SCORES[name, factor] + 0.01 * run.seed})
            (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        return subprocess.CompletedProcess(command, self.code)


@pytest.fixture
def player(monkeypatch: pytest.MonkeyPatch) -> Player:
    found = Player()
    monkeypatch.setattr("storyteller_ds.bench.quality.subprocess.run", found)
    return found


@pytest.fixture
def comparison(tmp_path: Path) -> Callable[..., Comparison]:
    def make(minutes: float = 2, seeds: int = 3) -> Comparison:
        return Comparison([MIXTURE, OTHER], minutes, seeds, ["data.sequence_length=32"], tmp_path)

    return make


def test_the_best_rate_gets_the_other_seeds(player, comparison):
    found = comparison().run(lambda _: None)
    assert [run.bpb for run in found["mixture"].best] == pytest.approx([1.1, 1.11, 1.12])
    assert [run.bpb for run in found["mixture"].others] == [1.3, 1.2]
    assert found["other"].bpb == pytest.approx(1.51)
    lr = OTHER.load([]).run.optimizer.lr
    assert found["other"].rates == pytest.approx([lr, 3 * lr])
    assert len(player.played) == 3 + 2 + 2 + 2
    (run,) = {(r.steps, r.tokens, r.seconds_per_step) for r in found["other"].best}
    assert run == (3, 192, 0.2)


def test_what_is_finished_is_not_run_again(player, comparison):
    first = comparison().run(lambda _: None)
    (comparison().folder / player.played[4] / "metrics.jsonl").unlink()
    interrupted, player.played = player.played[4], []
    (comparison().folder / interrupted / "config.json").unlink()
    (comparison().folder / interrupted).rmdir()
    assert comparison().run(lambda _: None) == first
    assert player.played == [interrupted]


def test_runs_with_other_settings_are_not_taken_for_these(player, comparison):
    comparison().run(lambda _: None)
    with pytest.raises(UserError, match=r"mixture-lr\S+-seed0 has a run with train.max_minutes=2.0, now 1.0"):
        comparison(minutes=1).run(lambda _: None)


@pytest.mark.parametrize(
    ("code", "error"), [(75, InterruptedSafely), (130, InterruptedSafely), (2, TrainingStopped), (1, TrainingStopped)]
)
def test_a_run_that_ends_early_ends_the_comparison(player, comparison, code, error):
    player.code = code
    with pytest.raises(error, match="mixture-lr"):
        comparison().run(lambda _: None)
    assert len(player.played) == 1


def test_the_report_has_means_spreads_and_distances(player, comparison, tmp_path):
    found = comparison().run(lambda _: None)
    page = report.as_page(comparison(), found, "storyteller bench quality", "quality.png")
    ours = next(line for line in page.splitlines() if line.startswith("| mixture"))
    theirs = next(line for line in page.splitlines() if line.startswith("| other"))
    assert "1.1100 ± 0.0100" in ours
    assert "+0.0%" in ours
    assert "1.5100 ± 0.0100" in theirs
    assert "+36.0%" in theirs
    assert report.verdict(found) == ["mixture is 26.5% below other"]
    document = json.loads(report.as_json(comparison(), found, "storyteller bench quality"))
    assert document["recipes"]["other"]["best"][0]["bpb"] == 1.5
    report.save_plot(2, found, tmp_path / "quality.png")
    assert (tmp_path / "quality.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_every_recipe_can_be_run(recipe):
    rates = recipe.rates()
    assert len(rates) == 3
    run = recipe.load([*recipe.overrides(5, rates[0], 1), "data.sequence_length=64", "model.context_length=2048"]).run
    assert run.schedule.warmup_steps <= 30
    assert (run.train.max_minutes, run.optimizer.lr, run.seed) == (5, rates[0], 1)


def test_an_unknown_recipe_is_refused():
    result = CliRunner().invoke(bench, ["quality", "--only", "mixtur"])
    assert "no recipe is called 'mixtur'; did you mean 'mixture'?" in str(result.exception)
