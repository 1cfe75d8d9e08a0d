"""One training run: connects the parts, in the order in which they need each other."""

import contextlib
import json
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from storyteller_kernels.cpu_memory import keep_freed_memory
from storyteller_kernels.cpu_sharing import shared_cores

from storyteller_ds.checkpoint import names
from storyteller_ds.checkpoint import resume as resuming
from storyteller_ds.checkpoint.read import Checkpoint, find_checkpoint, newest_valid, step_folders
from storyteller_ds.checkpoint.rng import rng_state, seed_rng, set_rng_state
from storyteller_ds.checkpoint.train_state import TrainState
from storyteller_ds.checkpoint.write import Contents
from storyteller_ds.config import LoadedConfig, RunConfig
from storyteller_ds.console import lines_to, stderr_console
from storyteller_ds.data.batching.batches import Batches, BatchSplit, TrainBatches, ValidationBatches
from storyteller_ds.data.batching.loading import train_batches, validation_batches
from storyteller_ds.data.batching.prefetch import STEPS_AHEAD, PrefetchedBatches
from storyteller_ds.data.corpus import Corpus
from storyteller_ds.distributed.plan import make_plan
from storyteller_ds.distributed.shared_corpus import shared_corpus
from storyteller_ds.distributed.world import World, pick_device
from storyteller_ds.doctor.examine import lines_before_a_run
from storyteller_ds.doctor.subject import Subject
from storyteller_ds.doctor.text_facts import facts_of_corpus
from storyteller_ds.durable import write_atomically
from storyteller_ds.engines.base import Engine
from storyteller_ds.engines.build import build_engine, check_engine, prepared_machine
from storyteller_ds.engines.device_record import known_product_rate
from storyteller_ds.engines.gradient_check import check_gradients
from storyteller_ds.engines.memory import what_to_lower
from storyteller_ds.engines.precision import run_dtype
from storyteller_ds.errors import CheckpointError, Interrupted, InterruptedAfterSave
from storyteller_ds.machine import machine
from storyteller_ds.meanwhile import LINE_EVERY_S, meanwhile
from storyteller_ds.memory import memory_hint
from storyteller_ds.records import run_folder as records
from storyteller_ds.records.metrics import read_metrics
from storyteller_ds.records.run_folder import RunFolder
from storyteller_ds.records.trained_run import TrainedRun
from storyteller_ds.training import tracking
from storyteller_ds.training.announcement import model_and_devices, text_and_passes
from storyteller_ds.training.callbacks.anomalies import Anomalies
from storyteller_ds.training.callbacks.callback import Callback
from storyteller_ds.training.callbacks.checkpoints import Checkpoints
from storyteller_ds.training.callbacks.metrics_file import MetricsFile
from storyteller_ds.training.callbacks.named import checked, named_callbacks
from storyteller_ds.training.callbacks.pace import Pace
from storyteller_ds.training.callbacks.profile import FOLDER as PROFILE
from storyteller_ds.training.callbacks.profile import Profile
from storyteller_ds.training.callbacks.progress import PlainProgress, TerminalProgress
from storyteller_ds.training.callbacks.run_report import RunReport
from storyteller_ds.training.callbacks.samples import Samples, check_prompts
from storyteller_ds.training.callbacks.slow_steps import SlowSteps
from storyteller_ds.training.callbacks.step_report import StepReport
from storyteller_ds.training.callbacks.watchdog import Watchdog
from storyteller_ds.training.initial import begin_with, check_initial
from storyteller_ds.training.interruption import Interruption
from storyteller_ds.training.loop import train, why_over
from storyteller_ds.user_paths import given_path


class Trainer:
    """Trains a run config into a run folder; one object on every rank.

    The ranks are those of a launcher's environment (deepspeed, torchrun, srun, mpirun), or a single one without a
    launcher. Nothing is written before fit().

    Args:
        config: what load_config returns; a RunConfig trains on one device.
        output_dir: the run folder, created if needed.  [default: runs/NAME]
        callbacks: get every event, after those of train.callbacks.
        resume: auto (the newest checkpoint of output_dir, if any), never, or the path of a run folder or a step folder.
        console: where progress is printed; silent on all ranks but the first.  [default: stderr]
        command: the command that continues this run; for its report.

    Raises:
        ConfigError: the config cannot run on this machine or on these ranks.
    """

    def __init__(
        self,
        config: LoadedConfig | RunConfig,
        output_dir: str | os.PathLike[str] | None = None,
        callbacks: Sequence[Callback] = (),
        resume: str | os.PathLike[str] = "auto",
        console: Console | None = None,
        command: str | None = None,
    ) -> None:
        self.loaded = config if isinstance(config, LoadedConfig) else LoadedConfig.of(config)
        self.run = self.loaded.run
        self.world = World.from_environment()
        rank = None if self.loaded.deepspeed is None else self.world.local_rank  # without DeepSpeed there are no ranks
        self.device = pick_device(self.run.parallel.device, rank)
        self.plan = make_plan(self.run, self.world.size, self.loaded)
        check_engine(self.run, self.loaded.deepspeed, self.plan, self.world, self.device)
        tracking.check_trackers(self.run.tracking)
        self.output_dir = (
            given_path(output_dir, "output_dir") if output_dir is not None else Path("runs") / self.loaded.name
        )
        self.callbacks = checked(named_callbacks(self.run.train.callbacks), callbacks)
        self._resume = str(given_path(resume, "resume"))
        self._origin = None if self.loaded.init_from is None else str(self.loaded.init_from)
        self._command = command
        self._console = console or stderr_console(quiet=not self.world.is_main)
        self._log = lines_to(self._console)
        self.engine: Engine
        """Model and optimizer; available from on_start to on_end."""

    def fit(self) -> TrainedRun:
        """Train to the end, from where the run folder left off; called by every rank.

        A first Ctrl-C, or a notebook's interrupt, saves the step and returns; repeating the call continues the run. The
        signals of a scheduler (SIGTERM, SIGUSR1, SIGHUP) save, too, and raise. Afterwards, signal handlers, torch's
        threads and RNG state, and the environment are as before.

        Raises:
            UserError: text, tokenizer, checkpoint or folder cannot be used, or memory has run out.
            TrainingStopped: loss or gradient was not finite too often.
            InterruptedAfterSave: the run was ended by a signal other than the user's interrupt.
            KeyboardInterrupt: Ctrl-C before training began, or a second one.
        """
        with Interruption() as interruption:
            try:
                return self.train(interruption, self._log)
            except InterruptedAfterSave as error:
                if not interruption.by_ctrl_c:
                    raise
                return TrainedRun(self.output_dir, error.step, interrupted=True)
            except Interrupted as error:
                raise KeyboardInterrupt(str(error)) from None

    def train(self, interruption: Interruption, log_end: Callable[[str], object]) -> TrainedRun:
        """Like fit(), but with the caller's signal handling.

        Args:
            interruption: has been entered.
            log_end: prints, on rank 0, that the run was interrupted and saved.

        Raises:
            InterruptedAfterSave: a signal asked for it; all ranks are done.
        """
        timeout = self.run.parallel.timeout_minutes
        several = self.loaded.deepspeed is not None
        with (
            self._as_before_afterwards(),
            self.world.connected(self.device, timeout) if several else contextlib.nullcontext(),
            contextlib.ExitStack() as stack,
        ):
            try:
                return self._prepare_and_train(interruption, stack)
            except InterruptedAfterSave as error:
                # A launcher ends all ranks as soon as one has exited. At this point, all are done with everything.
                self.world.on_main(partial(log_end, str(error)))
                raise

    def _prepare_and_train(self, interruption: Interruption, stack: contextlib.ExitStack) -> TrainedRun:
        run, world, log = self.run, self.world, self._log
        corpus = shared_corpus(run, world, log)
        batches, validation = self._batches(corpus)
        sequences = batches.order.sequences
        check_prompts(run, corpus.tokenizer)
        with meanwhile(lambda: log("checking the checkpoint to continue from"), LINE_EVERY_S):
            checkpoint, folder = self._open_folder(corpus, stack)
        self._announce(corpus, sequences, is_new=checkpoint is None and self.loaded.init_from is None)
        stack.enter_context(self._memory_hint(is_built=True))
        ds_config = stack.enter_context(prepared_machine(run, self.loaded.deepspeed, world, self.device, log))
        if run.parallel.self_test and ds_config is not None:
            difference = check_gradients(run, ds_config, world, self.device)
            log(f"self-test: gradients are those of one device, largest difference {difference:.1e}")
        with self._memory_hint(is_built=False):
            self.engine = build_engine(run, ds_config, self.plan, world, self.device)
        stack.callback(self._close_engine)
        if checkpoint is None:
            state = TrainState()
            if self.loaded.init_from is not None:
                begin_with(self.engine, self.loaded.init_from)
                log(f"beginning with the weights of {self.loaded.init_from}")
            seed_rng(run.seed, 0, world.rank)
        else:
            state = resuming.restore(self.engine, checkpoint, run.seed)
            log(f"continuing from {checkpoint.folder}")
            if (reason := why_over(run, state)) is not None:
                log(f"already {reason}")
                return TrainedRun(self.output_dir, state.step, finished=checkpoint.folder)
        with interruption.in_training():
            may_end = interruption.ends_process or world.size > 1
            callbacks = self._all_callbacks(corpus, folder, may_end, stack)
            for callback in callbacks:
                callback.trainer = self
            rate = known_product_rate(self.device, run_dtype(run, self.device))
            data: Batches = batches
            if self.device.type == "cuda":  # on a CPU there is nothing to overlap with
                ahead = PrefetchedBatches(batches, STEPS_AHEAD, pinned=True)
                data = stack.enter_context(contextlib.closing(ahead))
            earlier = []
            if folder is not None and checkpoint is not None:  # of the run being continued, which may be another
                earlier = read_metrics(checkpoint.folder.parent.parent / records.METRICS, state.attempts)
            state = train(
                run,
                self.engine,
                data,
                validation,
                state,
                callbacks,
                interruption=interruption,
                product_rate=rate,
                earlier=earlier,
            )
        if state.step < run.train.max_steps:
            log(f"training {why_over(run, state)}")
        return TrainedRun(self.output_dir, state.step)

    def _announce(self, corpus: Corpus, sequences: int, is_new: bool) -> None:
        """Log model, devices and text, and what is probably a mistake; on rank 0 only."""
        if not self.world.is_main:
            return
        text = facts_of_corpus(corpus, sequences)
        subject = Subject(self.loaded, self.plan, self.device, self.output_dir, text, is_new)
        lines = model_and_devices(self.loaded, self.plan, self.device)
        for line in (*lines, text_and_passes(self.run, corpus, sequences), *lines_before_a_run(subject)):
            self._log(line)

    def _memory_hint(self, is_built: bool) -> contextlib.AbstractContextManager[None]:
        rank = f" on rank {self.world.rank} of {socket.gethostname()}" if self.world.size > 1 else ""
        less = what_to_lower(self.run, self.loaded.deepspeed, self.plan, self.device, is_built)
        return memory_hint(f"{less}; then run again to continue", rank)

    def _close_engine(self) -> None:
        self.engine.close()
        del self.engine

    def _all_callbacks(
        self, corpus: Corpus, folder: RunFolder | None, may_end: bool, stack: contextlib.ExitStack
    ) -> list[Callback]:
        """The callbacks of a run, in the order in which they get each event.

        Records come first, so that they are written whatever happens afterwards. The watchdog starts when all others
        are ready, and watches them end. If the process must not be ended (`may_end` is false), it only reports.
        """
        contents = self._contents(corpus)
        saving = Checkpoints(
            self.engine, self.output_dir / records.CHECKPOINTS, self.run.checkpoint, contents, self._log
        )
        callbacks = [] if folder is None else self._records(folder, contents)
        callbacks.append(StepReport())
        if folder is not None and (profiled := self.run.train.profiled) is not None:
            callbacks.append(Profile(*profiled, folder.path / PROFILE))
        if self.device.type == "cpu":
            callbacks.append(SlowSteps(stack.enter_context(shared_cores(self.world.local_size)), self._log))
        callbacks += [Anomalies(self.run, self._log, partial(saving.roll_back, self.run.seed)), *self.callbacks]
        samples = self.output_dir / records.SAMPLES
        return [
            *callbacks,
            Samples(self.engine, self.run, corpus.tokenizer, samples, callbacks),
            saving,
            Watchdog(self.world.rank, self.run.train.hang_timeout_minutes, leave=os._exit if may_end else None),
        ]

    def _records(self, folder: RunFolder, contents: Contents) -> list[Callback]:
        """Files, trackers and progress, which are on rank 0 only."""
        trackers, ids = tracking.trackers(self.loaded, folder, contents.config["run"], self._log)
        config = {**contents.config, **ids, "machine": machine(), "command": self._command}
        write_atomically(folder.path / records.CONFIG, json.dumps(config, indent=2) + "\n")
        write_atomically(folder.path / records.TOKENIZER, contents.tokenizer_json)
        pace, max_steps = Pace(self.run.train), self.run.train.max_steps
        progress: Callback = PlainProgress(self._log, max_steps, pace)
        if self._console.is_interactive and not self._console.quiet:  # no bar on a dumb terminal
            progress = TerminalProgress(self._console, max_steps, pace)
        reports = [RunReport(folder.path, self._log)] if self.run.tracking.report else []
        # Trackers come last: at the end they may wait for a server.
        return [MetricsFile(folder.path / records.METRICS), progress, *reports, *trackers]

    def _contents(self, corpus: Corpus) -> Contents:
        """What every checkpoint of this run holds besides its tensors."""
        topology = {
            "world_size": self.plan.world_size,
            "ep_size": self.plan.ep_size,
            "zero_stage": self.run.parallel.zero_stage,
            "device": self.device.type,
        }
        return Contents(
            trainer={},
            config={
                "run": self.run.model_dump(mode="json"),
                "deepspeed": self.engine.passed_config,
                "topology": topology,
                "init_from": self._origin,
            },
            tokenizer_json=corpus.tokenizer.to_json(),
            dataset_fingerprint=corpus.fingerprint,
            topology=topology,
        )

    def _batches(self, corpus: Corpus) -> tuple[TrainBatches, ValidationBatches]:
        plan = self.plan
        split = BatchSplit(self.world.rank, plan.world_size, plan.micro_batch_size, plan.accumulation_steps)
        return train_batches(self.run, corpus, split), validation_batches(self.run, corpus, split)

    def _open_folder(self, corpus: Corpus, stack: contextlib.ExitStack) -> tuple[Checkpoint | None, RunFolder | None]:
        """The checkpoint to continue from on every rank, and the run folder on rank 0, which keeps the records.

        In this order, so that a mistake leaves no folder.
        """
        folder: RunFolder | None = None

        def open_on_main() -> Checkpoint | None:
            nonlocal folder
            checkpoint = self._find_checkpoint(corpus)
            if checkpoint is None and self.loaded.init_from is not None:
                check_initial(self.loaded.init_from, self.run, corpus.tokenizer)
            is_over = checkpoint is not None and why_over(self.run, resuming.saved_state(checkpoint)) is not None
            folder = RunFolder(self.output_dir)
            stack.callback(folder.close)
            # A run with nothing left to do makes nothing that could replace what is there.
            is_another = checkpoint is None or (self._resume != "auto" and not is_over)
            if is_another and (aside := _set_aside(folder, checkpoint)):
                self._log(f"the records of an earlier run are now in {aside}")
            return checkpoint

        return self.world.on_main(open_on_main), folder

    def _find_checkpoint(self, corpus: Corpus) -> Checkpoint | None:
        checkpoint = None
        if self._resume == "auto":
            checkpoint = newest_valid(self.output_dir / records.CHECKPOINTS, self._log)
        elif self._resume != "never":
            checkpoint = find_checkpoint(Path(self._resume), self._log)
        if checkpoint is not None:
            resuming.check_same_run(checkpoint, self.run, corpus.fingerprint, self._resume)
            self._origin = self._checked_origin(checkpoint)
            for change in resuming.changed_settings(checkpoint, self.run):
                self._log(f"changed since the checkpoint: {change}")
        return checkpoint

    def _checked_origin(self, checkpoint: Checkpoint) -> str | None:
        """The step folder whose weights the run being continued started from, if any.

        Raises:
            CheckpointError: it did not start from other weights, but --init_from asks for that.
        """
        origin, given = checkpoint.read_json(names.CONFIG).get("init_from"), self.loaded.init_from
        if given is not None and origin is None:
            raise CheckpointError(
                f"{checkpoint.folder} did not begin with the weights of another run; --init_from goes with another "
                "--output_dir or --resume never"
            )
        if given is not None and str(given) != origin:
            self._log(f"--init_from is not read again: this run began with the weights of {origin}")
        return None if origin is None else str(origin)

    @contextlib.contextmanager
    def _as_before_afterwards(self) -> Iterator[None]:
        """Restore torch's threads and RNG state, and remove environment variables that libraries set."""
        threads, streams, variables = torch.get_num_threads(), rng_state(self.device), set(os.environ.keys())
        self.world.limit_threads()
        if self.device.type == "cpu":
            keep_freed_memory()
        try:
            yield
        finally:
            torch.set_num_threads(threads)
            set_rng_state(self.device, streams)
            for added in os.environ.keys() - variables:
                del os.environ[added]


def _set_aside(folder: RunFolder, checkpoint: Checkpoint | None) -> Path | None:
    """Move away what does not lead up to the checkpoint that this run continues from; later resumes would find it."""
    checkpoints = folder.path / records.CHECKPOINTS
    if checkpoint is None or not checkpoint.folder.resolve().is_relative_to(checkpoints.resolve()):
        return folder.set_aside()
    later = [f"{records.CHECKPOINTS}/{step.name}" for step in step_folders(checkpoints, after=checkpoint.step)]
    # Records are cut back to the step of the checkpoint. Its Weights & Biases run, whose id is in the config, cannot
    # be cut; so another one begins.
    return folder.set_aside([*later, records.CONFIG], copied=(records.METRICS, records.SAMPLES)) if later else None
