"""The trials of a sweep, one after another, and the study on disk that remembers them."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, Trial, TrialState
from rich.console import Console

from storyteller_ds.config.load import flatten
from storyteller_ds.errors import OutOfMemory, TrainingStopped, UserError
from storyteller_ds.records.run_folder import RunFolder, written_record
from storyteller_ds.sweep.results import Result, shown
from storyteller_ds.sweep.space import Space, Values
from storyteller_ds.training.interruption import Interruption
from storyteller_ds.training.trainer import Trainer

JOURNAL = "study.journal"
_NAME = "sweep"
_VARY = "--vary "
_IDENTITY, _STEPS, _SECONDS, _REASON = "sweep", "steps", "seconds", "reason"


class Study:
    """A sweep in its folder, held exclusively until close().

    Lists are tried in the order in which they are typed, every combination once. If there is a range, optuna's TPE
    (Bergstra et al. 2011) proposes values; its proposal for a trial depends only on the earlier trials and the number
    of this one, so that a continued sweep proposes what an uninterrupted one would.

    Args:
        space: what is varied.
        trials: how many trials; None: all combinations of the listed values.
        folder: holds the study, and a run folder for each trial.

    Raises:
        UserError: another sweep is or was here, or the folder cannot be used.
    """

    def __init__(self, space: Space, trials: int | None, folder: Path) -> None:
        self.space, self.folder = space, folder
        self._trials = trials
        self._lock = RunFolder(folder)
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        try:
            with written_record(folder / JOURNAL):
                self._storage = JournalStorage(JournalFileBackend(str(folder / JOURNAL)))
                self._study = optuna.create_study(storage=self._storage, study_name=_NAME, load_if_exists=True)
                self._check_same()
                for values in space.corners() if trials is None else ():
                    self._study.enqueue_trial(dict(values), skip_if_exists=True)
        except (ValueError, KeyError, TypeError) as error:
            self.close()
            raise UserError(
                f"{folder / JOURNAL} is damaged ({type(error).__name__}: {error}); choose another --output_dir"
            ) from None
        except UserError:
            self.close()
            raise

    def close(self) -> None:
        """Release the folder."""
        self._lock.close()

    @property
    def size(self) -> int:
        """How many trials there will be."""
        return len(self._study.trials) if self._trials is None else self._trials

    @property
    def results(self) -> list[Result]:
        """Results of the finished trials, in the order in which they ran."""
        return [self._result(trial) for trial in self._study.trials if trial.state.is_finished()]

    def run(self, interruption: Interruption, console: Console, log: Callable[[str], None]) -> None:
        """Run the remaining trials; one line is logged for each.

        Raises:
            InterruptedAfterSave, Interrupted, InterruptedSafely: a signal asked for it; run() continues from there.
            UserError: a trial cannot run.
        """
        while (trial := self._next()) is not None:
            values = {each.field: each.suggest(trial) for each in self.space.varied}
            title = f"trial {trial.number + 1} of {self.size}"
            with console.status(f"{title}: {shown(values)}"):
                self._train(trial, values, interruption)
            log(f"{title}: {self._result(self._study.trials[trial.number]).line()}")

    def _next(self) -> Trial | None:
        """The trial that was interrupted, or a new one; None if all are finished."""
        begun = [trial.number for trial in self._study.trials if trial.state == TrialState.RUNNING]
        if not begun and len(self.results) >= self.size:
            return None
        with written_record(self.folder / JOURNAL):
            number = begun[0] if begun else len(self.results)
            self._study.sampler = optuna.samplers.TPESampler(seed=number)
            if not begun:
                return self._study.ask()
            study_id = self._storage.get_study_id_from_name(_NAME)
            return Trial(self._study, self._storage.get_trial_id_from_study_id_trial_number(study_id, number))

    def _train(self, trial: Trial, values: Values, interruption: Interruption) -> None:
        """Train a trial as an ordinary run; its output goes to a file beside its folder."""
        folder, began = self._run_folder(trial.number), time.monotonic()
        score: float | None = None
        found: dict[str, Any] = {}
        try:
            with folder.with_suffix(".log").open("a", encoding="utf-8") as lines:
                trainer = Trainer(self.space.load(values), folder, console=Console(file=lines))
                run = trainer.train(interruption, lambda _: None)
            score, found = run.metrics[-1]["final_val_bpb"], {_STEPS: run.step}
        except TrainingStopped as error:
            found = {_REASON: str(error)}
        except OutOfMemory as error:
            found = {_REASON: str(error).partition(";")[0]}  # without the advice what to lower: the sweep varies that
        finally:
            seconds = trial.user_attrs.get(_SECONDS, 0.0) + time.monotonic() - began
            with written_record(self.folder / JOURNAL):
                for name, value in {**found, _SECONDS: seconds}.items():
                    trial.set_user_attr(name, value)
        with written_record(self.folder / JOURNAL):
            self._study.tell(trial, score, state=TrialState.FAIL if score is None else TrialState.COMPLETE)

    def _result(self, trial: FrozenTrial) -> Result:
        return Result(
            folder=self._run_folder(trial.number),
            values={each.field: each.suggest(trial) for each in self.space.varied},
            bpb=trial.value,
            steps=trial.user_attrs.get(_STEPS),
            seconds=trial.user_attrs[_SECONDS],
            reason=trial.user_attrs.get(_REASON),
        )

    def _run_folder(self, number: int) -> Path:
        return self.folder / f"trial-{number + 1:03d}"

    def _check_same(self) -> None:
        """Refuse a folder with trials of another config, which could not be compared with these."""
        settings = flatten(self.space.load({}).run.model_dump(mode="json"))
        now = settings | {f"{_VARY}{each.field}": each.written for each in self.space.varied}
        before: dict[str, Any] = self._study.user_attrs.get(_IDENTITY, {})
        if not before:
            self._study.set_user_attr(_IDENTITY, now)
        fields = [[name for name in each if name.startswith(_VARY)] for each in (before or now, now)]
        if set(fields[0]) != set(fields[1]):
            was, given = (" ".join(each) for each in fields)
            raise UserError(f"{self.folder} has another sweep: {was}, now {given}; choose another --output_dir")
        for name in [*before, *now] if before else ():
            if before.get(name) != now.get(name):
                raise UserError(
                    f"{self.folder} has another sweep: {name} was {before.get(name)}, now {now.get(name)}; "
                    "choose another --output_dir"
                )
