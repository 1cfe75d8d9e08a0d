"""One training run: the parts connected, in the order in which they need each other."""

import os
import shlex
import socket
from collections.abc import Mapping
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from storyteller_kernels.cpu_sharing import share_cores

from storyteller_ds.checkpoint import resume as resuming
from storyteller_ds.checkpoint.format import Checkpoint, step_folders
from storyteller_ds.checkpoint.hook import CheckpointHook
from storyteller_ds.checkpoint.rng import seed_rng
from storyteller_ds.checkpoint.write import Contents
from storyteller_ds.cli.lines import lines_to
from storyteller_ds.config import LoadedConfig
from storyteller_ds.data.batches import BatchShares, TrainBatches, ValidationBatches
from storyteller_ds.data.corpus import Corpus
from storyteller_ds.durable import write_atomically
from storyteller_ds.inference.samples import SampleHook, check_prompts
from storyteller_ds.memory import memory_hint
from storyteller_ds.model import count_parameters, flops_per_token
from storyteller_ds.parallel.build import build_engine, prepared_machine
from storyteller_ds.parallel.corpus import shared_corpus
from storyteller_ds.parallel.engine import Engine
from storyteller_ds.parallel.gradient_check import check_gradients
from storyteller_ds.parallel.kernel_choice import kernel_choice
from storyteller_ds.parallel.memory import what_to_lower
from storyteller_ds.parallel.plan import ParallelPlan
from storyteller_ds.parallel.precision import DTYPE_NAMES, run_dtype
from storyteller_ds.parallel.world import World
from storyteller_ds.supervision.meanwhile import LINE_EVERY_S, meanwhile
from storyteller_ds.train import run_folder as layout
from storyteller_ds.train.announcement import no_best, no_patience, only_warm_up, text_and_passes, unused_rows
from storyteller_ds.train.anomalies import Anomalies
from storyteller_ds.train.hooks import Hook
from storyteller_ds.train.interruption import Interruption
from storyteller_ds.train.loop import train, why_over
from storyteller_ds.train.pace import Pace
from storyteller_ds.train.progress import PlainProgress, TerminalProgress
from storyteller_ds.train.records import MetricsFile, WandbHook
from storyteller_ds.train.run_folder import RunFolder
from storyteller_ds.train.slow_steps import SlowSteps
from storyteller_ds.train.state import TrainState
from storyteller_ds.train.step_report import StepReport
from storyteller_ds.train.wandb_tracker import WandbTracker
from storyteller_ds.train.watchdog import Watchdog


class Session:
    """The run of one `train` command on one rank.

    Args:
        loaded: the run config and the DeepSpeed JSON.
        plan: shares of the batch and of the experts.
        world: this process among the ranks; connected, if there is a DeepSpeed JSON.
        device: of this rank.
        output_dir: the run folder.
        console: where a person reads along; silent on all ranks but the first.
        interruption: hears the signals that ask the run to end.
    """

    def __init__(
        self,
        loaded: LoadedConfig,
        plan: ParallelPlan,
        world: World,
        device: torch.device,
        output_dir: Path,
        console: Console,
        interruption: Interruption,
    ) -> None:
        self.loaded, self.run, self.plan = loaded, loaded.run, plan
        self.world, self.device, self.output_dir, self.console = world, device, output_dir, console
        self.say = lines_to(console)
        self.interruption = interruption
        self.folder: RunFolder | None = None
        """Only on rank 0, which keeps the records."""
        self.finished: Checkpoint | None = None
        """What was to be continued and is over already. Only on rank 0."""

    def go(self, resume: str) -> None:
        """Train from where the run folder, or `resume`, says, to the end.

        Args:
            resume: auto, never, or the path of a run folder or a step folder.
        """
        corpus = shared_corpus(self.run, self.world, self.say)
        batches = self._batches(corpus)
        check_prompts(self.run, corpus.tokenizer)
        with meanwhile(lambda: self.say("checking the checkpoint to continue from"), LINE_EVERY_S):
            checkpoint = self.world.on_main(lambda: self._open_folder(resume, corpus))
        self._introduce()
        self._introduce_text(corpus, anew=checkpoint is None)
        with (
            self._memory_hint(is_built=True),
            prepared_machine(self.run, self.loaded.deepspeed, self.world, self.device, self.say) as ds_config,
        ):
            self._train(ds_config, corpus, batches, checkpoint)
        self._farewell()

    def _train(
        self,
        ds_config: Mapping[str, Any] | None,
        corpus: Corpus,
        batches: tuple[TrainBatches, ValidationBatches],
        checkpoint: Checkpoint | None,
    ) -> None:
        if self.run.parallel.self_test and ds_config is not None:
            difference = check_gradients(self.run, ds_config, self.world, self.device)
            self.say(f"self-test: gradients are those of one device, largest difference {difference:.1e}")
        with self._memory_hint(is_built=False):
            engine = build_engine(self.run, ds_config, self.plan, self.world, self.device)
        if checkpoint is None:
            state = TrainState()
            seed_rng(self.run.seed, 0, self.world.rank)
        else:
            state = resuming.restore(engine, checkpoint, self.run.seed)
            self._tell_resumed(checkpoint)
        if (reason := why_over(self.run, state)) is not None:
            self.say(f"already {reason}")
        else:
            hooks = self._hooks(engine, corpus)
            saving = next(hook for hook in hooks if isinstance(hook, CheckpointHook))
            anomalies = Anomalies(self.run, self.say, partial(saving.roll_back, self.run.seed))
            with self.interruption.in_training(), Watchdog(self.world.rank, self.run.train.hang_timeout_minutes):
                state = train(self.run, engine, *batches, state, hooks, anomalies, interruption=self.interruption)
            if state.step < self.run.train.max_steps:
                self.say(f"training {why_over(self.run, state)}")

    def _memory_hint(self, is_built: bool) -> AbstractContextManager[None]:
        rank = f" on rank {self.world.rank} of {socket.gethostname()}" if self.world.size > 1 else ""
        less = what_to_lower(self.run, self.loaded.deepspeed, self.plan, self.device, is_built)
        return memory_hint(f"{less}; then run again to continue", rank)

    def _batches(self, corpus: Corpus) -> tuple[TrainBatches, ValidationBatches]:
        plan, length = self.plan, self.run.data.sequence_length
        shares = BatchShares(self.world.rank, plan.world_size, plan.micro_batch_size, plan.accumulation_steps)
        return (
            TrainBatches(corpus.train, corpus.fingerprint, self.run.seed, length, shares),
            ValidationBatches(corpus.validation, corpus.validation_bytes, length, shares),
        )

    def _open_folder(self, resume: str, corpus: Corpus) -> Checkpoint | None:
        """Find what to continue from, then take the run folder; in this order, so that a mistake leaves no folder."""
        checkpoint = None
        if resume == "auto":
            checkpoint = resuming.newest_valid(self.output_dir / layout.CHECKPOINTS, self.say)
        elif resume != "never":
            checkpoint = resuming.find_checkpoint(Path(resume), self.say)
        if checkpoint is not None:
            resuming.check_same_run(checkpoint, self.run, corpus.fingerprint, resume)
            for change in resuming.changed_settings(checkpoint, self.run):
                self.say(f"changed since the checkpoint: {change}")
            if why_over(self.run, resuming.saved_state(checkpoint)) is not None:
                self.finished = checkpoint
        self.folder = RunFolder(self.output_dir)
        # A run that has nothing left to do makes nothing that could take the place of what is there.
        is_another = checkpoint is None or (resume != "auto" and self.finished is None)
        if is_another and (aside := _set_aside(self.folder, checkpoint)):
            self.say(f"the records of an earlier run are now in {aside}")
        return checkpoint

    def _introduce(self) -> None:
        counts = count_parameters(self.run)
        moe, plan = self.run.moe, self.plan
        experts = f"{moe.num_experts} experts, top-{moe.top_k}" if self.run.moe_layers else "dense"
        dtype = DTYPE_NAMES[run_dtype(self.run, self.device)]
        if self.loaded.deepspeed is None:
            engine = f"one device ({self.device.type}, {dtype})"
        else:
            ranks = f"{plan.world_size} rank(s) ({self.device.type}, {dtype})"
            engine = f"DeepSpeed ZeRO-{self.run.parallel.zero_stage} on {ranks}"
            if self.run.moe_layers:
                engine += f", {plan.description}"
        self.say(
            f"{self.loaded.name}: {counts.total:,} parameters, {counts.active:,} active per token ({experts}); "
            f"{flops_per_token(self.run) / 1e6:,.1f} MFLOP per token"
        )
        kernels, slow_kernels = kernel_choice(self.run, self.device, plan.strategy)
        self.say(
            f"{engine}; {plan.micro_batch_size} sequence(s) x {plan.accumulation_steps} pass(es) x "
            f"{plan.world_size} rank(s) = {self.run.train.global_batch_size} per step; "
            f"kernels: {kernels}"
        )
        if slow_kernels is not None:
            self.say(slow_kernels)

    def _introduce_text(self, corpus: Corpus, anew: bool) -> None:
        self.say(text_and_passes(self.run, corpus))
        rows = unused_rows(self.run, corpus.tokenizer) if anew else None
        for warning in (rows, only_warm_up(self.run), no_patience(self.run), no_best(self.run)):
            if warning is not None:
                self.say(warning)

    def _tell_resumed(self, checkpoint: Checkpoint) -> None:
        self.say(f"continuing from {checkpoint.folder}")
        if checkpoint.world_size != self.world.size and (self.run.model.dropout or self.run.moe.noisy_gating):
            self.say(
                f"written by {checkpoint.world_size} rank(s), now {self.world.size}: the random streams of dropout "
                "and gating noise start anew, everything else continues exactly"
            )

    def _hooks(self, engine: Engine, corpus: Corpus) -> list[Hook]:
        topology = {
            "world_size": self.plan.world_size,
            "ep_size": self.plan.ep_size,
            "zero_stage": self.run.parallel.zero_stage,
            "device": self.device.type,
        }
        config = {
            "run": self.run.model_dump(mode="json"),
            "deepspeed": engine.passed_config,
            "topology": topology,
        }

        def contents(trainer: dict[str, object]) -> Contents:
            return Contents(
                trainer=trainer,
                config=config,
                tokenizer_json=corpus.tokenizer.to_json(),
                dataset_fingerprint=corpus.fingerprint,
                topology=topology,
            )

        checkpoints = self.output_dir / layout.CHECKPOINTS
        return [
            *(self._record_hooks(self.folder, config, corpus) if self.folder else []),
            StepReport(),
            *([SlowSteps(share_cores(self.world.local_size), self.say)] if self.device.type == "cpu" else []),
            SampleHook(engine, self.run, corpus.tokenizer, self.output_dir / layout.SAMPLES),
            CheckpointHook(engine, checkpoints, self.run.checkpoint, contents, self.say),
        ]

    def _record_hooks(self, folder: RunFolder, config: Mapping[str, Any], corpus: Corpus) -> list[Hook]:
        """Files, Weights & Biases and progress: what rank 0 alone does."""
        tracking, max_steps = self.run.tracking, self.run.train.max_steps
        # A default gives way to the environment, a choice does not.
        chosen = "tracking.project" in self.loaded.sources or not os.environ.get("WANDB_PROJECT")
        tracker = WandbTracker(
            mode=tracking.wandb,
            project=tracking.project if chosen else None,
            run_name=tracking.run_name,
            output_dir=folder.path,
            config=config["run"],
            run_id=folder.wandb_run_id(),
            warn=self.say,
        )
        folder.write_json(layout.CONFIG, {**config, layout.WANDB_RUN_ID: tracker.run_id})
        write_atomically(folder.path / layout.TOKENIZER, corpus.tokenizer.to_json())
        pace = Pace(self.run.train)
        progress: Hook = PlainProgress(self.say, max_steps, pace)
        if self.console.is_interactive and not self.console.quiet:  # no bar on a dumb terminal
            progress = TerminalProgress(self.console, max_steps, pace)
        return [MetricsFile(folder.path / layout.METRICS), WandbHook(tracker), progress]

    def _farewell(self) -> None:
        if self.folder is None or self.console.quiet:
            return
        if self.finished is None:
            model, newest = self.output_dir, step_folders(self.output_dir / layout.CHECKPOINTS)[0]
        else:  # --resume may have named another run
            model = newest = self.finished.folder
        for label, record in (("metrics:", layout.METRICS), ("samples:", layout.SAMPLES)):
            if (self.output_dir / record).exists():
                print(f"{label:<12}{self.output_dir / record}")
        print(f"checkpoint: {newest}")
        print(
            f'try:        storyteller generate --checkpoint {shlex.quote(str(model))} --prompt "Once upon a time"',
            flush=True,
        )


def _set_aside(folder: RunFolder, checkpoint: Checkpoint | None) -> Path | None:
    """Move away what does not lead up to the checkpoint that this run goes on from, or later resumes would find it."""
    checkpoints = folder.path / layout.CHECKPOINTS
    if checkpoint is None or not checkpoint.folder.resolve().is_relative_to(checkpoints.resolve()):
        return folder.set_aside()
    return folder.set_aside_after([step.name for step in step_folders(checkpoints, after=checkpoint.step)])
