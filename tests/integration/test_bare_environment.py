"""An environment with the package's requirements and none of its extras: no deepspeed, triton or transformers."""

import sysconfig
import venv
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support.distributed import REPOSITORY, SMALLEST_RUN, Outcome, run_command

EXTRAS = (
    *("deepspeed", "triton", "wandb", "tensorboard", "mlflow", "datasets", "numba", "gguf", "transformers", "optuna"),
)
PROMPT = "Once upon a time"


def needed(package: str, found: set[str]) -> set[str]:
    """All distributions that a distribution needs without extras, including itself."""
    name = canonicalize_name(package)
    if name in found or name in EXTRAS:
        return found
    found.add(name)
    for line in metadata.requires(name) or []:
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            needed(requirement.name, found)
    return found


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a virtual environment that links to the distributions installed here."""
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder, symlinks=True)
    site = Path(sysconfig.get_path("purelib", "venv", {"base": str(folder), "platbase": str(folder)}))
    for package in (REPOSITORY / "storyteller_ds", REPOSITORY / "kernels" / "storyteller_kernels"):
        (site / package.name).symlink_to(package)
    for name in needed("storyteller_ds", set()) - {"storyteller-ds"}:
        for file in metadata.files(name) or []:
            top = site / file.parts[0]
            if file.parts[0] not in ("..", "__pycache__") and not top.exists():
                top.symlink_to(metadata.distribution(name).locate_file(file.parts[0]))
    return folder / "bin" / "python"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


def run(python: Path, home: Path, *arguments: str) -> Outcome:
    command = ["env", "--unset", "PYTHONPATH", "-C", str(home), str(python), *arguments]
    return run_command(command, 120, {"STORYTELLER_CACHE": str(home / "cache"), "OMP_NUM_THREADS": "1"})


def storyteller(python: Path, home: Path, *words: str) -> Outcome:
    return run(python, home, "-m", "storyteller_ds", *words)


@pytest.fixture(scope="module")
def trained(python: Path, home: Path) -> Path:
    overrides = [
        *SMALLEST_RUN, "data.builtin_stories=60", "tokenizer.kind=bpe", "tokenizer.vocab_size=300", "moe.num_experts=0",
        "train.max_steps=2", "data.sequence_length=64",
    ]  # fmt: skip
    done = storyteller(python, home, "train", "--config", "tiny_test", "--output_dir", "run", *overrides)
    assert done.exit_code == 0, done.stderr
    return home / "run"


def story(python: Path, home: Path, checkpoint: str) -> str:
    words = ["generate", "--checkpoint", checkpoint, "--prompt", PROMPT, "--max_new_tokens", "12", "--temperature", "0"]
    done = storyteller(python, home, *words)
    assert done.exit_code == 0, done.stderr
    assert done.stdout.startswith(PROMPT)
    return done.stdout


@pytest.mark.parametrize("name", EXTRAS)
def test_it_is_bare(python, home, name):
    assert "ModuleNotFoundError" in run(python, home, "-c", f"import {name}").stderr


def test_it_trains_tells_exports_and_imports(python, home, trained):
    export, imported = str(home / "export"), str(home / "imported")
    done = storyteller(python, home, "export", "--checkpoint", str(trained), "--to", "hf", "--output", export)
    assert done.exit_code == 0, done.stderr
    done = storyteller(python, home, "import", "--from", "hf", "--model", export, "--output_dir", imported)
    assert done.exit_code == 0, done.stderr
    assert story(python, home, imported) == story(python, home, export) == story(python, home, str(trained))


def test_what_needs_a_package_names_it(python, home, trained):
    words = ["export", "--checkpoint", str(trained), "--to", "gguf", "--output", str(home / "gguf")]
    done = storyteller(python, home, *words)
    assert done.exit_code == 2
    assert "pip install gguf" in done.stderr
    assert not (home / "gguf").exists()


def test_a_model_of_llama2c_comes_and_goes(python, home, shared_folder):
    model, tokens = (str(shared_folder / "models" / name) for name in ("stories260K.bin", "tok512.bin"))
    files = ["--model", model, "--tokenizer", tokens, "--output_dir", str(home / "stories260K")]
    done = storyteller(python, home, "import", "--from", "llama2c", *files)
    assert done.exit_code == 0, done.stderr
    assert "there was a little girl named" in story(python, home, str(home / "stories260K"))
    words = ["--checkpoint", str(home / "stories260K"), "--to", "llama2c", "--output", str(home / "back")]
    done = storyteller(python, home, "export", *words)
    assert done.exit_code == 0, done.stderr
    assert (home / "back" / "model.bin").read_bytes() == Path(model).read_bytes()
