"""Exit codes, and the errors that carry them.

The codes are a contract (README, "Exit codes"): scripts and schedulers act on them.
"""

from storyteller_ds.redaction import redacted

EXIT_DONE = 0
EXIT_PEER_LOST = 1
EXIT_USER_ERROR = 2
EXIT_TRAINING_STOPPED = 3
EXIT_INTERRUPTED = 75
"""EX_TEMPFAIL of <sysexits.h>: nothing is lost, and the same command again continues."""
EXIT_KEYBOARD_INTERRUPT = 130
EXIT_READER_GONE = 141
"""128 + SIGPIPE, as in a shell when the reader of the output has gone (`... | head`)."""
LONGEST_MESSAGE = 3000
"""Longest error message (characters); names and values in files can be of any length."""


class StorytellerError(Exception):
    """An error that ends the program and that the user can act on: one line on stderr, no traceback."""

    exit_code = EXIT_USER_ERROR

    def __str__(self) -> str:
        # Names and values from files may contain line breaks and terminal commands, and messages of libraries may
        # contain secrets; the message must be one line of text without any of these.
        line = " ".join(super().__str__().splitlines())
        line = redacted("".join(each if each.isprintable() else ascii(each)[1:-1] for each in line))
        half = LONGEST_MESSAGE // 2  # what is wrong is at the beginning, the fix at the end
        return line if len(line) <= LONGEST_MESSAGE else f"{line[:half]} … {line[-half:]}"


class UserError(StorytellerError):
    """Something the user gave cannot work: config, data, flags or a file.

    The message is one line that says what is wrong, where, and how to fix it.
    """


class ConfigError(UserError):
    """A run config or a DeepSpeed JSON that cannot be used."""


class DataError(UserError):
    """A corpus, a tokenizer or a token shard that cannot be used."""


class OutOfMemory(UserError):
    """What was asked for does not fit into memory; raised by this rank alone, or by all at once."""


class CheckpointError(UserError):
    """A checkpoint that is missing, damaged, or belongs to another model."""


class Interrupted(StorytellerError):
    """The user pressed Ctrl-C outside training; nothing was saved since the last checkpoint."""

    exit_code = EXIT_KEYBOARD_INTERRUPT


class InterruptedSafely(StorytellerError):
    """A signal has ended the run and nothing is lost: it came before training, or the run was saved."""

    exit_code = EXIT_INTERRUPTED


class InterruptedAfterSave(InterruptedSafely):
    """A signal has ended the run after a step that was saved; raised on all ranks at the same step."""

    step = 0
    """Optimizer steps done and saved."""


class TrainingStopped(StorytellerError):
    """Training gave up by itself, for instance on a non-finite loss."""

    exit_code = EXIT_TRAINING_STOPPED
