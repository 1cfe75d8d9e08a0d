"""What a person sees while training runs: a bar on a terminal, plain lines elsewhere."""

import time
from collections.abc import Callable

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from storyteller_ds.train.hooks import Hook, Record
from storyteller_ds.train.state import TrainState

SECONDS_BETWEEN_LINES = 10.0


class TerminalProgress(Hook):
    """A live bar with the latest loss; validations leave a line above it."""

    def __init__(self, console: Console, max_steps: int) -> None:
        self.console = console
        self.bar = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeRemainingColumn(),
            console=console,
        )
        self.task = self.bar.add_task("training", total=max_steps, note="")

    def on_start(self, state: TrainState) -> None:
        """Show the bar."""
        self.bar.start()
        self.bar.update(self.task, completed=state.step)

    def on_train(self, record: Record) -> None:
        """Move the bar."""
        self.bar.update(self.task, completed=record["step"], note=_train_note(record))

    def on_eval(self, record: Record) -> None:
        """Print the validation."""
        self.bar.print(_eval_line(record), highlight=False)

    def on_end(self, exit_code: int) -> None:
        """Leave the bar as it stands."""
        self.bar.stop()


class PlainProgress(Hook):
    """A line every few seconds and at each validation, for logs and pipes."""

    def __init__(self, say: Callable[[str], None], max_steps: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.say, self.max_steps, self.clock = say, max_steps, clock
        self.last = -float("inf")

    def on_train(self, record: Record) -> None:
        """Say something if the last line is a while ago."""
        if self.clock() - self.last >= SECONDS_BETWEEN_LINES or record["step"] == self.max_steps:
            self.last = self.clock()
            self.say(f"step {record['step']}/{self.max_steps}  {_train_note(record)}")

    def on_eval(self, record: Record) -> None:
        """Say the scores."""
        self.say(_eval_line(record))


def _train_note(record: Record) -> str:
    balance = f"  load cv {record['expert_load_cv']:.2f}" if "expert_load_cv" in record else ""
    loss = "not finite" if record["train_loss"] is None else f"{record['train_loss']:.3f}"
    return f"loss {loss}  lr {record['lr']:.2e}  {record['tokens_per_s']:,.0f} tok/s{balance}"


def _eval_line(record: Record) -> str:
    line = f"step {record['step']}  {_scores(record, '')}"
    is_another_text = record.get("final_val_loss", record["val_loss"]) != record["val_loss"]
    return f"{line}; on the whole text: {_scores(record, 'final_')}" if is_another_text else line


def _scores(record: Record, prefix: str) -> str:
    return (
        f"val loss {record[f'{prefix}val_loss']:.4f}  perplexity {record[f'{prefix}val_ppl']:.2f}  "
        f"bits per byte {record[f'{prefix}val_bpb']:.4f}"
    )
