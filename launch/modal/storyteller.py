"""The main job on Modal (modal.com): train and tell stories there, and copy run folders to and from it.

    pip install modal && modal setup
    modal run launch/modal/storyteller.py::train --arguments "--output_dir /runs/mine --config fast_train"
    modal run launch/modal/storyteller.py::generate --arguments "--checkpoint /runs/mine --prompt 'Once upon a time'"
    modal run launch/modal/storyteller.py::upload --folder runs/mine --name mine
    modal run launch/modal/storyteller.py::download --name mine --folder runs/mine

Run folders are in the volume `storyteller-runs`, under /runs in the containers. STORYTELLER_GPU says which GPUs train,
with one rank per GPU (`H100:8`; the default is one A10). A container that Modal preempts is replaced, and training
continues from the last checkpoint.
"""

import os
import shlex
import subprocess
from pathlib import Path, PurePosixPath

import modal
from modal.volume import FileEntryType

VOLUME = "storyteller-runs"
RUNS = "/runs"
WORKSPACE = "/workspace"
GPU = os.environ.get("STORYTELLER_GPU", "A10:1")
HOURS = 3600

app = modal.App("storyteller")
runs = modal.Volume.from_name(VOLUME, create_if_missing=True)


def _image() -> modal.Image:
    """The image for the containers, with the repository as it is on this machine."""
    if not modal.is_local():
        return modal.Image.debian_slim()  # in a container: already built, and this file has no repository
    repository = Path(__file__).resolve().parents[2]
    return (
        modal.Image.debian_slim(python_version="3.11")
        .pip_install_from_pyproject(
            str(repository / "pyproject.toml"), optional_dependencies=["deepspeed", "gpu", "hub"]
        )
        .env({"PYTHONPATH": f"{WORKSPACE}:{WORKSPACE}/kernels", "STORYTELLER_CACHE": f"{RUNS}/.cache"})
        .workdir(WORKSPACE)
        .add_local_dir(repository / "storyteller_ds", f"{WORKSPACE}/storyteller_ds", ignore=["**/__pycache__"])
        .add_local_dir(repository / "kernels", f"{WORKSPACE}/kernels", ignore=["**/__pycache__"])
        .add_local_dir(repository / "ds_configs", f"{WORKSPACE}/ds_configs")
        .add_local_file(repository / "launch" / "train.py", f"{WORKSPACE}/launch/train.py")
    )


image = _image()


@app.function(
    image=image,
    gpu=GPU,
    volumes={RUNS: runs},
    timeout=24 * HOURS,
    retries=modal.Retries(max_retries=3, initial_delay=0.0),
)
def train(arguments: str) -> None:
    """Train with one rank for each GPU.

    Args:
        arguments: arguments of launch/train.py, as one string; --output_dir below /runs. Without --ds_config: zero2.

    Raises:
        subprocess.CalledProcessError: training ended with a nonzero exit code.
    """
    given = shlex.split(arguments)
    if not any(word.partition("=")[0] == "--ds_config" for word in given):
        given = ["--ds_config", "ds_configs/zero2.json", *given]
    ranks = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True, check=True)
    command = ["deepspeed", "--num_accelerators", str(len(ranks.stdout.splitlines())), "launch/train.py", *given]
    try:
        subprocess.run(command, check=True)
    finally:
        runs.commit()


@app.function(image=image, gpu="T4", volumes={RUNS: runs}, timeout=HOURS)
def generate(arguments: str) -> None:
    """Tell stories.

    Args:
        arguments: arguments of `storyteller generate`, as one string; --checkpoint below /runs.

    Raises:
        subprocess.CalledProcessError: it ended with a nonzero exit code.
    """
    subprocess.run(["python", "-m", "storyteller_ds", "generate", *shlex.split(arguments)], check=True)


@app.local_entrypoint()
def upload(folder: str, name: str) -> None:
    """Copy a run folder, or a step folder, of this machine to /runs/NAME."""
    if not Path(folder).is_dir():
        raise SystemExit(f"{folder} is not a folder; give one that training or `storyteller import` has written")
    with runs.batch_upload() as batch:
        batch.put_directory(folder, f"/{name}")
    print(f"{folder} is now {RUNS}/{name}")


@app.local_entrypoint()
def download(name: str, folder: str) -> None:
    """Copy /runs/NAME to a new folder of this machine; the sums in its manifests are checked when it is used."""
    target = Path(folder)
    if target.exists():
        raise SystemExit(f"{folder} exists; give a folder that does not")
    for entry in runs.iterdir(f"/{name}", recursive=True):
        if entry.type == FileEntryType.FILE:
            path = target / PurePosixPath(entry.path.lstrip("/")).relative_to(name)
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("wb") as file:
                runs.read_file_into_fileobj(entry.path, file)
    print(f"{RUNS}/{name} is now {folder}")
