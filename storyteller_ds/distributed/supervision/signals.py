"""The signals that ask a run to end."""

import signal

from storyteller_ds.errors import Interrupted, InterruptedSafely, StorytellerError

ASKING_TO_END = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)
"""Sent by a scheduler, by Slurm before the time limit, by Ctrl-C, and by a terminal that is closed."""


def signals_to_handle() -> tuple[signal.Signals, ...]:
    """The signals of ASKING_TO_END that this process must handle.

    SIGINT and SIGHUP stay ignored if they were ignored when it started: by nohup, or by `command &` in a script.
    """
    may_be_ignored = (signal.SIGINT, signal.SIGHUP)
    return tuple(
        number
        for number in ASKING_TO_END
        if number not in may_be_ignored or signal.getsignal(number) is not signal.SIG_IGN
    )


def outside_training(number: int) -> StorytellerError:
    """The error with which a signal ends a run that is not training."""
    if number == signal.SIGINT:
        return Interrupted("interrupted; the same command again continues from the last checkpoint")
    name = signal.Signals(number).name
    return InterruptedSafely(f"interrupted by {name} while not training; nothing is lost, run again to continue")
