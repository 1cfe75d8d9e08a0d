"""The storyteller command. A verb's module is imported only when the verb is used, so that help appears at once."""

import contextlib
import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import click

from storyteller_ds import __version__
from storyteller_ds.cli.group import Group
from storyteller_ds.distributed.supervision.supervisor import supervise
from storyteller_ds.errors import EXIT_DONE, EXIT_KEYBOARD_INTERRUPT, EXIT_USER_ERROR, StorytellerError, UserError
from storyteller_ds.home import settle_home
from storyteller_ds.memory import memory_hint
from storyteller_ds.streams import OutputLost, secure_output

_VERBS = {
    "download": "Download datasets of stories from the Hugging Face hub.",
    "preprocess": "Clean, deduplicate and split stories, with a card that accounts for every one.",
    "data": "Verify, count and show the tokenized stories that a run config trains on.",
    "tokenizer": "Train, inspect or compare tokenizers.",
    "plan": "Estimate a run: memory, communication, time, cost, and the best strategy.",
    "train": "Train a story model.",
    "sweep": "Train with each of several settings and compare bits per byte.",
    "bench": "Measure on this machine what the documentation claims.",
    "launch": "Train on several ranks, here or on the machines of a hostfile (through ssh, with pdsh).",
    "generate": "Continue a prompt.",
    "compare": "Train a mixture and its dense twins on the same batches and compare them.",
    "evaluate": "Measure how models predict held-out stories, what their own stories are like, and how much is copied.",
    "report": "Make the report of a run, or of several runs side by side.",
    "atlas": "Show what each expert of a mixture serves, what is lost without it, and which can be removed.",
    "export": "Export a model to the format of another tool, read it back, and compare.",
    "import": "Import a model of another tool into a run folder.",
    "upcycle": "Turn a dense model into a mixture of experts, to train it further.",
    "quantize": "Quantize the weights to 8 or 4 bits and measure the cost in bits per byte.",
    "prune-experts": "Remove experts from a mixture and measure the cost in bits per byte.",
    "config": "Show resolved configs, explain settings, list the presets.",
    "checkpoint": "List, verify, show, compare and prune checkpoints.",
    "doctor": "Find what is wrong with a run before it starts: machine, hosts, text and settings.",
    "certify": "Train a tiny mixture of experts on every topology and compare losses, gradients, weights and logits.",
}
"""The first sentence of each verb's help, so that listing the verbs imports none of their modules."""
_SUPERVISED = ("train",)
"""Verbs that launchers start as several ranks."""
SETTINGS = {
    "token_normalize_func": lambda name: name.replace("-", "_"),  # --top-k is --top_k
    "help_option_names": ["-h", "--help"],
}


class _LazyGroup(Group):
    """A group whose commands live in modules that are not yet imported."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command:
        if cmd_name not in _VERBS:
            from storyteller_ds.config.nearest import did_you_mean  # imports all config modules

            raise UserError(f"no verb is called '{cmd_name}'{did_you_mean(cmd_name, _VERBS)}")
        return _load(cmd_name)

    def description(self, ctx: click.Context, name: str) -> str:
        return _VERBS[name]

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] in _SUPERVISED:
            secure_output(stdout_matters=False)
            supervise()
        return super().resolve_command(ctx, args)


def _load(verb: str) -> click.Command:
    """The command of a verb, named like its module, unless that name is reserved in Python."""
    module, name = ("importing", "import_") if verb == "import" else (verb.replace("-", "_"),) * 2
    command: click.Command = getattr(importlib.import_module(f"storyteller_ds.cli.{module}"), name)
    return command


@click.group(cls=_LazyGroup, context_settings=SETTINGS)
@click.version_option(__version__)
def storyteller() -> None:
    """Train small mixture-of-experts story models, and tell stories with them."""


def main() -> NoReturn:
    """Entry point of the `storyteller` command."""
    run_command(storyteller)


def run_command(command: click.Command) -> NoReturn:
    """Run a command; a user error is reported as one line on stderr, with the exit code of its kind."""
    _run(lambda: command.main(standalone_mode=False))


def _run(action: Callable[[], object]) -> NoReturn:
    secure_output(stdout_matters=True)
    try:
        _check_current_folder()
        settle_home()
        try:
            with memory_hint("close other programs, or use less text or a smaller model"):
                action()
        except click.exceptions.NoArgsIsHelpError as error:
            print(error.format_message())
        sys.stdout.flush()
    except click.exceptions.Exit as stop:
        _leave(stop.exit_code)
    except click.ClickException as error:
        # Raised as our own error, whose text is redacted: what was typed may contain a secret.
        _fail(str(UserError(f"{error.format_message().splitlines()[0]} (see --help)")), EXIT_USER_ERROR)
    except StorytellerError as error:
        _fail(str(error), error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        # A terminal interrupts all ranks; only rank 0 reports it.
        _fail("interrupted" if os.environ.get("RANK", "0") == "0" else "", EXIT_KEYBOARD_INTERRUPT)
    _leave(EXIT_DONE)


def _check_current_folder() -> None:
    """Check that the current folder exists; without it, torch's libraries exit with a misleading message.

    Raises:
        UserError: the folder has been deleted.
    """
    try:
        Path.cwd()
    except FileNotFoundError:
        raise UserError("the current folder has been deleted; cd to one that is there") from None


def print_end(message: str) -> None:
    """Print the single line on stderr that says how a command ended."""
    print(f"storyteller: {message}", file=sys.stderr, flush=True)


def _fail(message: str, code: int) -> NoReturn:
    if message:  # otherwise it has already been printed
        print_end(message)
    _leave(code)


def _leave(code: int) -> NoReturn:
    with contextlib.suppress(OutputLost):  # nobody reads stdout; the exit code gives the reason
        sys.stdout.flush()
    sys.exit(code)
