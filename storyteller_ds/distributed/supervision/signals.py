"""The signals that ask a run to end."""

import signal

from storyteller_ds.errors import Interrupted, InterruptedSafely, StorytellerError

ASKING_TO_END = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)
"""From a scheduler, from Slurm before the time is over, from a person, from a terminal that is closed."""


def heard() -> tuple[signal.Signals, ...]:
    """Those that this process is to hear: not what was ignored when it started, as nohup has SIGHUP ignored, and a
    shell script SIGINT for `command &`.
    """
    mostly_for_others = (signal.SIGINT, signal.SIGHUP)
    return tuple(
        number
        for number in ASKING_TO_END
        if number not in mostly_for_others or signal.getsignal(number) is not signal.SIG_IGN
    )


def outside_training(number: int) -> StorytellerError:
    """The error with which a signal ends a run that is not training."""
    if number == signal.SIGINT:
        return Interrupted("interrupted; the same command again continues from the last checkpoint")
    name = signal.Signals(number).name
    return InterruptedSafely(f"interrupted by {name} while not training; nothing is lost, run again to continue")
