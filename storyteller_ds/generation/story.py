"""One story: a prompt and its continuation, as text."""

from collections.abc import Callable, Iterator
from enum import StrEnum

from storyteller_ds.config.run import RunConfig
from storyteller_ds.data.tokenizers.tokenizer import Tokenizer
from storyteller_ds.generation.decode import Continuation, continued, prompt_ids, text_of_each
from storyteller_ds.generation.sampling import SamplingConfig
from storyteller_ds.generation.stepper import Stepper
from storyteller_ds.generation.stop_strings import StopStrings
from storyteller_ds.generation.torch_stepper import TorchStepper
from storyteller_ds.model.decoder import Decoder


class Ending(StrEnum):
    """Why a story ended."""

    END = "end"
    """The model ended it."""
    STOP = "stop"
    """A stop string came next."""
    LENGTH = "length"
    """It has reached max_new_tokens."""
    CONTEXT = "context"
    """It has filled the model's context."""


class Story:
    """A story that is generated once, by iterating over the pieces of its continuation.

    Args:
        decoder: see generate_ids.
        run: the decoder's config.
        tokenizer: of the prompt.
        prompt: its beginning.
        config: sampling.
        agree: see generate_ids.
        stepper: see generate_ids; used by one story at a time.

    Attributes:
        text: the prompt and the continuation so far.
        token_texts: text that became certain with each generated token; joined, the continuation plus any stop string
            and what follows it.
        context_length: context length of the model (tokens).
        continuation: the continuation as ids.

    Raises:
        UserError: the prompt leaves no room in the context, or the model cannot do what the config says.
    """

    def __init__(
        self,
        decoder: Decoder,
        run: RunConfig,
        tokenizer: Tokenizer,
        prompt: str,
        config: SamplingConfig,
        agree: Callable[[int], int] = lambda chosen: chosen,
        stepper: Stepper | None = None,
    ) -> None:
        self.prompt = self.text = prompt
        self.token_texts: list[str] = []
        start = prompt_ids(tokenizer, prompt)
        self.continuation = Continuation(decoder, start, config, tokenizer.end_of_text, agree)
        self._longest, self.context_length = config.max_new_tokens, decoder.context_length
        self._stop = StopStrings(config.stop)
        self._ids = continued(self.continuation, stepper or TorchStepper(decoder, run))
        self._token_texts = text_of_each(tokenizer, prompt, self._read())
        self._is_over = False
        self._pieces = self._told()

    def __iter__(self) -> Iterator[str]:
        return self._pieces

    @property
    def ending(self) -> Ending | None:
        """Why it ended; None: it has not, or its reader stopped early."""
        if not self._is_over:
            return None
        if self._stop.found:
            return Ending.STOP
        if len(self.token_texts) < self.continuation.most:
            return Ending.END
        return Ending.LENGTH if self.continuation.most == self._longest else Ending.CONTEXT

    @property
    def was_cut(self) -> bool:
        """Whether it has as many tokens as it can have, without having ended."""
        return self.ending in (Ending.LENGTH, Ending.CONTEXT)

    def read_from(self, ids: Iterator[int]) -> None:
        """Take the ids of its continuation from elsewhere, such as a Batch; to be called before it is started."""
        self._ids = ids

    def _read(self) -> Iterator[int]:
        yield from self._ids

    def _told(self) -> Iterator[str]:
        for piece in self._stop.before(self._certain()):
            self.text += piece
            yield piece
        self._is_over = True

    def _certain(self) -> Iterator[str]:
        for text in self._token_texts:
            self.token_texts.append(text)
            if text:
                yield text
