"""lm-eval on an export gives the same bits per byte as the model itself."""

import json
import math
import sys
from pathlib import Path

import pytest
import torch

from storyteller_ds import load, train
from storyteller_ds.generation.decode import prompt_ids
from storyteller_ds.interchange.export import export_model
from tests.support.distributed import run_command
from tests.support.small_runs import SMALLEST

pytest.importorskip("lm_eval", reason="needs pip install lm_eval[hf]")
pytest.importorskip("transformers")

STORIES = ["Once upon a time there was a cat.", 'One day, Tim said: "Look, a dog!"']
TASK = """
task: stories
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{text}}}}"
metric_list: [{{metric: bits_per_byte}}]
"""
PROGRAM = """
import json, sys
import lm_eval
from lm_eval.tasks import TaskManager

tasks = TaskManager(include_path=sys.argv[2], include_defaults=False)
# Of a whole text it scores the tokens behind the first, which it puts before the text itself.
arguments = {"pretrained": sys.argv[1], "dtype": "float32", "add_bos_token": False}
found = lm_eval.simple_evaluate("hf", arguments, tasks=["stories"], task_manager=tasks, device="cpu", batch_size=1)
print(json.dumps(found["results"]["stories"]["bits_per_byte,none"]))
"""


def test_a_local_task(tmp_path: Path):
    settings = {
        **SMALLEST,
        "data.builtin_stories": 60,
        "data.sequence_length": 80,
        "tokenizer.kind": "bpe",
        "tokenizer.vocab_size": 300,
    }
    model = load(train("tiny_test", settings, output_dir=tmp_path / "run").folder, "cpu")
    export_model(model, tmp_path / "export", "hf", "fp32")
    (tmp_path / "tasks").mkdir()
    (tmp_path / "stories.json").write_text("".join(json.dumps({"text": story}) + "\n" for story in STORIES))
    (tmp_path / "tasks" / "stories.yaml").write_text(TASK.format(data=json.dumps(str(tmp_path / "stories.json"))))
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
    arguments = [str(tmp_path / "export"), str(tmp_path / "tasks")]
    done = run_command([sys.executable, "-c", PROGRAM, *arguments], 120, offline)
    assert done.exit_code == 0, done.stderr
    nats = 0.0
    for story in STORIES:
        ids = prompt_ids(model.tokenizer, story)
        with torch.no_grad():
            logits_SV = model.decoder(torch.tensor([ids]))[0][0, :-1]
        nats += float(torch.nn.functional.cross_entropy(logits_SV, torch.tensor(ids[1:]), reduction="sum"))
    expected = nats / math.log(2) / sum(len(story.encode()) for story in STORIES)
    assert json.loads(done.stdout.splitlines()[-1]) == pytest.approx(expected, rel=1e-4)
