"""The main job in miniature, as a user types it: what it writes, and that the model tells a story."""

import json
import sys
from pathlib import Path

import pytest

from tests.support.distributed import TINY_RUN, Outcome, run_command, train_command
from tests.support.wandb_offline import read_config, read_history

STEPS = 6
RUN = (
    *TINY_RUN,
    "tracking.report=true",
    f"train.max_steps={STEPS}",
    "train.eval_every_steps=3",
    "train.eval_batches=1",
    "train.sample_tokens=10",
    'train.sample_prompts=["One day,", "The fox"]',
    "schedule.warmup_steps=2",
    "tracking.wandb=offline",
)
STORYTELLER = Path(sys.executable).parent / "storyteller"


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("main_job") / "run"


@pytest.fixture(scope="module")
def outcome(run_folder: Path) -> Outcome:
    result = run_command(train_command(2, "zero2", "--output_dir", str(run_folder), *RUN), 240)
    assert result.exit_code == 0, result.stderr
    return result


def metrics(run_folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (run_folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.usefixtures("outcome")
def test_metrics_have_the_fields_of_the_contract(run_folder: Path):
    lines = metrics(run_folder)
    train = [line for line in lines if "train_loss" in line]
    validation = [line for line in lines if "val_loss" in line]
    assert [line["step"] for line in train] == list(range(1, STEPS + 1))
    assert [line["step"] for line in validation] == [3, 6]
    expected = {"step", "tokens", "train_loss", "lr", "grad_norm", "tokens_per_s", "step_time_s"}
    router = {"expert_load", "expert_load_cv", "router_entropy", "dead_experts", "balance_loss", "z_loss"}
    assert train[0].keys() >= expected | router
    assert validation[0].keys() >= {"step", "tokens", "val_loss", "val_ppl", "val_bpb"}
    assert sum(train[0]["expert_load"]) == pytest.approx(1)
    # All scores are on the same text, unless the name says otherwise.
    assert {line["val_tokens"] for line in validation} == {8 * 64}
    finals = [{name for name in line if name.startswith("final_")} for line in validation]
    assert finals == [set(), {"final_val_loss", "final_val_ppl", "final_val_bpb"}]


@pytest.mark.usefixtures("outcome")
def test_the_folder_has_what_the_readme_says(run_folder: Path):
    config = json.loads((run_folder / "config.json").read_text())
    assert config["run"]["model"]["hidden_size"] == 64
    assert config["deepspeed"]["zero_optimization"]["stage"] == 2
    assert config["topology"] == {"world_size": 2, "ep_size": 2, "zero_stage": 2, "device": "cpu"}
    assert "## Step 6" in (run_folder / "samples.md").read_text()
    assert (run_folder / "tokenizer.json").exists()
    page = (run_folder / "report.html").read_text()
    assert "Finished after 6 steps" in page
    assert "storyteller launch --num_accelerators 2 -- --ds_config" in page
    assert [path.name for path in (run_folder / "checkpoints").iterdir()] == ["step_00000006"]


def test_every_line_goes_where_it_belongs(outcome: Outcome, run_folder: Path):
    assert f"checkpoint: {run_folder}/checkpoints/step_00000006" in outcome.stdout
    assert f"try:        storyteller generate --checkpoint {run_folder} --prompt 'One day,'\n" in outcome.stdout
    # The launcher writes to stdout; stderr has our lines and none from the libraries.
    ours = ("training a ", "tokenizing ", "quickstart: ", "DeepSpeed ZeRO-2", "600 stories, ", "step ", "saved ")
    ours += ("validating ", "generating ", "saving ", "other programs use ")  # the last if tests keep the machine busy
    for line in outcome.stderr.splitlines():
        assert line.startswith(ours), line


@pytest.mark.usefixtures("outcome")
def test_wandb_holds_the_same_numbers(run_folder: Path):
    (offline,) = (run_folder / "wandb").glob("offline-run-*")
    rows = {row["_step"]: row for row in read_history(offline)}
    lines = metrics(run_folder)
    assert len({line["step"] for line in lines}) == len(rows) == STEPS
    for line in lines:
        for field, value in line.items():
            if field != "step":
                assert rows[line["step"]][field] == value, (field, line["step"])
    assert read_config(offline)["model"]["hidden_size"] == 64


@pytest.mark.usefixtures("outcome")
def test_a_story_comes_out_without_deepspeed(run_folder: Path):
    """stdout has only the prompt and its continuation, which is the same for the same seed.

    deepspeed cannot be imported, and neither can torch's compiler, which would take longer than telling the story.
    """
    script = (
        "import sys; sys.modules['deepspeed'] = sys.modules['triton'] = sys.modules['wandb'] = None; "
        "sys.modules['torch._dynamo'] = None; "
        "from storyteller_ds.cli.main import main; main()"
    )
    arguments = ["generate", "--checkpoint", str(run_folder), "--prompt", "Once upon a time", "--max-new-tokens", "20"]
    one, two = (run_command([sys.executable, "-c", script, *arguments], 180) for _ in range(2))
    assert one.exit_code == 0, one.stderr
    assert one.stdout.startswith("Once upon a time")
    assert len(one.stdout) > len("Once upon a time") + 5
    assert one.stdout == two.stdout
    other_seed = run_command([str(STORYTELLER), *arguments, "--seed", "1"], 60)
    assert other_seed.stdout != one.stdout
    hostile = run_command([str(STORYTELLER), *arguments, "--prompt", "Once \x1b[2J"], 60)
    assert hostile.stdout.startswith("Once \\x1b[2J"), "what a terminal would obey is spelt out"


@pytest.mark.usefixtures("outcome")
def test_the_same_command_again_has_nothing_to_do(run_folder: Path):
    before = (run_folder / "metrics.jsonl").read_bytes()
    again = run_command(train_command(2, "zero2", "--output_dir", str(run_folder), *RUN), 120)
    assert again.exit_code == 0, again.stderr
    assert "already trained for 6 steps" in again.stderr
    assert (run_folder / "metrics.jsonl").read_bytes() == before


def test_a_run_that_time_ends_says_so_and_goes_on_with_more_of_it(tmp_path: Path):
    def train(*more: str) -> str:
        settings = (*RUN, "tracking.wandb=disabled", "train.sample_prompts=[]", *more)
        outcome = run_command(train_command(1, None, "--output_dir", str(tmp_path / "run"), *settings), 120)
        assert outcome.exit_code == 0, outcome.stderr
        return outcome.stderr.splitlines()[-1]

    in_warm_up = "(the warm-up was not over, schedule.warmup_steps=2)"
    reason = f"stopped by train.max_minutes=1e-06 at step 1 of 6; raise it to go on {in_warm_up}"
    assert train("train.max_minutes=1e-6") == f"training {reason}"
    assert train("train.max_minutes=1e-6") == f"already {reason}"
    assert train("train.max_minutes=60").startswith("saved ")
    assert [line["step"] for line in metrics(tmp_path / "run") if "lr" in line] == list(range(1, STEPS + 1))
