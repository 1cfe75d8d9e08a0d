"""A run's records for TensorBoard."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from storyteller_ds.checkpoint.train_state import TrainState
from storyteller_ds.records.metrics import attempt_of
from storyteller_ds.redaction import one_line
from storyteller_ds.training.callbacks.callback import Callback, Record, Sample
from storyteller_ds.training.callbacks.scalars import scalars


class TensorBoardEvents(Callback):
    """Writes every number and every sample to event files; its step counts the steps attempted, including undone ones.

    A resumed run writes another file, and TensorBoard leaves out what the earlier ones have beyond the step that it
    began at. A disk error ends the tracking with a logged line, but not the run.

    Args:
        folder: folder of the event files; made if needed.
        warn: logs a line.
    """

    def __init__(self, folder: Path, warn: Callable[[str], None]) -> None:
        self.folder, self.warn = folder, warn
        self._writer: Any = None

    def on_start(self, state: TrainState) -> None:
        """Begin a file; what earlier ones have beyond this step is void."""
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(self.folder), purge_step=state.attempts + 1)

    def on_train(self, record: Record) -> None:
        """Write its numbers."""
        self._write(lambda writer: self._numbers(writer, record))

    def on_eval(self, record: Record) -> None:
        """Write its numbers."""
        self.on_train(record)

    def on_samples(self, state: TrainState, samples: Sequence[Sample]) -> None:
        """Write the stories as text."""
        self._write(lambda writer: self._texts(writer, state.attempts, samples))

    def on_end(self, exit_code: int) -> None:
        """Write what is left."""
        self._write(lambda writer: writer.close())

    def _numbers(self, writer: Any, record: Record) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary

        # One event for all: add_scalar for each of a hundred numbers takes milliseconds.
        numbers = scalars(record, with_lists=True).items()
        values = [Summary.Value(tag=name, simple_value=number) for name, number in numbers]
        writer.file_writer.add_summary(Summary(value=values), attempt_of(record))

    def _texts(self, writer: Any, attempt: int, samples: Sequence[Sample]) -> None:
        for number, (prompt, continuation) in enumerate(samples):
            writer.add_text(f"samples/{number}", f"{prompt}{continuation}", attempt)

    def _write(self, what: Callable[[Any], object]) -> None:
        if self._writer is None:
            return
        try:
            what(self._writer)
        except Exception as error:  # whatever happened in its writer thread: no tracker ends a run
            self._writer = None
            self.warn(f"TensorBoard's files get no more records (metrics.jsonl goes on): {one_line(error)}")
