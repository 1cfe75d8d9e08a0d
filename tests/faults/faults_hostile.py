"""Files from somebody who wants this program to run, read or write what it should not."""

import json
import shutil
from pathlib import Path

from storyteller_ds.checkpoint.names import MANIFEST
from storyteller_ds.untrusted import seal_of

from .case import PAIR, SINGLE, STEPS, TINY, Case
from .faults_files import FILES
from .registry import fault
from .sealed import bombs, change_manifest, replace_sealed

NOT_RUN = "refused with exit 2 and one line; nothing in it runs"


def _refused(case: Case, marker: Path, *arguments: str, storyteller: bool = False) -> None:
    start = case.storyteller if storyteller else case.main_job
    case.ended(start(*arguments), 2, "")
    assert not marker.exists(), f"{arguments} has run the bomb"


@fault("a pickle in place of any file that a flag or a field names", NOT_RUN)
def _(case: Case) -> None:
    marker, bomb, new = case.folder / "marker", case.folder / "file", ["--output_dir", str(case.folder / "new")]
    prompt = ["--prompt", "a"]
    for content in bombs(marker).values():
        bomb.write_bytes(content)
        for field in ("data.source", "data.validation", "tokenizer.path"):
            _refused(case, marker, *new, *TINY, f"{field}={bomb}")
        for flags in (["--config", str(bomb)], ["--ds_config", str(bomb)], ["--resume", str(bomb)]):
            _refused(case, marker, *new, *TINY, *flags)
        _refused(case, marker, "generate", "--checkpoint", str(bomb), *prompt, storyteller=True)
        good = str(case.undisturbed(SINGLE))
        _refused(case, marker, "generate", "--checkpoint", good, "--prompts_file", str(bomb), storyteller=True)
        _refused(case, marker, "launch", "--hostfile", str(bomb), "--", "seed=1", storyteller=True)
        for verb in ("verify", "show"):
            _refused(case, marker, "checkpoint", verb, str(bomb), storyteller=True)
    assert not (case.folder / "new").exists()


@fault("a pickle in place of each file of a checkpoint, whose manifest agrees", NOT_RUN, quick=True)
def _(case: Case) -> None:
    marker = case.folder / "marker"
    for content in bombs(marker).values():
        for name in FILES.values():
            shutil.rmtree(case.run_folder, ignore_errors=True)
            case.copy_of_undisturbed(SINGLE, 8)
            folder = case.step_folder(8)
            replace_sealed(folder, name, content)
            new = ["--output_dir", str(case.folder / "new")]
            if name != FILES["tokenizer.json"]:  # a run makes its own from the corpus
                _refused(case, marker, *new, "--quiet", *TINY, "--resume", str(folder))
            if not name.startswith(("optimizer", "rng", "trainer")):  # generating a story does not read them
                arguments = ("generate", "--checkpoint", str(folder), "--prompt", "a", "--device", "cpu")
                _refused(case, marker, *arguments, storyteller=True)


PREPARED_AGAIN = "the corpus is prepared again, with a line that says why"


def _prepared_again(case: Case, cache: Path) -> None:
    """Check that a run that finds a hostile file in its cache prepares the corpus again."""
    run = case.main_job("--output_dir", str(case.folder / "new"), *TINY, f"data.cache_dir={cache}", "train.max_steps=1")
    case.ended(run, 0)
    assert "preparing the corpus" in run.stderr, run.stderr
    shutil.rmtree(case.folder / "new")


def _files_of(cache: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(cache.rglob("*")) if path.is_file()}


@fault("a pickle in place of each file of a prepared corpus", f"nothing in it runs; {PREPARED_AGAIN}")
def _(case: Case) -> None:
    marker, cache = case.folder / "marker", case.folder / "cache"
    assert case.train(SINGLE, f"data.cache_dir={cache}", "train.max_steps=1").code == 0
    good = _files_of(cache)
    assert len(good) >= 4
    for content in bombs(marker).values():
        for path in good:
            path.write_bytes(content)
            _prepared_again(case, cache)
            assert not marker.exists(), f"{path} has run the bomb"
            assert _files_of(cache) == good


@fault("a pickle in place of each record in a run folder", "never unpickled; exit 2 and one line, or the run continues")
def _(case: Case) -> None:
    marker = case.folder / "marker"
    for content in bombs(marker).values():
        for name in ("config.json", "metrics.jsonl", "tokenizer.json", "samples.md"):
            shutil.rmtree(case.run_folder, ignore_errors=True)
            case.copy_of_undisturbed(SINGLE, 8)
            (case.run_folder / name).write_bytes(content)
            run = case.train(SINGLE)
            assert run.code in (0, 2), f"{name}: exit {run.code}\n{run.stderr}"
            assert "Traceback" not in run.stderr, f"{name}\n{run.stderr}"
            assert not marker.exists(), name
    case.saw("exit 0 or 2")
    case.saw("nothing ran")


TRAVERSALS = ("../outside", "/etc/hostname", "sub/file", "..", ".", "", "weights-00000-of-00001.safetensors/../x")


@fault("names that lead out of the folder, in a sealed manifest", "exit 2 and one line; not opened", quick=True)
def _(case: Case) -> None:
    (case.folder / "outside").write_text("x")
    for name in TRAVERSALS:
        shutil.rmtree(case.run_folder, ignore_errors=True)
        case.copy_of_undisturbed(SINGLE, 8)
        folder = case.step_folder(8)
        entry = json.loads((folder / MANIFEST).read_text())["files"][FILES["weights"]]
        change_manifest(folder, lambda manifest, name=name, entry=entry: manifest["files"].update({name: entry}))
        line = "which is not a file of a checkpoint; do not trust it"
        run = case.main_job("--output_dir", str(case.folder / "new"), "--quiet", *TINY, "--resume", str(folder))
        case.ended(run, 2, line)


@fault("names that lead out of the folder, in a prepared corpus", f"not opened; {PREPARED_AGAIN}")
def _(case: Case) -> None:
    cache = case.folder / "cache"
    assert case.train(SINGLE, f"data.cache_dir={cache}", "train.max_steps=1").code == 0
    good = _files_of(cache)
    (index,) = cache.rglob("corpus.json")
    entries = json.loads(index.read_text())
    outside = case.folder / "outside.tokens"
    shutil.copy(next(index.parent.glob("train-*.tokens")), outside)
    for name in (f"../../{outside.name}", str(outside), "..", "a/../../../outside.tokens"):
        changed = {**entries, "train": {**entries["train"], "shards": [name]}}
        index.write_text(json.dumps({**changed, "seal": seal_of(changed)}))
        _prepared_again(case, cache)
        assert _files_of(cache) == good
    assert outside.exists()


@fault("a token shard or a tokenizer of a prepared corpus that is a link out of it", f"not followed; {PREPARED_AGAIN}")
def _(case: Case) -> None:
    cache = case.folder / "cache"
    assert case.train(SINGLE, f"data.cache_dir={cache}", "train.max_steps=1").code == 0
    good = _files_of(cache)
    for pattern in ("train-*.tokens", "tokenizer.json"):
        (path,) = cache.rglob(pattern)
        outside = case.folder / path.name
        path.rename(outside)
        path.symlink_to(outside)
        _prepared_again(case, cache)
        assert _files_of(cache) == good
        assert not path.is_symlink()
        assert outside.read_bytes() == good[path]


@fault("a hostile wandb run id in config.json", "not used as a name; nothing is written outside the run folder")
def _(case: Case) -> None:
    case.copy_of_undisturbed(SINGLE, 8)
    path = case.run_folder / "config.json"
    config = json.loads(path.read_text())
    before = sorted(each.name for each in case.folder.iterdir())
    path.write_text(json.dumps({**config, "wandb_run_id": "../../../escaped"}))
    run = case.train(SINGLE, "tracking.wandb=offline")
    assert run.code in (0, 2), run.stderr
    assert "Traceback" not in run.stderr, run.stderr
    named = [each for each in case.folder.rglob("*") if "escaped" in each.name]
    assert not named, named
    new = {each.name for each in case.folder.iterdir()} - set(before)
    assert not {name for name in new if not name.startswith("run")}, new
    case.saw("nothing outside")


@fault("dataset names and revisions that are paths or options", "exit 2 and one line; no network is asked")
def _(case: Case) -> None:
    for arguments in (
        ["data.source=owner/../../etc"],
        ["data.source=--upload-pack=x"],
        ["data.source=roneneldan/TinyStories", "data.revision=../../main"],
        ["data.source=https://example.invalid/x.pt"],
    ):
        case.ended(case.main_job("--output_dir", str(case.folder / "new"), "--quiet", *TINY, *arguments), 2, "data.")


@fault("host names that are options of ssh, in a hostfile", "exit 2 and one line; nothing is started", quick=True)
def _(case: Case) -> None:
    hostfile, marker = case.folder / "hostfile", case.folder / "marker"
    for host in (f"-oProxyCommand=touch${{IFS}}{marker}", "a;touch", "$(id)", "-x"):
        hostfile.write_text(f"{host} slots=1\nlocalhost slots=1\n")
        _refused(case, marker, "launch", "--hostfile", str(hostfile), "--", "seed=1", storyteller=True)


@fault("secrets in the environment", "not in config.json, any record, or the output")
def _(case: Case) -> None:
    secret = "9f3c5d2e7a61b804"
    names = ("HF_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "DB_PASSWORD")
    case.ended(case.train(PAIR, env=dict.fromkeys(names, secret), quiet=False), 0)
    run = case.runs[-1]
    assert secret not in run.stdout + run.stderr
    found = [path for path in case.run_folder.rglob("*") if path.is_file() and secret.encode() in path.read_bytes()]
    assert not found, found
    assert case.step_folder(STEPS).is_dir()
    case.saw("nowhere")
