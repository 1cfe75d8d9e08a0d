"""The library in a script on two ranks: consecutive runs, an interrupt, and the same numbers as the main job."""

import json
import signal
from pathlib import Path

from tests.support.distributed import TINY_RUN
from tests.support.runs import read_metrics
from tests.support.warm_machine import MainJob, WarmMachine

STEPS = 4
SETTINGS = [*TINY_RUN, "train.sample_tokens=3", "train.eval_batches=1", "tracking.wandb=disabled"]
SCRIPT = """
import json, sys
from pathlib import Path
import torch
import storyteller_ds as st

torch.set_num_threads(1)
folder, settings = Path(sys.argv[1]), json.loads(sys.argv[2])
ended = []
for name, ds_config, steps in (("zero2", "zero2", 4), ("zero3", "zero3", 4), ("endless", "zero2", 10**6)):
    run = st.train("quickstart", [*settings, f"train.max_steps={steps}"], ds_config=ds_config, output_dir=folder / name)
    ended.append((name, run.step, run.interrupted, None if run.interrupted else run.metrics[-1]["val_loss"]))
trainer = st.Trainer(st.load_config("quickstart", settings, ds_config="zero2", ranks=2))
(folder / f"rank{trainer.world.rank}.json").write_text(json.dumps(ended))
"""


def test_runs_follow_each_other_and_an_interrupt_returns_on_every_rank(
    machine: WarmMachine, main_job: MainJob, tmp_path: Path
):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT, encoding="utf-8")
    run = machine.start(2, [str(script), str(tmp_path), json.dumps(SETTINGS)], tmp_path / "logs")
    run.wait_for_step(3, tmp_path / "endless")
    run.signal(signal.SIGINT)
    assert run.wait(120) == 0, run.stderr
    mine, other = (json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2))
    assert mine == other
    zero2, zero3, endless = mine
    assert (zero2[1:3], zero3[1:3], endless[2]) == ([STEPS, False], [STEPS, False], True)
    assert abs(zero2[3] - zero3[3]) < 1e-5 * zero2[3]
    assert (tmp_path / "endless" / "checkpoints" / f"step_{endless[1]:08d}" / "manifest.json").exists()
    by_command = main_job(tmp_path / "command", 2, "zero2", *SETTINGS, f"train.max_steps={STEPS}")
    assert read_metrics(tmp_path / "zero2") == read_metrics(by_command)
