"""storyteller generate --interactive on a terminal, with a model whose stories never end."""

import os
import pty
import select
import signal
import struct
import sys
import textwrap
import time
from collections.abc import Iterator
from fcntl import ioctl
from pathlib import Path
from termios import TIOCSWINSZ

import pytest
import torch

from storyteller_ds.checkpoint.write import Contents
from storyteller_ds.config.data import TokenizerConfig
from storyteller_ds.config.run import RunConfig
from storyteller_ds.data.tokenizers.choose import train_tokenizer
from storyteller_ds.distributed.world import World
from storyteller_ds.engines.single import SingleEngine
from tests.support.checkpoints import write_checkpoint
from tests.support.distributed import wait_until

WIDTH = 30
WAIT_S = 120
UP, LEFT, CTRL_C, CTRL_D = b"\x1b[A", b"\x1b[D", b"\x03", b"\x04"
RUN = RunConfig.model_validate(
    {
        "model": {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "intermediate_size": 16, "tie_embeddings": False},
        "moe": {"num_experts": 0},
        "data": {"sequence_length": 10**9},
        "tokenizer": {"vocab_size": 300},
        "parallel": {"device": "cpu"},
    }
)


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model for which " fox" is the most likely token after any other."""
    tokenizer = train_tokenizer(TokenizerConfig(vocab_size=300), ["a fox and a fox"] * 3)
    (fox,) = tokenizer.encode(" fox")
    engine = SingleEngine(RUN, World(0, 0, 1, 1), torch.device("cpu"))
    with torch.no_grad():
        for name, parameter in engine.decoder.named_parameters():
            parameter.fill_("norm" in name or name == "embedding.weight")
        assert engine.decoder.lm_head is not None
        engine.decoder.lm_head.weight[fox] = 1.0
    config = {"run": RUN.model_dump(mode="json")}
    folder = tmp_path_factory.mktemp("conversation")
    write_checkpoint(engine, folder, 1, Contents({}, config, tokenizer.to_json(), "c", {"world_size": 1}))
    return folder


class Terminal:
    """A command on a pseudo-terminal, with methods to type and read; its stdout may be a file."""

    def __init__(self, command: list[str], stdout: Path | None) -> None:
        self.pid, self.descriptor = pty.fork()
        if self.pid == 0:
            if stdout is not None:
                os.dup2(os.open(stdout, os.O_WRONLY | os.O_CREAT), 1)
            environment = os.environ | {"TERM": "xterm", "LC_ALL": "C.UTF-8"}
            environment.pop("COLUMNS", None)
            os.execve(command[0], command, environment)
        ioctl(self.descriptor, TIOCSWINSZ, struct.pack("HHHH", 24, WIDTH, 0, 0))

    def type(self, keys: bytes) -> None:
        os.write(self.descriptor, keys)

    def shown_up_to(self, text: str) -> str:
        shown, end = "", time.monotonic() + WAIT_S
        while not shown.endswith(text):
            assert select.select([self.descriptor], [], [], max(0.0, end - time.monotonic()))[0], shown
            shown += os.read(self.descriptor, 1).decode("ascii").replace("\r", "")
        return shown

    def exit_code(self) -> int:
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


@pytest.fixture(params=["terminal", "file"])
def talk(request, run_folder, tmp_path) -> Iterator[tuple[Terminal, Path | None]]:
    stdout = tmp_path / "stories.txt" if request.param == "file" else None
    command = [sys.executable, "-m", "storyteller_ds", "generate", "--interactive", "--temperature", "0"]
    terminal = Terminal([*command, "--device", "cpu", "--checkpoint", str(run_folder)], stdout)
    yield terminal, stdout
    try:
        os.kill(terminal.pid, signal.SIGKILL)
        os.waitpid(terminal.pid, 0)
    except (ProcessLookupError, ChildProcessError):
        pass  # it has already ended, as it should
    os.close(terminal.descriptor)


def test_a_conversation(talk):
    terminal, stdout = talk
    terminal.shown_up_to("> ")
    shown = []
    for number, keys in enumerate((b"ad" + LEFT + b"n\n", UP + b"\n"), 1):  # an edited line, then the previous line
        terminal.type(keys)
        if stdout is None:
            shown.append(terminal.shown_up_to("fox\nfox fox fox"))
        else:
            assert wait_until(lambda number=number: stdout.read_text().count("and fox fox") == number, WAIT_S)
        terminal.type(CTRL_C)
        shown.append(terminal.shown_up_to("> "))
    terminal.type(CTRL_D)
    assert terminal.exit_code() == 0
    if stdout is None:
        first_line = textwrap.wrap(" ".join(["and", *["fox"] * 30]), WIDTH)[0]
        assert f"\n{first_line}\nfox fox fox" in shown[0], "lines are broken between words"
        assert f"\n{first_line}\nfox fox fox" in shown[2]
    else:
        assert {story.strip() for story in stdout.read_text().split("fox")} == {"and", ""}
        assert "fox" not in "".join(shown), "stdout has the stories, stderr the rest"
