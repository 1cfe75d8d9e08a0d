"""Imported once by the process from which all CPU ranks are forked, so that none of them waits for its imports.

Importing torch and DeepSpeed takes ten times as long as training the row. Nothing is computed here: after the first
parallel loop of OpenMP or the first backward pass a process must not be forked.
"""

import contextlib
import importlib
import os

os.environ["DS_ACCELERATOR"] = "cpu"

_MODULES = (
    "storyteller_ds.certify.rank",
    "torch._dynamo",  # torch imports it with the first optimizer
    "storyteller_ds.engines.deepspeed.engine",
    "storyteller_ds.engines.deepspeed.expert_parallel",
    "storyteller_ds.engines.deepspeed.autoep",
    "deepspeed.runtime.zero.stage3",
    # Imports torch's compiler, and DeepSpeed imports it to see whether the optimizer is one of its own.
    "deepspeed.runtime.zero.muon.muon_optimizer",
)

for _name in _MODULES:
    # Without DeepSpeed the rows of one process still run.
    with contextlib.suppress(ImportError):
        importlib.import_module(_name)
