"""What the Hugging Face hub's library raises."""


def hub_errors() -> tuple[type[Exception], ...]:
    """The errors raised if the hub cannot be reached, refuses, or gives an unexpected answer."""
    from huggingface_hub.errors import HfHubHTTPError

    # Its bases come from the HTTP client, which differs between major versions of huggingface_hub.
    bases = [base for base in HfHubHTTPError.__bases__ if issubclass(base, Exception)]
    return (OSError, RuntimeError, ValueError, *bases)  # ValueError: an answer that is not JSON
