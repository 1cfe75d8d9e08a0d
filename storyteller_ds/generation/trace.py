"""A story with what the model computed for each of its tokens."""

import math
from typing import Any

from storyteller_ds.generation.sampling import SamplingConfig
from storyteller_ds.generation.story import Story
from storyteller_ds.generation.story_model import StoryModel
from storyteller_ds.generation.torch_stepper import TorchStepper


class TracedStory:
    """A story that has not been generated yet.

    Args:
        model: generates it.
        stepper: of the model's decoder; used by one story at a time.
        prompt: its beginning.
        config: sampling.

    Raises:
        UserError: see Story.
    """

    def __init__(self, model: StoryModel, stepper: TorchStepper, prompt: str, config: SamplingConfig) -> None:
        self._stepper = stepper
        self._tokens: list[dict[str, Any]] = []
        self._story = Story(
            model.decoder, model.run, model.tokenizer, prompt, config, agree=self._noted, stepper=stepper
        )

    def record(self) -> dict[str, Any]:
        """Generate it; returns an object for JSON.

        It has: prompt; text, the continuation; reason, an Ending; and tokens. Each token has: id; text, what became
        certain with it; probability, the model's own, before penalties, temperature and filters; and experts, for each
        MoE layer those that computed this probability, which are the ones that the previous token went to.
        """
        for _ in self._story:
            pass
        # The id that ends the story is noted last, and has no text.
        return {
            "prompt": self._story.prompt,
            "text": self._story.text.removeprefix(self._story.prompt),
            "reason": self._story.ending,
            "tokens": [
                {"id": token["id"], "text": text, **token}
                for token, text in zip(self._tokens, self._story.token_texts, strict=False)
            ],
        }

    def _noted(self, chosen: int) -> int:
        logits_V = self._stepper.logits_V.cpu().double()
        log_probability = float(logits_V[chosen] - logits_V.logsumexp(dim=-1))
        self._tokens.append({"id": chosen, "probability": math.exp(log_probability), "experts": self._stepper.experts})
        return chosen
