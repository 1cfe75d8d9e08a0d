"""A trace of some steps: train.profile_steps."""

from pathlib import Path

from torch.profiler import ProfilerActivity, profile

from storyteller_ds.checkpoint.train_state import TrainState
from storyteller_ds.durable import write_atomically
from storyteller_ds.records.run_folder import written_record
from storyteller_ds.training.callbacks.callback import Callback

FOLDER, TRACE, OPERATORS = "profile", "trace.json.gz", "operators.txt"
_ROWS = 20


class Profile(Callback):
    """Traces rank 0 from the step `first` to `last`, both included, and writes the trace and a table of operators.

    Args:
        first: first step, from 1 on.
        last: last step.
        folder: for both files; made if needed.
    """

    def __init__(self, first: int, last: int, folder: Path) -> None:
        self.first, self.last, self.folder = first, last, folder
        self._profile: profile | None = None

    def on_start(self, state: TrainState) -> None:
        """Begin the trace if the run begins right before the first of the steps."""
        self._begin_before(state.step + 1)

    def acts_after(self, state: TrainState) -> bool:
        """Whether the trace begins or ends here."""
        return state.step in (self.first - 1, self.last)

    def on_step_end(self, state: TrainState, last: bool) -> None:
        """Begin or end the trace."""
        if self._profile is not None and (last or state.step >= self.last):
            traced, self._profile = self._profile, None
            traced.stop()
            self._write(traced)
        self._begin_before(state.step + 1)

    def on_end(self, exit_code: int) -> None:
        """A run that is interrupted leaves no trace."""
        if self._profile is not None:
            self._profile.stop()

    def _begin_before(self, step: int) -> None:
        if step == self.first:
            has_cuda = self.trainer.device.type == "cuda"
            activities = [ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * has_cuda]
            self._profile = profile(activities=activities, record_shapes=True, acc_events=True)
            self._profile.start()

    def _write(self, traced: profile) -> None:
        where = "device" if self.trainer.device.type == "cuda" else "cpu"
        table = traced.key_averages().table(sort_by=f"self_{where}_time_total", row_limit=_ROWS)
        with written_record(self.folder):
            self.folder.mkdir(exist_ok=True)
            beside = self.folder / f"tmp.{TRACE}"
            traced.export_chrome_trace(str(beside))
            beside.replace(self.folder / TRACE)
            write_atomically(self.folder / OPERATORS, f"{table}\n")
