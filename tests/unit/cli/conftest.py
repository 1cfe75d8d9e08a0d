"""The run folder of an untrained model, and a fixture that generates from it."""

import contextlib
import io
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from storyteller_ds.checkpoint.write import Contents
from storyteller_ds.cli.main import storyteller
from storyteller_ds.config.data import TokenizerConfig
from storyteller_ds.config.run import RunConfig
from storyteller_ds.data.tokenizers.choose import train_tokenizer
from storyteller_ds.distributed.world import World
from storyteller_ds.engines.single import SingleEngine
from storyteller_ds.errors import UserError
from tests.support.checkpoints import write_checkpoint

CONTEXT = 32


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = RunConfig.model_validate(
        {
            "model": {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "intermediate_size": 16, "init_std": 0.5},
            "moe": {"num_experts": 2, "top_k": 1},
            "data": {"sequence_length": CONTEXT},
            "tokenizer": {"vocab_size": 300},
            "parallel": {"device": "cpu"},
        }
    )
    tokenizer = train_tokenizer(TokenizerConfig(vocab_size=300), ["Once upon a time there was a fox. The end."] * 3)
    folder = tmp_path_factory.mktemp("a run")
    engine = SingleEngine(run, World(0, 0, 1, 1), torch.device("cpu"))
    for step in (1, 2):
        topology = {"world_size": 1, "ep_size": 1, "zero_stage": None, "device": "cpu"}
        config = {"run": run.model_dump(mode="json")}
        contents = Contents({"state": {"step": step}}, config, tokenizer.to_json(), "c", topology)
        write_checkpoint(engine, folder / "checkpoints", step, contents)
    return folder


@pytest.fixture
def generate(run_folder) -> Callable[..., tuple[str, str]]:
    """Run `storyteller generate` in this process; returns stdout, and stderr with any error as its last line."""

    def run(*arguments: str, checkpoint: Path = run_folder) -> tuple[str, str]:
        command = ["generate", "--checkpoint", str(checkpoint), "--device", "cpu", *arguments]
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                storyteller.main(command, standalone_mode=False)
            except UserError as refusal:
                err.write(f"storyteller: {refusal}")
        return out.getvalue(), err.getvalue()

    return run
