"""Documents that begin with a prompt, which the model reads but does not learn to write."""


class PromptedStory(str):
    """A prompt and the story after it, as one text."""

    prompt: str

    def __new__(cls, prompt: str, story: str) -> "PromptedStory":
        """Join the two."""
        text = super().__new__(cls, prompt + story)
        text.prompt = prompt
        return text


def prompt_of(document: str) -> str:
    """The prompt that a document begins with; empty for most."""
    return document.prompt if isinstance(document, PromptedStory) else ""


def document_of(prompt: str, story: str) -> str:
    """The document of a row, with LF line ends and no white space around the story; empty if the story is."""
    text = _with_line_feeds(story).strip()
    return PromptedStory(_with_line_feeds(prompt), text) if prompt and text else text


def _with_line_feeds(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")
