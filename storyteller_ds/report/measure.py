"""What a report shows beyond the records of training: the evaluation of the checkpoint and the atlas of its experts."""

from collections.abc import Callable
from pathlib import Path

import torch

from storyteller_ds.atlas import report as atlas_report
from storyteller_ds.atlas.atlas import make_atlas
from storyteller_ds.durable import write_atomically
from storyteller_ds.evaluation import report as evaluation_report
from storyteller_ds.evaluation.evaluate import Asked, evaluate
from storyteller_ds.generation.sampling import SamplingConfig
from storyteller_ds.records.run_folder import ATLAS, EVALUATION, written_record
from storyteller_ds.report.run_records import read_run

_STORIES, _TOKENS, _ATLAS_TOKENS, _KNOCK_OUT_TOKENS = 32, 200, 100_000, 10_000
_TEMPERATURE = 0.8


def measure(folder: Path, device: torch.device, log: Callable[[str], None]) -> None:
    """Evaluate the newest step of a run and, if it has experts, make their atlas; writes both to the run folder.

    Like `storyteller evaluate` and `storyteller atlas`, on the text that the run was validated on.

    Raises:
        UserError: the checkpoint or its text cannot be used, or a file cannot be written.
    """
    sampling = SamplingConfig(temperature=_TEMPERATURE, seed=0, max_new_tokens=_TOKENS)
    evaluated = evaluate(folder, Asked(None, _STORIES, sampling, None), device, log)
    with written_record(folder / EVALUATION):
        write_atomically(folder / EVALUATION, evaluation_report.as_json([evaluated]))
    if read_run(folder).layers:
        atlas = make_atlas(folder, None, _ATLAS_TOKENS, _KNOCK_OUT_TOKENS, device, log)
        with written_record(folder / ATLAS):
            write_atomically(folder / ATLAS, atlas_report.as_json(atlas))
