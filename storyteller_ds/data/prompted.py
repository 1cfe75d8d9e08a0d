"""Documents that begin with a prompt, which the model reads and does not learn to write."""


class PromptedStory(str):
    """A prompt and the story behind it, as one text."""

    prompt: str

    def __new__(cls, prompt: str, story: str) -> "PromptedStory":
        """Join the two."""
        text = super().__new__(cls, prompt + story)
        text.prompt = prompt
        return text


def prompt_of(document: str) -> str:
    """The prompt that a document begins with; that of most is empty."""
    return document.prompt if isinstance(document, PromptedStory) else ""
