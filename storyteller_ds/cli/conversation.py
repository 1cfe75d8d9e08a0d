"""storyteller generate --interactive: a prompt, its story, the next prompt."""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator

from storyteller_ds.cli.prompts import typed
from storyteller_ds.cli.story_printer import print_story
from storyteller_ds.durable import check_output, write_output
from storyteller_ds.errors import UserError
from storyteller_ds.generation.sampling import SamplingConfig, sampling_config
from storyteller_ds.generation.story import Story
from storyteller_ds.generation.story_model import StoryModel
from storyteller_ds.user_paths import expand_home

_STDOUT, _STDERR = 1, 2
_COMMANDS = """\
/retry      another story for the same beginning
/temp 0.9   the temperature from now on
/save FILE  write the last story to a new file
/help       this list
Every other line begins a story; an empty one ends."""


class Conversation:
    """Prints stories until an empty line, the end of stdin, or Ctrl-C at the prompt. Only stories go to stdout.

    Args:
        model: generates the stories.
        config: sampling of the first story; each following story has another random stream.
        num_stories: stories per prompt.
        log: receives all other output.
    """

    def __init__(self, model: StoryModel, config: SamplingConfig, num_stories: int, log: Callable[[str], None]) -> None:
        self.model, self.config, self.num_stories, self.log = model, config, num_stories, log
        self._begun = 0
        self._story: Story | None = None

    def run(self) -> None:
        """Read lines and answer them until the conversation ends."""
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  # gives input() arrow keys and a history
        self.log("Begin a story; Ctrl-C stops one, /help lists the commands. An empty line ends.")
        while line := _ask():
            try:
                self._answer(line)
            except UserError as error:
                self.log(str(error))
            except KeyboardInterrupt:
                print(flush=True)

    def _answer(self, line: str) -> None:
        command, _, argument = line.partition(" ")
        if not command.startswith("/"):
            self._tell(typed(line, "the prompt", self.log).text)
        elif command == "/help":
            self.log(_COMMANDS)
        elif command == "/retry":
            self._tell(self._last().prompt)
        elif command == "/temp":
            self.config = sampling_config({**self.config.model_dump(), "temperature": argument}, "/temp ")
            self.log(f"temperature {self.config.temperature}")
        elif command == "/save":
            self._save(argument.strip())
        else:
            raise UserError(f"{command} is not a command; /help lists them")

    def _tell(self, prompt: str) -> None:
        for _ in range(self.num_stories):
            self._story = self.model.story(prompt, self.config.of_story(self._begun))
            self._begun += 1
            print_story(self._story, self.log)

    def _save(self, name: str) -> None:
        if not name:
            raise UserError("/save needs the name of a file")
        text, path = self._last().text, expand_home(name)
        if path.is_file():
            raise UserError(f"{path} exists already; /save under another name")
        check_output(path, "/save")
        write_output(path, "/save", f"{text}\n")
        self.log(f"saved: {path}")

    def _last(self) -> Story:
        if self._story is None:
            raise UserError("there is no story yet; begin one")
        return self._story


def _ask() -> str:
    """Read a line, without surrounding blanks; it is empty at the end of the input and after Ctrl-C."""
    sys.stdout.flush()
    try:
        with _stdout_on_stderr():
            return input("> ").strip()
    except (EOFError, KeyboardInterrupt):
        print(file=sys.stderr, flush=True)
        return ""


@contextlib.contextmanager
def _stdout_on_stderr() -> Iterator[None]:
    """Redirect stdout's descriptor to stderr: input() writes its prompt, and readline the edited line, to stdout."""
    kept = os.dup(_STDOUT)
    os.dup2(_STDERR, _STDOUT)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(kept, _STDOUT)
        os.close(kept)
