"""What must not be needed at all; import-linter's list in pyproject.toml says which package may import which."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]


def run_python(code: str, cwd: Path = REPOSITORY) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=cwd, env=env, check=False
    )


BLOCKED = """
import sys
for name in ("deepspeed", "triton", "wandb", "datasets", "optuna"):
    sys.modules[name] = None  # import raises ImportError
"""


def test_generating_and_training_on_one_device_need_no_optional_package():
    done = run_python(
        BLOCKED
        + """
import storyteller_ds.cli.main, storyteller_ds.cli.config, storyteller_ds.training.trainer
import storyteller_ds.generation.load, storyteller_ds.generation.decode, storyteller_ds.training.callbacks.samples
from storyteller_ds.config import RunConfig
from storyteller_ds.generation.decode import generate_ids
from storyteller_ds.generation.sampling import SamplingConfig
from storyteller_ds.engines.single import SingleEngine
from storyteller_ds.distributed.world import World
import torch
run = RunConfig.model_validate({
    "model": {"hidden_size": 8, "num_layers": 1, "num_heads": 2, "intermediate_size": 8},
    "data": {"sequence_length": 8}, "tokenizer": {"vocab_size": 8}})
engine = SingleEngine(run, World(0, 0, 1, 1), torch.device("cpu"))
engine.decoder.eval()
print(len(list(generate_ids(engine.decoder, run, [1], SamplingConfig(max_new_tokens=5), None))))
"""
    )
    assert (done.returncode, done.stdout.strip()) == (0, "5"), done.stderr
    # Control: blocked packages cannot be imported.
    assert "ModuleNotFoundError" in run_python(BLOCKED + "import deepspeed").stderr


def test_help_comes_without_loading_torch():
    done = run_python(
        "import sys, storyteller_ds.cli.main, storyteller_ds.config\n"
        "print([n for n in ('torch', 'deepspeed', 'wandb', 'datasets', 'optuna', 'matplotlib') if n in sys.modules])"
    )
    assert done.stdout.strip() == "[]", done.stderr


def test_nothing_is_called_kernels_but_a_folder():
    assert not (REPOSITORY / "kernels" / "__init__.py").exists()
    assert not (REPOSITORY / "kernels.py").exists()
    assert not (REPOSITORY / "tests" / "kernels").exists()
    # From anywhere else the name is free: the package is storyteller_kernels.
    code = "import importlib.util, storyteller_kernels; print(importlib.util.find_spec('kernels'))"
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    command = [sys.executable, "-P", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=REPOSITORY, env=env, check=False)
    spec = done.stdout.strip()
    assert done.returncode == 0, done.stderr
    assert str(REPOSITORY) not in spec, spec


def test_the_kernels_folder_does_not_fool_transformers():
    # With the repository on the path, the folder is a namespace package; transformers must not be misled by it.
    pytest.importorskip("transformers")
    done = run_python(
        "import importlib.util\n"
        "spec = importlib.util.find_spec('kernels')\n"
        "print(spec is not None and spec.origin is None)\n"
        "from transformers.utils import is_kernels_available\n"
        "print(is_kernels_available())\n"
        "from transformers import LlamaForCausalLM, MixtralForCausalLM\n"
    )
    assert done.returncode == 0, done.stderr
    namespace, available = done.stdout.split()
    if namespace == "True":
        assert available == "False"
