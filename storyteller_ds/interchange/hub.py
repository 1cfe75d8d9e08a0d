"""Uploading exports to the Hugging Face hub."""

import re
from pathlib import Path
from typing import NoReturn

from storyteller_ds.errors import UserError
from storyteller_ds.hub_errors import hub_errors

_NAME = re.compile(r"([\w.-]+/)?[\w.-]+", re.ASCII)


def check_access(repo: str) -> None:
    """Check that an export can be uploaded to a repository, before the work begins.

    Args:
        repo: OWNER/NAME, or NAME for the user's own.

    Raises:
        UserError: huggingface_hub is missing, the name is invalid, nobody is logged in, or there is no network.
    """
    try:
        from huggingface_hub import HfApi
    except ImportError:
        raise UserError("--push_to_hub needs a package: pip install huggingface_hub") from None
    if not _NAME.fullmatch(repo):
        raise UserError(f"--push_to_hub {repo}: no repository can have this name; give OWNER/NAME")
    try:
        HfApi().whoami()
    except hub_errors() as error:
        _refuse(repo, error)


def upload(folder: Path, repo: str) -> str:
    """Upload an export; a repository that does not exist is created as a private one.

    Returns:
        The URL of its page.

    Raises:
        UserError: it could not be uploaded.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        page = api.create_repo(repo, private=True, exist_ok=True)
        api.upload_folder(repo_id=page.repo_id, folder_path=folder, commit_message="Export of storyteller_ds")
    except hub_errors() as error:
        _refuse(repo, error)
    return str(page)


def _refuse(repo: str, error: Exception) -> NoReturn:
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError

    response = error.response if isinstance(error, HfHubHTTPError) else None
    if isinstance(error, HFValidationError):
        fix = "give OWNER/NAME"
    elif isinstance(error, LocalTokenNotFoundError) or (response is not None and response.status_code == 401):
        raise UserError(f"--push_to_hub {repo}: nobody is logged in to the hub; run `hf auth login`") from error
    elif response is not None and response.status_code in (403, 404):
        fix = "log in as somebody who may write there (hf auth login)"
    else:
        fix = "check the network, and upload the folder later: hf upload REPO FOLDER"
    text = " ".join(str(error).split())
    raise UserError(f"--push_to_hub {repo}: {text:.300}; {fix}") from error
