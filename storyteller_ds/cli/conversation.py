"""storyteller generate --interactive: a prompt, its story, the next prompt."""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator

from storyteller_ds.cli.prompts import typed
from storyteller_ds.cli.story_printer import print_story
from storyteller_ds.errors import UserError
from storyteller_ds.generation.sampling import SamplingConfig
from storyteller_ds.generation.story_model import StoryModel

_STDOUT, _STDERR = 1, 2


def converse(model: StoryModel, config: SamplingConfig, num_stories: int, log: Callable[[str], None]) -> None:
    """Print stories until an empty line, the end of stdin, or Ctrl-C at the prompt. stdout holds the stories alone."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  # gives input() arrow keys and a history
    log("Begin a story; Ctrl-C stops one. An empty line ends.")
    number = 0
    while line := _ask():
        prompt = typed(line, "the prompt", log)
        try:
            for _ in range(num_stories):
                # Another story for the same words next time.
                story = model.story(prompt.text, config.of_story(number))
                number += 1
                print_story(story)
                if story.ran_out_of_context:
                    log(f"the model's context of {model.decoder.context_length} tokens ended the story")
        except UserError as error:
            log(str(error))
        except KeyboardInterrupt:
            print(flush=True)


def _ask() -> str:
    """A line without the blanks around it; empty at the end of the input and after Ctrl-C."""
    sys.stdout.flush()
    try:
        with _stdout_on_stderr():
            return input("> ").strip()
    except (EOFError, KeyboardInterrupt):
        print(file=sys.stderr, flush=True)
        return ""


@contextlib.contextmanager
def _stdout_on_stderr() -> Iterator[None]:
    """input() writes its prompt, and readline the line that is edited, to the descriptor of stdout."""
    kept = os.dup(_STDOUT)
    os.dup2(_STDERR, _STDOUT)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(kept, _STDOUT)
        os.close(kept)
