"""One story: a prompt and its continuation, as text."""

from collections.abc import Callable, Iterator

from storyteller_ds.config.run import RunConfig
from storyteller_ds.data.tokenizer import Tokenizer
from storyteller_ds.generation.decode import Stepper, generate_ids, most_new_ids, prompt_ids, stream_text
from storyteller_ds.generation.sampling import SamplingConfig
from storyteller_ds.model.decoder import Decoder


class Story:
    """A story that is generated once, by iterating over the pieces of its continuation.

    Args:
        decoder: see generate_ids.
        run: the decoder's config.
        tokenizer: of the prompt.
        prompt: its beginning.
        config: sampling.
        agree: see generate_ids.
        stepper: see generate_ids; it has one story at a time.

    Raises:
        UserError: the prompt leaves no room in the context.
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
        self.prompt = prompt
        start = prompt_ids(tokenizer, prompt)
        self._missing = most_new_ids(decoder, start, config)
        self._context_comes_first = config.max_new_tokens is None or self._missing < config.max_new_tokens
        self._ids = generate_ids(decoder, run, start, config, tokenizer.end_of_text, agree, stepper)
        self._pieces = stream_text(tokenizer, prompt, self._counted())

    def __iter__(self) -> Iterator[str]:
        return self._pieces

    @property
    def was_cut(self) -> bool:
        """Whether it has as many tokens as it could have, without coming to its end."""
        return self._missing == 0

    @property
    def ran_out_of_context(self) -> bool:
        """Whether it was cut by the end of the context, and not by max_new_tokens."""
        return self.was_cut and self._context_comes_first

    def _counted(self) -> Iterator[int]:
        for chosen in self._ids:
            self._missing -= 1
            yield chosen
