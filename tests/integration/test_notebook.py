"""The README's code in a notebook: cells in order, an interrupt, and a continued run."""

import os
import signal
import threading
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.support.distributed import wait_until
from tests.support.runs import read_metrics
from tests.support.small_runs import SMALLEST

SETTINGS = {**SMALLEST, "data.builtin_stories": 60, "data.sequence_length": 32, "train.eval_every_steps": 0}
CELLS = [
    "import storyteller_ds as st",
    f"small = {SETTINGS!r}",
    'run = st.train("tiny_test", {**small, "train.max_steps": 4}, output_dir="runs/nb")\n'
    'run.metrics[-1]["val_bpb"], run.checkpoint',
    'story = st.load("runs/nb")\nprint(story.generate("Once upon a time", temperature=0.8, seed=1))',
    'for piece in story.stream("One day,"):\n    print(piece, end="")',
    "class Loud(st.Callback):\n    def on_eval(self, record):\n        print(record['val_loss'])\n\n"
    'config = st.load_config("tiny_test", {**small, "train.max_steps": 2, "optimizer.lr": 1e-3})\n'
    'st.Trainer(config, output_dir="runs/x", callbacks=[Loud()]).fit()',
    'run = st.train("tiny_test", {**small, "train.max_steps": 100_000}, output_dir="runs/long")\n'
    "print(run.interrupted, run.checkpoint.name == f'step_{run.step:08d}')",
    'again = st.train("tiny_test", {**small, "train.max_steps": run.step + 2}, output_dir="runs/long")\n'
    "print(again.interrupted, again.step - run.step)",
]
INTERRUPTED = 6
"""Index of the cell whose run would never end."""


@pytest.fixture
def notebook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> NotebookClient:
    monkeypatch.setenv("STORYTELLER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "jupyter"))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    folder = tmp_path / "a folder"
    folder.mkdir()
    cells = [nbformat.v4.new_code_cell(source) for source in CELLS]
    document = nbformat.v4.new_notebook(cells=cells)
    return NotebookClient(document, timeout=240, kernel_name="python3", resources={"metadata": {"path": str(folder)}})


def printed(cell: nbformat.NotebookNode) -> str:
    return "".join(each.text for each in cell.outputs if each.output_type == "stream" and each.name == "stdout")


def test_a_notebook_trains_tells_and_can_be_interrupted(notebook: NotebookClient, tmp_path: Path):
    run = tmp_path / "a folder" / "runs" / "long"

    def interrupt() -> None:
        assert wait_until(lambda: (run / "metrics.jsonl").exists() and len(read_metrics(run)) > 2, 200)
        os.kill(notebook.km.provisioner.pid, signal.SIGINT)  # what the interrupt button does

    person = threading.Thread(target=interrupt)
    with notebook.setup_kernel():
        for number, cell in enumerate(notebook.nb.cells):
            if number == INTERRUPTED:
                person.start()
            notebook.execute_cell(cell, number)
    person.join(10)
    cells = notebook.nb.cells
    assert "step_00000004" in cells[2].outputs[-1].data["text/plain"]
    assert printed(cells[3]).startswith("Once upon a time")
    assert printed(cells[4]).startswith("One day,")
    assert float(printed(cells[5])) > 0
    assert printed(cells[INTERRUPTED]) == "True True\n"
    assert printed(cells[-1]) == "False 2\n"
    # Plain lines, and no progress bar that redraws itself.
    assert not any("\x1b" in each.text for cell in cells for each in cell.outputs if each.output_type == "stream")
    assert not any(each.output_type == "error" for cell in cells for each in cell.outputs)
