"""One fault being tried out: runs of the smallest model, and the checks that all faults share."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from storyteller_ds.checkpoint.read import newest_valid
from tests.support.distributed import TRAIN, wait_until
from tests.support.runs import assert_same_numbers, copy_run, read_metrics, read_state
from tests.support.warm_machine import STORYTELLER, Run, WarmMachine, ds_arguments

from .injections import VARIABLE

Injection = Mapping[str, Any]
"""One entry for injections.py."""

INJECTIONS = Path(__file__).with_name("injections.py")
STEPS = 12
SAVED_EVERY = 4
TINY = (
    "data.builtin_stories=300",
    "data.sequence_length=16",
    "tokenizer.vocab_size=300",
    "model.hidden_size=16",
    "model.num_layers=1",
    "model.num_heads=2",
    "model.num_kv_heads=1",
    "model.intermediate_size=16",
    "moe.num_experts=4",
    "train.global_batch_size=4",
    "train.eval_batches=1",
    "train.eval_every_steps=4",
    "train.sample_tokens=2",
    "train.sample_prompts=[a]",
    "schedule.warmup_steps=2",
    "tracking.wandb=disabled",
    "parallel.device=cpu",
    f"checkpoint.every_steps={SAVED_EVERY}",
    f"train.max_steps={STEPS}",
    # Dropout, so that a random stream that is not put back shows.
    "model.dropout=0.1",
)
END_S = 200
"""For any command; one takes a few seconds on an idle machine."""
LEFT_S = 60
"""Within which all processes of a run that was hit are gone."""


class Topology(NamedTuple):
    """On how many ranks a run trains, and how."""

    ranks: int
    ds_config: str | None
    arguments: tuple[str, ...] = ()

    def __str__(self) -> str:
        ep = "".join(f" EP {argument.partition('=')[2]}" for argument in self.arguments if "ep_size" in argument)
        return f"{self.ranks} rank(s){f' {self.ds_config}' if self.ds_config else ''}{ep}"


SINGLE = Topology(1, None)
PAIR = Topology(2, "zero2")


class Case:
    """What a fault's function is given.

    Args:
        machine: to start runs on.
        folder: empty, its own.
        undisturbed: gives the finished run of a topology and further overrides, made once a session.
    """

    def __init__(self, machine: WarmMachine, folder: Path, undisturbed: Callable[..., Path]) -> None:
        self.machine, self.folder, self.undisturbed = machine, folder, undisturbed
        self.run_folder = folder / "run"
        self.runs: list[Run] = []
        self.seen: list[str] = []
        """In a few words each, what was checked; ends up in docs/reliability.md, so it is the same every time."""

    def saw(self, words: str) -> None:
        """Note what was seen, once."""
        if words not in self.seen:
            self.seen.append(words)

    @property
    def checkpoints(self) -> Path:
        """Of this case's run."""
        return self.run_folder / "checkpoints"

    def step_folder(self, step: int) -> Path:
        """Of this case's run."""
        return self.checkpoints / f"step_{step:08d}"

    # Starting

    def start(
        self,
        topology: Topology,
        *arguments: str,
        faults: Sequence[Injection] = (),
        quiet: bool = True,
        env: Mapping[str, str] | None = None,
        console: str | None = None,
    ) -> Run:
        """The main job on this case's run folder; `console`: where stdout and stderr go instead of into files."""
        command = [*ds_arguments(topology.ds_config), "--output_dir", str(self.run_folder), *TINY]
        command += [*(["--quiet"] * quiet), *topology.arguments, *arguments]
        return self._started(topology.ranks, command, TRAIN, faults, env, console)

    def train(
        self,
        topology: Topology,
        *arguments: str,
        faults: Sequence[Injection] = (),
        quiet: bool = True,
        env: Mapping[str, str] | None = None,
        console: str | None = None,
    ) -> Run:
        """As start, to the end."""
        run = self.start(topology, *arguments, faults=faults, quiet=quiet, env=env, console=console)
        run.wait(END_S)
        return run

    def storyteller(self, *arguments: str) -> Run:
        """A verb in one process, to the end."""
        run = self._started(1, arguments, STORYTELLER)
        run.wait(END_S)
        return run

    def main_job(self, *arguments: str) -> Run:
        """launch/train.py in one process with these arguments and no others, to the end."""
        run = self._started(1, arguments, TRAIN)
        run.wait(END_S)
        return run

    def _started(
        self,
        ranks: int,
        arguments: Sequence[str],
        script: Path,
        faults: Sequence[Injection] = (),
        env: Mapping[str, str] | None = None,
        console: str | None = None,
    ) -> Run:
        logs = self.folder / f"run{len(self.runs)}.logs"
        command = [*([str(INJECTIONS)] if faults else []), str(script), *arguments]
        env = {**(env or {}), VARIABLE: json.dumps(list(faults))}
        self.runs.append(self.machine.start(ranks, command, logs, env, console))
        return self.runs[-1]

    def copy_of_undisturbed(self, topology: Topology, up_to_step: int, *arguments: str) -> None:
        """This case's run folder becomes that of an undisturbed run as it was after the checkpoint of this step."""
        copy_run(self.undisturbed(topology, *arguments), self.run_folder, up_to_step)

    # Checking

    def ended(self, run: Run, codes: int | Sequence[int] | None, *lines: str) -> None:
        """The run has ended as it should, with these lines and no others, and nothing of it is left.

        Args:
            run: which.
            codes: the exit code or codes; None: any that means a loss, so none of our own.
            lines: patterns; each is found in a line of its own among those that begin with "storyteller: ".
        """
        code = run.wait(END_S)
        assert wait_until(lambda: not run.members(), LEFT_S), f"left behind: {run.members()}\n{run.stderr}"
        if codes is None:
            assert code not in (0, 2, 3, 75), f"exit {code}\n{run.stderr}"
            self.saw("exit code of a loss")
        else:
            assert code in ([codes] if isinstance(codes, int) else codes), f"exit {code}\n{run.stderr}"
            self.saw(f"exit {code}")
        assert "Traceback" not in run.stderr, run.stderr
        assert len(run.lines) == len(lines), run.stderr
        unmatched = [pattern for pattern in lines if not any(re.search(pattern, line) for line in run.lines)]
        assert not unmatched, f"no line has {unmatched}: {run.lines}"
        if lines:
            self.saw("one line" if len(lines) == 1 else f"{len(lines)} lines")
        self.saw("no process left")

    def last_good_is(self, step: int) -> None:
        """The newest checkpoint whose every file agrees with its manifest is of this step."""
        found = newest_valid(self.checkpoints, lambda line: None)
        assert found is not None, f"no valid checkpoint, wanted step {step}"
        assert found.step == step, f"newest valid step {found.step}, wanted {step}"
        self.saw(f"step {step} loads")

    def continues_exactly(self, topology: Topology, *arguments: str, said: Sequence[str] = ()) -> None:
        """The same command again ends as the undisturbed run did, bit for bit: weights, moments, metrics, samples.

        Args:
            topology: to continue on.
            arguments: as given before.
            said: patterns, each in a line of its own of its output.
        """
        run = self.train(topology, *arguments, quiet=not said)
        assert run.code == 0, run.stderr
        for pattern in said:
            assert any(re.search(pattern, line) for line in run.stderr.splitlines()), f"no '{pattern}' in\n{run.stderr}"
        self.is_exactly(self.undisturbed(topology, *arguments))

    def is_exactly(self, other: Path) -> None:
        """This case's run has ended with the bits of the other one."""
        if difference := differences(self.run_folder, other):
            raise AssertionError(f"not the same run: {difference}")
        self.saw("bit for bit the undisturbed run")

    def is_within(self, other: Path, tolerance: float) -> None:
        """As is_exactly, but for the rounding of another order of sums."""
        assert_same_numbers(self.run_folder, other, STEPS, tolerance, fields=())
        self.saw(f"weights and moments within {tolerance:g} of the undisturbed run")


def differences(a: Path, b: Path) -> str:
    """What differs between two finished runs; empty if nothing does."""
    step = max(int(path.name.removeprefix("step_")) for path in (b / "checkpoints").iterdir())
    ours, theirs = read_state(a, step), read_state(b, step)
    assert ours.keys() == theirs.keys()
    found = [name for name in theirs if not torch.equal(ours[name], theirs[name])]
    if read_metrics(a) != read_metrics(b):
        found.append("metrics.jsonl")
    if (a / "samples.md").read_text() != (b / "samples.md").read_text():
        found.append("samples.md")
    return ", ".join(found)
