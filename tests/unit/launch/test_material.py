"""What launch/ offers for clusters, checked as far as possible without one."""

import ast
import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from ruamel.yaml import YAML

from storyteller_ds.config import load_config
from storyteller_ds.data.corpus import open_corpus, prepare_corpus
from storyteller_ds.distributed.hostfile import read_hostfile

LAUNCH = Path(__file__).parents[3] / "launch"


def test_the_quickstart_has_room_for_whole_stories():
    (context,) = re.findall(r"model.context_length=(\d+)", (LAUNCH / "quickstart.sh").read_text())
    run = load_config("quickstart", overrides=["data.builtin_stories=300"]).run
    corpus = open_corpus(run, prepare_corpus(run, print))
    tokens = corpus.train.read(0, 80_000)
    lengths = np.diff(np.flatnonzero(tokens == corpus.tokenizer.end_of_text))
    assert len(lengths) > 200
    assert run.context_length < np.median(lengths), "else quickstart.sh need not change it"
    assert max(lengths) < int(context)


def test_the_example_is_a_good_hostfile():
    assert read_hostfile(LAUNCH / "hostfile.example") == {"node-0": 8, "node-1": 8}


@pytest.fixture
def objects() -> dict[str, dict]:
    documents = YAML(typ="safe").load_all((LAUNCH / "kubernetes" / "train.yaml").read_text())
    return {document["kind"]: document for document in documents}


def option(words: list[str], name: str) -> str:
    (value,) = [word.partition("=")[2] for word in words if word.startswith(f"--{name}=")]
    return value


def test_the_pods_of_the_job_find_each_other(objects):
    service, job = objects["Service"], objects["Job"]
    pod, name = job["spec"]["template"]["spec"], job["metadata"]["name"]
    (container,) = pod["containers"]
    assert (service["apiVersion"], job["apiVersion"]) == ("v1", "batch/v1")
    assert container["command"][0] == "torchrun"
    # Pod 0 of an Indexed Job has the name JOB-0, in the domain of the headless Service that selects it.
    host, _, port = option(container["command"], "rdzv_endpoint").partition(":")
    assert host == f"{name}-0.{service['metadata']['name']}"
    assert int(port) == service["spec"]["ports"][0]["port"]
    assert option(container["command"], "rdzv_backend") == "c10d"
    assert job["spec"]["completionMode"] == "Indexed"
    assert pod["subdomain"] == service["metadata"]["name"]
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["publishNotReadyAddresses"] is True
    assert service["spec"]["selector"] == {"job-name": name}


def test_the_job_starts_as_many_ranks_as_it_waits_for(objects):
    spec = objects["Job"]["spec"]
    (container,) = spec["template"]["spec"]["containers"]
    nodes, ranks = (option(container["command"], name) for name in ("nnodes", "nproc_per_node"))
    assert spec["completions"] == spec["parallelism"] == int(nodes)
    assert container["resources"]["limits"]["nvidia.com/gpu"] == ranks
    # A retry is a new pod that continues from the checkpoint; a container cannot rejoin by itself.
    assert spec["template"]["spec"]["restartPolicy"] == "Never"
    assert spec["backoffLimit"] >= int(nodes)
    # torchrun kills ranks that have not saved in time; only later does Kubernetes kill torchrun.
    (shutdown,) = [v["value"] for v in container["env"] if v["name"] == "TORCH_ELASTIC_SHUTDOWN_TIMEOUT"]
    assert int(shutdown) < spec["template"]["spec"]["terminationGracePeriodSeconds"]
    assert container["args"][0] == "launch/train.py"
    assert (LAUNCH.parent / container["args"][container["args"].index("--ds_config") + 1]).is_file()
    volumes = {volume["name"] for volume in spec["template"]["spec"]["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == volumes
    output = container["args"][container["args"].index("--output_dir") + 1]
    assert any(output.startswith(mount["mountPath"]) for mount in container["volumeMounts"])


@pytest.fixture
def batch(tmp_path: Path):
    """Start the batch script with stand-ins for Slurm's commands."""
    commands = tmp_path / "bin"
    commands.mkdir()

    def start(srun: str) -> subprocess.Popen:
        (commands / "srun").write_text(f'#!/bin/bash\necho "$@" > {tmp_path}/srun\n{srun}\n')
        (commands / "scontrol").write_text(f'#!/bin/bash\necho "$@" >> {tmp_path}/scontrol\n')
        for command in commands.iterdir():
            command.chmod(0o755)
        env = {**os.environ, "PATH": f"{commands}:{os.environ['PATH']}", "SLURM_JOB_ID": "77"}
        script = ["bash", str(LAUNCH / "slurm" / "train.sbatch"), "--ds_config", "a file.json", "seed=1"]
        return subprocess.Popen(script, env=env, stderr=subprocess.PIPE, text=True)

    return start


@pytest.mark.parametrize(("code", "requeued"), [(0, False), (2, False), (3, False), (137, False), (75, True)])
def test_the_batch_script_ends_as_the_ranks_do(code: int, requeued: bool, batch, tmp_path: Path):
    with batch(f"exit {code}") as script:
        assert script.wait(60) == code
    assert (tmp_path / "srun").read_text().endswith("launch/train.py --ds_config a file.json seed=1\n")
    assert (tmp_path / "scontrol").exists() == requeued


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_the_batch_script_asks_for_what_it_relies_on():
    lines = (LAUNCH / "slurm" / "train.sbatch").read_text().splitlines()
    asked = {line.split()[1] for line in lines if line.startswith("#SBATCH ")}
    assert {"--requeue", "--signal=USR1@300", "--open-mode=append"} <= asked


def test_modal_has_its_four_commands():
    tree = ast.parse((LAUNCH / "modal" / "storyteller.py").read_text())
    decorated = {
        node.name: ast.unparse(node.decorator_list[0])
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and node.decorator_list
    }
    assert set(decorated) == {"train", "generate", "upload", "download"}
    for name in ("train", "generate"):
        assert "volumes={RUNS: runs}" in decorated[name]
        assert "image=image" in decorated[name]
    for name in ("upload", "download"):
        assert decorated[name] == "app.local_entrypoint()"
    # Every part of the repository that the image takes exists.
    parts = [
        ast.unparse(node.args[0])
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in ("add_local_dir", "add_local_file")
    ]
    assert len(parts) == 4
    for part in parts:
        assert eval(part, {"repository": LAUNCH.parent}).exists(), part
