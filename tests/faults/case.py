"""A test of one fault: runs of the smallest model, and the checks that all faults share."""

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
"""One entry of the list that injections.py takes."""

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
    # With dropout, a random stream that is not restored changes the results.
    "model.dropout=0.1",
)
END_S = 200
"""Time limit of any command; one takes a few seconds on an idle machine."""
LEFT_S = 60
"""Time limit for all processes of a faulted run to be gone."""


class Topology(NamedTuple):
    """How many ranks a run trains on, and how."""

    ranks: int
    ds_config: str | None
    arguments: tuple[str, ...] = ()

    def __str__(self) -> str:
        ep = "".join(f" EP {argument.partition('=')[2]}" for argument in self.arguments if "ep_size" in argument)
        return f"{self.ranks} rank(s){f' {self.ds_config}' if self.ds_config else ''}{ep}"


SINGLE = Topology(1, None)
PAIR = Topology(2, "zero2")


class Case:
    """The argument of a fault's function.

    Args:
        machine: starts the runs.
        folder: an empty folder for this case alone.
        undisturbed: returns the folder of a finished run of a topology and overrides, trained once per session.
    """

    def __init__(self, machine: WarmMachine, folder: Path, undisturbed: Callable[..., Path]) -> None:
        self.machine, self.folder, self.undisturbed = machine, folder, undisturbed
        self.run_folder = folder / "run"
        self.runs: list[Run] = []
        self.seen: list[str] = []
        """What was checked, in a few words each; it ends up in docs/reliability.md, so it is always the same."""

    def saw(self, words: str) -> None:
        """Record an observation, once."""
        if words not in self.seen:
            self.seen.append(words)

    @property
    def checkpoints(self) -> Path:
        """The checkpoints folder of this case's run."""
        return self.run_folder / "checkpoints"

    def step_folder(self, step: int) -> Path:
        """The folder of one checkpoint of this case's run."""
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
        """Start the main job in this case's run folder; `console`: where stdout and stderr go instead of into files."""
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
        """Like start, but wait for the end."""
        run = self.start(topology, *arguments, faults=faults, quiet=quiet, env=env, console=console)
        run.wait(END_S)
        return run

    def storyteller(self, *arguments: str) -> Run:
        """Run a storyteller command in one process, to the end."""
        run = self._started(1, arguments, STORYTELLER)
        run.wait(END_S)
        return run

    def main_job(self, *arguments: str) -> Run:
        """Run launch/train.py in one process with only these arguments, to the end."""
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
        """Make this case's run folder a copy of an undisturbed run as it was after the checkpoint of this step."""
        copy_run(self.undisturbed(topology, *arguments), self.run_folder, up_to_step)

    # Checking

    def ended(self, run: Run, codes: int | Sequence[int] | None, *lines: str) -> None:
        """Check that the run ended as it should, with as many lines as patterns, and that no process of it is left.

        Args:
            run: the run to check.
            codes: the allowed exit code or codes; None: any that means a lost rank, so none of our own.
            lines: patterns; each matches one of the lines that begin with "storyteller: ".
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
        """Check that the newest checkpoint whose files all match its manifest is the one of this step."""
        found = newest_valid(self.checkpoints, lambda line: None)
        assert found is not None, f"no valid checkpoint, wanted step {step}"
        assert found.step == step, f"newest valid step {found.step}, wanted {step}"
        self.saw(f"step {step} loads")

    def continues_exactly(self, topology: Topology, *arguments: str, said: Sequence[str] = ()) -> None:
        """Check that the same command ends like the undisturbed run, bit for bit: weights, moments, metrics, samples.

        Args:
            topology: where the run continues.
            arguments: the same as before.
            said: patterns; each matches a line of its output.
        """
        run = self.train(topology, *arguments, quiet=not said)
        assert run.code == 0, run.stderr
        for pattern in said:
            assert any(re.search(pattern, line) for line in run.stderr.splitlines()), f"no '{pattern}' in\n{run.stderr}"
        self.is_exactly(self.undisturbed(topology, *arguments))

    def is_exactly(self, other: Path) -> None:
        """Check that this case's run is bit for bit the same as the other one."""
        if difference := differences(self.run_folder, other):
            raise AssertionError(f"not the same run: {difference}")
        self.saw("bit for bit the undisturbed run")

    def is_within(self, other: Path, tolerance: float) -> None:
        """Like is_exactly, but allow for rounding, since sums are taken in another order."""
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
