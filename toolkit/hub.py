"""The Hugging Face hub, asked once: what is there, what is in the cache, or why neither."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

PATIENCE = 3.0  # seconds to wait for the hub's first answer, unless HF_HUB_ETAG_TIMEOUT is set


def hub_folder(name: str, files: Sequence[str]) -> Path:
    """Return a local folder with these files of a hub repository, downloaded where needed.

    Without a network the local cache serves. Nothing else of the repository is fetched.

    Args:
        name: ``"owner/name"``, or a bare name such as ``"gpt2"``.
        files: Patterns of the file names wanted; files in subfolders are left alone.

    Raises:
        ValueError: If there is no such repository, it needs a login, or neither network nor cache
            can serve it; the message says what to do.
    """
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(
            name, allow_patterns=list(files), ignore_patterns=["*/*"], etag_timeout=_patience()
        )
    except Exception as error:  # network, authentication, names, disk: many unrelated classes
        raise ValueError(_reason(name, error)) from error
    return Path(folder)


def in_reach(name: str) -> bool:
    """Whether the hub answers for this dataset; ``False`` without a network.

    Raises:
        ValueError: If the hub answers that there is no such dataset, or that it needs a login.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        HfApi().dataset_info(name, timeout=_patience())
    except (HfHubHTTPError, HFValidationError) as error:
        raise ValueError(_reason(name, error)) from error
    except Exception:  # each HTTP client has its own class for "no connection"
        return False
    return True


def no_answer(name: str) -> str:
    """Return the sentence for a name that neither network nor cache can serve."""
    return (
        f"{name!r} is no local folder or file, the Hugging Face hub did not answer, and the local "
        "cache does not hold it: go online, or give the path of a folder or file"
    )


def _patience() -> float:
    return float(os.environ.get("HF_HUB_ETAG_TIMEOUT", PATIENCE))


def _reason(name: str, error: Exception) -> str:
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        return (
            f"{name!r} is gated: accept its terms on its hub page, then log in with 'hf auth login'"
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            f"the Hugging Face hub knows no {name!r}; a private one needs a login: 'hf auth login'"
        )
    if isinstance(error, errors.LocalEntryNotFoundError | errors.OfflineModeIsEnabled):
        return no_answer(name)
    first = (str(error).strip() or type(error).__name__).splitlines()[0]
    return f"{name!r} could not be fetched from the Hugging Face hub: {first}"
