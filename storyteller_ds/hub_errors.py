"""What the Hugging Face hub's library raises."""


def hub_errors() -> tuple[type[Exception], ...]:
    """The errors of a hub that cannot be reached, refuses, or answers something else."""
    from huggingface_hub.errors import HfHubHTTPError

    # Its bases are the HTTP client's own, which is another with each major version of huggingface_hub.
    bases = [base for base in HfHubHTTPError.__bases__ if issubclass(base, Exception)]
    return (OSError, RuntimeError, ValueError, *bases)  # ValueError: an answer that is not JSON
