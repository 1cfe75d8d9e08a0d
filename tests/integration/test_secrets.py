"""Secrets in environment variables reach no file of a run, no terminal, no error and no remote command line."""

import json
import os
import sys
from pathlib import Path

import pytest

from storyteller_ds.cli.main import run_command, storyteller
from storyteller_ds.config import load_config
from storyteller_ds.distributed.hostfile import check_arguments, check_environment_file, check_exported_environment
from storyteller_ds.errors import ConfigError, DataError
from storyteller_ds.redaction import is_secret_name, redacted, secret_in
from tests.support.distributed import SMALLEST_RUN, train_command
from tests.support.distributed import run_command as run_process

SECRETS = {
    name: f"sentinel{number:02d}{'0123456789abcdef' * 2}"
    for number, name in enumerate(
        (
            "HF_TOKEN",
            "WANDB_API_KEY",
            "AWS_SECRET_ACCESS_KEY",
            "DB_PASSWORD",
            "GITHUB_TOKEN",
            "OPENAI_API_KEY",
            "GOOGLE_APPLICATION_CREDENTIALS_JSON",
            "my_secret",
        )
    )
}
"""42 characters each: a Weights & Biases key has 40 or more."""


def with_sentinels(folder: Path) -> list[Path]:
    """Files that contain a secret, or enough of it to recognize."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files
    return [path for path in files if b"sentinel0" in path.read_bytes()]


LIMITED = """
import os, resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
os.execv(sys.argv[1], sys.argv[1:])
"""


@pytest.mark.timeout(600)
@pytest.mark.parametrize("fails", [False, True])
def test_nothing_of_a_run_holds_a_secret(tmp_path, fails):
    pytest.importorskip("wandb")
    text = tmp_path / "good.txt"
    text.write_text("\n\n".join(f"There was a dog called Rex {i}." for i in range(30)))
    settings = [*SMALLEST_RUN, "train.max_steps=2", f"data.source={text}", "tracking.wandb=offline"]
    command = train_command(1, None, "--output_dir", str(tmp_path / "run"), *settings)
    if fails:  # at the end: the checkpoint exceeds the limit on file size
        command = [sys.executable, "-c", LIMITED, *command]
    env = {**SECRETS, "STORYTELLER_CACHE": str(tmp_path / "cache"), "WANDB_CONFIG_DIR": str(tmp_path / "wandb_config")}
    done = run_process(command, 500, env={**env, "WANDB_CACHE_DIR": str(tmp_path / "wandb_cache")})
    assert fails == ("could not be written" in done.stderr)
    assert (done.exit_code == 0) == (not fails), done.stderr
    assert "sentinel0" not in done.stdout + done.stderr
    assert with_sentinels(tmp_path) == []
    # Control: every file that could contain a secret exists, and the search finds a leak.
    assert (tmp_path / "run" / "config.json").is_file()
    assert list((tmp_path / "run" / "wandb").rglob("*.wandb"))
    (tmp_path / "run" / "leak").write_text(f"Authorization: Bearer {SECRETS['HF_TOKEN']}")
    assert with_sentinels(tmp_path) == [tmp_path / "run" / "leak"]


@pytest.fixture
def secrets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, str]:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    return SECRETS


def error_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["storyteller", *arguments])
        with pytest.raises(SystemExit) as stop:
            run_command(storyteller)
    assert stop.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "sentinel0" not in err
    return err


def test_a_secret_in_a_config_is_refused_by_its_name(secrets, capsys, tmp_path):
    token = secrets["HF_TOKEN"]
    assert "tracking.project holds the value of HF_TOKEN" in error_of(capsys, "train", f"tracking.project=x-{token}")
    assert "holds the value of HF_TOKEN" in error_of(capsys, "train", f"train.sample_prompts=[a, {token}]")
    (tmp_path / "run.yaml").write_text(f"data: {{source: 'https://me:{token}@host/x.txt'}}")
    assert "data.source holds the value of HF_TOKEN" in error_of(capsys, "train", "--config", "run.yaml")
    (tmp_path / "ds.json").write_text(f'{{"csv_monitor": {{"job_name": "{token}"}}}}')
    assert "ds.json holds the value of HF_TOKEN" in error_of(capsys, "train", "--ds_config", "ds.json")


@pytest.mark.parametrize("password", ["o'Brien\"s_pa55word", "pa55\\\\word", "pa55w\u00f6rd", "00012345678"])
def test_a_secret_is_found_however_json_and_repr_would_write_it(monkeypatch, tmp_path, password):
    monkeypatch.setenv("HF_TOKEN", password)
    (tmp_path / "ds.json").write_text(json.dumps({"csv_monitor": {"job_name": password}}))
    for settings in ([f"tracking.run_name={password}"], [f"train.sample_prompts=[a, {password}]"]):
        with pytest.raises(ConfigError, match="holds the value of HF_TOKEN"):
            load_config("tiny_test", overrides=settings)
    with pytest.raises(ConfigError, match=r"ds\.json holds the value of HF_TOKEN"):
        load_config("tiny_test", ds_config=tmp_path / "ds.json")


def test_a_path_is_no_secret(tmp_path):
    path = str(tmp_path / "K7MDENGbPxRfiCYEXAMPLE" / "key.json")
    assert secret_in(path, {"SOME_KEY": path}) is None


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "train.max_steps={}"],
        ["train", "{}=1"],
        ["train", "{}"],
        ["train", "--config", "{}"],
        ["train", "--ds_config", "{}"],
        ["train", "--no_such_option={}"],
        ["{}"],
        ["generate", "--prompt", "x", "--checkpoint", "{}"],
        ["generate", "--prompts_file", "{}", "--checkpoint", "x"],
        ["launch", "--hostfile", "{}"],
        ["launch", "--include", "{}"],
    ],
)
def test_an_error_does_not_repeat_a_secret(secrets, capsys, arguments):
    error_of(capsys, *(each.format(secrets["WANDB_API_KEY"]) for each in arguments))


def test_redaction_replaces_values_and_cuts_users_out_of_addresses():
    environment = {"A_TOKEN": "Abcdefg1", "A_KEY": "Abcdefg1ij", "SHORT_KEY": "Ab1", "HOME": "/home/somebody"}
    assert redacted("x Abcdefg1ij y Abcdefg1 z Ab1", environment) == "x [A_KEY] y [A_TOKEN] z Ab1"
    assert redacted("at /home/somebody", environment) == "at /home/somebody"
    assert redacted("see https://user:pass@host/path and ssh://me@host", {}) == "see https://host/path and ssh://host"
    assert secret_in("-Abcdefg1ij-", environment) == "A_KEY"
    assert secret_in("harmless", environment) is None


def test_errors_are_redacted(secrets):
    error = DataError(f"the library said: bad token {secrets['HF_TOKEN']}\nat https://u:p@hub/x\x1b[2J")
    assert str(error) == "the library said: bad token [HF_TOKEN] at https://hub/x\\x1b[2J"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        *((name, True) for name in SECRETS),
        ("AZURE_CLIENT_SECRET", True),
        ("PGPASSWORD", True),
        ("GPG_PASSPHRASE", True),
        ("MLFLOW_TRACKING_TOKEN", True),
        ("TOKENIZERS_PARALLELISM", False),
        ("PYTHONPATH", False),
        ("KEYBOARD_LAYOUT", False),
        ("KEYTIMEOUT", False),
        ("PYTHON_KEYRING_BACKEND", False),
        ("MONKEY", False),
        ("SSH_AUTH_SOCK", False),
        ("XDG_SESSION_ID", False),
        ("APIKEY", True),
        ("ssh_keys", True),
        ("KEY1", True),
        ("HOME", False),
    ],
)
def test_names_of_secrets(name, expected):
    assert is_secret_name(name) is expected


# Made-up keys in the services' formats, and passwords.
KEYS = [
    "0123456789abcdef0123456789abcdef01234567",  # Weights & Biases
    "hf_AbCdEfGhIjKlMnOpQrStUvWxYzAbCdEfGh",  # Hugging Face, which can lack digits by chance
    "sk-proj-a1B2c3D4e5F6g7H8i9J0",
    "ghp_16C7e42F292c6912E7710c838347Ae178B4a",
    "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",  # AWS
    "/K7MDENGbPxRfiCYEXAMPLEKEYwJalrXUtnFEMI+",
    "AKIAIOSFODNN7EXAMPLE",
    "f47ac10b-58cc-4372-a567-0e02b2c3d479",
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.dozjgNryP4J3jVmNHl0w5N",  # JSON web token
    "xoxb-1234-5678-AbCdEf1234567890",
    "glpat-x7Yz9Kq2Lm4Np6Rs8TvW",
    "Tr0ub4dor&3",
    "Hunter22",
    "s3cr3t!pw",
    "correcthorsebatterystaple",
]
# Harmless values of variables named KEY or TOKEN.
WORDS = [
    "training",
    "storyteller",
    "postgres",
    "disabled",
    "tinystories",
    "roneneldan/TinyStories",
    "HuggingFaceTB/SmolLM-135M",
    "gpt2-small",
    "gpt2-small-lr3e-4-bs32",
    "linux-py3.11-v2",
    "train2024",
    "2025-01-05",
    "keyring.backends.null.Keyring",
    "Once upon a time",
    "validation-of-all-the-stories",
    "internationalization",
]


@pytest.mark.parametrize("value", KEYS)
def test_a_key_is_found_whatever_its_variable_is_called(value):
    for name in ("WANDB_API_KEY", "SOME_TOKEN", "DB_PASSWORD"):
        for text in (value, f"x-{value}", f"https://me:{value}@host/x", f"{{'a': '{value}'}}", f"a%3D{value}\\n"):
            assert secret_in(text, {name: value}) == name
            assert value not in redacted(text, {name: value})


@pytest.mark.parametrize("value", WORDS)
def test_a_word_is_no_secret_but_in_a_variable_known_to_hold_one(value):
    for name in ("RUN_KEY", "SOME_TOKEN", "POSTGRES_PASSWORD"):
        assert secret_in(f"runs/{value}", {name: value}) is None
        assert redacted(f"runs/{value}", {name: value}) == f"runs/{value}"
    assert secret_in(f"runs/{value}", {"HF_TOKEN": value}) == "HF_TOKEN"


def test_a_user_with_an_everyday_environment_can_start(monkeypatch):
    everyday = {
        "LICENSE_KEY": "training",
        "POSTGRES_PASSWORD": "storyteller",  # tracking.project's default
        "GPG_KEY": "A035C8C19219BA821ECEA86B64E628F8D684696D",  # from Python's Docker images; public
        "TOKENIZERS_PARALLELISM": "false",
        "KEYBOARD": "quickstart",
        "MONKEY": "Once upon a time",
        "CACHE_KEY": "linux-py3.11-v2",
    }
    for name, value in everyday.items():
        monkeypatch.setenv(name, value)
    run = load_config(overrides=["data.source=/home/training/stories.txt", "tracking.run_name=linux-py3.11-v2"]).run
    assert run.tracking.project == "storyteller"
    # Control: a value that looks like a key is refused, and the message says what to do if it is not one.
    with pytest.raises(ConfigError, match=r"tracking.run_name holds the value of GPG_KEY; .*env -u GPG_KEY"):
        load_config(overrides=[f"tracking.run_name={everyday['GPG_KEY']}"])


# --- remote command lines ---


def test_what_deepspeed_exports_of_the_environment_holds_no_secret(secrets):
    check_exported_environment(os.environ)  # none of SECRETS is exported
    for name in ("MLFLOW_TRACKING_TOKEN", "PYTHON_KEYRING_PASSWORD", "NCCL_KEY"):
        with pytest.raises(ConfigError, match=name) as refused:
            check_exported_environment({**os.environ, name: "sentinel0-x"})
        assert "sentinel0" not in str(refused.value)
    with pytest.raises(ConfigError, match="PYTHONSTARTUP"):  # the name is harmless, the value is not
        check_exported_environment({**os.environ, "PYTHONSTARTUP": f"x{secrets['HF_TOKEN']}"})


def test_the_names_that_deepspeed_exports_are_those_that_are_looked_at():
    runner = pytest.importorskip("deepspeed.launcher.runner")
    cuda = pytest.importorskip("deepspeed.accelerator.cuda_accelerator")
    from storyteller_ds.distributed.hostfile import _EXPORTED_NAMES

    exported = {*runner.EXPORT_ENVS, *cuda.CUDA_Accelerator.export_envs(None)}
    assert exported <= set(_EXPORTED_NAMES)


def test_arguments_and_environment_files_for_all_hosts_hold_no_secret(secrets, tmp_path):
    token = secrets["HF_TOKEN"]
    with pytest.raises(ConfigError, match="holds the value of HF_TOKEN") as refused:
        check_arguments(["--config", f"x{token}"])
    assert "sentinel0" not in str(refused.value)
    (tmp_path / "env").write_text(f"HARMLESS={token}\n")
    with pytest.raises(ConfigError, match="HARMLESS looks like a secret") as refused:
        check_environment_file(tmp_path / "env")
    assert "sentinel0" not in str(refused.value)
    (tmp_path / "env").write_text("TOKENIZERS_PARALLELISM=false\n")
    check_environment_file(tmp_path / "env")
