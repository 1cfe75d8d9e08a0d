"""Progress of a run: a bar on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Callable, Iterable
from typing import Any

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn
from rich.table import Column

from storyteller_ds.checkpoint.train_state import TrainState
from storyteller_ds.errors import EXIT_DONE
from storyteller_ds.training.callbacks.callback import Callback, Record
from storyteller_ds.training.callbacks.live_view import LiveView
from storyteller_ds.training.callbacks.pace import Pace

SECONDS_BETWEEN_LINES = 10.0


class _BarAndView(Progress):
    """A progress bar with a live view below it."""

    def __init__(self, *columns: ProgressColumn, **settings: Any) -> None:
        self.view = LiveView()
        super().__init__(*columns, **settings)

    def get_renderables(self) -> Iterable[RenderableType]:
        """The bar, then the view."""
        yield from super().get_renderables()
        yield self.view


class TerminalProgress(Callback):
    """A live bar with the latest loss, the loss curve and experts below it, and a line for each validation above it."""

    def __init__(self, console: Console, max_steps: int, pace: Pace) -> None:
        self.console, self.pace = console, pace
        self.bar = _BarAndView(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[pace]}"),  # read again during a step, too
            # What does not fit into the terminal is cut off here, at the end.
            TextColumn("{task.fields[note]}", table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")),
            console=console,
            expand=True,
            # What callbacks print goes above the bar, or into a file if stdout is one.
            redirect_stdout=sys.stdout.isatty(),
        )
        self.task = self.bar.add_task("training", total=max_steps, note="", pace=pace)

    def on_start(self, state: TrainState) -> None:
        """Show the bar."""
        self.pace.start(state)
        self.bar.start()
        self.bar.update(self.task, completed=state.step)

    def on_train(self, record: Record) -> None:
        """Move the bar."""
        self.pace.look(record)
        self.bar.view.look(record)
        self.bar.update(self.task, completed=record["step"], note=_train_note(record))

    def on_eval(self, record: Record) -> None:
        """Print the validation."""
        self.bar.print(_eval_line(record), highlight=False)

    def on_busy(self, what: str, last: bool) -> None:
        """Show it in front of the bar."""
        if last:
            self.pace.finish()
        if what != self.bar.tasks[0].description:
            self.bar.update(self.task, description=what, refresh=True)

    def on_end(self, exit_code: int) -> None:
        """Leave the bar as it stands."""
        self.bar.update(self.task, description="done" if exit_code == EXIT_DONE else "ended")
        self.bar.stop()


class PlainProgress(Callback):
    """A line every few seconds and at each validation, for logs and pipes."""

    def __init__(
        self, log: Callable[[str], None], max_steps: int, pace: Pace, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.log, self.max_steps, self.pace, self.clock = log, max_steps, pace, clock
        self.last = -float("inf")

    def on_start(self, state: TrainState) -> None:
        """Start the clock."""
        self.pace.start(state)

    def on_train(self, record: Record) -> None:
        """Log a line if the last one is some seconds old."""
        self.pace.look(record)
        if self.clock() - self.last >= SECONDS_BETWEEN_LINES or record["step"] == self.max_steps:
            self.last = self.clock()
            self.log(f"step {record['step']}/{self.max_steps}  {_train_note(record)}  {self.pace}")

    def on_eval(self, record: Record) -> None:
        """Log the scores."""
        self.log(_eval_line(record))

    def on_busy(self, what: str, last: bool) -> None:
        """Log what the end of the run is busy with."""
        if last:
            self.log(f"{what} ...")


def _train_note(record: Record) -> str:
    balance = f"  expert imbalance {record['expert_load_cv']:.2f}" if "expert_load_cv" in record else ""
    loss = "not finite" if record["train_loss"] is None else f"{record['train_loss']:.3f}"
    utilization = f" ({record['mfu']:.0%} MFU)" if "mfu" in record else ""
    return f"loss {loss}  lr {record['lr']:.2e}  {record['tokens_per_s']:,.0f} tok/s{utilization}{balance}"


def _eval_line(record: Record) -> str:
    line = f"step {record['step']}  {_scores(record, '')}"
    is_another_text = record.get("final_val_loss", record["val_loss"]) != record["val_loss"]
    return f"{line}; on the whole text: {_scores(record, 'final_')}" if is_another_text else line


def _scores(record: Record, prefix: str) -> str:
    return (
        f"val loss {record[f'{prefix}val_loss']:.4f}  perplexity {record[f'{prefix}val_ppl']:.2f}  "
        f"bits per byte {record[f'{prefix}val_bpb']:.4f}"
    )
