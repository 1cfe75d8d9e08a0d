"""What may be imported from where, and what must not be needed at all."""

import ast
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
PACKAGE = REPOSITORY / "storyteller_ds"
# The one list of layers is import-linter's (`make check`), from the last to the first.
CONTRACTS = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"][
    "contracts"
]
LAYERS, _, WITHOUT_DEEPSPEED = CONTRACTS
NO_LAYERS = {
    "__init__": "holds the version",
    "__main__": "calls the command line",
    "presets": "has no code",
    "testing": "is only the tests'",
}


def imported(path: Path) -> set[str]:
    """Modules that a file imports, at the top or inside of functions."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def run_python(code: str, cwd: Path = REPOSITORY) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=cwd, env=env, check=False
    )


def in_package(modules: list[str]) -> list[str]:
    return [name.removeprefix("storyteller_ds.") for name in modules]


def code_of(name: str) -> list[Path]:
    """The files of a module or package of ours."""
    path = PACKAGE / name.replace(".", "/")
    return sorted(path.rglob("*.py")) if path.is_dir() else [path.with_suffix(".py")]


def wrong_imports(layers: list[str], imports: dict[str, set[str]]) -> list[str]:
    """Imports from a layer of one before it in the list; `imports` are the modules that each layer imports."""
    return [
        f"{layer} imports {name}"
        for number, layer in enumerate(layers)
        for name in sorted(imports[layer])
        if name.startswith(tuple(f"storyteller_ds.{later}" for later in [*layers[:number], "testing"]))
    ]


def test_every_folder_and_file_has_its_place_in_the_list_of_layers():
    entries = {
        path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path.is_dir() and "." not in path.name)
    }
    layers = in_package(LAYERS["layers"])
    assert len(set(layers)) == len(layers)
    assert set(layers) | set(NO_LAYERS) == entries - {"__pycache__"}
    assert not set(layers) & set(NO_LAYERS)


def test_imports_point_one_way():
    layers = in_package(LAYERS["layers"])
    imports = {layer: set().union(*map(imported, code_of(layer))) for layer in layers}
    assert wrong_imports(layers, imports) == []
    # Control: each of these would be found, and the other way round each is fine.
    for first, last in (("config", "data"), ("errors", "evaluation"), ("redaction", "testing")):
        assert wrong_imports(layers, {**imports, first: {f"storyteller_ds.{last}.x"}}) == [
            f"{first} imports storyteller_ds.{last}.x"
        ]
        if last in layers:
            assert wrong_imports(layers, {**imports, last: {f"storyteller_ds.{first}.x"}}) == []


def test_the_kernels_import_nothing_of_ours():
    paths = list((REPOSITORY / "kernels" / "storyteller_kernels").rglob("*.py"))
    assert paths
    for path in paths:
        assert not [name for name in imported(path) if name.startswith("storyteller_ds")], path


def test_some_parts_never_mention_deepspeed():
    assert WITHOUT_DEEPSPEED["forbidden_modules"] == ["deepspeed"]
    parts = in_package(WITHOUT_DEEPSPEED["source_modules"])
    assert {"parallel.single", "inference"} <= set(parts)
    for path in [path for part in parts for path in code_of(part)]:
        assert path.is_file()
        assert not [name for name in imported(path) if name.split(".")[0] == "deepspeed"], path
    # Control: the search finds it where it is allowed.
    assert "deepspeed.moe.layer" in imported(PACKAGE / "parallel" / "expert_parallel.py")


BLOCKED = """
import sys
for name in ("deepspeed", "triton", "wandb", "datasets"):
    sys.modules[name] = None  # import raises ImportError
"""


def test_generating_and_training_on_one_device_need_no_optional_package():
    done = run_python(
        BLOCKED
        + """
import storyteller_ds.cli.main, storyteller_ds.cli.config, storyteller_ds.cli.telling, storyteller_ds.cli.training
import storyteller_ds.inference.load, storyteller_ds.inference.generate, storyteller_ds.inference.samples
from storyteller_ds.config import RunConfig
from storyteller_ds.inference.generate import generate_ids
from storyteller_ds.inference.sampling import SamplingConfig
from storyteller_ds.parallel.single import SingleEngine
from storyteller_ds.parallel.world import World
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
    # Control: the block does block.
    assert "ModuleNotFoundError" in run_python(BLOCKED + "import deepspeed").stderr


def test_help_comes_without_loading_torch():
    done = run_python(
        "import sys, storyteller_ds.cli.main, storyteller_ds.config\n"
        "print([n for n in ('torch', 'deepspeed', 'wandb', 'datasets') if n in sys.modules])"
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
    # With the repository on the path the folder is a namespace package; transformers must see through it.
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
