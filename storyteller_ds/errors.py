"""Exit codes, and the errors that carry them.

The codes are a contract (README, "Exit codes"): scripts and schedulers act on them.
"""

EXIT_DONE = 0
EXIT_USER_ERROR = 2
EXIT_TRAINING_STOPPED = 3
EXIT_KEYBOARD_INTERRUPT = 130


class StorytellerError(Exception):
    """An end of the program that the user can act on: one line on stderr, no traceback."""

    exit_code = EXIT_USER_ERROR

    def __str__(self) -> str:
        # Names and values from files may hold line breaks; the message is one line all the same.
        return " ".join(super().__str__().splitlines())


class UserError(StorytellerError):
    """Something the user gave cannot work: config, data, flags or a file.

    The message is one line that says what is wrong, where, and how to mend it.
    """


class ConfigError(UserError):
    """A run config or a DeepSpeed JSON that cannot be used."""


class DataError(UserError):
    """A corpus, a tokenizer or a token shard that cannot be used."""


class CheckpointError(UserError):
    """A checkpoint that is missing, damaged, or belongs to another model."""


class Interrupted(StorytellerError):
    """The user pressed Ctrl-C; nothing was saved since the last checkpoint."""

    exit_code = EXIT_KEYBOARD_INTERRUPT


class TrainingStopped(StorytellerError):
    """Training gave up by itself, for instance on a non-finite loss."""

    exit_code = EXIT_TRAINING_STOPPED
